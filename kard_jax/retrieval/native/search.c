// The k best passages of many queries, exactly, window after window of a segment's passages.
//
// Terms with few postings (lists) are added to the sums of all passages that have them. Terms with
// many (bitmaps) are not looked at one by one: bounds.h says what they add to a passage at most, and
// only where the sum and the bound together exceed the k-th best score so far are true values looked
// up, the best bound first. This is MaxScore's idea (Turtle and Flood 1995) turned to whole words.
#define _DEFAULT_SOURCE  // madvise, pread
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "best.h"
#include "bounds.h"
#include "score.h"

enum { FIRST = 2048 };    // passages between two looks at the threshold while nothing can be bounded
enum { LANES = 16, MAXIMA = BLOCK / 4 };
enum { PART_TERMS = 4096 };  // of queries whose chunks are found at a time
enum { SORTED = 16 };     // candidates that are worth being put in order
enum { LARGE_PAGE = 1 << 21 };
enum { DAMAGED = -3, NO_MEMORY = -2 };

typedef struct {
  int32_t passage;  // in the block
  int32_t score;    // without bitmaps, where there is a bound
} Candidate;

typedef struct {
  const uint8_t *docs, *tfs;
  int32_t count, weight, kind;
} List;

// A query's terms in a block.
typedef struct {
  List *lists;
  Cursor *bitmaps;  // the heaviest MOST_BITMAPS first
  int32_t list_count, bitmap_count;
  int32_t most;     // what all of them can add
} Present;

typedef struct {
  int32_t *sums;      // [BLOCK] zeros between queries
  uint8_t *upper;     // [BLOCK] bounds of candidates
  Candidate *found;   // [BLOCK]
  Candidate *sorted;  // [BLOCK]
  Bounds bounds;
  List *lists;        // of some queries
  Cursor *bitmaps;
  Present *present;
} Scratch;

// What does not change while some queries are searched in a block.
typedef struct {
  const kj_segment *s;
  int64_t number;       // of the block
  const uint8_t *data;
  int64_t first;        // its first passage, in the segment
  int32_t size;         // passages
} Block;

// ---- adding terms to the sums of a block's passages

