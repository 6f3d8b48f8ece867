// Postings as plain arrays, for devices: passage numbers, and what each passage gets of the term.
#include "score.h"

enum { DAMAGED = -3 };

// Writes the postings of terms [low, high) that fall into passages [from, to) of the segment, one
// term after another: passages less `from`, parts in units of 2^-32; ends[i]: how many up to and
// with term low + i. passages NULL: only counts. Returns how many, or DAMAGED.
int64_t kj_expand(const kj_segment *s, int64_t low, int64_t high, int64_t from, int64_t to,
                  int32_t *passages, uint32_t *parts, int64_t *ends) {
  int64_t count = 0;
  for (int64_t term = low; term < high; term++) {
    int64_t begin = s->term_chunks[term], end = s->term_chunks[term + 1];
    if (begin > end || end > s->directory) return DAMAGED;
    for (int64_t j = begin; j < end; j++) {
      const kj_chunk *chunk = &s->chunks[j];
      if (chunk->block >= s->blocks) return DAMAGED;
      int64_t first = s->block_passages[chunk->block], after = s->block_passages[chunk->block + 1];
      if (after <= from || first >= to) continue;
      Cursor c;
      const uint8_t *data = s->data + s->block_data[chunk->block];
      if (!point(s, chunk->block, data, chunk, 0, &c)) return DAMAGED;
      int32_t size = (c.kind & BITMAP) ? BLOCK : c.count;
      for (int32_t i = 0; i < size; i++) {
        int32_t doc = (c.kind & BITMAP) ? i : ((const uint16_t *)c.base)[i];
        int64_t passage = first + doc;
        if (passage < from || passage >= to || passage >= after) continue;
        uint32_t tf = (c.kind & BITMAP) ? tf_in(&c, doc) : 1;
        if (!tf) continue;
        if (passages) {
          const uint16_t class = s->classes[passage];
          passages[count] = (int32_t)(passage - from);
          parts[count] = (c.kind & BITMAP) ? part_of(s, tf, class) : part_at(s, &c, i, class);
        }
        count++;
      }
    }
    if (ends) ends[term - low] = count;
  }
  return count;
}
