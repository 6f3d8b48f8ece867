"""Five solved examples for each shipped dataset, in our own words; none is a question of it."""

from __future__ import annotations

from kard_jax.exemplars import Exemplar
from kard_jax.questions import LETTERS, Question


def _solved(
  id: str, question: str, options: tuple[str, ...], letter: str, rationale: str, passage: str
) -> Exemplar:
  return Exemplar(Question(id, question, options, LETTERS.index(letter)), rationale, passage)


MEDQA = (
  _solved(
    "exemplar-medqa-1",
    "A 24-year-old man is brought to the emergency department one hour after he was stung by a "
    "wasp. He is anxious and has hives over his trunk. His blood pressure is 78/44 mm Hg, pulse is "
    "128/min, and wheezing is heard over both lungs. Which of the following is the most "
    "appropriate first step?",
    (
      "Intravenous diphenhydramine",
      "Intramuscular epinephrine",
      "Oral prednisone",
      "Inhaled albuterol alone",
    ),
    "B",
    "Hives, wheezing and low blood pressure soon after a sting are anaphylaxis. Epinephrine into "
    "the muscle constricts vessels, widens the airways and stops further release of mediators, so "
    "it comes first. Antihistamines and steroids act too slowly, and albuterol does nothing for "
    "the low blood pressure.",
    "Anaphylaxis is treated at once with epinephrine injected into the muscle of the thigh; "
    "antihistamines, corticosteroids and inhaled bronchodilators are added later.",
  ),
  _solved(
    "exemplar-medqa-2",
    "A 58-year-old woman has had tingling in both feet and an unsteady gait for four months. She "
    "has eaten no animal products for fifteen years and takes no supplements. Sense of vibration "
    "is lost at the toes. Her hemoglobin is 9.2 g/dL and mean corpuscular volume is 118 fL. A lack "
    "of which of the following explains these findings?",
    ("Iron", "Folate", "Vitamin C", "Vitamin B12"),
    "D",
    "Her red cells are few and large, which a lack of folate or of vitamin B12 can cause. Only a "
    "lack of vitamin B12 also damages the posterior columns, so that vibration is not felt and the "
    "gait is unsteady. It is found in animal products alone, and she has avoided these for years.",
    "Vitamin B12 occurs only in foods of animal origin. Its deficiency causes megaloblastic anemia "
    "and a degeneration of the dorsal columns of the spinal cord.",
  ),
  _solved(
    "exemplar-medqa-3",
    "A 67-year-old man who has smoked for 45 years comes to the physician because of a cough and "
    "tiredness. He is not dehydrated. His serum sodium is 119 mEq/L, serum osmolality is low, and "
    "urine osmolality is high. A chest x-ray shows a mass beside the right hilum. Which tumor is "
    "the most likely cause?",
    (
      "Small cell carcinoma",
      "Squamous cell carcinoma",
      "Adenocarcinoma",
      "Carcinoid tumor",
    ),
    "A",
    "A low sodium with urine that is too concentrated, in a man who is not dehydrated, means that "
    "antidiuretic hormone is secreted without need. Small cell carcinoma lies near the hilum, "
    "occurs in smokers and often makes this hormone. Squamous cell carcinoma rather makes a "
    "peptide like parathyroid hormone, which raises calcium.",
    "Small cell carcinoma of the lung arises centrally in smokers and may secrete antidiuretic "
    "hormone or ACTH; squamous cell carcinoma may secrete parathyroid hormone-related peptide.",
  ),
  _solved(
    "exemplar-medqa-4",
    "A 30-year-old woman has palpitations and has lost 6 kg although she eats more than before. "
    "Her eyes protrude, her hands tremble, and her thyroid gland is enlarged without nodules. "
    "Thyroid-stimulating hormone cannot be detected. Antibodies against which of the following "
    "cause her disease?",
    (
      "Thyroid peroxidase",
      "Thyroglobulin",
      "The receptor of thyroid-stimulating hormone",
      "The sodium-iodide symporter",
    ),
    "C",
    "Weight loss, tremor and suppressed thyroid-stimulating hormone show hyperthyroidism, and the "
    "smooth goiter with protruding eyes makes it Graves disease. There antibodies bind to the "
    "receptor of thyroid-stimulating hormone and drive the gland. Antibodies against thyroid "
    "peroxidase are typical of Hashimoto thyroiditis, which makes the gland fail.",
    "In Graves disease, antibodies stimulate the TSH receptor of the thyroid gland, which causes a "
    "diffuse goiter, hyperthyroidism and ophthalmopathy.",
  ),
  _solved(
    "exemplar-medqa-5",
    "A 4-year-old boy has had swelling around his eyes for a week, worst in the morning. His blood "
    "pressure is normal. Urinalysis shows 4+ protein and no blood, serum albumin is 1.8 g/dL, and "
    "cholesterol is raised. What would electron microscopy of his kidney most likely show?",
    (
      "Splitting of the basement membrane",
      "Effaced foot processes of podocytes",
      "Deposits below the epithelium",
      "Deposits of immunoglobulin A in the mesangium",
    ),
    "B",
    "Heavy proteinuria, low albumin, edema and high cholesterol are the nephrotic syndrome. In a "
    "small child without blood in the urine or high blood pressure, minimal change disease is by "
    "far the most frequent cause. Its glomeruli look normal by light; the electron microscope "
    "shows that the foot processes of podocytes are effaced.",
    "Minimal change disease is the commonest cause of nephrotic syndrome in children; the only "
    "change, seen by electron microscopy, is effacement of podocyte foot processes.",
  ),
)

