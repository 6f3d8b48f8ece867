// The k best passages of many queries, exactly, block after block of a segment's passages.
//
// Terms with few postings (lists) are added to the sums of all passages that have them. Terms with
// many (bitmaps) are not looked at one by one: for 64 passages at a time one instruction adds a
// term's weight, in coarse units, where its bit is set. That bounds, closely, what all bitmaps add
// to a passage, and only where the sum and the bound together exceed the k-th best score so far are
// true values looked up. This is MaxScore's idea (Turtle and Flood 1995) turned to whole words.
#define _DEFAULT_SOURCE  // madvise, pread
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

#include "score.h"

enum { GROUP = 64 };           // passages in a word of a bitmap
enum { GROUPED = 16 };         // bitmaps whose units are added in single bytes
enum { MOST_BITMAPS = 256 };   // of a query; further terms with many postings are added in full
enum { WINDOW = 2048 };        // passages between two looks at the threshold
enum { LARGE_PAGE = 1 << 21 };
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
  int32_t *sums;            // [BLOCK] zeros between queries
  Candidate *found;         // [WINDOW]
  Cursor *lists, *bitmaps;  // [most terms of a query]
  Units *units;             // of the bitmaps
  const uint64_t *bits[MOST_BITMAPS];  // theirs
  uint8_t *vectors;         // [MOST_BITMAPS, 2, 64] the units, repeated
  uint16_t *once, *beyond;  // [BLOCK] sums of units, where a passage is found
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

// ---- adding terms to the sums of a block's passages

static void add_list(const kj_segment *s, const Cursor *c, const uint16_t *classes, int32_t *sums) {
  const uint16_t *docs = (const uint16_t *)c->base;
  if (c->kind & WIDE) {
    for (int32_t i = 0; i < c->count; i++) {
      sums[docs[i]] += value(s, c->weight, tf_at(c, i), classes[docs[i]]);
    }
    return;
  }
  const uint8_t *tfs = c->tfs;
  const int32_t count = c->count, weight = c->weight;
  for (int32_t i = 0; i < count; i++) {
    uint16_t doc = docs[i];
    sums[doc] += value(s, weight, tfs[i], classes[doc]);
  }
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

// ---- bounds

// What bitmaps can add to a passage that has so many units of them.
static inline int32_t bound_of(uint32_t once, uint32_t beyond, uint32_t one, Present present) {
  // In units of 1 << (shift - 8). Two more: the shift rounds down, and `one` stops short of 1.
  uint32_t fine = (once * one >> 8) + (beyond << 8) + 2 + present.bitmaps / GROUPED;
  // Each true value is rounded, so it may exceed its share by half: `bitmaps` makes up for that.
  return (int32_t)(fine << (present.shift - 8)) + present.bitmaps;
}

// Rounds the weights of bitmaps, of which the heaviest come first, up to units, so that those of
// any GROUPED in a row are at most 255 in all, those beyond included.
static int32_t make_units(Scratch *scratch, int32_t count) {
  const Cursor *c = scratch->bitmaps;
  Units *units = scratch->units;
  int64_t total = 0;
  for (int32_t i = 0; i < count && i < GROUPED; i++) total += c[i].weight + c[i].beyond;
  int32_t shift = 8;
  while ((total >> shift) + 2 * GROUPED > 255) shift++;
  for (int32_t i = 0; i < count; i++) {
    units[i].once = (uint8_t)((c[i].weight + (1 << shift) - 1) >> shift);
    units[i].beyond = (uint8_t)((c[i].beyond + (1 << shift) - 1) >> shift);
    scratch->bits[i] = (const uint64_t *)c[i].base;
    memset(scratch->vectors + (size_t)i * 128, units[i].once, 64);
    memset(scratch->vectors + (size_t)i * 128 + 64, units[i].beyond, 64);
  }
  return shift;
}

#ifdef __AVX512BW__
// Adds up units of bitmaps [from, to) for 64 passages, in bytes: of the term, and beyond once.
static inline void add_units(const Scratch *scratch, int32_t from, int32_t to, int32_t word,
                             __m512i units[2]) {
  __m512i once = _mm512_setzero_si512(), beyond = _mm512_setzero_si512();
  for (int32_t i = from; i < to; i++) {
    const uint64_t *bits = scratch->bits[i] + word * 2;
    const uint8_t *vectors = scratch->vectors + (size_t)i * 128;
    once = _mm512_mask_add_epi8(once, bits[0], once, _mm512_load_si512(vectors));
    beyond = _mm512_mask_add_epi8(beyond, bits[1], beyond, _mm512_load_si512(vectors + 64));
  }
  units[0] = once;
  units[1] = beyond;
}

static inline __m512i widen(__m512i bytes, int half) {
  return _mm512_cvtepu8_epi16(half ? _mm512_extracti64x4_epi64(bytes, 1)
                                   : _mm512_castsi512_si256(bytes));
}

static inline __m512i widen_more(__m512i words, int half) {
  return _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(words, 1)
                                    : _mm512_castsi512_si256(words));
}
#endif

