// Passages in, one block of the index out: counts terms passage by passage, then orders postings
// by term. Memory is eight bytes for each posting and eight for each known term.
#include <stdlib.h>
#include <string.h>

#include "postings.h"

typedef struct {
  int32_t term;
  uint32_t tf;
} Posting;

typedef struct {
  Posting *postings;
  int64_t count, capacity;
  int64_t ends[BLOCK];       // postings up to and with each passage
  int32_t lengths[BLOCK];    // terms of each passage, repeated ones too
  int32_t passages;
  int32_t *seen;             // [terms] the passage that had the term last, from 1
  int32_t *slot;             // [terms] its posting, counted from the passage's first
  int64_t terms;
} kj_block;

void kj_block_free(kj_block *block) {
  if (!block) return;
  free(block->postings);
  free(block->seen);
  free(block->slot);
  free(block);
}

kj_block *kj_block_new(void) { return calloc(1, sizeof(kj_block)); }

int32_t kj_block_passages(const kj_block *block) { return block->passages; }

// Forgets the passages; memory is kept for the next block.
void kj_block_clear(kj_block *block) {
  block->count = 0;
  block->passages = 0;
  if (block->seen) memset(block->seen, 0, (size_t)block->terms * sizeof(int32_t));
}

static int reserve_terms(kj_block *block, int64_t terms) {
  if (terms <= block->terms) return 0;
  int64_t size = terms + terms / 2 + 1024;
  int32_t *seen = realloc(block->seen, (size_t)size * sizeof(int32_t));
  if (!seen) return -2;
  block->seen = seen;
  int32_t *slot = realloc(block->slot, (size_t)size * sizeof(int32_t));
  if (!slot) return -2;
  block->slot = slot;
  memset(seen + block->terms, 0, (size_t)(size - block->terms) * sizeof(int32_t));
  block->terms = size;
  return 0;
}

static int reserve_postings(kj_block *block, int64_t more) {
  if (block->count + more <= block->capacity) return 0;
  int64_t size = (block->count + more) * 3 / 2;
  Posting *postings = realloc(block->postings, (size_t)size * sizeof(Posting));
  if (!postings) return -2;
  block->postings = postings;
  block->capacity = size;
  return 0;
}

// Adds passages. words: of all passages one after another; ends[i]: how many up to and with passage
// i; term_of_word[w]: the term's number below `terms`, or -1 for a word that counts for nothing.
// Returns how many passages were taken (the block takes no more than 65,536), -2 when memory is
// short.
int64_t kj_block_add(kj_block *block, const int32_t *words, const int64_t *ends, int64_t passages,
                     const int32_t *term_of_word, int64_t terms) {
  if (reserve_terms(block, terms)) return -2;
  int64_t at = 0;
  for (int64_t i = 0; i < passages; i++) {
    int64_t end = ends[i];
    if (block->passages == BLOCK) return i;
    if (reserve_postings(block, end - at)) return -2;
    int32_t mark = block->passages + 1, length = 0;
    Posting *first = block->postings + block->count;
    int32_t distinct = 0;
    for (; at < end; at++) {
      int32_t term = term_of_word[words[at]];
      if (term < 0) continue;
      length++;
      if (block->seen[term] == mark) {
        first[block->slot[term]].tf++;
      } else {
        block->seen[term] = mark;
        block->slot[term] = distinct;
        first[distinct].term = term;
        first[distinct++].tf = 1;
      }
    }
    block->count += distinct;
    block->lengths[block->passages] = length;
    block->ends[block->passages++] = block->count;
  }
  return passages;
}

// Which terms occur: writes 1 for each into used[terms], and returns how many.
int64_t kj_block_used(const kj_block *block, uint8_t *used, int64_t terms) {
  memset(used, 0, (size_t)terms);
  int64_t distinct = 0;
  for (int64_t i = 0; i < block->count; i++) {
    int32_t term = block->postings[i].term;
    distinct += !used[term];
    used[term] = 1;
  }
  return distinct;
}