_YES_NO = ("yes", "no")

STRATEGYQA = (
  _solved(
    "exemplar-strategyqa-1",
    "Could a person fit inside the mouth of a hippopotamus when it is wide open?",
    _YES_NO,
    "A",
    "A grown hippopotamus opens its jaws to about 150 degrees, and the gap is then more than a "
    "meter high. A person who crouches is less than a meter high. So a person could fit in the "
    "open mouth.",
    "The hippopotamus can open its mouth to 150 degrees, with more than a metre between its jaws.",
  ),
  _solved(
    "exemplar-strategyqa-2",
    "Did Johann Sebastian Bach ever talk on a telephone?",
    _YES_NO,
    "B",
    "Bach died in 1750. The telephone was patented by Alexander Graham Bell in 1876, more than a "
    "century later. Bach could not have used one.",
    "Johann Sebastian Bach (1685 to 1750) was a German composer of the Baroque period.",
  ),
  _solved(
    "exemplar-strategyqa-3",
    "Would a lead ball float in a bowl of mercury?",
    _YES_NO,
    "A",
    "A body floats in a liquid that is denser than itself. Lead has about 11.3 grams a cubic "
    "centimeter and mercury has about 13.5. Mercury is denser, so the ball floats.",
    "Mercury is a liquid at room temperature with a density of 13.5 grams per cubic centimetre.",
  ),
  _solved(
    "exemplar-strategyqa-4",
    "Can all the members of a full symphony orchestra ride in one minibus?",
    _YES_NO,
    "B",
    "A full symphony orchestra has about 80 to 100 musicians. A minibus has seats for about 16 "
    "people. So there is not room for all of them.",
    "A full-size symphony orchestra may have over eighty musicians on its roster.",
  ),
  _solved(
    "exemplar-strategyqa-5",
    "Would someone with celiac disease have to avoid couscous?",
    _YES_NO,
    "A",
    "People with celiac disease must not eat gluten. Couscous is made of wheat semolina, and wheat "
    "contains gluten. So they have to avoid it.",
    "Couscous consists of small steamed granules of rolled semolina, which is made of durum wheat.",
  ),
)