// Which of 64 passages have a sum and a bound that together exceed the threshold: a bit for each.
static inline uint64_t above(Scratch *scratch, Present present, const uint16_t *ones,
                             const int32_t *sums, int32_t word, int32_t threshold) {
  uint64_t found = 0;
#ifdef __AVX512BW__
  const __m512i least = _mm512_set1_epi32(threshold - present.bitmaps);
  const int32_t slack = 2 + present.bitmaps / GROUPED, shift = present.shift - 8;
  __m512i units[2], once[2], beyond[2];
  add_units(scratch, 0, present.bitmaps < GROUPED ? present.bitmaps : GROUPED, word, units);
  for (int half = 0; half < 2; half++) {
    once[half] = widen(units[0], half);
    beyond[half] = widen(units[1], half);
  }
  for (int32_t group = GROUPED; group < present.bitmaps; group += GROUPED) {
    int32_t end = present.bitmaps - group < GROUPED ? present.bitmaps : group + GROUPED;
    add_units(scratch, group, end, word, units);
    for (int half = 0; half < 2; half++) {
      once[half] = _mm512_add_epi16(once[half], widen(units[0], half));
      beyond[half] = _mm512_add_epi16(beyond[half], widen(units[1], half));
    }
  }
  for (int half = 0; half < 2; half++) {  // as bound_of
    __m512i one = _mm512_loadu_si512(ones + half * 32), fine[2];
    if (present.bitmaps <= GROUPED) {  // two bytes are enough for it
      __m512i words = _mm512_mulhi_epu16(_mm512_slli_epi16(once[half], 8), one);
      words = _mm512_add_epi16(words, _mm512_slli_epi16(beyond[half], 8));
      words = _mm512_add_epi16(words, _mm512_set1_epi16((short)slack));
      fine[0] = widen_more(words, 0);
      fine[1] = widen_more(words, 1);
    } else {
      for (int quarter = 0; quarter < 2; quarter++) {
        __m512i product = _mm512_mullo_epi32(widen_more(once[half], quarter),
                                             widen_more(one, quarter));
        __m512i more = _mm512_slli_epi32(widen_more(beyond[half], quarter), 8);
        fine[quarter] = _mm512_add_epi32(_mm512_srli_epi32(product, 8), more);
        fine[quarter] = _mm512_add_epi32(fine[quarter], _mm512_set1_epi32(slack));
      }
    }
    for (int quarter = 0; quarter < 2; quarter++) {
      __m512i bound = _mm512_slli_epi32(fine[quarter], (unsigned)shift);
      __m512i sum = _mm512_loadu_si512(sums + half * 32 + quarter * 16);
      uint64_t mask = _mm512_cmpgt_epi32_mask(_mm512_add_epi32(sum, bound), least);
      found |= mask << (half * 32 + quarter * 16);
    }
  }
  for (int half = 0; found && half < 2; half++) {
    _mm512_storeu_si512(scratch->once + word * GROUP + half * 32, once[half]);
    _mm512_storeu_si512(scratch->beyond + word * GROUP + half * 32, beyond[half]);
  }
#else
  uint16_t *once = scratch->once + word * GROUP, *beyond = scratch->beyond + word * GROUP;
  memset(once, 0, GROUP * sizeof(uint16_t));
  memset(beyond, 0, GROUP * sizeof(uint16_t));
  for (int32_t i = 0; i < present.bitmaps; i++) {
    const uint64_t *bits = scratch->bits[i] + word * 2;
    for (uint64_t left = bits[0]; left; left &= left - 1) {
      once[__builtin_ctzll(left)] += scratch->units[i].once;
    }
    for (uint64_t left = bits[1]; left; left &= left - 1) {
      beyond[__builtin_ctzll(left)] += scratch->units[i].beyond;
    }
  }
  int32_t sum[GROUP];
  for (int i = 0; i < GROUP; i++) {
    sum[i] = sums[i] + bound_of(once[i], beyond[i], ones[i], present);
  }
  for (int i = 0; i < GROUP; i++) found |= (uint64_t)(sum[i] > threshold) << i;
#endif
  return found;
}

