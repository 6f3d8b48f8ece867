/* Where words begin and end in UTF-8: the rules of ../word_break.py, which explains them.
 *
 * There they are patterns; here they are two automata over the same classes of characters, and a
 * short cut for what most text is: ASCII letters and digits between ASCII separators.
 */
#ifndef KARD_JAX_WORD_BREAK_H
#define KARD_JAX_WORD_BREAK_H

#include <stddef.h>
#include <stdint.h>

enum { LONGEST = 255 }; /* UTF-16 units of one word */

/* The numbers of word_break.Class. */
enum {
  OTHER, ALETTER, NUMERIC, EXTENDNUMLET, SINGLE_QUOTE, DOUBLE_QUOTE, MIDLETTER, MIDNUM, MIDNUMLET,
  HEBREW_LETTER, KATAKANA, ALONE, SOUTHEAST_ASIAN, REGIONAL_INDICATOR, PICTOGRAPH,
  PICTOGRAPH_LETTER, KEYCAP_BASE, EXTEND, SOUTHEAST_ASIAN_EXTEND, ZWJ, MODIFIER, TAG, TAG_END,
  KEYCAP, TEXT_STYLE, EMOJI_STYLE, CLASSES
};

/* What a byte is to the short cut. */
enum { SEPARATOR, PLAIN, MIDDLE, SPECIAL };

typedef struct {
  const uint8_t *classes; /* of each code point; for white space, 1 is white space */
  uint8_t kinds[256];     /* of each byte */
} characters;

/* State 0 of an automaton is its start and, once left, its end: no rule goes back to it. */

#define UNIT [ALETTER] = LETTER, [PICTOGRAPH_LETTER] = LETTER, [HEBREW_LETTER] = HEBREW, \
  [NUMERIC] = NUMBER
#define BETWEEN_LETTERS(to) [MIDLETTER] = to, [MIDNUMLET] = to

enum {
  START, LEAD, LETTER, LETTER_MIDDLE, HEBREW, HEBREW_QUOTED, QUOTED, NUMBER,
  NUMBER_MIDDLE, KANA, TAIL, SINGLE, ASIAN, HALF_FLAG, FLAG, WORD_STATES
};
/* Marks (EXTEND and above) leave every state but START as it is, so they are not in this table. */
static const uint8_t WORD[WORD_STATES][CLASSES] = {
  [START] = {UNIT, [KATAKANA] = KANA, [EXTENDNUMLET] = LEAD, [ALONE] = SINGLE,
             [SOUTHEAST_ASIAN] = ASIAN, [SOUTHEAST_ASIAN_EXTEND] = ASIAN,
             [REGIONAL_INDICATOR] = HALF_FLAG},
  [LEAD] = {UNIT, [KATAKANA] = KANA, [EXTENDNUMLET] = LEAD},
  [LETTER] = {UNIT, [EXTENDNUMLET] = TAIL, [SINGLE_QUOTE] = LETTER_MIDDLE,
              BETWEEN_LETTERS(LETTER_MIDDLE)},
  /* A Hebrew letter that closes a middle mark has no quotation mark of its own. */
  [LETTER_MIDDLE] = {[ALETTER] = LETTER, [PICTOGRAPH_LETTER] = LETTER, [HEBREW_LETTER] = LETTER},
  [HEBREW] = {UNIT, [EXTENDNUMLET] = TAIL, [SINGLE_QUOTE] = QUOTED, [DOUBLE_QUOTE] = HEBREW_QUOTED,
              BETWEEN_LETTERS(LETTER_MIDDLE)},
  [HEBREW_QUOTED] = {[HEBREW_LETTER] = QUOTED},
  [QUOTED] = {UNIT, [EXTENDNUMLET] = TAIL},
  [NUMBER] = {UNIT, [EXTENDNUMLET] = TAIL, [SINGLE_QUOTE] = NUMBER_MIDDLE,
              [MIDNUM] = NUMBER_MIDDLE, [MIDNUMLET] = NUMBER_MIDDLE},
  [NUMBER_MIDDLE] = {[NUMERIC] = NUMBER},
  [KANA] = {[KATAKANA] = KANA, [EXTENDNUMLET] = TAIL},
  [TAIL] = {UNIT, [KATAKANA] = KANA, [EXTENDNUMLET] = TAIL},
  [ASIAN] = {[SOUTHEAST_ASIAN] = ASIAN},
  [HALF_FLAG] = {[REGIONAL_INDICATOR] = FLAG},
};
static const uint32_t WORD_ENDS = 1u << LETTER | 1u << HEBREW | 1u << QUOTED | 1u << NUMBER |
  1u << KANA | 1u << TAIL | 1u << SINGLE | 1u << ASIAN | 1u << FLAG;

