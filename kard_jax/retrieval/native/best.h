// The k best passages of a query so far.
//
// A passage is kept as a key: its score as float32, then the earlier passage. Keys are distinct, so
// the best k do not depend on the order in which passages come.
#ifndef KARD_JAX_BEST_H
#define KARD_JAX_BEST_H

#include <stdint.h>
#include <string.h>

typedef struct {
  uint64_t *keys;  // once there are k: a heap, worst first
  int64_t held, k;
} Best;

static inline uint64_t key_of(int32_t score, int64_t passage) {
  float rounded = (float)score;
  uint32_t bits;
  memcpy(&bits, &rounded, 4);  // positive floats sort as their bits do
  return (uint64_t)bits << 32 | (uint32_t)(0xffffffffu - (uint32_t)passage);
}

static inline float score_of(uint64_t key) {
  uint32_t bits = (uint32_t)(key >> 32);
  float score;
  memcpy(&score, &bits, 4);
  return score;
}

// No passage from `first` on whose score is this or less can enter. Of equal scores the earlier
// passage stays, so those before the worst that is held may enter with its score.
static inline int32_t threshold_of(const Best *best, int64_t first) {
  if (best->held < best->k) return 0;
  uint64_t worst = best->keys[0];
  int64_t passage = 0xffffffffu - (uint32_t)worst;
  if (first <= passage) worst -= 1ull << 32;  // the float32 before it
  return (int32_t)score_of(worst);
}

// Puts a key where the one at i was, or below.
static inline void sink(uint64_t *heap, int64_t k, int64_t i, uint64_t key) {
  for (int64_t child; (child = 2 * i + 1) < k; i = child) {
    child += child + 1 < k && heap[child + 1] < heap[child];
    if (heap[child] >= key) break;
    heap[i] = heap[child];
  }
  heap[i] = key;
}

static inline void push(Best *best, uint64_t key) {
  if (best->held == best->k) {
    if (key > best->keys[0]) sink(best->keys, best->k, 0, key);
    return;
  }
  best->keys[best->held++] = key;
  if (best->held < best->k) return;
  for (int64_t i = best->k / 2 - 1; i >= 0; i--) sink(best->keys, best->k, i, best->keys[i]);
}

#endif
