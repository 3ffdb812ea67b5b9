"""Grammar, parser, tokenizer: every caption is read back exactly, nothing else is accepted."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tevq.config import SettingsError
from tevq.data import captions
from tevq.data.captions import (
    BOS,
    CENTER,
    CHOICES,
    CONNECTORS,
    EOS,
    LENGTH,
    PAD,
    PLACE_WORDS,
    TEMPLATES,
    UNUSED,
    Clause,
    Tokenizer,
    official_units,
    paraphrases,
    parse,
    write,
)
from tevq.data.source import SOURCES, class_names

NAMES = class_names("mnist")
FIXED = [name for name in SOURCES if not name.endswith(":")]
TOKENIZER = Tokenizer(NAMES)
WORDS = TOKENIZER.words[3:]
EXAMPLE = "the lower right is blue nine, and the white two is on the upper left."  # section 4.1
EXAMPLE_CLAUSES = [Clause(3, 3, 9), Clause(0, 0, 2)]

colours, labels = st.integers(0, 3), st.integers(0, 9)


@st.composite
def scenes(draw):
    """Clauses of one scene in any order: one in the center, or one to four in the quadrants."""
    places = draw(st.one_of(
        st.just([CENTER]), st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)))
    return [Clause(place, draw(colours), draw(labels)) for place in places]


def written(clauses, choices) -> str:
    """The text of one caption by `write`, from its 12 choices."""
    slots = np.full((3, 1, 4), UNUSED, dtype=np.uint8)
    slots[:, 0, : len(clauses)] = np.array(clauses).T
    ids = write(*slots, np.array([choices], dtype=np.uint64))
    assert ids.shape == (1, LENGTH) and ids.dtype == np.uint8
    end = int((ids[0] == EOS).argmax())
    assert ids[0, end] == EOS and (ids[0, end + 1:] == PAD).all() and (ids[0, :end] != PAD).all()
    return TOKENIZER.decode(ids[0])


# ------------------------------------------------------------------------------------- grammar


def test_the_grammar_offers_what_was_promised():
    assert len(set(TEMPLATES)) >= 8 and len(set(CONNECTORS)) >= 3
    assert PLACE_WORDS[0] == ("upper left", "top left")
    assert PLACE_WORDS[3] == ("lower right", "bottom right")
    assert PLACE_WORDS[CENTER] == ("center", "middle")
    assert all(connector.startswith(",") for connector in CONNECTORS)  # official units


def test_the_papers_example_is_written_and_read():
    choices = [0] * CHOICES
    choices[1] = TEMPLATES.index("the {colour} {label} is on the {place}")
    choices[9] = CONNECTORS.index(", and")
    assert written(EXAMPLE_CLAUSES, choices) == EXAMPLE
    assert parse(EXAMPLE, NAMES) == (frozenset(EXAMPLE_CLAUSES), (), 2)
    assert official_units(EXAMPLE, NAMES) == EXAMPLE_CLAUSES


@pytest.mark.promise("captions")
@settings(deadline=None, max_examples=300)
@given(scenes(), st.lists(st.integers(0, 2**64 - 1), min_size=CHOICES, max_size=CHOICES))
def test_written_captions_are_read_back_exactly(clauses, choices):
    text = written(clauses, choices)
    assert parse(text, NAMES) == (frozenset(clauses), (), len(clauses))
    assert official_units(text, NAMES) == clauses  # in the same order
    assert len(TOKENIZER.encode(text)) <= LENGTH


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(FIXED), scenes(), st.integers(0, 2**32))
def test_paraphrases_of_every_source_are_read_back_exactly(source, clauses, seed):
    names = class_names(source)
    texts = paraphrases(clauses, 10, seed, names)
    assert len(set(texts)) == 10
    for text in texts:
        assert parse(text, names) == (frozenset(clauses), (), len(clauses))
        assert sorted(official_units(text, names)) == sorted(clauses)


@pytest.mark.parametrize("clause", [Clause(CENTER, 1, 2), Clause(0, 0, 0), Clause(3, 2, 8)])
def test_writer_and_paraphrases_know_the_same_sixteen_captions(clause):
    """Two routes to the grammar: a table of token ids, and formatted strings."""
    by_table = Counter(
        written([clause], [t, 0, 0, 0, s] + [0] * 7) for t in range(8) for s in range(2))
    by_format = set()
    for template, place in itertools.product(TEMPLATES, PLACE_WORDS[clause.place]):
        by_format.add(template.format(
            place=place, colour=captions.COLOURS[clause.colour], label=NAMES[clause.label]) + ".")
    assert set(by_table) == by_format == set(paraphrases([clause], 16, 5, NAMES))
    assert set(by_table.values()) == {1}


def test_every_connector_is_written_between_clauses():
    texts = {written(EXAMPLE_CLAUSES, [0] * 8 + [0, link, 0, 0]) for link in range(4)}
    middles = {text.removeprefix("the lower right is blue nine").partition(" the ")[0]
               for text in texts}
    assert middles == set(CONNECTORS)


def test_the_longest_caption_fills_the_length():
    longest = max(range(len(TEMPLATES)), key=lambda i: len(TEMPLATES[i].split()))
    clauses = [Clause(place, 0, 0) for place in range(4)]
    text = written(clauses, [longest] * 4 + [0] * 4 + [CONNECTORS.index(", and")] * 4)
    assert len(TOKENIZER.encode(text)) == LENGTH <= 48


def test_no_word_hides_in_another():
    """The official rule searches substrings; only "shirt" needs its special case."""
    for source in FIXED:
        words = Tokenizer(class_names(source)).words[3:]
        names = [*class_names(source), *captions.COLOURS]
        hidden = {(a, b) for a in names for b in words if a != b and a in b}
        assert hidden == ({("shirt", "tshirt")} if source == "fashion" else set())


def test_paraphrases_depend_on_the_seed_alone():
    first = paraphrases(EXAMPLE_CLAUSES, 20, 1, NAMES)
    assert first == paraphrases(EXAMPLE_CLAUSES[::-1], 20, 1, NAMES)
    assert first != paraphrases(EXAMPLE_CLAUSES, 20, 2, NAMES)
    assert first[:5] == paraphrases(EXAMPLE_CLAUSES, 5, 1, NAMES)
    orders = {parse_order(text) for text in first}
    assert orders == {(3, 0), (0, 3)}  # free order of clauses


def parse_order(text):
    return tuple(unit[0] for unit in official_units(text, NAMES))


@pytest.mark.parametrize("clauses, n", [
    ([], 1), ([Clause(0, 0, 0), Clause(0, 0, 1)], 1), ([Clause(4, 0, 0), Clause(0, 0, 0)], 1),
    ([Clause(4, 0, 0)], 17), ([Clause(4, 0, 0)], -1)])
def test_impossible_paraphrases_are_refused(clauses, n):
    with pytest.raises(SettingsError):
        paraphrases(clauses, n, 0, NAMES)


# --------------------------------------------------------------------------------- strictness


@pytest.mark.parametrize("text, problem, kept", [
    ("", "no full stop", 0),
    (".", "not a clause", 0),
    ("the upper left is red two", "no full stop", 1),
    ("the upper left is red two..", "unknown word 'two.'", 0),
    ("the upper left is red two. ", "no full stop", 0),
    ("The upper left is red two.", "unknown word 'The'", 0),
    ("the upper  left is red two.", "not a clause", 0),
    ("the upper left is purple two.", "unknown word 'purple'", 0),
    ("the upper left is red 2.", "unknown word '2'", 0),
    ("the upper left is red.", "not a clause", 0),
    ("the upper left is two red.", "not a clause", 0),
    ("the upper left is red two\n.", "not a clause", 0),
    ("the upper left is red two,the center is red one.", "not a clause", 1),
    ("and the upper left is red two.", "not a clause", 0),
    ("the upper left is red two, or the top right is red one.", "unknown word 'or'", 1),
    ("the upper left is red two and the top right is red one.", "not a clause", 0),
    ("the upper left is red two,.", "not a clause", 1),
    ("the upper left is red two, the top left is red two.", "duplicate", 0),
    ("the upper left is red two, the top left is red one.", "contradictory", 0),
    ("the upper left is red two, the top right is red one, red two at the top left.",
     "duplicate", 1),
    ("the center is red two, the top right is red one.", "center beside", 1),
    ("the upper left is red two. the top right is red one.", "unknown word 'two.'", 0),
    ("the upper left is <pad> red two.", "unknown word '<pad>'", 0),
])
def test_problems_are_flagged(text, problem, kept):
    parsed = parse(text, NAMES)
    assert not parsed.ok and any(problem in found for found in parsed.problems), parsed
    assert len(parsed.clauses) == kept


@pytest.mark.promise("captions")
@settings(deadline=None, max_examples=200)
@given(st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from((*WORDS, "", " ", "\n", ",", "."))).map(" ".join)))
def test_no_string_raises(text):
    parsed = parse(text, NAMES)
    assert parsed.units == text.count(",") + 1 == len(official_units(text, NAMES))
    if parsed.ok:
        assert len({clause.place for clause in parsed.clauses}) == parsed.units


@pytest.mark.promise("captions")
@settings(deadline=None, max_examples=500)
@given(st.data(), st.sampled_from(paraphrases(EXAMPLE_CLAUSES[:1], 16, 0, NAMES)
                                  + paraphrases(EXAMPLE_CLAUSES, 40, 0, NAMES)))
def test_damaged_captions_are_refused_unless_they_are_other_captions(data, text):
    """Second route: what the parser accepts must be in the enumerated language."""
    tokens = TOKENIZER.encode(text)[1:-1]
    position = data.draw(st.integers(0, len(tokens) - 1))
    other = data.draw(st.integers(0, len(tokens) - 1))
    word = data.draw(st.integers(3, TOKENIZER.size - 1))
    tokens = data.draw(st.sampled_from([
        tokens[:position] + tokens[position + 1:],  # a word lost
        tokens[:position] + [word] + tokens[position:],  # a word added
        tokens[:position] + [word] + tokens[position + 1:],  # a word changed
        tokens[:position] + tokens[position:position + 1] * 2 + tokens[position + 1:],
        swapped(tokens, position, other),
    ]))
    damaged = TOKENIZER.decode(tokens)
    assume(damaged != text)
    parsed = parse(damaged, NAMES)
    if parsed.ok:
        assert damaged in language(parsed.clauses)


def swapped(tokens, i, j):
    tokens = list(tokens)
    tokens[i], tokens[j] = tokens[j], tokens[i]
    return tokens


def language(clauses):
    """All captions of one or two clauses, by enumeration."""
    texts = set()
    for order in itertools.permutations(clauses):
        spoken = [[template.format(place=place, colour=captions.COLOURS[clause.colour],
                                   label=NAMES[clause.label])
                   for template in TEMPLATES for place in PLACE_WORDS[clause.place]]
                  for clause in order]
        links = itertools.product(CONNECTORS, repeat=len(order) - 1)
        for link, parts in itertools.product(links, itertools.product(*spoken)):
            joined = parts[0] + "".join(
                f"{a} {b}" for a, b in zip(link, parts[1:], strict=True))
            texts.add(joined + ".")
    return texts


# ---------------------------------------------------------------------------- official reading


@pytest.mark.parametrize("text, units", [
    ("white two upper left", [(0, 0, 2)]),
    ("the white two is on the upper left, and nine blue.", [(0, 0, 2), (CENTER, 3, 9)]),
    ("blue nine one bottom left.", [(2, 3, 1)]),  # the smaller class wins
    ("red blue two top left upper right", [(0, 1, 2)]),  # first in a fixed order
    ("white two upper left and red one lower left", [(0, 0, 1)]),  # one unit
    ("white two upper left,", [(0, 0, 2), (CENTER, None, None)]),  # a phantom unit
    ("", [(CENTER, None, None)]),
    ("upp er left red two", [(CENTER, 1, 2)]),
])
def test_official_quirks(text, units):
    assert official_units(text, NAMES) == units


def test_official_shirt_needs_a_space():
    names = class_names("fashion")
    assert official_units("shirt red, white shirt, white tshirt", names) == [
        (CENTER, 1, None), (CENTER, 0, 6), (CENTER, 0, 0)]


# ------------------------------------------------------------------------------------------ tokens


def test_vocabulary_is_fixed_and_the_same_size_for_every_source():
    assert TOKENIZER.words[:3] == ("<pad>", "<bos>", "<eos>") and (PAD, BOS, EOS) == (0, 1, 2)
    for source in FIXED:
        tokenizer = Tokenizer(class_names(source))
        assert len(set(tokenizer.words)) == tokenizer.size == TOKENIZER.size
        assert tokenizer.words[:-10] == TOKENIZER.words[:-10]  # only the class words differ


@pytest.mark.promise("captions")
@settings(deadline=None)
@given(st.lists(st.integers(EOS + 1, TOKENIZER.size - 1), max_size=50))
def test_any_words_survive_the_round_trip(ids):
    text = TOKENIZER.decode([BOS, *ids, EOS, PAD, PAD])
    assert TOKENIZER.encode(text) == [BOS, *ids, EOS]


@settings(deadline=None)
@given(st.sampled_from(FIXED), st.integers(0, 3), st.integers(0, 9), st.integers(0, 2**32))
def test_grammar_captions_survive_the_round_trip(source, colour, label, seed):
    names = class_names(source)
    tokenizer = Tokenizer(names)
    scene = [Clause(place, colour, label) for place in range(4)]
    for text in captions.paraphrases(scene, 3, seed, names):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text)) <= tokenizer.length


def test_example_by_hand():
    ids = TOKENIZER.encode("the middle is red two, while")
    words = ["<bos>", "the", "middle", "is", "red", "two", ",", "while", "<eos>"]
    assert [TOKENIZER.words[i] for i in ids] == words


def test_decode_stops_at_the_end_token_and_shows_misplaced_specials():
    the, red = TOKENIZER.encode("the red")[1:3]
    assert TOKENIZER.decode([BOS, the, EOS, red]) == "the"
    assert TOKENIZER.decode([the, red]) == "the red"
    assert TOKENIZER.decode([BOS, the, PAD, red, BOS, EOS]) == "the <pad> red <bos>"
    assert TOKENIZER.decode([BOS, EOS]) == TOKENIZER.decode([]) == ""


@pytest.mark.parametrize("word", ["purple", "10", "<pad>", "<eos>", "The", "twos"])
def test_words_outside_the_grammar_are_refused(word):
    with pytest.raises(SettingsError, match="not in the vocabulary"):
        TOKENIZER.encode(f"the {word} is red two.")


@pytest.mark.parametrize("index", [-1, TOKENIZER.size, 255])
def test_ids_outside_the_vocabulary_are_refused(index):
    with pytest.raises(SettingsError, match="outside 0"):
        TOKENIZER.decode([BOS, index])
