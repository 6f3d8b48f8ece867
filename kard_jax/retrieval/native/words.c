/* Words to numbers: a growing table of the distinct words of many texts, each with a number in
 * order of first sight.
 */
#include <stdlib.h>
#include <string.h>

#include "word_break.h"

enum { UNICODE_WORDS, WHITE_SPACE };
enum { WAITING = 32, FEW = 24, STEP = 7 };

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

/* A word of a text that is to be looked up. */
typedef struct {
  const uint8_t *p;
  int64_t n;
  uint64_t head;
  uint32_t hash;
} word;

static inline word take(const uint8_t *p, int64_t n, const uint8_t *limit) {
  uint64_t head, wide = (uint64_t)n;
  if (n <= 7) {
    head = load(p, n, limit) | (uint64_t)n << 56;
    wide = mix(wide, head);
  } else {
    head = load(p, 7, limit) | UINT64_C(255) << 56;
    for (int64_t i = 0; i < n; i += 8) wide = mix(wide, load(p + i, n - i, limit));
  }
  return (word){p, n, head, (uint32_t)mix(wide, 0)};
}

/* The number of a word; -1 if memory is out. */
static inline int32_t number(kj_words *w, word found) {
  const uint8_t *p = found.p;
  int64_t n = found.n;
  uint64_t head = found.head, at = found.hash & w->mask;
  uint32_t hash = found.hash;
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

/* Looks up the words that wait; 0 if memory is out. */
static int resolve(kj_words *w, const word *waiting, int *held, int32_t *ids, int64_t *total) {
  for (int i = 0; i < *held; i++) { /* long words are compared with the arena, too */
    const slot *s = &w->slots[waiting[i].hash & w->mask];
    if (waiting[i].n > 7 && s->id >= 0) __builtin_prefetch(&w->starts[s->id]);
  }
  for (int i = 0; i < *held; i++) {
    const slot *s = &w->slots[waiting[i].hash & w->mask];
    if (waiting[i].n > 7 && s->id >= 0) __builtin_prefetch(w->arena + w->starts[s->id]);
  }
  for (int i = 0; i < *held; i++) {
    int32_t id = number(w, waiting[i]);
    if (id < 0) return 0;
    ids[(*total)++] = id;
  }
  *held = 0;
  return 1;
}

/* Cuts texts i = bytes[offsets[i]..offsets[i + 1]) into words: the numbers of all words one after
 * another, new words numbered in order of first sight, and ends[i] = how many there are up to text
 * i. Returns how many there are; -1 if `capacity` is too small, -2 if memory is out. The words met
 * until then stay in the table, with the numbers that the same call would give them again. */
int64_t kj_words_cut(kj_words *w, const uint8_t *bytes, const int64_t *offsets, int64_t texts,
                     int32_t *ids, int64_t capacity, int64_t *ends) {
  int64_t total = 0;
  const uint8_t *limit = bytes + (texts ? offsets[texts] : 0);
  /* Words wait until the lines of the table that they need have come: it is larger than caches. */
  word waiting[WAITING];
  int held = 0;
  for (int64_t i = 0; i < texts; i++) {
    const uint8_t *at = bytes + offsets[i], *end = bytes + offsets[i + 1], *first;
    while ((first = w->rules == WHITE_SPACE ? next_unspaced(&w->all, &at, end)
                                            : next_word(&w->all, &at, end))) {
      if (total + held == capacity) return -1;
      waiting[held] = take(first, at - first, limit);
      __builtin_prefetch(&w->slots[waiting[held++].hash & w->mask]);
      if (held == WAITING && !resolve(w, waiting, &held, ids, &total)) return -2;
    }
    ends[i] = total + held;
  }
  return resolve(w, waiting, &held, ids, &total) ? total : -2;
}

/* ---- words in order */

typedef struct {
  uint64_t key; /* STEP bytes and how many there are (or more), as a number that sorts as they do */
  int32_t id;
} keyed;

static int compare(const kj_words *w, int32_t a, int32_t b) {
  int64_t size_a = w->starts[a + 1] - w->starts[a], size_b = w->starts[b + 1] - w->starts[b];
  int order = memcmp(w->arena + w->starts[a], w->arena + w->starts[b],
                     (size_t)(size_a < size_b ? size_a : size_b));
  return order ? order : (size_a > size_b) - (size_a < size_b);
}

static uint64_t key_at(const kj_words *w, int32_t id, int64_t depth) {
  const uint8_t *p = w->arena + w->starts[id] + depth;
  int64_t n = w->starts[id + 1] - w->starts[id] - depth;
  uint64_t key = 0;
  for (int j = 0; j < STEP; j++) key = key << 8 | (j < n ? p[j] : 0);
  return key << 8 | (uint64_t)(n > STEP ? STEP + 1 : n > 0 ? n : 0);
}

static void sort_few(const kj_words *w, keyed *a, int64_t count) {
  for (int64_t i = 1; i < count; i++) {
    keyed moved = a[i];
    int64_t j = i;
    for (; j > 0 && compare(w, a[j - 1].id, moved.id) > 0; j--) a[j] = a[j - 1];
    a[j] = moved;
  }
}

/* Sorts words that are equal up to `depth` by STEP bytes after another, each byte by counting. */
static void sort(const kj_words *w, keyed *a, keyed *spare, int64_t count, int64_t depth) {
  for (;; depth += STEP) {
    if (count <= FEW) {
      sort_few(w, a, count);
      return;
    }
    for (int64_t i = 0; i < count; i++) a[i].key = key_at(w, a[i].id, depth);
    for (int shift = 0; shift < 64; shift += 8) { /* an even number of moves: they end in `a` */
      int64_t begin[257] = {0};
      for (int64_t i = 0; i < count; i++) begin[(a[i].key >> shift & 255) + 1]++;
      for (int j = 0; j < 256; j++) begin[j + 1] += begin[j];
      for (int64_t i = 0; i < count; i++) spare[begin[a[i].key >> shift & 255]++] = a[i];
      keyed *swap = a;
      a = spare;
      spare = swap;
    }
    if (a[0].key == a[count - 1].key) continue; /* all alike: no depth of calls for long words */
    for (int64_t i = 0, end; i < count; i = end) {
      for (end = i + 1; end < count && a[end].key == a[i].key;) end++;
      if (end - i > 1) sort(w, a + i, spare + i, end - i, depth + STEP);
    }
    return;
  }
}

/* Sorts distinct words by their bytes, in place. -2 if memory is out, else 0. */
int64_t kj_words_sort(const kj_words *w, int32_t *ids, int64_t count) {
  keyed *a = malloc((size_t)(2 * count + 1) * sizeof *a);
  if (!a) return -2;
  for (int64_t i = 0; i < count; i++) a[i].id = ids[i];
  sort(w, a, a + count, count, 0);
  for (int64_t i = 0; i < count; i++) ids[i] = a[i].id;
  free(a);
  return 0;
}

/* Where some words begin when they stand one after another, from 0, and where the last ends. */
void kj_words_offsets(const kj_words *w, const int32_t *ids, int64_t count, int64_t *offsets) {
  offsets[0] = 0;
  for (int64_t i = 0; i < count; i++) {
    offsets[i + 1] = offsets[i] + w->starts[ids[i] + 1] - w->starts[ids[i]];
  }
}

/* The bytes of some words, one after another. */
void kj_words_copy(const kj_words *w, const int32_t *ids, int64_t count, uint8_t *data) {
  for (int64_t i = 0; i < count; i++) {
    int64_t n = w->starts[ids[i] + 1] - w->starts[ids[i]];
    memcpy(data, w->arena + w->starts[ids[i]], (size_t)n);
    data += n;
  }
}
