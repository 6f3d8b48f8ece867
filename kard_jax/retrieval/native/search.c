// The k best passages of many queries, exactly, block after block of a segment's passages.
//
// Sums are kept for a window of passages that fits the processor's first cache. Terms with few
// postings (lists) are added for each passage that has them. Terms with many (bitmaps) are not
// looked at one by one: for 64 passages at a time one instruction adds a term's weight, in coarse
// units, where its bit is set. That bounds what all bitmaps add to a passage, closely, and only
// where the sum then exceeds the k-th best score so far are true values looked up. This is
// MaxScore's idea (Turtle and Flood 1995) turned to whole windows.
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

#include "score.h"

enum { GROUP = 64 };           // passages in a word of a bitmap
enum { GROUPED = 16 };         // bitmaps whose units are added in single bytes
enum { FIRST_WINDOW = 1024 };  // small while the heap is not full: a threshold is wanted early
enum { WINDOW = 8192 };        // 32 KB of sums
enum { DAMAGED = -3, NO_MEMORY = -2 };

typedef struct {
  int32_t passage, score;
} Candidate;

// A bitmap's coarse units, rounded up.
typedef struct {
  uint8_t once;    // its weight
  uint8_t beyond;  // what it adds at most where it stands oftener, beyond what it adds once
} Units;

typedef struct {
  int32_t *sums;            // [BLOCK]
  Candidate *found;         // [WINDOW]
  Cursor *lists, *bitmaps;  // [most terms of a query]
  Units *units;             // of the bitmaps
  uint16_t *once, *beyond;  // [BLOCK] each passage's sums of units
} Scratch;

// A query's terms in a block.
typedef struct {
  int32_t lists, bitmaps;
  int32_t shift;  // a unit is 1 << shift
  int32_t most;   // what all of them can add
} Present;

// The best passages of a query so far: a heap, worst first.
typedef struct {
  uint64_t *heap;
  int64_t held, k;
} Best;

// ---- the k best. A key is the score as float32, then the earlier passage.

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

// A passage has to exceed this to enter: those still to come lose ties.
static inline int32_t threshold_of(const Best *best) {
  return best->held < best->k ? 0 : (int32_t)score_of(best->heap[0]);
}

