/* Words to numbers: a growing table of the distinct words of many texts, each with a number in
 * order of first sight.
 */
#include <stdlib.h>
#include <string.h>

#include "word_break.h"

enum { UNICODE_WORDS, WHITE_SPACE };

typedef struct {
  uint64_t head;  /* up to 7 bytes and their number, or the first 7 bytes and 255 */
  uint32_t hash;
  int32_t id;     /* -1: free */
} slot;

typedef struct kj_words {
  characters all;
  int32_t rules;
  slot *slots;
  uint64_t mask;       /* number of slots - 1; a power of two, at most half of them taken */
  uint8_t *arena;      /* the words, one after another */
  int64_t arena_size;
  int64_t *starts;     /* where each word begins in the arena; one more than there are words */
  int64_t starts_size;
  int64_t count;
} kj_words;

/* The first n <= 8 bytes at p as a number; nothing at or behind `limit` is read. */
static inline uint64_t load(const uint8_t *p, int64_t n, const uint8_t *limit) {
  uint64_t value = 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  if (limit - p >= 8) { /* one read and a mask; a copy of n bytes would be a loop */
    memcpy(&value, p, 8);
    return n >= 8 ? value : value & ((UINT64_C(1) << 8 * n) - 1);
  }
#endif
  for (int64_t i = 0; i < n && i < 8; i++) value |= (uint64_t)p[i] << 8 * i;
  return value;
}

static inline uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
  return hash ^ hash >> 32;
}

static int grow_slots(kj_words *w) {
  uint64_t mask = 2 * w->mask + 1;
  slot *slots = malloc((mask + 1) * sizeof *slots);
  if (!slots) return 0;
  for (uint64_t i = 0; i <= mask; i++) slots[i].id = -1;
  for (uint64_t i = 0; i <= w->mask; i++) {
    if (w->slots[i].id < 0) continue;
    uint64_t at = w->slots[i].hash & mask;
    while (slots[at].id >= 0) at = (at + 1) & mask;
    slots[at] = w->slots[i];
  }
  free(w->slots);
  w->slots = slots;
  w->mask = mask;
  return 1;
}

/* Appends a word at a free slot; its number, or -1 if memory is out (and nothing has changed). */
static int32_t add(kj_words *w, const uint8_t *p, int64_t n, uint64_t head, uint32_t hash,
                   uint64_t at) {
  int64_t used = w->starts[w->count];
  if (w->count == INT32_MAX) return -1;
  if (used + n > w->arena_size) {
    int64_t size = 2 * w->arena_size + n;
    uint8_t *arena = realloc(w->arena, (size_t)size);
    if (!arena) return -1;
    w->arena = arena;
    w->arena_size = size;
  }
  if (w->count + 2 > w->starts_size) {
    int64_t *starts = realloc(w->starts, (size_t)(2 * w->starts_size) * sizeof *starts);
    if (!starts) return -1;
    w->starts = starts;
    w->starts_size *= 2;
  }
  if (2 * (uint64_t)(w->count + 1) > w->mask) {
    if (!grow_slots(w)) return -1;
    for (at = hash & w->mask; w->slots[at].id >= 0;) at = (at + 1) & w->mask;
  }
  memcpy(w->arena + used, p, (size_t)n);
  w->slots[at] = (slot){head, hash, (int32_t)w->count};
  w->starts[++w->count] = used + n;
  return (int32_t)(w->count - 1);
}

/* The number of a word; -1 if memory is out. */
static inline int32_t number(kj_words *w, const uint8_t *p, int64_t n, const uint8_t *limit) {
  uint64_t head, wide = (uint64_t)n;
  if (n <= 7) {
    head = load(p, n, limit) | (uint64_t)n << 56;
    wide = mix(wide, head);
  } else {
    head = load(p, 7, limit) | UINT64_C(255) << 56;
    for (int64_t i = 0; i < n; i += 8) wide = mix(wide, load(p + i, n - i, limit));
  }
  uint32_t hash = (uint32_t)mix(wide, 0);
  uint64_t at = hash & w->mask;
  for (; w->slots[at].id >= 0; at = (at + 1) & w->mask) {
    const slot *s = &w->slots[at];
    if (s->hash != hash || s->head != head) continue;
    if (n <= 7) return s->id; /* the head is all of it */
    int64_t start = w->starts[s->id];
    if (w->starts[s->id + 1] - start == n && !memcmp(w->arena + start, p, (size_t)n)) return s->id;
  }
  return add(w, p, n, head, hash, at);
}

void kj_words_free(kj_words *w) {
  if (!w) return;
  free(w->slots);
  free(w->arena);
  free(w->starts);
  free(w);
}

/* An empty table; NULL if memory is out. `classes` (0x110000 bytes) must outlive it. For rules 0
 * (Unicode words) they are word_break.Class, for rules 1 (white space) 1 is white space. */
kj_words *kj_words_new(const uint8_t *classes, int32_t rules) {
  kj_words *w = calloc(1, sizeof *w);
  if (!w) return NULL;
  w->all.classes = classes;
  w->rules = rules;
  w->mask = (1u << 12) - 1;
  w->arena_size = 1 << 16;
  w->starts_size = 1 << 12;
  w->slots = malloc((w->mask + 1) * sizeof *w->slots);
  w->arena = malloc((size_t)w->arena_size);
  w->starts = malloc((size_t)w->starts_size * sizeof *w->starts);
  if (!w->slots || !w->arena || !w->starts) {
    kj_words_free(w);
    return NULL;
  }
  for (uint64_t i = 0; i <= w->mask; i++) w->slots[i].id = -1;
  w->starts[0] = 0;
  fill_kinds(&w->all);
  return w;
}

int64_t kj_words_count(const kj_words *w) { return w->count; }

/* The bytes of all words together. */
int64_t kj_words_bytes(const kj_words *w) { return w->starts[w->count]; }

/* Copies the words from `first` on: their bytes one after another, and where each begins, from 0,
 * with the end of the last (count - first + 1 numbers). */
void kj_words_get(const kj_words *w, int64_t first, uint8_t *data, int64_t *offsets) {
  int64_t base = w->starts[first];
  memcpy(data, w->arena + base, (size_t)(w->starts[w->count] - base));
  for (int64_t i = first; i <= w->count; i++) offsets[i - first] = w->starts[i] - base;
}

/* Cuts texts i = bytes[offsets[i]..offsets[i + 1]) into words: the numbers of all words one after
 * another, new words numbered in order of first sight, and ends[i] = how many there are up to text
 * i. Returns how many there are; -1 if `capacity` is too small, -2 if memory is out. The words met
 * until then stay in the table, with the numbers that the same call would give them again. */
int64_t kj_words_cut(kj_words *w, const uint8_t *bytes, const int64_t *offsets, int64_t texts,
                     int32_t *ids, int64_t capacity, int64_t *ends) {
  int64_t total = 0;
  const uint8_t *limit = bytes + (texts ? offsets[texts] : 0);
  for (int64_t i = 0; i < texts; i++) {
    const uint8_t *at = bytes + offsets[i], *end = bytes + offsets[i + 1], *first;
    while ((first = w->rules == WHITE_SPACE ? next_unspaced(&w->all, &at, end)
                                            : next_word(&w->all, &at, end))) {
      if (total == capacity) return -1;
      int32_t id = number(w, first, at - first, limit);
      if (id < 0) return -2;
      ids[total++] = id;
    }
    ends[i] = total;
  }
  return total;
}
