// The postings of one term in one block of passages, as they lie in the index file.
//
// A block holds at most 65,536 passages, so a passage's number in its block takes two bytes. Few
// postings are a list: numbers ascending, then term frequencies. Many are a bitmap of two bits for
// each passage, in words of 64: it has the term; it has the term more than once. Then, for every
// fourth word, how many passages before it have the term more than once, and the frequencies of
// those alone. A term frequency takes one byte, or four where one of the chunk is above 255.
#ifndef KARD_JAX_POSTINGS_H
#define KARD_JAX_POSTINGS_H

#include <stddef.h>
#include <stdint.h>

enum { BLOCK = 65536, WORDS = BLOCK / 64, RANKED = 4, RANKS = WORDS / RANKED };
enum { BITMAP = 1, WIDE = 2 };  // kj_chunk.kind
enum { BITMAP_FROM = 2048 };  // postings: a list is smaller up to 6,000, but slower to add up

// One entry of the directory: where a term's postings in one block lie.
typedef struct {
  uint32_t offset;      // bytes from where the block's data begins
  uint16_t block;       // number of the block in its segment
  uint16_t last;        // count - 1
  uint16_t min_length;  // of the passages, in terms; at most 65,535: bounds the scores from above
  uint8_t max_tf;       // at most 255, which stands for "or more"
  uint8_t kind;
} kj_chunk;

// Where the parts of a chunk lie, from its first byte. Lists begin at even offsets, bitmaps at
// multiples of eight. `tfs`: how many term frequencies are stored.
static inline size_t chunk_ranks(void) { return WORDS * 16; }
static inline size_t chunk_tfs(int kind, size_t count) {
  size_t at = (kind & BITMAP) ? WORDS * 16 + RANKS * 2 : count * 2;
  return (kind & WIDE) ? (at + 3) / 4 * 4 : at;
}
static inline size_t chunk_size(int kind, size_t count, size_t tfs) {
  return chunk_tfs(kind, count) + ((kind & WIDE) ? tfs * 4 : tfs);
}
static inline size_t chunk_align(int kind) { return (kind & BITMAP) ? 8 : (kind & WIDE) ? 4 : 2; }

#endif