static void add_list(const kj_segment *s, const List *list, const uint16_t *classes,
                     int32_t *sums) {
  const uint16_t *docs = (const uint16_t *)list->docs;
  const uint8_t *tfs = list->tfs;
  const int32_t count = list->count, weight = list->weight;
  if (list->kind & WIDE) {
    for (int32_t i = 0; i < count; i++) {
      sums[docs[i]] += value(s, weight, ((const uint32_t *)tfs)[i], classes[docs[i]]);
    }
    return;
  }
  if (!s->coded) {
    for (int32_t i = 0; i < count; i++) {
      uint16_t doc = docs[i];
      sums[doc] += value(s, weight, tfs[i], classes[doc]);
    }
    return;
  }
  const uint32_t *coded = s->coded;  // nothing for CODED, which comes after
  for (int32_t i = 0; i < count; i++) sums[docs[i]] += share_of(weight, coded[tfs[i]]);
  if (!(list->kind & PLAIN)) return;
  const uint8_t *plain = s->plain + (tfs - s->data);
  for (int32_t i = 0; i < count; i++) {
    if (tfs[i] == CODED) sums[docs[i]] += value(s, weight, plain[i], classes[docs[i]]);
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

// ---- candidates

// Which of 64 passages have sums above the threshold.
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

// Takes the passages of which `bounded` says that they may exceed the threshold, and sets all sums
// back to zero. Compiled anew for each small number of bitmaps.
static inline __attribute__((always_inline)) int32_t collect(
    Scratch *scratch, const uint16_t *ones, int32_t from, int32_t to, int32_t threshold,
    const int bounded, const int few) {
  const Bounds *b = &scratch->bounds;
  const int32_t least = bounded ? (threshold >> b->shift) - b->slack : threshold;
  const Held held = hold(b, least, few);
  uint8_t *upper = scratch->upper;
  Candidate *found = scratch->found;
  int32_t count = 0;
  for (int64_t doc = from; doc < to; doc += GROUP) {
    int32_t *sums = scratch->sums + doc;
    uint64_t left = bounded ? above(b, &held, ones + doc, sums, doc / GROUP, upper + doc, few)
                            : above_alone(sums, threshold);
    for (; left; left &= left - 1) {
      int i = __builtin_ctzll(left);
      found[count++] = (Candidate){(int32_t)doc + i, sums[i]};
    }
    memset(sums, 0, GROUP * sizeof(int32_t));
  }
  return count;
}

static int32_t collect_bounded(Scratch *scratch, const uint16_t *ones, int32_t from, int32_t to,
                               int32_t threshold) {
  switch (scratch->bounds.groups == 1 ? scratch->bounds.count : 0) {
    case 1: return collect(scratch, ones, from, to, threshold, 1, 1);
    case 2: return collect(scratch, ones, from, to, threshold, 1, 2);
    case 3: return collect(scratch, ones, from, to, threshold, 1, 3);
    case 4: return collect(scratch, ones, from, to, threshold, 1, 4);
    case 5: return collect(scratch, ones, from, to, threshold, 1, 5);
    case 6: return collect(scratch, ones, from, to, threshold, 1, 6);
    case 7: return collect(scratch, ones, from, to, threshold, 1, 7);
    case 8: return collect(scratch, ones, from, to, threshold, 1, 8);
    default: return collect(scratch, ones, from, to, threshold, 1, 0);
  }
}

// Puts candidates in order, the highest bound first, those of equal bounds as they stand.
static const Candidate *sort(Scratch *scratch, int32_t count) {
  const Candidate *found = scratch->found;
  if (count < SORTED) return found;
  int32_t places[256] = {0}, place = 0;
  for (int32_t i = 0; i < count; i++) places[scratch->upper[found[i].passage]]++;
  for (int bound = 255; bound >= 0; bound--) {
    int32_t here = places[bound];
    places[bound] = place;
    place += here;
  }
  for (int32_t i = 0; i < count; i++) {
    scratch->sorted[places[scratch->upper[found[i].passage]]++] = found[i];
  }
  return scratch->sorted;
}

// Adds the bitmaps' true values to a passage's sum. Returns 0 if it is found not to exceed the
// threshold.
static int32_t look_up(const Block *block, const Bounds *b, const Cursor *bitmaps,
                       Candidate candidate, int32_t threshold) {
  const int32_t doc = candidate.passage, word = doc / GROUP * 2, place = doc % GROUP;
  const uint16_t class = block->s->classes[block->first + doc];
  const uint32_t part = part_of(block->s, 1, class);
  int32_t score = candidate.score;
  uint64_t has[MOST_BITMAPS / 64] = {0};  // no branch to guess wrong for each bitmap
  for (int32_t i = 0; i < b->count; i++) {
    has[i / 64] |= (b->bits[i][word] >> place & 1) << (i % 64);
  }
  int32_t repeated[MOST_BITMAPS], count = 0;
  int64_t most = 0;  // that they can add
  for (int32_t group = 0; group < b->count; group += 64) {
    for (uint64_t left = has[group / 64]; left; left &= left - 1) {
      int32_t i = group + __builtin_ctzll(left);
      score += share_of(bitmaps[i].weight, part);
      int more = b->bits[i][word + 1] >> place & 1;
      repeated[count] = i;
      count += more;
      most += more ? bitmaps[i].beyond : 0;
    }
  }
  if (score + most <= threshold) return 0;
  for (int32_t i = 0; i < count; i++) {
    const Cursor *c = &bitmaps[repeated[i]];
    score += value(block->s, c->weight, tf_in(c, doc), class) - share_of(c->weight, part);
  }
  return score;
}

// ---- a first threshold

// A score that k passages of a block exceed by their lists alone, or 0: the k-th best of the maxima
// of disjoint sets of passages. maxima: room for MAXIMA.
static int32_t first_threshold(const int32_t *sums, int32_t size, int64_t k, int32_t *maxima) {
  // Sets as large as leaves eight times as many of them as are wanted: few of the k best share one.
  int32_t rows = 16;
  while (rows > 1 && size / (4 * rows) < 8 * k) rows /= 2;
  int32_t count = 0, highest = 0;
  for (int32_t row = 0; row < size; row += rows * GROUP, count += LANES) {
    const int32_t end = row + rows * GROUP;  // a block has room for whole sets
#ifdef __AVX512BW__
    __m512i most = _mm512_setzero_si512();
    for (int32_t at = row; at < end; at += LANES) {
      most = _mm512_max_epi32(most, _mm512_loadu_si512(sums + at));
    }
    _mm512_storeu_si512(maxima + count, most);
#else
    memset(maxima + count, 0, LANES * sizeof(int32_t));
    for (int32_t at = row; at < end; at += LANES) {
      for (int i = 0; i < LANES; i++) {
        if (sums[at + i] > maxima[count + i]) maxima[count + i] = sums[at + i];
      }
    }
#endif
  }
  for (int32_t i = 0; i < count; i++) highest = highest > maxima[i] ? highest : maxima[i];
  int32_t low = 0, high = highest;  // k exceed low, or it is 0
  for (int step = 0; step < 12 && high - low > 1; step++) {
    int32_t middle = low + (high - low) / 2, above = 0;
    for (int32_t i = 0; i < count; i++) above += maxima[i] > middle;
    if (above >= k) low = middle; else high = middle;
  }
  return low;
}

// ---- one query in one block

static void search_block(const Block *block, Scratch *scratch, Best *best, const Present *present) {
  const kj_segment *s = block->s;
  const uint16_t *classes = s->classes + block->first, *ones = s->ones + block->first;
  const int64_t number = s->first + block->first;  // of the block's first passage in the index
  for (int32_t i = 0; i < present->list_count; i++) {
    add_list(s, &present->lists[i], classes, scratch->sums);
  }
  int32_t bitmaps = present->bitmap_count < MOST_BITMAPS ? present->bitmap_count : MOST_BITMAPS;
  for (int32_t i = bitmaps; i < present->bitmap_count; i++) {
    add_bitmap(s, &present->bitmaps[i], 0, block->size, classes, scratch->sums);
  }
  int32_t least = 0;
  if (best->held < best->k && bitmaps) {
    least = first_threshold(scratch->sums, block->size, best->k, (int32_t *)scratch->sorted);
  }
  for (int32_t from = 0, to; from < block->size; from = to) {
    int32_t threshold = threshold_of(best, number + from);
    if (threshold < least) threshold = least;
    const int bounded =
      bitmaps && threshold && make_bounds(present->bitmaps, bitmaps, threshold, &scratch->bounds);
    to = from + (bounded || (threshold && !bitmaps) ? BLOCK : FIRST);
    if (to > block->size) to = block->size;
    for (int32_t i = 0; !bounded && i < bitmaps; i++) {
      add_bitmap(s, &present->bitmaps[i], from, to, classes, scratch->sums);
    }
    int32_t count = bounded ? collect_bounded(scratch, ones, from, to, threshold)
                            : collect(scratch, ones, from, to, threshold, 0, 0);
    const Candidate *found = bounded ? sort(scratch, count) : scratch->found;
    for (int32_t i = 0; i < count; i++) {
      int32_t score = found[i].score;
      if (bounded) {
        int32_t upper = scratch->upper[found[i].passage];
        if (upper < 255 && upper + scratch->bounds.slack <= threshold >> scratch->bounds.shift) {
          if (count < SORTED) continue;
          break;
        }
        score = look_up(block, &scratch->bounds, present->bitmaps, found[i], threshold);
      }
      if (score <= threshold) continue;
      push(best, key_of(score, number + found[i].passage));
      // By bounds, any passage of the window may still come.
      int32_t now = threshold_of(best, number + (bounded ? from : found[i].passage + 1));
      if (now > threshold) threshold = now;
    }
  }
}

// ---- the terms of queries in a block

static void prefetch(const Present *present) {
  for (int32_t i = 0; i < present->list_count; i++) {
    const List *list = &present->lists[i];
    int32_t ahead = list->count < 512 ? list->count : 512;
    for (int32_t j = 0; j < ahead * 2; j += 64) __builtin_prefetch(list->docs + j);
    for (int32_t j = 0; j < ahead; j += 64) __builtin_prefetch(list->tfs + j);
  }
}

// Finds the chunks of a query's terms in a block. Their places in the directory are kept in `next`,
// so that it is walked once. 0 when a chunk does not lie in its block.
static int gather(const Block *block, const int32_t *terms, const int32_t *weights, int64_t count,
                  int64_t *next, Present *present) {
  const kj_segment *s = block->s;
  present->list_count = present->bitmap_count = present->most = 0;
  for (int64_t i = 0; i < count; i++) {
    int64_t end = s->term_chunks[terms[i] + 1];
    while (next[i] < end && s->chunks[next[i]].block < block->number) next[i]++;
    if (next[i] == end || s->chunks[next[i]].block != block->number) continue;
    Cursor c;
    if (!point(s, block->number, block->data, &s->chunks[next[i]], weights[i], &c)) return 0;
    present->most += c.bound;
    if (!(c.kind & BITMAP)) {
      List *list = &present->lists[present->list_count++];
      *list = (List){c.base, c.tfs, c.count, c.weight, c.kind};
      continue;
    }
    // The heaviest bitmap first, so that the lightest are left over.
    int32_t j = present->bitmap_count++;
    if (j >= MOST_BITMAPS) {
      Cursor *lightest = &present->bitmaps[MOST_BITMAPS - 1];
      if (lightest->weight >= c.weight) {
        present->bitmaps[j] = c;
        continue;
      }
      present->bitmaps[j] = *lightest;
      j = MOST_BITMAPS - 1;
    }
    for (; j > 0 && present->bitmaps[j - 1].weight < c.weight; j--) {
      present->bitmaps[j] = present->bitmaps[j - 1];
    }
    present->bitmaps[j] = c;
  }
  return 1;
}

// ---- many queries

typedef struct {
  const int32_t *terms, *weights;  // of all queries, distinct within each, one query after another
  const int64_t *ends;             // how many up to and with each query
  int64_t *next;                   // each term's place in the directory
  Best *best;
} Queries;

static inline int64_t begin_of(const Queries *queries, int64_t q) {
  return q ? queries->ends[q - 1] : 0;
}

// Searches queries [low, high) in a block.
static int search_part(const Block *block, const Queries *queries, int64_t low, int64_t high,
                        Scratch *scratch) {
  const int64_t offset = begin_of(queries, low);
  for (int64_t q = low; q < high; q++) {
    int64_t begin = begin_of(queries, q);
    Present *present = &scratch->present[q - low];
    present->lists = scratch->lists + (begin - offset);
    present->bitmaps = scratch->bitmaps + (begin - offset);
    if (!gather(block, queries->terms + begin, queries->weights + begin, queries->ends[q] - begin,
                queries->next + begin, present)) {
      return DAMAGED;
    }
  }
  for (int64_t q = low; q < high; q++) {
    const Present *present = &scratch->present[q - low];
    if (q + 1 < high) prefetch(present + 1);
    Best *best = &queries->best[q];
    // Also: none of the terms is here.
    if (present->most <= threshold_of(best, block->s->first + block->first)) continue;
    search_block(block, scratch, best, present);
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

// How many queries from `low` on are searched together: those whose cursors stay in the cache.
static int64_t part_end(const Queries *queries, int64_t count, int64_t low) {
  int64_t high = low + 1;
  while (high < count && queries->ends[high] - begin_of(queries, low) <= PART_TERMS) high++;
  return high;
}

static int search_blocks(const kj_segment *s, const Queries *queries, int64_t count,
                         Scratch *scratch, uint8_t *buffer) {
  for (int64_t i = 0; i < (count ? queries->ends[count - 1] : 0); i++) {
    int64_t begin = s->term_chunks[queries->terms[i]], end = s->term_chunks[queries->terms[i] + 1];
    if (begin > end || end > s->directory) return DAMAGED;
    queries->next[i] = begin;
  }
  // All queries of a block, then the next block: its postings are in the cache for many of them.
  for (int64_t number = 0; number < s->blocks; number++) {
    const int64_t first = s->block_passages[number];
    Block block = {s, number, block_bytes(s, number, buffer), first,
                   (int32_t)(s->block_passages[number + 1] - first)};
    if (!block.data) return DAMAGED;
    for (int64_t low = 0, high; low < count; low = high) {
      high = part_end(queries, count, low);
      int result = search_part(&block, queries, low, high, scratch);
      if (result) return result;
    }
  }
  return 0;
}

static void *large_pages(size_t size) {
  size = (size + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
  void *pages = aligned_alloc(LARGE_PAGE, size);
#ifdef MADV_HUGEPAGE
  if (pages) madvise(pages, size, MADV_HUGEPAGE);
#endif
  return pages;
}

// Continues the search of some queries with the passages of a segment.
// terms, weights: of all queries, distinct within each, one query after another; ends[q]: how many
// up to and with query q; a weight is what the term adds at most, in whole units of the query.
// heaps: [queries, k] keys, held[q] of them in use; they carry over from segment to segment.
// Returns 0, NO_MEMORY, or DAMAGED when the directory contradicts itself.
int64_t kj_search(const kj_segment *s, const int32_t *terms, const int32_t *weights,
                  const int64_t *ends, int64_t queries, int64_t k, uint64_t *heaps,
                  int64_t *held) {
  int64_t total = queries ? ends[queries - 1] : 0, longest = 0, result = 0;
  for (int64_t q = 0; q < queries; q++) {
    int64_t count = ends[q] - (q ? ends[q - 1] : 0);
    longest = count > longest ? count : longest;
  }
  int64_t part = total < PART_TERMS ? total : longest > PART_TERMS ? longest : PART_TERMS;
  // What is written at random lies in one large page: small ones would be looked for at every step.
  uint8_t *page = large_pages(BLOCK * (5 + 2 * sizeof(Candidate)));
  uint8_t *buffer = s->file < 0 ? NULL : large_pages((size_t)largest_block(s));
  Scratch *scratch = aligned_alloc(64, sizeof(Scratch));
  List *lists = malloc((size_t)(part + 1) * sizeof(List));
  Cursor *bitmaps = malloc((size_t)(part + 1) * sizeof(Cursor));
  Present *present = malloc((size_t)(queries + 1) * sizeof(Present));
  int64_t *next = malloc((size_t)(total + 1) * sizeof(int64_t));
  Best *best = malloc((size_t)(queries + 1) * sizeof(Best));
  if (!page || !scratch || !lists || !bitmaps || !present || !next || !best ||
      (s->file >= 0 && !buffer)) {
    result = NO_MEMORY;
  } else {
    memset(page, 0, BLOCK * sizeof(int32_t));
    scratch->sums = (int32_t *)page;
    scratch->upper = page + BLOCK * 4;
    scratch->found = (Candidate *)(page + BLOCK * 5);
    scratch->sorted = scratch->found + BLOCK;
    scratch->lists = lists;
    scratch->bitmaps = bitmaps;
    scratch->present = present;
    for (int64_t q = 0; q < queries; q++) best[q] = (Best){heaps + q * k, held[q], k};
    Queries all = {terms, weights, ends, next, best};
    result = search_blocks(s, &all, queries, scratch, buffer);
    for (int64_t q = 0; q < queries; q++) held[q] = best[q].held;
  }
  free(page);
  free(buffer);
  free(scratch);
  free(lists);
  free(bitmaps);
  free(present);
  free(next);
  free(best);
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
