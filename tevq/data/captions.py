"""Captions: a grammar that writes them, two rules that read them back, and the tokenizer.

A caption is one to four clauses (place, colour, class), in any order, joined by connectors and
closed by a full stop, as in the example of section 4.1:

    the lower right is blue nine, and the white two is on the upper left.

Eight templates, two words for every place and four connectors make 16 captions of one item and
some 10^8 of four. Every connector starts with a comma, so that the official scoring rule, which
splits at commas, sees one unit per clause.
"""

import difflib
import functools
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tevq.config import SettingsError

COLOURS = ("white", "red", "green", "blue")
PLACES = ("upper left", "upper right", "lower left", "lower right", "center")
CENTER = PLACES.index("center")
UNUSED = 255  # in arrays of places, colours and classes: no item in this slot

TEMPLATES = (
    "the {place} is {colour} {label}",
    "the {colour} {label} is on the {place}",
    "the {place} has a {colour} {label}",
    "the {place} shows a {colour} {label}",
    "a {colour} {label} is in the {place}",
    "on the {place} is a {colour} {label}",
    "{colour} {label} at the {place}",
    "the {place} holds {colour} {label}",
)
PLACE_WORDS = (
    ("upper left", "top left"), ("upper right", "top right"),
    ("lower left", "bottom left"), ("lower right", "bottom right"), ("center", "middle"),
)  # per place; the same number of words for each
CONNECTORS = (",", ", and", ", while", ", also")
MAX_CLAUSES = 4
CHOICES = MAX_CLAUSES * 3  # random numbers that one caption uses

SPECIALS = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = range(3)
_SYNONYMS = len(PLACE_WORDS[0])
_WORDS = (*SPECIALS, ",", ".", "the", "a", "is", "on", "in", "at", "has", "shows", "holds",
          "and", "while", "also", "upper", "top", "lower", "bottom", "left", "right",
          "center", "middle", *COLOURS)
_ID = {word: index for index, word in enumerate(_WORDS)}
MOST_CLASSES = 200  # token ids and classes are kept in uint8
_LONGEST_CLAUSE = max(len(template.split()) for template in TEMPLATES) + 1  # a place is two words
LENGTH = MAX_CLAUSES * _LONGEST_CLAUSE + (MAX_CLAUSES - 1) * 2 + 3  # with BOS, ".", EOS


class Clause(NamedTuple):
    """One item of a scene, as indices into PLACES, COLOURS and the class words."""

    place: int
    colour: int
    label: int


class Parsed(NamedTuple):
    """What the strict parser found. Only a caption without problems scores."""

    clauses: frozenset[Clause]  # the sound clauses
    problems: tuple[str, ...]
    units: int  # clauses the caption tries to make: its comma-separated units

    @property
    def ok(self) -> bool:
        return not self.problems


def vocabulary(names: Iterable[str]) -> tuple[str, ...]:
    """All words in token order: specials, punctuation, grammar, then the class words."""
    return (*_WORDS, *names)


def write(place: np.ndarray, colour: np.ndarray, label: np.ndarray, choices: np.ndarray,
          classes: int = 10) -> np.ndarray:
    """Captions of N scenes as token ids; clauses in slot order.

    place, colour, label: uint8 (N, 4), UNUSED (255) after the last item of a scene; choices:
    uint64 (N, CHOICES), random; labels are below `classes`. Returns uint8 (N, LENGTH), padded.
    """
    clauses, clause_lengths = _clause_table(classes)
    links, link_lengths = _pad_rows([[_ID[word] for word in link.split()] for link in CONNECTORS])
    n = len(place)
    # pieces are written with their padding, which the next piece overwrites
    ids = np.zeros((n, LENGTH + clauses.shape[1]), dtype=np.uint8)
    ids[:, 0] = BOS
    cursor = np.arange(n, dtype=np.int64) * ids.shape[1] + 1  # into the flat view of ids
    sizes = (len(PLACES), _SYNONYMS, len(TEMPLATES), len(COLOURS), classes)
    counts = np.array([len(TEMPLATES), _SYNONYMS, len(CONNECTORS)], dtype=np.uint64)
    template, synonym, link = (choices.reshape(n, 3, -1) % counts[:, None]).astype(
        np.int64).transpose(1, 0, 2)
    for slot in range(place.shape[1]):
        used = place[:, slot] != UNUSED
        if slot:
            row = np.where(used, link[:, slot], len(CONNECTORS))  # the last row is empty
            cursor = _append(ids, cursor, links[row], link_lengths[row])
        parts = [np.where(used, x[:, slot], 0) for x in (place, synonym, template, colour, label)]
        row = np.where(used, np.ravel_multi_index(parts, sizes), len(clauses) - 1)
        cursor = _append(ids, cursor, clauses[row], clause_lengths[row])
    ids.reshape(-1)[cursor] = _ID["."]
    ids.reshape(-1)[cursor + 1] = EOS
    return ids[:, :LENGTH]