// Without bitmaps, or where they are in the sums.
static inline uint64_t above_alone(const int32_t *sums, int32_t threshold) {
  uint64_t found = 0;
#ifdef __AVX512BW__
  const __m512i least = _mm512_set1_epi32(threshold);
  for (int i = 0; i < 4; i++) {
    uint64_t mask = _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(sums + 16 * i), least);
    found |= mask << (16 * i);
  }
#else
  int32_t most = 0;
  for (int i = 0; i < GROUP; i++) most = most > sums[i] ? most : sums[i];
  if (most <= threshold) return 0;
  for (int i = 0; i < GROUP; i++) found |= (uint64_t)(sums[i] > threshold) << i;
#endif
  return found;
}

// Takes the passages of a window that may exceed the threshold, and sets its sums back to zero.
static int32_t collect(Scratch *scratch, Present present, const uint16_t *ones, int32_t from,
                       int32_t to, int32_t threshold) {
  const int bounded = threshold > 0 && present.bitmaps > 0;
  int32_t count = 0;
  for (int32_t doc = from; doc < to; doc += GROUP) {
    int32_t *sums = scratch->sums + doc;
    uint64_t left = bounded ? above(scratch, present, ones + doc, sums, doc / GROUP, threshold)
                            : above_alone(sums, threshold);
    for (; left; left &= left - 1) {
      int i = __builtin_ctzll(left);
      scratch->found[count++] = (Candidate){doc + i, sums[i]};
    }
    memset(sums, 0, GROUP * sizeof(int32_t));
  }
  return count;
}

// ---- one query in one window

// Adds the bitmaps' true values to a passage's sum, the heaviest first. Returns 0 as soon as it is
// found not to exceed the threshold.
static int32_t look_up(const kj_segment *s, const Scratch *scratch, Present present,
                       Candidate candidate, int64_t first, int32_t threshold) {
  const int32_t doc = candidate.passage, word = doc / GROUP * 2, place = doc % GROUP;
  const uint16_t class = s->classes[first + doc], one = s->ones[first + doc];
  const uint32_t part = part_of(s, 1, class);
  int32_t score = candidate.score;
  uint32_t once = scratch->once[doc], beyond = scratch->beyond[doc];
  uint64_t has[MOST_BITMAPS / 64] = {0};  // no branch to guess wrong for each bitmap
  for (int32_t i = 0; i < present.bitmaps; i++) {
    has[i / 64] |= (scratch->bits[i][word] >> place & 1) << (i % 64);
  }
  for (int32_t group = 0; group < present.bitmaps; group += 64) {
    for (uint64_t left = has[group / 64]; left; left &= left - 1) {
      int32_t i = group + __builtin_ctzll(left);
      const Cursor *c = &scratch->bitmaps[i];
      once -= scratch->units[i].once;
      if (scratch->bits[i][word + 1] >> place & 1) {
        beyond -= scratch->units[i].beyond;
        score += value(s, c->weight, tf_in(c, doc), class);
      } else {
        score += share_of(c->weight, part);
      }
      if (score + bound_of(once, beyond, one, present) <= threshold) return 0;
    }
  }
  return score;
}