/* PICTURE: after a pictograph. JOINED: the same, but not the first, so no tag sequence may follow.
 * ..._Z: a ZWJ came last, so that a pictograph is taken in. STYLED...: after an emoji style. */
#define MARKS(to) [EXTEND] = to, [SOUTHEAST_ASIAN_EXTEND] = to, [MODIFIER] = to, [TAG] = to, \
  [TAG_END] = to
#define ANY_MARK(to) MARKS(to), [KEYCAP] = to
#define PICTURE_TO(to) [PICTOGRAPH] = to, [PICTOGRAPH_LETTER] = to
enum {
  NOTHING, JOINERS, PICTURE, PICTURE_Z, STYLED, JOINED, JOINED_Z, STYLED_JOINED, STYLED_Z,
  STYLED_ZZ, TONE, TONE_Z, TAGS, TAGGED, BASE, BASE_STYLED, CAPPED, CAPPED_STYLED, CAPPED_AGAIN,
  EMOJI_STATES
};
static const uint8_t EMOJI[EMOJI_STATES][CLASSES] = {
  [NOTHING] = {[ZWJ] = JOINERS, PICTURE_TO(PICTURE), [MODIFIER] = TONE, [KEYCAP_BASE] = BASE},
  [JOINERS] = {[ZWJ] = JOINERS, PICTURE_TO(PICTURE)},
  [PICTURE] = {ANY_MARK(PICTURE), [ZWJ] = PICTURE_Z, [EMOJI_STYLE] = STYLED},
  [PICTURE_Z] = {ANY_MARK(PICTURE), [ZWJ] = PICTURE_Z, [EMOJI_STYLE] = STYLED, PICTURE_TO(JOINED)},
  [STYLED] = {[ZWJ] = STYLED_Z, [TAG] = TAGS},
  [JOINED] = {ANY_MARK(JOINED), [ZWJ] = JOINED_Z, [EMOJI_STYLE] = STYLED_JOINED},
  [JOINED_Z] = {ANY_MARK(JOINED), [ZWJ] = JOINED_Z, [EMOJI_STYLE] = STYLED_JOINED,
                PICTURE_TO(JOINED)},
  [STYLED_JOINED] = {[ZWJ] = STYLED_Z},
  [STYLED_Z] = {[ZWJ] = STYLED_ZZ, [MODIFIER] = TONE, PICTURE_TO(JOINED)},
  [STYLED_ZZ] = {[ZWJ] = STYLED_ZZ, PICTURE_TO(JOINED)},
  [TONE] = {ANY_MARK(TONE), [ZWJ] = TONE_Z},
  [TONE_Z] = {ANY_MARK(TONE), [ZWJ] = TONE_Z, PICTURE_TO(JOINED)},
  [TAGS] = {[TAG] = TAGS, [TAG_END] = TAGGED},
  [BASE] = {MARKS(BASE), [ZWJ] = BASE, [KEYCAP] = CAPPED, [EMOJI_STYLE] = BASE_STYLED},
  [BASE_STYLED] = {[KEYCAP] = CAPPED_AGAIN},
  [CAPPED] = {ANY_MARK(CAPPED), [ZWJ] = CAPPED, [EMOJI_STYLE] = CAPPED_STYLED},
  [CAPPED_STYLED] = {[KEYCAP] = CAPPED_AGAIN},
  [CAPPED_AGAIN] = {ANY_MARK(CAPPED_AGAIN), [ZWJ] = CAPPED_AGAIN},
};
static const uint32_t EMOJI_ENDS = 1u << PICTURE | 1u << PICTURE_Z | 1u << STYLED | 1u << JOINED |
  1u << JOINED_Z | 1u << STYLED_JOINED | 1u << TONE | 1u << TONE_Z | 1u << TAGGED | 1u << CAPPED |
  1u << CAPPED_AGAIN;

