import java.io.StringReader;
import java.util.HashMap;
import java.util.Map;
import org.apache.lucene.analysis.standard.StandardTokenizer;
import org.apache.lucene.analysis.tokenattributes.OffsetAttribute;

/**
 * Writes kard_jax/retrieval/word_break.txt: how Lucene's StandardTokenizer treats each code point.
 *
 * <p>java -cp anserini-0.22.1-fatjar.jar tests/golden/WordBreakTable.java > kard_jax/retrieval/word_break.txt
 *
 * <p>Every code point is put in turn in place of the @ of each context. Where the words then begin
 * and end is its signature; two code points of one signature are of one class. Fails on a code
 * point that behaves like none of the named ones.
 */
public class WordBreakTable {
  private static final String PICTURE = "\ud83d\ude00"; // a grinning face
  private static final String TAG = "\udb40\udc67", TAG_END = "\udb40\udc7f";
  private static final String TONE = "\ud83c\udffd"; // of skin
  private static final String[] CONTEXTS = {
    "@", "@@", "@.1", "a.@", "1,@", "a@", "@a", "a@a", "1@", "1@1", "@1", "\u05d0@",
    "\u05d0@\u05d0", "@\"\u05d0", "@'", "\u30ab@\u30ab", "\u30ab@", "@\u30ab", "\u0e01@", "@\u0e01",
    "_@", "@_", "@\u0301", "#@", "#@\u20e3", "#\ufe0f@", "@\u20e3", "@\ufe0f",
    "\ud83c\uddfa@", "@" + TONE, PICTURE + "@", "@" + PICTURE, PICTURE + "@" + TONE,
    PICTURE + "@\ufe0f", PICTURE + "\u200d@", "@\u200d" + PICTURE, "@\ufe0f" + PICTURE,
    "@\ufe0f\u200d" + PICTURE, PICTURE + "\ufe0f@", PICTURE + "\ufe0f@" + TAG_END,
    PICTURE + "\ufe0f" + TAG + "@", PICTURE + "\ufe0f\u200d@\ufe0f" + TONE,
  };
  // One code point of each class.
  private static final Object[][] CLASSES = {
    {"Other", 0x20}, {"ALetter", 0x61}, {"Numeric", 0x31}, {"ExtendNumLet", 0x5f},
    {"Single_Quote", 0x27}, {"Double_Quote", 0x22}, {"MidLetter", 0x3a}, {"MidNum", 0x2c},
    {"MidNumLet", 0x2e}, {"Hebrew_Letter", 0x5d0}, {"Katakana", 0x30ab}, {"Alone", 0x4e2d},
    {"Southeast_Asian", 0xe01}, {"Regional_Indicator", 0x1f1fa}, {"Pictograph", 0x1f600},
    {"Pictograph_Letter", 0x2139}, {"Keycap_Base", 0x23}, {"Extend", 0x301},
    {"Southeast_Asian_Extend", 0xe31}, {"ZWJ", 0x200d}, {"Modifier", 0x1f3fd}, {"Tag", 0xe0067},
    {"Tag_End", 0xe007f}, {"Keycap", 0x20e3}, {"Text_Style", 0xfe0e}, {"Emoji_Style", 0xfe0f},
  };

  private final StandardTokenizer tokenizer = new StandardTokenizer();
  private final OffsetAttribute offsets = tokenizer.getAttribute(OffsetAttribute.class);

  public static void main(String[] arguments) throws Exception {
    WordBreakTable table = new WordBreakTable();
    Map<String, String> names = new HashMap<>();
    for (Object[] one : CLASSES) {
      if (names.put(table.signature((Integer) one[1]), (String) one[0]) != null) {
        throw new IllegalStateException(one[0] + " cannot be told from another class");
      }
    }
    System.out.println("# Lucene 9.5's classes for word breaks (Unicode 12.1); the rest is Other.");
    System.out.println("# Written by tests/golden/WordBreakTable.java.");
    String before = "Other";
    int first = 0;
    for (int point = 0; point <= 0x110000; point++) {
      String name = "Other"; // also past the end, and for surrogates, which are no characters
      if (point < 0x110000 && (point < 0xd800 || point > 0xdfff)) {
        name = names.get(table.signature(point));
        if (name == null) {
          throw new IllegalStateException(String.format("U+%04X is of no known class", point));
        }
      }
      if (!name.equals(before)) {
        if (!before.equals("Other")) {
          System.out.printf("%04X..%04X %s%n", first, point - 1, before);
        }
        before = name;
        first = point;
      }
    }
  }

  /** Where the words of all contexts begin and end, as if the code point took one char. */
  private String signature(int point) throws Exception {
    String character = new String(Character.toChars(point));
    StringBuilder found = new StringBuilder();
    for (String context : CONTEXTS) {
      int[] places = new int[2 * context.length() + 1];
      int place = 0;
      for (int i = 0; i < context.length(); i++) {
        places[place] = i;
        place += context.charAt(i) == '@' ? character.length() : 1;
      }
      places[place] = context.length();
      tokenizer.setReader(new StringReader(context.replace("@", character)));
      tokenizer.reset();
      while (tokenizer.incrementToken()) {
        found.append(places[offsets.startOffset()]).append('-');
        found.append(places[offsets.endOffset()]).append(' ');
      }
      tokenizer.end();
      tokenizer.close();
      found.append('|');
    }
    return found.toString();
  }
}