def _append(ids, cursor, piece, lengths) -> np.ndarray:
    """Writes rows of `piece` at `cursor` (flat) and returns the cursor behind each."""
    ids.reshape(-1)[cursor[:, None] + np.arange(piece.shape[1])] = piece
    return cursor + lengths


@functools.cache
def _clause_table(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (rows, longest clause) and lengths of all clauses; the last row is empty."""
    names = [str(number) for number in range(classes)]  # stand for the class words
    ids = {word: index for index, word in enumerate(vocabulary(names))}
    return _pad_rows([
        [ids[word] for word in template.format(place=words[s], colour=colour, label=name).split()]
        for words, s, template, colour, name in itertools.product(
            PLACE_WORDS, range(_SYNONYMS), TEMPLATES, COLOURS, names)])


def _pad_rows(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    rows = [*rows, []]
    columns = np.array([*itertools.zip_longest(*rows, fillvalue=PAD)], dtype=np.uint8)
    return np.ascontiguousarray(columns.T), np.array([len(row) for row in rows])


def paraphrases(clauses, n: int, seed: int, names: tuple[str, ...]) -> list[str]:
    """`n` different captions of one scene, in a fixed random order.

    clauses: one to four Clause, no place twice. Raises SettingsError when the grammar has fewer
    than `n` captions of them (16 for one clause) or none at all.
    """
    clauses = sorted(set(clauses))
    k = len(clauses)
    places = {clause.place for clause in clauses}
    most = math.factorial(k) * (len(TEMPLATES) * _SYNONYMS) ** k * len(CONNECTORS) ** max(k - 1, 0)
    if not 1 <= k == len(places) or (CENTER in places and k > 1) or not 0 <= n <= most:
        raise SettingsError(f"there are no {n} captions of {clauses}; use one center clause, or "
                            "clauses in different quadrants (one clause has 16 captions)")
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        draw.shuffle(clauses)
        text = ""
        for place, colour, label in clauses:
            text += f"{draw.choice(CONNECTORS)} " if text else ""
            text += draw.choice(TEMPLATES).format(
                place=draw.choice(PLACE_WORDS[place]), colour=COLOURS[colour], label=names[label])
        found[f"{text}."] = None
    return list(found)


def parse(text: str, names: tuple[str, ...]) -> Parsed:
    """Strict reading: exactly the grammar, letter by letter; never raises on a string.

    A clause is sound when it fits a template and no other clause has its place. Everything else
    is a problem: unknown words, word order, duplicate or contradictory clauses, a center item
    beside others, a missing connector or full stop, wrong spacing.
    """
    problems = [] if text.endswith(".") else ["no full stop at the end"]
    units = text.removesuffix(".").split(",")
    found = []
    for index, unit in enumerate(units):
        if clause := _read_clause(unit, index > 0, names):
            found.append(clause)
        else:
            known = vocabulary(names)[len(SPECIALS):]
            problems.append(next((f"unknown word {word!r}" for word in unit.split()
                                  if word not in known), f"not a clause: {unit!r}"))
    for place, count in sorted(Counter(clause.place for clause in found).items()):
        if count > 1:
            same = len({clause for clause in found if clause.place == place}) == 1
            kind = "duplicate" if same else "contradictory"
            problems.append(f"{kind} clauses: {PLACES[place]} {count} times")
            found = [clause for clause in found if clause.place != place]
    if len(units) > 1 and any(clause.place == CENTER for clause in found):
        problems.append("center beside other clauses")
        found = [clause for clause in found if clause.place != CENTER]
    return Parsed(frozenset(found), tuple(problems), len(units))


def _read_clause(unit: str, linked: bool, names: tuple[str, ...]) -> Clause | None:
    for pattern in _patterns(linked, names):
        if match := pattern.fullmatch(unit):
            place = next(i for i, words in enumerate(PLACE_WORDS) if match["place"] in words)
            return Clause(place, COLOURS.index(match["colour"]), names.index(match["label"]))
    return None


@functools.cache
def _patterns(linked: bool, names: tuple[str, ...]) -> tuple[re.Pattern, ...]:
    """One pattern a template; linked: behind a comma and a connector."""
    groups = {"place": itertools.chain(*PLACE_WORDS), "colour": COLOURS, "label": names}
    groups = {name: f"(?P<{name}>{'|'.join(map(re.escape, words))})"
              for name, words in groups.items()}
    link = f"({'|'.join(connector[1:] for connector in CONNECTORS)}) " if linked else ""
    return tuple(re.compile(link + template.format(**groups)) for template in TEMPLATES)


def nearest(text: str, names: tuple[str, ...]) -> str:
    """The caption of the grammar that a text may have meant; empty when none can be guessed.

    Small letters, numerals as words, the closest known words, and all that the lenient rule finds.
    """
    words, known = [], vocabulary(names)[len(SPECIALS):]
    for word in re.findall(r"[,.]|[^\s,.]+", re.sub(r",?\s+and\b", ", and", text.lower())):
        if word.isdecimal() and int(word) < len(names):
            word = names[int(word)]
        words += [word] if word in known else difflib.get_close_matches(word, known, n=1)
    units = official_units(" ".join(words), names)
    guess = ", and ".join(
        f"the {PLACES[place]} is {COLOURS[colour]} {names[label]}"
        for place, colour, label in units if colour is not None and label is not None) + "."
    found = parse(guess, names)
    return guess if found.ok and found.units == len(units) else ""


def official_units(text: str, names: tuple[str, ...]) -> list[tuple[int, int | None, int | None]]:
    """(place, colour, class) of every comma-separated unit by the official, lenient rule.

    From `parser.py` of the official code, its quirks kept: words are searched as substrings; a
    unit without a known place counts as center; of several classes the lowest index wins, of
    several places and colours the first in a fixed order; "and" without a comma hides the second
    item; a trailing comma makes a unit of nothing; "shirt" needs a space before it. None: no such
    word. Differences: class words stand for the official numerals, "boot" for "ankle boot".
    """
    def first(words: Sequence[str]) -> int | None:
        return next((i for i, word in enumerate(words) if word in unit), None)

    units, labels = [], [" shirt" if name == "shirt" else name for name in names]
    for unit in text.split(","):
        place = next((i for i, words in enumerate(PLACE_WORDS[:CENTER])
                      if any(word in unit for word in words)), CENTER)
        units.append((place, first(COLOURS), first(labels)))
    return units


class Tokenizer:
    """Captions to token ids and back: PAD = 0, BOS = 1, EOS = 2, then words.

    names: the class words of the item source; the words of the grammar have the same ids for all.
    >>> t = Tokenizer(class_names("mnist")); t.decode(t.encode("the center is red two."))
    'the center is red two.'
    """

    length = LENGTH  # tokens of the longest caption, with BOS and EOS

    def __init__(self, names: Iterable[str]):
        self.names = tuple(names)
        self.words = vocabulary(self.names)
        self._ids = {word: index for index, word in enumerate(self.words)}

    @property
    def size(self) -> int:
        """Number of token ids, V."""
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """[BOS, words ..., EOS], not padded. Raises SettingsError for a word outside the grammar.

        Spacing is not kept; `decode` puts the spaces of the grammar.
        """
        ids = [BOS]
        for word in re.findall(r"[,.]|[^\s,.]+", text):
            index = self._ids.get(word, PAD)
            if index <= EOS:
                known = self.words[EOS + 1:]
                close = difflib.get_close_matches(word.lower(), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {' '.join(known)}"
                raise SettingsError(f"{word!r} is not in the vocabulary of the captions; {hint}")
            ids.append(index)
        return [*ids, EOS]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids up to the first EOS (or all of them); a BOS at the start is dropped.

        A PAD or BOS elsewhere shows as <pad> or <bos>, which no parser accepts as a word.
        """
        text = ""
        for position, index in enumerate(map(int, ids)):
            if index == EOS:
                break
            if index == BOS and position == 0:
                continue
            if not 0 <= index < self.size:
                raise SettingsError(f"token id {index} is outside 0..{self.size - 1}")
            word = self.words[index]
            text += word if word in ",." or not text else f" {word}"
        return text