/* The code point at p, and its bytes. A byte that is no UTF-8 reads as U+0000, a separator. */
static inline uint32_t decode(const uint8_t *p, const uint8_t *end, int *bytes) {
  uint32_t c = *p;
  *bytes = 1;
  if (c < 0x80) return c;
  int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
  if (c < 0xc2 || c > 0xf4 || end - p <= more) return 0;
  c &= 0x3fu >> more;
  for (int i = 1; i <= more; i++) {
    if ((p[i] & 0xc0) != 0x80) return 0;
    c = c << 6 | (p[i] & 0x3f);
  }
  if (c > 0x10ffff) return 0;
  *bytes = more + 1;
  return c;
}

/* Where the longest word from p ends under one automaton; p itself if there is none. */
static const uint8_t *longest(const uint8_t *classes, const uint8_t *p, const uint8_t *end,
                              const uint8_t (*next)[CLASSES], uint32_t ends, int marks_stay) {
  const uint8_t *best = p;
  unsigned state = 0;
  for (int units = 0, bytes; p < end; p += bytes) {
    uint32_t c = decode(p, end, &bytes);
    units += c > 0xffff ? 2 : 1;
    if (units > LONGEST) break;
    unsigned class = classes[c];
    if (!(marks_stay && state && class >= EXTEND)) state = next[state][class];
    if (!state) break;
    if (ends >> state & 1) best = p + bytes;
  }
  return best;
}

static const uint8_t *word_end(const uint8_t *classes, const uint8_t *p, const uint8_t *end) {
  const uint8_t *word = longest(classes, p, end, WORD, WORD_ENDS, 1);
  const uint8_t *emoji = longest(classes, p, end, EMOJI, EMOJI_ENDS, 0);
  return word > emoji ? word : emoji;
}

static void fill_kinds(characters *all) {
  for (int byte = 0; byte < 256; byte++) {
    int class = byte < 0x80 ? all->classes[byte] : EXTEND;
    all->kinds[byte] = class == ALETTER || class == NUMERIC ? PLAIN
      : class == OTHER || class == DOUBLE_QUOTE ? SEPARATOR /* the quote matters to Hebrew only */
      : class == SINGLE_QUOTE || (class >= MIDLETTER && class <= MIDNUMLET) ? MIDDLE
      : SPECIAL;
  }
}

/* The next word in [*p, end): its first byte, with *p moved to its end; NULL if there is none. */
static inline const uint8_t *next_word(const characters *all, const uint8_t **p,
                                       const uint8_t *end) {
  const uint8_t *kinds = all->kinds, *at = *p;
  while (at < end) {
    unsigned kind = kinds[*at];
    const uint8_t *first = at;
    if (kind == PLAIN) {
      do at++;
      while (at < end && kinds[*at] == PLAIN);
      kind = at < end ? kinds[*at] : SEPARATOR;
      /* A middle mark before a separator joins nothing. */
      if (kind == MIDDLE) kind = end - at < 2 ? SEPARATOR : kinds[at[1]];
      if ((kind != SEPARATOR && kind != MIDDLE) || at - first > LONGEST) {
        at = word_end(all->classes, first, end);
      }
      *p = at;
      return first;
    }
    if (kind == SPECIAL) {
      at = word_end(all->classes, first, end);
      if (at > first) {
        *p = at;
        return first;
      }
      int bytes;
      decode(first, end, &bytes);
      at = first + bytes;
    } else {
      at++;
    }
  }
  return NULL;
}

/* The same where anything but white space (class 1) is a word. */
static inline const uint8_t *next_unspaced(const characters *all, const uint8_t **p,
                                           const uint8_t *end) {
  const uint8_t *at = *p;
  int bytes;
  while (at < end && all->classes[decode(at, end, &bytes)]) at += bytes;
  const uint8_t *first = at;
  while (at < end && !all->classes[decode(at, end, &bytes)]) at += bytes;
  *p = at;
  return at > first ? first : NULL;
}

#endif