// Lays the block out: chunk[place] for the term that place_of_term puts there (offset, last,
// min_length, max_tf and kind), lengths of the passages. Returns the bytes that `kj_block_write`
// needs.
int64_t kj_block_plan(const kj_block *block, const int32_t *place_of_term, int64_t places,
                      kj_chunk *chunks, int32_t *lengths) {
  uint32_t *counts = calloc((size_t)places * 2 + 1, sizeof(uint32_t));
  if (!counts) return -2;
  uint32_t *repeated = counts + places;  // passages that have the term more than once
  for (int64_t i = 0; i < places; i++) {
    chunks[i] = (kj_chunk){.min_length = 65535};
  }
  int64_t at = 0;
  for (int32_t passage = 0; passage < block->passages; passage++) {
    lengths[passage] = block->lengths[passage];
    uint16_t length = (uint16_t)(lengths[passage] < 65535 ? lengths[passage] : 65535);
    for (; at < block->ends[passage]; at++) {
      int32_t place = place_of_term[block->postings[at].term];
      kj_chunk *chunk = &chunks[place];
      uint32_t tf = block->postings[at].tf;
      counts[place]++;
      repeated[place] += tf > 1;
      if (length < chunk->min_length) chunk->min_length = length;
      if (tf > 255) chunk->kind = WIDE;
      if (tf > chunk->max_tf) chunk->max_tf = (uint8_t)(tf < 255 ? tf : 255);
    }
  }
  size_t offset = 0;
  for (int64_t i = 0; i < places; i++) {
    kj_chunk *chunk = &chunks[i];
    if (counts[i] >= BITMAP_FROM) chunk->kind |= BITMAP;
    size_t align = chunk_align(chunk->kind);
    offset = (offset + align - 1) / align * align;
    chunk->offset = (uint32_t)offset;
    chunk->last = (uint16_t)(counts[i] - 1);
    offset += chunk_size(chunk->kind, counts[i], (chunk->kind & BITMAP) ? repeated[i] : counts[i]);
  }
  free(counts);
  return (int64_t)((offset + 7) / 8 * 8);
}

// Writes the postings as planned into data, which holds zeros.
int64_t kj_block_write(const kj_block *block, const int32_t *place_of_term, int64_t places,
                       const kj_chunk *chunks, uint8_t *data) {
  uint32_t *done = calloc((size_t)places + 1, sizeof(uint32_t));
  if (!done) return -2;
  int64_t at = 0;
  for (int32_t passage = 0; passage < block->passages; passage++) {
    for (; at < block->ends[passage]; at++) {
      int32_t place = place_of_term[block->postings[at].term];
      const kj_chunk *chunk = &chunks[place];
      uint8_t *to = data + chunk->offset;
      uint32_t tf = block->postings[at].tf, i = done[place];
      if (chunk->kind & BITMAP) {
        uint64_t *word = (uint64_t *)to + (passage >> 6) * 2, bit = 1ull << (passage & 63);
        word[0] |= bit;
        if (tf == 1) continue;
        word[1] |= bit;
      } else {
        ((uint16_t *)to)[i] = (uint16_t)passage;
      }
      done[place]++;
      uint8_t *tfs = to + chunk_tfs(chunk->kind, (size_t)chunk->last + 1);
      if (chunk->kind & WIDE) {
        ((uint32_t *)tfs)[i] = tf;
      } else {
        tfs[i] = (uint8_t)tf;
      }
    }
  }
  for (int64_t i = 0; i < places; i++) {
    if (!(chunks[i].kind & BITMAP)) continue;
    const uint64_t *bits = (const uint64_t *)(data + chunks[i].offset);
    uint16_t *ranks = (uint16_t *)(data + chunks[i].offset + chunk_ranks());
    uint32_t rank = 0;
    for (int word = 0; word < WORDS; word++) {
      if (word % RANKED == 0) ranks[word / RANKED] = (uint16_t)rank;
      rank += (uint32_t)__builtin_popcountll(bits[word * 2 + 1]);
    }
  }
  free(done);
  return 0;
}
