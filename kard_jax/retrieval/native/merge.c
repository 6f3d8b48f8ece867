// The dictionaries of many blocks or segments, each sorted, into one: terms, and where their chunks
// lie.
#include <stdlib.h>
#include <string.h>

#include "postings.h"

typedef struct {
  const uint8_t *bytes;        // of its terms, one after another
  const int64_t *offsets;      // [terms + 1]
  const kj_chunk *chunks;      // by term
  const int64_t *term_chunks;  // [terms + 1] where each term's chunks begin; NULL: one for each
  int64_t terms, at;
  int64_t first;               // number of its first block in what is made
} Source;

typedef struct {
  Source *sources;
  int32_t *heap;  // numbers of sources that are not at their end, least term first
  int64_t held;
  int64_t blocks;  // of all sources: the most chunks that a term can have
} kj_merge;

void kj_merge_free(kj_merge *m) {
  if (!m) return;
  free(m->sources);
  free(m->heap);
  free(m);
}

static int compare(const Source *a, const Source *b) {
  int64_t size_a = a->offsets[a->at + 1] - a->offsets[a->at];
  int64_t size_b = b->offsets[b->at + 1] - b->offsets[b->at];
  int64_t size = size_a < size_b ? size_a : size_b;
  int order = memcmp(a->bytes + a->offsets[a->at], b->bytes + b->offsets[b->at], (size_t)size);
  return order ? order : (size_a > size_b) - (size_a < size_b);
}

// Equal terms come in the order of their sources.
static int before(const kj_merge *m, int32_t a, int32_t b) {
  int order = compare(&m->sources[a], &m->sources[b]);
  return order ? order < 0 : a < b;
}

static void sift(kj_merge *m, int64_t i) {
  int32_t moved = m->heap[i];
  for (;;) {
    int64_t child = 2 * i + 1;
    if (child >= m->held) break;
    if (child + 1 < m->held && before(m, m->heap[child + 1], m->heap[child])) child++;
    if (!before(m, m->heap[child], moved)) break;
    m->heap[i] = m->heap[child];
    i = child;
  }
  m->heap[i] = moved;
}

kj_merge *kj_merge_new(const uint8_t *const *bytes, const int64_t *const *offsets,
                       const kj_chunk *const *chunks, const int64_t *const *term_chunks,
                       const int64_t *terms, const int64_t *first, int64_t blocks, int64_t count) {
  kj_merge *m = calloc(1, sizeof(kj_merge));
  if (!m) return NULL;
  m->blocks = blocks;
  m->sources = calloc((size_t)count + 1, sizeof(Source));
  m->heap = calloc((size_t)count + 1, sizeof(int32_t));
  if (!m->sources || !m->heap) {
    kj_merge_free(m);
    return NULL;
  }
  for (int64_t i = 0; i < count; i++) {
    m->sources[i] = (Source){bytes[i], offsets[i], chunks[i], term_chunks[i], terms[i], 0, first[i]};
    if (terms[i]) m->heap[m->held++] = (int32_t)i;
  }
  for (int64_t i = m->held / 2; i-- > 0;) sift(m, i);
  return m;
}

// Where a source's chunks of its next term begin; `after` 1: where they end.
static int64_t chunk_of(const Source *s, int after) {
  return s->term_chunks ? s->term_chunks[s->at + after] : s->at + after;
}

// The next terms: their bytes and how many each has, how many chunks each has, the chunks with
// their blocks. Stops before a term that might not fit the room (terms, bytes, chunks), which is at
// least that of the longest term and of one chunk for each block. Writes what was used into used[3];
// returns how many terms were written: 0 at the end.
int64_t kj_merge_next(kj_merge *m, const int64_t room[3], uint8_t *bytes, int64_t *sizes,
                      int64_t *term_chunks, kj_chunk *chunks, int64_t used[3]) {
  used[0] = used[1] = used[2] = 0;
  while (m->held && used[0] < room[0]) {
    Source *first = &m->sources[m->heap[0]];
    const uint8_t *term = first->bytes + first->offsets[first->at];
    int64_t size = first->offsets[first->at + 1] - first->offsets[first->at];
    if (used[1] + size > room[1] || used[2] + m->blocks > room[2]) break;
    memcpy(bytes + used[1], term, (size_t)size);
    int64_t begin = used[2];
    while (m->held) {
      Source *s = &m->sources[m->heap[0]];
      int64_t other = s->offsets[s->at + 1] - s->offsets[s->at];
      if (other != size || memcmp(s->bytes + s->offsets[s->at], term, (size_t)size)) break;
      for (int64_t i = chunk_of(s, 0); i < chunk_of(s, 1); i++) {
        chunks[used[2]] = s->chunks[i];
        chunks[used[2]++].block += (uint16_t)s->first;
      }
      if (++s->at == s->terms) m->heap[0] = m->heap[--m->held];
      if (m->held) sift(m, 0);
    }
    sizes[used[0]] = size;
    term_chunks[used[0]++] = used[2] - begin;
    used[1] += size;
  }
  return used[0];
}
