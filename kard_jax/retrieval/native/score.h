// What a term adds to a passage, in whole numbers, and the segment of an index that it is read from.
//
// A score is a sum of whole numbers, in units of a power of two that depends on the query alone, so
// it does not depend on the order of adding: not on windows, threads, segments or devices.
#ifndef KARD_JAX_SCORE_H
#define KARD_JAX_SCORE_H

#include <math.h>

#include "postings.h"

enum { CODED = 255 };  // codes; this one stands for what has none
enum { PLAIN = 4 };    // kj_chunk.kind of a coded list: it has that one

typedef struct {
  const uint8_t *data;              // blocks, one after another
  const int64_t *block_data;        // [blocks + 1] where each block's bytes begin
  const int64_t *block_passages;    // [blocks + 1] where its passages begin
  int64_t blocks;
  const uint32_t *term_chunks;      // [terms + 1] where each term's chunks begin
  const kj_chunk *chunks;           // [directory] by term, then by block
  int64_t directory;
  const uint16_t *classes;          // [passages + BLOCK] length class of each passage, below width
  const uint16_t *ones;             // [passages + BLOCK] what a term that stands once gets in each
                                    // passage, rounded up, in units of 2^-16
  const uint32_t *parts;            // [rows, width] tf / (tf + held back) by tf, in units of 2^-32
  const double *held_back;          // [width] k1 * (1 - b + b * length / mean) by length class
  const uint16_t *class_of_length;  // [65536] by length: a class whose passages are no longer
  int64_t rows, width;
  int64_t longest;                  // the class of the longest passage
  int64_t first;                    // number of the segment's first passage in the index
  int64_t file, file_data;          // a file to read blocks from instead of `data`, and where its
                                    // first begins; file -1: none
  const uint32_t *coded;            // [CODED + 1] what a code in a list stands for, in units of 2^-32;
                                    // NULL: the bytes of lists are term frequencies
  const uint8_t *plain;             // the same data with term frequencies, where lists are coded
} kj_segment;

static inline uint32_t part_of(const kj_segment *s, uint32_t tf, uint16_t class) {
  if (__builtin_expect(tf < (uint64_t)s->rows, 1)) {
    return s->parts[(int64_t)tf * s->width + class];
  }
  double part = rint(tf / (tf + s->held_back[class]) * 4294967296.0);
  return part < 4294967295.0 ? (uint32_t)part : 4294967295u;
}

// weight * part, rounded to the nearest whole number. weight: what the term adds at most.
static inline int32_t share_of(int32_t weight, uint32_t part) {
  return (int32_t)(((uint64_t)(uint32_t)weight * part + (1u << 31)) >> 32);
}

static inline int32_t value(const kj_segment *s, int32_t weight, uint32_t tf, uint16_t class) {
  return share_of(weight, part_of(s, tf, class));
}

// A term's postings in a block.
typedef struct {
  const uint8_t *base;  // the chunk's first byte
  const uint8_t *tfs;
  int32_t count;
  int32_t weight, bound;
  int32_t beyond;    // bitmap: what it adds at most to a passage beyond what it would if it stood once
  int32_t at;        // list: postings before the passage wanted last (rescore)
  int32_t stored;    // bitmap: term frequencies that can be read, however the index is damaged
  uint8_t kind;
} Cursor;

static inline uint32_t tf_at(const Cursor *c, int32_t i) {
  return (c->kind & WIDE) ? ((const uint32_t *)c->tfs)[i] : c->tfs[i];
}

// What the passage of a list's posting gets of the term, in units of 2^-32.
static inline uint32_t part_at(const kj_segment *s, const Cursor *c, int32_t i, uint16_t class) {
  if (!s->coded || (c->kind & WIDE)) return part_of(s, tf_at(c, i), class);
  uint8_t code = c->tfs[i];
  return code == CODED ? part_of(s, s->plain[c->tfs + i - s->data], class) : s->coded[code];
}

// The term frequency of a passage in a bitmap; 0 where it does not have the term.
static inline uint32_t tf_in(const Cursor *c, int32_t doc) {
  const uint64_t *bits = (const uint64_t *)c->base;
  int32_t word = doc >> 6;
  uint64_t bit = 1ull << (doc & 63);
  if (!(bits[word * 2 + 1] & bit)) return (bits[word * 2] & bit) != 0;
  int32_t rank = ((const uint16_t *)(c->base + chunk_ranks()))[word / RANKED];
  for (int32_t w = word / RANKED * RANKED; w < word; w++) {
    rank += __builtin_popcountll(bits[w * 2 + 1]);
  }
  rank += __builtin_popcountll(bits[word * 2 + 1] & (bit - 1));
  return rank < c->stored ? tf_at(c, rank) : 1;
}

// Points a cursor at a chunk of a block, whose bytes are at `data`. 0 when the chunk does not lie in
// the block: the index is damaged.
static inline int point(const kj_segment *s, int64_t block, const uint8_t *data,
                        const kj_chunk *chunk, int32_t weight, Cursor *c) {
  size_t count = (size_t)chunk->last + 1;
  size_t room = (size_t)(s->block_data[block + 1] - s->block_data[block]);
  size_t size = chunk_size(chunk->kind, count, (chunk->kind & BITMAP) ? 0 : count);
  if (chunk->offset > room || size > room - chunk->offset) return 0;
  int kind = s->coded ? chunk->kind & ~PLAIN : chunk->kind;
  if (kind > (BITMAP | WIDE) || chunk->offset % chunk_align(kind)) return 0;
  c->base = data + chunk->offset;
  c->tfs = c->base + chunk_tfs(chunk->kind, count);
  c->count = (int32_t)count;
  size_t stored = (room - chunk->offset - chunk_tfs(chunk->kind, count)) >> ((chunk->kind & WIDE) ? 2 : 0);
  c->stored = (int32_t)(stored < BLOCK ? stored : BLOCK);
  c->weight = weight;
  c->at = 0;
  c->kind = chunk->kind;
  // What the term can add at most: parts grow with tf and shrink with length.
  uint16_t shortest = s->class_of_length[chunk->min_length];
  c->bound = chunk->max_tf == 255 ? weight : value(s, weight, chunk->max_tf, shortest);
  c->beyond = 0;
  if ((chunk->kind & BITMAP) && chunk->max_tf > 1) {
    // tf / (tf + h) - 1 / (1 + h) grows with tf, and with h up to the root of tf.
    double tf = chunk->max_tf == 255 ? 1e9 : chunk->max_tf;
    double h = fmin(fmax(sqrt(tf), s->held_back[shortest]), s->held_back[s->longest]);
    c->beyond = (int32_t)(weight * (tf / (tf + h) - 1 / (1 + h))) + 2;
  }
  return 1;
}

#endif
