// What a query's bitmaps add to passages at most, 64 passages at a time.
//
// Weights are rounded up to units of one byte. Where a passage's bit is set, the term's units are
// added to the passage's byte, and once more, from the second bits, what a repeated term can add
// beyond. The first sum is multiplied by the share that a term gets that stands once in a passage of
// that length. So the bound is close, and costs two instructions for each bitmap.
#ifndef KARD_JAX_BOUNDS_H
#define KARD_JAX_BOUNDS_H

#include <string.h>
#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "score.h"

enum { GROUP = 64 };          // passages in a word of a bitmap
enum { MOST_BITMAPS = 256 };  // of a query; further terms with many postings are added in full
enum { MOST_UNITS = 254 };    // in a threshold: a byte holds one more

typedef struct {
  int32_t count;  // bitmaps
  int32_t shift;  // a unit is 1 << shift
  int32_t scale;  // what a bitmap's weight is rounded to is 1 << scale units
  int32_t slack;  // units by which a bound may be rounded down in all
  int32_t groups;
  int32_t ends[MOST_BITMAPS];  // of groups, in which a byte holds the units of all
  const uint64_t *bits[MOST_BITMAPS];
  _Alignas(64) uint8_t units[MOST_BITMAPS][2][GROUP];  // once and beyond, repeated
} Bounds;

static inline int32_t units_of(int32_t weight, int32_t shift) {
  return (int32_t)(((int64_t)weight + (1 << shift) - 1) >> shift);
}

// Rounds weights up to units in which the threshold is nearly a byte. 0 where bytes cannot tell what
// exceeds it.
static inline int make_bounds(const Cursor *bitmaps, int32_t count, int32_t threshold, Bounds *b) {
  int32_t heaviest = threshold, once = 0, beyond = 0;
  int64_t total = 0;
  for (int32_t i = 0; i < count; i++) {
    if (bitmaps[i].weight > heaviest) heaviest = bitmaps[i].weight;
    if (bitmaps[i].beyond > heaviest) heaviest = bitmaps[i].beyond;
    total += bitmaps[i].weight;
  }
  b->count = count;
  b->groups = 0;
  b->shift = 8;  // so much that values, each rounded to the nearest, exceed their bound by a unit
  while (units_of(heaviest, b->shift) > MOST_UNITS) b->shift++;
  // Shares are a half or so: what is added up may well be more than the threshold.
  for (b->scale = 0; b->scale < 2 && (total >> (b->shift + b->scale)) + count > 255;) b->scale++;
  for (int32_t i = 0; i < count; i++) {
    int32_t units = units_of(bitmaps[i].weight, b->shift + b->scale);
    int32_t more = units_of(bitmaps[i].beyond, b->shift);
    if (once + units > 255 || beyond + more > 255) {
      b->ends[b->groups++] = i;
      once = beyond = 0;
    }
    once += units;
    beyond += more;
    b->bits[i] = (const uint64_t *)bitmaps[i].base;
    memset(b->units[i][0], units, GROUP);
    memset(b->units[i][1], more, GROUP);
  }
  b->ends[b->groups++] = count;
  b->slack = 2 + b->groups;  // sums, values, and each group's product
  return (threshold >> b->shift) >= b->slack;
}

// Bounds of 64 passages, less the slack: what they have already and what bitmaps add at most, in
// units; 255 stands for more, too. ones: as in the segment. Returns which bounds exceed `least`.
#ifdef __AVX512BW__

static inline __m512i add_units(__m512i to, uint64_t bits, const uint8_t *units) {
  return _mm512_mask_add_epi8(to, bits, to, _mm512_load_si512(units));
}

// Units times shares; words are widened and narrowed within lanes of 16 bytes.
static inline __m512i add_share(__m512i to, __m512i once, __m512i beyond,
                                const uint16_t *ones, int32_t scale) {
  __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(once));
  __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(once, 1));
  const __m128i by = _mm_cvtsi32_si128(scale);
  low = _mm512_mulhi_epu16(_mm512_sll_epi16(low, by), _mm512_loadu_si512(ones));
  high = _mm512_mulhi_epu16(_mm512_sll_epi16(high, by), _mm512_loadu_si512(ones + 32));
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  __m512i share = _mm512_permutexvar_epi64(order, _mm512_packus_epi16(low, high));
  return _mm512_adds_epu8(_mm512_adds_epu8(to, share), beyond);
}

static inline __m512i units_of_sums(const int32_t *sums, int32_t shift) {
  __m512i quarter[4];
  for (int i = 0; i < 4; i++) {
    quarter[i] = _mm512_srl_epi32(_mm512_loadu_si512(sums + 16 * i), _mm_cvtsi32_si128(shift));
  }
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(
    order, _mm512_packus_epi16(_mm512_packs_epi32(quarter[0], quarter[1]),
                               _mm512_packs_epi32(quarter[2], quarter[3])));
}

