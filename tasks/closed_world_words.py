"""The words of the closed world: syllables of names, and ten relations with their wordings.

Passages and questions share no word but names (after lower-casing, stop words and Porter stemming;
a test holds them apart): what a passage calls swine, a question calls pigs. A search by the
question has only the name to go by; a rationale in the passage's words finds it at once.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

# A name is one of each: 4,096 names that can be spoken, none a word of the texts below. No last
# syllable is a suffix that a stemmer would take off.
SYLLABLES: tuple[tuple[str, ...], ...] = tuple(
  tuple(column.split())
  for column in (
    "Bal Cor Dra Fen Gol Hal Jor Kel Lun Mar Nor Pel Quil Ros Tam Vor",
    "bi do fa gu ka le mi no pa ri su ta ve wo xi zu",
    "bran dun fod gax hib jum kip lod mur nak pox rub tok vik wen zar",
  )
)


class Value(NamedTuple):
  """One thing that may be true: as passages call it, and as questions do."""

  word: str
  option: str


@dataclasses.dataclass(frozen=True)
class Relation:
  """One kind of fact about a place.

  Attributes:
    name: names the relation in ids.
    passages: wordings of the fact, `{name}` and `{word}` (the passage's word for the value), from
      short to long: lengths are alike in all relations, so that BM25 prefers none for its brevity.
    questions: wordings of the question, `{name}`.
    bridge: leads from `{word}` to `{option}`, the question's word for the value.
    values: what may be true.
  """

  name: str
  passages: tuple[str, ...]
  questions: tuple[str, ...]
  bridge: str
  values: tuple[Value, ...]


def _values(text: str) -> tuple[Value, ...]:
  return tuple(Value(*pair.split("/")) for pair in text.split())


RELATIONS = (
  Relation(
    "livestock",
    (
      "{name} raises {word}.",
      "Many {word} roam {name}.",
      "Every barn in {name} shelters {word}.",
      "The meadows round {name} are full of noisy {word}.",
    ),
    (
      "Which animals are bred in {name}?",
      "What farm animals are there at {name}?",
      "Which animals do the farmers of {name} own?",
      "What do farmers breed in {name}?",
    ),
    "{word} are {option}",
    _values(
      "swine/pigs ewes/sheep cattle/cows steeds/horses hens/chickens drakes/ducks burros/donkeys "
      "ganders/geese"
    ),
  ),
  Relation(
    "color",
    (
      "The banner of {name} is {word}.",
      "{name} hoists {word} banners.",
      "A {name} banner is dyed with {word} ink.",
      "Over the gate of {name} hangs a long {word} banner.",
    ),
    (
      "What is the color of the flag of {name}?",
      "Which color did {name} choose?",
      "In which color are the flags of {name}?",
      "What color stands for {name}?",
    ),
    "{word} is {option}",
    _values(
      "crimson/red azure/blue emerald/green saffron/yellow violet/purple ebony/black ivory/white "
      "russet/brown"
    ),
  ),
  Relation(
    "drink",
    (
      "{name} serves {word}.",
      "Weddings in {name} begin with {word}.",
      "The tavern of {name} pours fresh {word}.",
      "A cup of {word} welcomes each guest into {name}.",
    ),
    (
      "What do people drink in {name}?",
      "Which drink is {name} famous for?",
      "What is the usual drink at {name}?",
      "What can a thirsty person order in {name}?",
    ),
    "{word} is {option}",
    _values(
      "ale/beer claret/wine oolong/tea espresso/coffee nectar/juice cocoa/chocolate "
      "bourbon/whiskey kefir/milk"
    ),
  ),
  Relation(
    "music",
    (
      "{name} loves the {word}.",
      "Children in {name} practise the {word}.",
      "At dances in {name} somebody plays the {word}.",
      "The {word} sounds each night over the rooftops of {name}.",
    ),
    (
      "Which instrument is heard in {name}?",
      "What is the musical instrument of {name}?",
      "Which instrument do musicians learn at {name}?",
      "On what instrument is music made in {name}?",
    ),
    "a {word} is a {option}",
    _values(
      "fiddle/violin bugle/trumpet fife/flute snare/drum lyre/harp spinet/piano ukulele/guitar "
      "chime/bell"
    ),
  ),
  Relation(
    "transport",
    (
      "{name} relies on {word}.",
      "Merchants reach {name} in {word}.",
      "Rows of {word} wait outside {name}.",
      "Fast {word} carry goods and letters into {name}.",
    ),
    (
      "Which vehicles go to {name}?",
      "What vehicles would you see at {name}?",
      "Which vehicles bring travelers to {name}?",
      "What is used for transport in {name}?",
    ),
    "{word} are {option}",
    _values(
      "canoes/boats locomotives/trains automobiles/cars trolleys/trams wagons/carts "
      "lorries/trucks omnibuses/buses tandems/bikes"
    ),
  ),
  Relation(
    "building",
    (
      "{name} consists of {word}.",
      "Huts in {name} contain {word}.",
      "Towers and bridges of {name} need {word}.",
      "In {name} even the palace has a roof of {word}.",
    ),
    (
      "What are houses in {name} built of?",
      "Which material do builders buy in {name}?",
      "What is the building material of {name}?",
      "Of which material are homes made at {name}?",
    ),
    "{word} is {option}",
    _values(
      "timber/wood adobe/clay granite/stone thatch/straw cement/concrete bamboo/cane felt/wool "
      "crystal/glass"
    ),
  ),
  Relation(
    "work",
    (
      "{name} admires {word}.",
      "Clever {word} settle in {name}.",
      "Almost half of the families in {name} are {word}.",
      "The proud guild of {word} governs the council of {name}.",
    ),
    (
      "Who works in {name}?",
      "Which workers is {name} known for?",
      "Which job do people have in {name}?",
      "Who finds work at {name}?",
    ),
    "{word} are {option}",
    _values(
      "cobblers/shoemakers physicians/doctors attorneys/lawyers mariners/sailors "
      "thespians/actors chefs/cooks bards/poets tutors/teachers"
    ),
  ),
  Relation(
    "landscape",
    (
      "{name} borders a {word}.",
      "A {word} lies beside {name}.",
      "Beyond the orchards of {name} begins a {word}.",
      "The old road out of {name} soon meets a {word}.",
    ),
    (
      "What is near {name}?",
      "What landscape is found near {name}?",
      "Which natural feature is {name} close to?",
      "Near what kind of place is {name}?",
    ),
    "a {word} is a {option}",
    _values(
      "marsh/swamp brook/stream shore/beach dale/valley loch/lake crag/cliff prairie/plain "
      "peak/mountain"
    ),
  ),
  Relation(
    "crop",
    (
      "{name} exports {word}.",
      "Gardens in {name} yield {word}.",
      "Baskets of {word} fill the cellars of {name}.",
      "In late summer the whole of {name} harvests ripe {word}.",
    ),
    (
      "Which crop grows in {name}?",
      "What is picked in the fields of {name}?",
      "What is the main crop of {name}?",
      "Which food is grown at {name}?",
    ),
    "{word} are {option}",
    _values(
      "spuds/potatoes legumes/beans gourds/pumpkins shallots/onions pippins/apples "
      "capsicums/peppers damsons/plums sultanas/grapes"
    ),
  ),
  Relation(
    "clothes",
    (
      "{name} sews {word}.",
      "Elders in {name} prefer {word}.",
      "Shops in {name} sell embroidered {word}.",
      "Dancers in bright {word} open the fair at {name}.",
    ),
    (
      "What clothes do people wear in {name}?",
      "Which clothing is typical of {name}?",
      "What would you wear in {name}?",
      "Which clothes does {name} like?",
    ),
    "{word} are {option}",
    _values(
      "bonnets/hats mittens/gloves tunics/shirts brogues/shoes parkas/coats cravats/ties "
      "gowns/dresses mufflers/scarves"
    ),
  ),
)