static void push(Best *best, uint64_t key) {
  uint64_t *heap = best->heap;
  int64_t i, k = best->k;
  if (best->held < k) {
    for (i = best->held++; i > 0 && heap[(i - 1) / 2] > key; i = (i - 1) / 2) {
      heap[i] = heap[(i - 1) / 2];
    }
    heap[i] = key;
    return;
  }
  if (key <= heap[0]) return;
  for (i = 0;;) {
    int64_t child = 2 * i + 1;
    if (child >= k) break;
    child += child + 1 < k && heap[child + 1] < heap[child];
    if (heap[child] >= key) break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = key;
}

// ---- adding terms to the sums of a window [from, to) of a block

static void add_list(const kj_segment *s, Cursor *c, int32_t to, const uint16_t *classes,
                     int32_t *sums) {
  const uint16_t *docs = (const uint16_t *)c->base;
  const int32_t count = c->count, weight = c->weight;
  int32_t i = c->at;
  if (!(c->kind & WIDE)) {
    const uint8_t *tfs = c->tfs;
    for (; i + 4 <= count && docs[i + 3] < to; i += 4) {
      for (int j = 0; j < 4; j++) {
        uint16_t doc = docs[i + j];
        sums[doc] += value(s, weight, tfs[i + j], classes[doc]);
      }
    }
  }
  for (; i < count && docs[i] < to; i++) {
    sums[docs[i]] += value(s, weight, tf_at(c, i), classes[docs[i]]);
  }
  c->at = i;
}

static void add_bitmap(const kj_segment *s, const Cursor *c, int32_t from, int32_t to,
                       const uint16_t *classes, int32_t *sums) {
  const uint64_t *bits = (const uint64_t *)c->base;
  for (int32_t word = from / GROUP; word < (to + GROUP - 1) / GROUP; word++) {
    for (uint64_t left = bits[word * 2]; left; left &= left - 1) {
      int32_t doc = word * GROUP + __builtin_ctzll(left);
      sums[doc] += value(s, c->weight, tf_in(c, doc), classes[doc]);
    }
  }
}

// What bitmaps can add to a passage that has so many units of them.
static inline int32_t bound_of(uint32_t once, uint32_t beyond, uint32_t one, Present present) {
  uint32_t fine = (once * one >> 8) + (beyond << 8) + 1;  // in units of 1 << (shift - 8)
  // Each true value is rounded, so it may exceed its share by half: `bitmaps` makes up for that.
  return (int32_t)(fine << (present.shift - 8)) + present.bitmaps;
}

// Rounds the weights of bitmaps, of which the heaviest come first, up to units, so that those of
// any GROUPED in a row are at most 255 in all, those beyond included.
static int32_t make_units(const Cursor *c, int32_t count, Units *units) {
  int64_t total = 0;
  for (int32_t i = 0; i < count && i < GROUPED; i++) total += c[i].weight + c[i].beyond;
  int32_t shift = 8;
  while ((total >> shift) + 2 * GROUPED > 255) shift++;
  for (int32_t i = 0; i < count; i++) {
    units[i].once = (uint8_t)((c[i].weight + (1 << shift) - 1) >> shift);
    units[i].beyond = (uint8_t)((c[i].beyond + (1 << shift) - 1) >> shift);
  }
  return shift;
}

#ifdef __AVX512BW__
// bound_of for 64 passages, whose units are bytes.
static inline void store_bounds(const kj_segment *s, Scratch *scratch, Present present,
                                const __m512i units[2], int32_t doc, int64_t first) {
  const __m512i slack = _mm512_set1_epi32(present.bitmaps);
  for (int half = 0; half < 2; half++) {
    __m256i bytes[2];
    for (int plane = 0; plane < 2; plane++) {
      bytes[plane] = half ? _mm512_extracti64x4_epi64(units[plane], 1)
                          : _mm512_castsi512_si256(units[plane]);
    }
    __m512i once = _mm512_cvtepu8_epi16(bytes[0]), beyond = _mm512_cvtepu8_epi16(bytes[1]);
    _mm512_storeu_si512(scratch->once + doc + half * 32, once);
    _mm512_storeu_si512(scratch->beyond + doc + half * 32, beyond);
    __m512i ones = _mm512_loadu_si512(s->ones + first + doc + half * 32);
    __m512i fine = _mm512_mulhi_epu16(_mm512_slli_epi16(once, 8), ones);
    fine = _mm512_add_epi16(fine, _mm512_slli_epi16(beyond, 8));
    fine = _mm512_add_epi16(fine, _mm512_set1_epi16(1));
    for (int quarter = 0; quarter < 2; quarter++) {
      __m256i part = quarter ? _mm512_extracti64x4_epi64(fine, 1) : _mm512_castsi512_si256(fine);
      __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(part), (unsigned)present.shift - 8);
      _mm512_storeu_si512(scratch->sums + doc + half * 32 + quarter * 16,
                          _mm512_add_epi32(wide, slack));
    }
  }
}
#endif