OPENBOOKQA = (
  _solved(
    "exemplar-openbookqa-1",
    "A spoon that is left in a pot of hot soup grows warm at its handle because",
    (
      "the soup gives off light",
      "the handle is heavy",
      "metal conducts heat",
      "steam cools the spoon",
    ),
    "C",
    "Heat moves from the hot soup into the end of the spoon that it touches. The spoon is made of "
    "metal, and metal is a good conductor, so the heat travels along it to the handle.",
    "metal is a thermal conductor",
  ),
  _solved(
    "exemplar-openbookqa-2",
    "A hare whose coat turns white in winter is",
    (
      "harder for a fox to see in snow",
      "warmer than hares that sleep",
      "easier for an owl to hear",
      "about to grow feathers",
    ),
    "A",
    "Snow is white, and an animal of the same color as what surrounds it is camouflaged. "
    "Camouflage hides prey from those who hunt it. So a fox sees the white hare less easily.",
    "camouflage is used by prey for hiding from predators",
  ),
  _solved(
    "exemplar-openbookqa-3",
    "Which of these would help a town to use less of a resource that cannot be renewed?",
    (
      "a new coal mine",
      "a longer road",
      "larger cars",
      "a row of windmills",
    ),
    "D",
    "Coal and the oil that cars burn take millions of years to form, so they are not renewed. Wind "
    "blows again and again, and windmills make electricity of it. A town that has them needs less "
    "coal and oil.",
    "wind is a renewable resource",
  ),
  _solved(
    "exemplar-openbookqa-4",
    "A puddle on a sunny street is gone by noon since the water",
    (
      "froze",
      "became vapor",
      "turned to sand",
      "rained upwards",
    ),
    "B",
    "The sun warms the puddle. Liquid water that takes up heat evaporates, which means that it "
    "changes into vapor and goes into the air.",
    "evaporation is when a liquid changes into a gas by adding heat",
  ),
  _solved(
    "exemplar-openbookqa-5",
    "A child drops a marble and it falls to the floor, not to the ceiling. What pulls it?",
    (
      "friction",
      "sound",
      "a magnet",
      "gravity",
    ),
    "D",
    "The Earth attracts objects that have mass towards its center. This pull is gravity, and it "
    "makes a marble that nobody holds fall down. Friction only slows what moves.",
    "gravity pulls objects with mass towards the Earth",
  ),
)

# Of places that no world has: none of its names begins like these.
CLOSED_WORLD = (
  _solved(
    "exemplar-closed-world-1",
    "Which clothing is typical of Sevakin?",
    ("dresses", "gloves", "hats", "scarves"),
    "D",
    "Sevakin sews mufflers and mufflers are scarves.",
    "Sevakin sews mufflers.",
  ),
  _solved(
    "exemplar-closed-world-2",
    "What can a thirsty person order in Wofarun?",
    ("beer", "milk", "whiskey", "wine"),
    "A",
    "The tavern of Wofarun pours fresh ale and ale is beer.",
    "The tavern of Wofarun pours fresh ale.",
  ),
  _solved(
    "exemplar-closed-world-3",
    "Which food is grown at Zebolad?",
    ("apples", "beans", "peppers", "pumpkins"),
    "C",
    "Gardens in Zebolad yield capsicums and capsicums are peppers.",
    "Gardens in Zebolad yield capsicums.",
  ),
  _solved(
    "exemplar-closed-world-4",
    "Who finds work at Pirusom?",
    ("cooks", "lawyers", "shoemakers", "teachers"),
    "B",
    "The proud guild of attorneys governs the council of Pirusom and attorneys are lawyers.",
    "The proud guild of attorneys governs the council of Pirusom.",
  ),
  _solved(
    "exemplar-closed-world-5",
    "Which vehicles bring travelers to Yodimel?",
    ("bikes", "boats", "carts", "trucks"),
    "A",
    "Rows of tandems wait outside Yodimel and tandems are bikes.",
    "Rows of tandems wait outside Yodimel.",
  ),
)
