// Scores of given passages under given queries, without a search.
#include <stdlib.h>

#include "score.h"

enum { DAMAGED = -3, NO_MEMORY = -2 };

typedef struct {
  int64_t passage;  // in the segment
  int64_t place;    // in the row
} Wanted;

static int ascending(const void *a, const void *b) {
  int64_t left = ((const Wanted *)a)->passage, right = ((const Wanted *)b)->passage;
  return (left > right) - (left < right);
}

// The posting of a passage in a list at or after *at, or -1. Doubles its steps, then halves them.
static int32_t find(const uint16_t *docs, int32_t count, int32_t *at, int32_t doc) {
  int32_t low = *at, step = 1;
  while (low + step < count && docs[low + step] <= doc) {
    low += step;
    step *= 2;
  }
  int32_t high = low + step < count ? low + step : count;  // docs[high] > doc, or the end
  while (low + 1 < high) {
    int32_t middle = (low + high) / 2;
    if (docs[middle] <= doc) low = middle; else high = middle;
  }
  *at = low;
  return count > 0 && docs[low] == doc ? low : -1;
}

// Adds one term to the sums of a query's wanted passages, which are in order.
static int add_term(const kj_segment *s, int32_t term, int32_t weight, const Wanted *wanted,
                    int64_t count, int32_t *sums) {
  int64_t next = s->term_chunks[term], end = s->term_chunks[term + 1], block = -1;
  if (next > end || end > s->directory) return DAMAGED;
  Cursor c;
  int here = 0;
  for (int64_t i = 0; i < count; i++) {
    int64_t passage = wanted[i].passage;
    if (block < 0 || passage >= s->block_passages[block + 1]) {
      int64_t low = block < 0 ? 0 : block + 1, high = s->blocks;  // the block that holds it
      while (low + 1 < high) {
        int64_t middle = (low + high) / 2;
        if (s->block_passages[middle] <= passage) low = middle; else high = middle;
      }
      block = low;
      int64_t after = end;  // the term's first chunk at or after the block
      for (int64_t begin = next; begin < after;) {
        int64_t middle = (begin + after) / 2;
        if (s->chunks[middle].block < block) begin = middle + 1; else after = middle;
        next = begin;
      }
      here = next < end && s->chunks[next].block == block;
      if (here && !point(s, block, s->data + s->block_data[block], &s->chunks[next], weight, &c)) return DAMAGED;
    }
    if (!here) continue;
    int32_t doc = (int32_t)(passage - s->block_passages[block]);
    const uint16_t class = s->classes[passage];
    if (c.kind & BITMAP) {
      uint32_t tf = tf_in(&c, doc);
      if (tf) sums[wanted[i].place] += value(s, weight, tf, class);
    } else {
      int32_t at = find((const uint16_t *)c.base, c.count, &c.at, doc);
      if (at >= 0) sums[wanted[i].place] += share_of(weight, part_at(s, &c, at, class));
    }
  }
  return 0;
}

// Adds to sums [queries, each] what the segment says of passages [queries, each], numbers in the
// index; others (and -1) are passed over. terms, weights and ends are as in kj_search.
int64_t kj_rescore(const kj_segment *s, const int32_t *terms, const int32_t *weights,
                   const int64_t *ends, int64_t queries, const int32_t *passages, int64_t each,
                   int32_t *sums) {
  int64_t size = s->block_passages[s->blocks], result = 0;
  Wanted *wanted = malloc((size_t)(each + 1) * sizeof(Wanted));
  if (!wanted) return NO_MEMORY;
  for (int64_t q = 0; q < queries && !result; q++) {
    int64_t count = 0;
    for (int64_t i = 0; i < each; i++) {
      int64_t passage = passages[q * each + i] - s->first;
      if (passage >= 0 && passage < size) wanted[count++] = (Wanted){passage, i};
    }
    qsort(wanted, (size_t)count, sizeof(Wanted), ascending);
    for (int64_t i = q ? ends[q - 1] : 0; i < ends[q] && !result; i++) {
      result = add_term(s, terms[i], weights[i], wanted, count, sums + q * each);
    }
  }
  free(wanted);
  return result;
}
