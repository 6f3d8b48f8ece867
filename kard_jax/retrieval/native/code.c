// Lists made ready for adding: what a passage gets of a term follows from the term frequency and
// the passage's length class, so a posting's byte may name the pair instead of the frequency alone.
// Then no length has to be looked up, and the part of the term's weight is in a table of 256.
#include "score.h"

enum { DAMAGED = -3 };

// Counts the pairs of the postings of lists, in every `step`th block. counts: [rows, width].
int64_t kj_count_pairs(const kj_segment *s, int64_t step, int64_t *counts) {
  for (int64_t i = 0; i < s->directory; i++) {
    const kj_chunk *chunk = &s->chunks[i];
    if (chunk->block >= s->blocks) return DAMAGED;
    if (chunk->kind || chunk->block % step) continue;
    Cursor c;
    if (!point(s, chunk->block, s->data + s->block_data[chunk->block], chunk, 0, &c)) return DAMAGED;
    const uint16_t *docs = (const uint16_t *)c.base;
    const uint16_t *classes = s->classes + s->block_passages[chunk->block];
    for (int32_t j = 0; j < c.count; j++) {
      if (c.tfs[j] < s->rows) counts[c.tfs[j] * s->width + classes[docs[j]]]++;
    }
  }
  return 0;
}

// Puts codes into a copy of the segment's data, from [rows, width] of them; other frequencies get
// CODED.
int64_t kj_code(const kj_segment *s, const uint8_t *codes, uint8_t *data, kj_chunk *chunks) {
  for (int64_t i = 0; i < s->directory; i++) {
    const kj_chunk *chunk = &s->chunks[i];
    if (chunk->block >= s->blocks) return DAMAGED;
    if (chunk->kind) continue;
    Cursor c;
    if (!point(s, chunk->block, s->data + s->block_data[chunk->block], chunk, 0, &c)) return DAMAGED;
    const uint16_t *docs = (const uint16_t *)c.base;
    const uint16_t *classes = s->classes + s->block_passages[chunk->block];
    uint8_t *to = data + (c.tfs - s->data);
    for (int32_t j = 0; j < c.count; j++) {
      to[j] = c.tfs[j] < s->rows ? codes[c.tfs[j] * s->width + classes[docs[j]]] : CODED;
      if (to[j] == CODED) chunks[i].kind |= PLAIN;
    }
  }
  return 0;
}