static void search_window(const kj_segment *s, Scratch *scratch, Best *best, Present present,
                          int32_t from, int32_t to, int64_t first) {
  int32_t threshold = threshold_of(best);
  const int bounded = threshold > 0;
  for (int32_t i = 0; !bounded && i < present.bitmaps; i++) {
    add_bitmap(s, &scratch->bitmaps[i], from, to, s->classes + first, scratch->sums);
  }
  int32_t count = collect(scratch, present, s->ones + first, from, to, threshold);
  for (int32_t i = 0; i < count; i++) {
    Candidate candidate = scratch->found[i];
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
static Present gather(const kj_segment *s, int64_t block, const uint8_t *data, const int32_t *terms,
                      const int32_t *weights, int64_t count, int64_t *next, Scratch *scratch) {
  Present present = {0, 0, 0, 0};
  for (int64_t i = 0; i < count; i++) {
    int64_t end = s->term_chunks[terms[i] + 1];
    while (next[i] < end && s->chunks[next[i]].block < block) next[i]++;
    if (next[i] == end || s->chunks[next[i]].block != block) continue;
    const kj_chunk *chunk = &s->chunks[next[i]];
    const int bounded = (chunk->kind & BITMAP) && present.bitmaps < MOST_BITMAPS;
    Cursor *c = bounded ? &scratch->bitmaps[present.bitmaps] : &scratch->lists[present.lists];
    if (!point(s, block, data, chunk, weights[i], c)) return (Present){0, 0, 0, DAMAGED};
    *(bounded ? &present.bitmaps : &present.lists) += 1;
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

static int search_block(const kj_segment *s, int64_t block, const uint8_t *data, const int32_t *terms,
                        const int32_t *weights, int64_t count, int64_t *next, Scratch *scratch,
                        Best *best) {
  Present present = gather(s, block, data, terms, weights, count, next, scratch);
  if (present.most == DAMAGED) return DAMAGED;
  if (present.most <= threshold_of(best)) return 0;  // also: none of the terms is here
  present.shift = make_units(scratch, present.bitmaps);
  int64_t first = s->block_passages[block];
  int32_t size = (int32_t)(s->block_passages[block + 1] - first);
  for (int32_t i = 0; i < present.lists; i++) {
    const Cursor *c = &scratch->lists[i];
    if (c->kind & BITMAP) add_bitmap(s, c, 0, size, s->classes + first, scratch->sums);
    else add_list(s, c, s->classes + first, scratch->sums);
  }
  for (int32_t from = 0, to; from < size; from = to) {
    to = from + WINDOW < size ? from + WINDOW : size;
    search_window(s, scratch, best, present, from, to, first);
  }
  return 0;
}

// A block's bytes: in place, or read into large pages of memory, where they are found faster.
static const uint8_t *block_bytes(const kj_segment *s, int64_t block, uint8_t *buffer) {
  if (!buffer) return s->data + s->block_data[block];
  int64_t begin = s->block_data[block], size = s->block_data[block + 1] - begin;
  for (int64_t done = 0; done < size;) {
    ssize_t got = pread((int)s->file, buffer + done, (size_t)(size - done),
                        (off_t)(s->file_data + begin + done));
    if (got <= 0) return NULL;
    done += got;
  }
  return buffer;
}

static int64_t largest_block(const kj_segment *s) {
  int64_t most = 0;
  for (int64_t block = 0; block < s->blocks; block++) {
    int64_t size = s->block_data[block + 1] - s->block_data[block];
    most = size > most ? size : most;
  }
  return most;
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
  // What is written at random lies in one large page: small ones would be looked for at every step.
  uint8_t *page = aligned_alloc(LARGE_PAGE, LARGE_PAGE);
#ifdef MADV_HUGEPAGE
  if (page) madvise(page, LARGE_PAGE, MADV_HUGEPAGE);
#endif
  if (page) memset(page, 0, BLOCK * sizeof(int32_t));
  Scratch scratch = {
    .sums = (int32_t *)page,
    .once = (uint16_t *)(page + BLOCK * 4),
    .beyond = (uint16_t *)(page + BLOCK * 6),
    .found = (Candidate *)(page + BLOCK * 8),
    .vectors = page + BLOCK * 8 + WINDOW * sizeof(Candidate),
    .lists = malloc((size_t)(most + 1) * sizeof(Cursor)),
    .bitmaps = malloc((size_t)(most + 1) * sizeof(Cursor)),
    .units = malloc((size_t)(most + 1) * sizeof(Units)),
  };
  int64_t *next = malloc((size_t)(total + 1) * sizeof(int64_t));
  if (!page || !scratch.lists || !scratch.bitmaps || !scratch.units || !next) result = NO_MEMORY;
  uint8_t *buffer = NULL;
  int64_t room = s->file < 0 ? 0 : (largest_block(s) + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
  if (room) {
    buffer = mmap(NULL, (size_t)room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) {
      buffer = NULL;
      result = NO_MEMORY;
    }
#ifdef MADV_HUGEPAGE
    if (buffer) madvise(buffer, (size_t)room, MADV_HUGEPAGE);
#endif
  }
  for (int64_t i = 0; i < total && !result; i++) {
    int64_t begin = s->term_chunks[terms[i]], end = s->term_chunks[terms[i] + 1];
    if (begin > end || end > s->directory) result = DAMAGED;
    next[i] = begin;
  }
  // All queries of a block, then the next block: its postings are in the cache for many of them.
  for (int64_t block = 0; block < s->blocks && !result; block++) {
    const uint8_t *data = block_bytes(s, block, buffer);
    if (!data) result = DAMAGED;
    for (int64_t q = 0; q < queries && !result; q++) {
      int64_t begin = q ? ends[q - 1] : 0;
      Best best = {heaps + q * k, held[q], k};
      result = search_block(s, block, data, terms + begin, weights + begin, ends[q] - begin,
                            next + begin, &scratch, &best);
      held[q] = best.held;
    }
  }
  free(page);
  free(scratch.lists);
  free(scratch.bitmaps);
  free(scratch.units);
  free(next);
  if (buffer) munmap(buffer, (size_t)room);
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