// Sets the sums of a window to bounds of what the bitmaps add to each passage.
static void set_bounds(const kj_segment *s, Scratch *scratch, Present present, int32_t from,
                       int32_t to, int64_t first) {
  const Cursor *c = scratch->bitmaps;
  uint16_t *once = scratch->once, *beyond = scratch->beyond;
  const int32_t count = present.bitmaps;
#ifdef __AVX512BW__
  const uint64_t *bits[GROUPED];
  __m512i units[GROUPED][2];
  for (int32_t group = 0; group < count; group += GROUPED) {
    int32_t size = count - group < GROUPED ? count - group : GROUPED;
    for (int32_t i = 0; i < size; i++) {
      bits[i] = (const uint64_t *)c[group + i].base;
      units[i][0] = _mm512_set1_epi8((char)scratch->units[group + i].once);
      units[i][1] = _mm512_set1_epi8((char)scratch->units[group + i].beyond);
    }
    for (int32_t word = from / GROUP; word < (to + GROUP - 1) / GROUP; word++) {
      __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
      for (int32_t i = 0; i < size; i++) {
        sum[0] = _mm512_mask_add_epi8(sum[0], bits[i][word * 2], sum[0], units[i][0]);
        sum[1] = _mm512_mask_add_epi8(sum[1], bits[i][word * 2 + 1], sum[1], units[i][1]);
      }
      if (count <= GROUPED) {
        store_bounds(s, scratch, present, sum, word * GROUP, first);
        continue;
      }
      for (int plane = 0; plane < 2; plane++) {
        uint16_t *total = (plane ? beyond : once) + word * GROUP;
        for (int half = 0; half < 2; half++) {
          __m256i bytes = half ? _mm512_extracti64x4_epi64(sum[plane], 1)
                               : _mm512_castsi512_si256(sum[plane]);
          __m512i wide = _mm512_cvtepu8_epi16(bytes);
          if (group) wide = _mm512_add_epi16(wide, _mm512_loadu_si512(total + half * 32));
          _mm512_storeu_si512(total + half * 32, wide);
        }
      }
    }
  }
#else
  memset(once + from, 0, (size_t)(to - from + GROUP) / GROUP * GROUP * sizeof(uint16_t));
  memset(beyond + from, 0, (size_t)(to - from + GROUP) / GROUP * GROUP * sizeof(uint16_t));
  for (int32_t i = 0; i < count; i++) {
    const uint64_t *bits = (const uint64_t *)c[i].base;
    for (int32_t word = from / GROUP; word < (to + GROUP - 1) / GROUP; word++) {
      for (uint64_t left = bits[word * 2]; left; left &= left - 1) {
        once[word * GROUP + __builtin_ctzll(left)] += scratch->units[i].once;
      }
      for (uint64_t left = bits[word * 2 + 1]; left; left &= left - 1) {
        beyond[word * GROUP + __builtin_ctzll(left)] += scratch->units[i].beyond;
      }
    }
  }
#endif
  const uint16_t *ones = s->ones + first;
  int32_t *sums = scratch->sums;
#ifdef __AVX512BW__
  if (count <= GROUPED) return;
#endif
  for (int32_t doc = from; doc < to; doc++) {
    sums[doc] = bound_of(once[doc], beyond[doc], ones[doc], present);
  }
}

// Takes the passages whose sums exceed the threshold, and sets all sums back to zero.
static int32_t collect(int32_t *sums, int32_t from, int32_t to, int32_t threshold,
                       Candidate *found) {
  int32_t count = 0;
  for (int32_t doc = from; doc < to; doc += GROUP) {
    int32_t *group = sums + doc;
    uint64_t above = 0;
#ifdef __AVX512BW__
    __m512i least = _mm512_set1_epi32(threshold);
    for (int i = 0; i < 4; i++) {
      __m512i four = _mm512_loadu_si512(group + 16 * i);
      above |= (uint64_t)_mm512_cmpgt_epi32_mask(four, least) << (16 * i);
    }
#else
    int32_t most = 0;
    for (int i = 0; i < GROUP; i++) most = most > group[i] ? most : group[i];
    if (most > threshold) {
      for (int i = 0; i < GROUP; i++) above |= (uint64_t)(group[i] > threshold) << i;
    }
#endif
    for (; above; above &= above - 1) {
      int i = __builtin_ctzll(above);
      found[count++] = (Candidate){doc + i, group[i]};
    }
    memset(group, 0, GROUP * sizeof(int32_t));
  }
  return count;
}

// ---- one query in one window

// Puts the bitmaps' true values in the place of their bound, the heaviest first. Returns less than
// the passage's score when it is found not to exceed the threshold.
static int32_t look_up(const kj_segment *s, const Scratch *scratch, Present present,
                       Candidate candidate, int64_t first, int32_t threshold) {
  const int32_t doc = candidate.passage;
  const uint16_t class = s->classes[first + doc], one = s->ones[first + doc];
  uint32_t once = scratch->once[doc], beyond = scratch->beyond[doc];
  int32_t score = candidate.score - bound_of(once, beyond, one, present);
  const int32_t word = doc >> 6;
  const uint64_t bit = 1ull << (doc & 63);
  for (int32_t group = 0; once && group < present.bitmaps; group += 64) {
    int32_t size = present.bitmaps - group < 64 ? present.bitmaps - group : 64;
    uint64_t has = 0;  // which bitmaps have it: no branch to guess wrong for each
    for (int32_t i = 0; i < size; i++) {
      const uint64_t *bits = (const uint64_t *)scratch->bitmaps[group + i].base;
      has |= (bits[word * 2] >> (doc & 63) & 1) << i;
    }
    for (; has; has &= has - 1) {
      int32_t i = group + __builtin_ctzll(has);
      const Cursor *c = &scratch->bitmaps[i];
      once -= scratch->units[i].once;
      uint32_t tf = 1;
      if (((const uint64_t *)c->base)[word * 2 + 1] & bit) {
        beyond -= scratch->units[i].beyond;
        tf = tf_in(c, doc);
      }
      score += value(s, c->weight, tf, class);
      if (score + bound_of(once, beyond, one, present) <= threshold) return 0;
    }
  }
  return score;
}