enum { FEW = 8 };  // bitmaps whose units stay in registers

// What `above` reads again and again, where the compiler sees that nothing changes it.
typedef struct {
  const uint64_t *bits[FEW];
  __m512i once[FEW], beyond[FEW], least;
  int32_t shift, scale;
} Held;

// few: how many bitmaps there are, in one group; 0: any number.
static inline __attribute__((always_inline)) Held hold(const Bounds *b, int32_t least,
                                                       const int few) {
  Held held = {.shift = b->shift, .scale = b->scale, .least = _mm512_set1_epi8((char)least)};
#pragma GCC unroll 8
  for (int i = 0; i < few; i++) {
    held.bits[i] = b->bits[i];
    held.once[i] = _mm512_load_si512(b->units[i][0]);
    held.beyond[i] = _mm512_load_si512(b->units[i][1]);
  }
  return held;
}

static inline __attribute__((always_inline)) uint64_t above(
    const Bounds *b, const Held *held, const uint16_t *ones, const int32_t *sums, int64_t word,
    uint8_t *bounds, const int few) {
  __m512i total = units_of_sums(sums, held->shift);
  __m512i once = _mm512_setzero_si512(), beyond = once;
#pragma GCC unroll 8
  for (int i = 0; i < few; i++) {
    once = _mm512_mask_add_epi8(once, held->bits[i][word * 2], once, held->once[i]);
    beyond = _mm512_mask_add_epi8(beyond, held->bits[i][word * 2 + 1], beyond, held->beyond[i]);
  }
  if (few) total = add_share(total, once, beyond, ones, held->scale);
  for (int32_t group = 0, i = 0; !few && group < b->groups; group++) {
    once = beyond = _mm512_setzero_si512();
    for (; i < b->ends[group]; i++) {
      once = add_units(once, b->bits[i][word * 2], b->units[i][0]);
      beyond = add_units(beyond, b->bits[i][word * 2 + 1], b->units[i][1]);
    }
    total = add_share(total, once, beyond, ones, held->scale);
  }
  uint64_t found = _mm512_cmpgt_epu8_mask(total, held->least);
  if (found) _mm512_storeu_si512(bounds, total);
  return found;
}

#else

// Adds units to the bytes whose bits are set.
static inline void add_units(uint8_t *to, uint64_t bits, const uint8_t *units) {
#ifdef __AVX2__
  const __m256i bytes = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i one = _mm256_set1_epi64x((int64_t)0x8040201008040201);
  for (int half = 0; half < 2; half++) {
    __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int)(bits >> (32 * half))), bytes);
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, one), one);
    __m256i *place = (__m256i *)to + half;
    __m256i add = _mm256_and_si256(set, _mm256_load_si256((const __m256i *)units));
    _mm256_store_si256(place, _mm256_add_epi8(_mm256_load_si256(place), add));
  }
#else
  const uint64_t ones = 0x0101010101010101, one = 0x8040201008040201;
  for (int i = 0; i < 8; i++, bits >>= 8) {  // eight bytes in a word; none overflows
    uint64_t set = (((bits & 255) * ones & one) + 127 * ones) >> 7 & ones, sum;
    memcpy(&sum, to + 8 * i, 8);
    sum += set * units[0];
    memcpy(to + 8 * i, &sum, 8);
  }
#endif
}

typedef struct {
  int32_t least;
} Held;

static inline Held hold(const Bounds *b, int32_t least, const int few) {
  (void)b, (void)few;
  return (Held){least};
}

static inline uint64_t above(const Bounds *b, const Held *held, const uint16_t *ones,
                             const int32_t *sums, int64_t word, uint8_t *bounds, const int few) {
  (void)few;
  _Alignas(64) uint8_t once[GROUP], beyond[GROUP];
  int32_t total[GROUP];
  for (int i = 0; i < GROUP; i++) total[i] = sums[i] >> b->shift;
  for (int32_t group = 0, at = 0; group < b->groups; group++) {
    memset(once, 0, GROUP);
    memset(beyond, 0, GROUP);
    for (; at < b->ends[group]; at++) {
      add_units(once, b->bits[at][word * 2], b->units[at][0]);
      add_units(beyond, b->bits[at][word * 2 + 1], b->units[at][1]);
    }
    for (int i = 0; i < GROUP; i++) total[i] += ((once[i] << b->scale) * ones[i] >> 16) + beyond[i];
  }
  uint64_t found = 0;
  for (int i = 0; i < GROUP; i++) {
    bounds[i] = (uint8_t)(total[i] < 255 ? total[i] : 255);
    found |= (uint64_t)(bounds[i] > held->least) << i;
  }
  return found;
}

#endif
#endif