static void search_window(const kj_segment *s, Scratch *scratch, Best *best, Present present,
                          int32_t from, int32_t to, int64_t first) {
  const uint16_t *classes = s->classes + first;
  int32_t threshold = threshold_of(best), *sums = scratch->sums;
  const int bounded = threshold > 0 && present.bitmaps > 0;
  if (bounded) {
    set_bounds(s, scratch, present, from, to, first);
  } else {
    for (int32_t i = 0; i < present.bitmaps; i++) {
      add_bitmap(s, &scratch->bitmaps[i], from, to, classes, sums);
    }
  }
  for (int32_t i = 0; i < present.lists; i++) {
    add_list(s, &scratch->lists[i], to, classes, sums);
  }
  int32_t count = collect(sums, from, to, threshold, scratch->found);
  for (int32_t i = 0; i < count; i++) {
    Candidate candidate = scratch->found[i];
    if (candidate.score <= threshold) continue;
    int32_t score = bounded ? look_up(s, scratch, present, candidate, first, threshold)
                            : candidate.score;
    if (score <= threshold) continue;
    push(best, key_of(score, s->first + first + candidate.passage));
    threshold = threshold_of(best);
  }
}

// ---- one query in one block

static void prefetch(const Cursor *c) {
  // A list is short: its lines would be missed one by one. A bitmap is read in order.
  int32_t ahead = c->count < 512 ? c->count : 512;
  for (int32_t i = 0; i < ahead * 2; i += 64) __builtin_prefetch(c->base + i);
  for (int32_t i = 0; i < ahead; i += 64) __builtin_prefetch(c->tfs + i);
}

// Finds the chunks of a query's terms in a block. Their places in the directory are kept in `next`,
// so that it is walked once. most is DAMAGED when a chunk does not lie in its block.
static Present gather(const kj_segment *s, int64_t block, const int32_t *terms,
                      const int32_t *weights, int64_t count, int64_t *next, Scratch *scratch) {
  Present present = {0, 0, 0, 0};
  for (int64_t i = 0; i < count; i++) {
    int64_t end = s->term_chunks[terms[i] + 1];
    while (next[i] < end && s->chunks[next[i]].block < block) next[i]++;
    if (next[i] == end || s->chunks[next[i]].block != block) continue;
    const kj_chunk *chunk = &s->chunks[next[i]];
    Cursor *c = (chunk->kind & BITMAP) ? &scratch->bitmaps[present.bitmaps]
                                       : &scratch->lists[present.lists];
    if (!point(s, block, chunk, weights[i], c)) return (Present){0, 0, 0, DAMAGED};
    *((chunk->kind & BITMAP) ? &present.bitmaps : &present.lists) += 1;
    present.most += c->bound;
    prefetch(c);
  }
  // The heaviest bitmap first: what it does not add drops the most candidates.
  for (int32_t i = 1; i < present.bitmaps; i++) {
    Cursor moved = scratch->bitmaps[i];
    int32_t j = i;
    for (; j > 0 && scratch->bitmaps[j - 1].weight < moved.weight; j--) {
      scratch->bitmaps[j] = scratch->bitmaps[j - 1];
    }
    scratch->bitmaps[j] = moved;
  }
  return present;
}

static int search_block(const kj_segment *s, int64_t block, const int32_t *terms,
                        const int32_t *weights, int64_t count, int64_t *next, Scratch *scratch,
                        Best *best) {
  Present present = gather(s, block, terms, weights, count, next, scratch);
  if (present.most == DAMAGED) return DAMAGED;
  if (present.most <= threshold_of(best)) return 0;  // also: none of the terms is here
  present.shift = make_units(scratch->bitmaps, present.bitmaps, scratch->units);
  int64_t first = s->block_passages[block];
  int32_t size = (int32_t)(s->block_passages[block + 1] - first);
  for (int32_t from = 0, to; from < size; from = to) {
    int32_t width = best->held < best->k ? FIRST_WINDOW : WINDOW - from % WINDOW;
    to = from + width < size ? from + width : size;
    search_window(s, scratch, best, present, from, to, first);
  }
  return 0;
}

// Continues the search of some queries with the passages of a segment.
// terms, weights: of all queries, distinct within each, one query after another; ends[q]: how many
// up to and with query q; a weight is what the term adds at most, in whole units of the query.
// heaps: [queries, k] keys, held[q] of them in use; they carry over from segment to segment.
// Returns 0, NO_MEMORY, or DAMAGED when the directory contradicts itself.
int64_t kj_search(const kj_segment *s, const int32_t *terms, const int32_t *weights,
                  const int64_t *ends, int64_t queries, int64_t k, uint64_t *heaps,
                  int64_t *held) {
  int64_t most = 0, total = queries ? ends[queries - 1] : 0, result = 0;
  for (int64_t q = 0; q < queries; q++) {
    int64_t count = ends[q] - (q ? ends[q - 1] : 0);
    most = count > most ? count : most;
  }
  Scratch scratch = {
    .sums = calloc(BLOCK, sizeof(int32_t)),
    .found = malloc(WINDOW * sizeof(Candidate)),
    .lists = malloc((size_t)(most + 1) * sizeof(Cursor)),
    .bitmaps = malloc((size_t)(most + 1) * sizeof(Cursor)),
    .units = malloc((size_t)(most + 1) * sizeof(Units)),
    .once = malloc((BLOCK + GROUP) * sizeof(uint16_t)),
    .beyond = malloc((BLOCK + GROUP) * sizeof(uint16_t)),
  };
  int64_t *next = malloc((size_t)(total + 1) * sizeof(int64_t));
  if (!scratch.sums || !scratch.found || !scratch.lists || !scratch.bitmaps || !scratch.units ||
      !scratch.once || !scratch.beyond || !next) {
    result = NO_MEMORY;
  }
  for (int64_t i = 0; i < total && !result; i++) {
    int64_t begin = s->term_chunks[terms[i]], end = s->term_chunks[terms[i] + 1];
    if (begin > end || end > s->directory) result = DAMAGED;
    next[i] = begin;
  }
  // All queries of a block, then the next block: its postings are in the cache for many of them.
  for (int64_t block = 0; block < s->blocks && !result; block++) {
    for (int64_t q = 0; q < queries && !result; q++) {
      int64_t begin = q ? ends[q - 1] : 0;
      Best best = {heaps + q * k, held[q], k};
      result = search_block(s, block, terms + begin, weights + begin, ends[q] - begin,
                            next + begin, &scratch, &best);
      held[q] = best.held;
    }
  }
  free(scratch.sums);
  free(scratch.found);
  free(scratch.lists);
  free(scratch.bitmaps);
  free(scratch.units);
  free(scratch.once);
  free(scratch.beyond);
  free(next);
  return result;
}

static int descending(const void *a, const void *b) {
  uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
  return (left < right) - (left > right);
}

// Turns heaps into the answer, best first: passages -1 and scores 0 where fewer than k were found.
// units[q]: what one whole number of query q is worth, a power of two.
void kj_results(uint64_t *heaps, const int64_t *held, int64_t queries, int64_t k,
                const double *units, int32_t *passages, float *scores) {
  for (int64_t q = 0; q < queries; q++) {
    uint64_t *heap = heaps + q * k;
    qsort(heap, (size_t)held[q], sizeof(uint64_t), descending);
    for (int64_t i = 0; i < k; i++) {
      int in = i < held[q];
      passages[q * k + i] = in ? (int32_t)(0xffffffffu - (uint32_t)heap[i]) : -1;
      scores[q * k + i] = in ? (float)(score_of(heap[i]) * units[q]) : 0;
    }
  }
}
