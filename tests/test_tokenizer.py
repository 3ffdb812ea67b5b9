"""Tokenizer: exact round trip with the grammar, and files that notice damage."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tevq.config import SettingsError
from tevq.data import captions
from tevq.data.captions import BOS, EOS, PAD, Clause
from tevq.data.source import CLASS_NAMES, SOURCES
from tevq.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer(CLASS_NAMES["mnist"])
WORD_IDS = st.integers(EOS + 1, TOKENIZER.size - 1)


def test_vocabulary_is_fixed_and_the_same_size_for_every_source():
    assert TOKENIZER.words[:3] == ("<pad>", "<bos>", "<eos>") and (PAD, BOS, EOS) == (0, 1, 2)
    for source in SOURCES:
        tokenizer = Tokenizer(CLASS_NAMES[source])
        assert len(set(tokenizer.words)) == tokenizer.size == TOKENIZER.size
        assert tokenizer.words[:-10] == TOKENIZER.words[:-10]  # only the class words differ


@pytest.mark.promise("captions")
@settings(deadline=None)
@given(st.lists(WORD_IDS, max_size=50))
def test_any_words_survive_the_round_trip(ids):
    text = TOKENIZER.decode([BOS, *ids, EOS, PAD, PAD])
    assert TOKENIZER.encode(text) == [BOS, *ids, EOS]


@settings(deadline=None)
@given(st.sampled_from(SOURCES), st.integers(0, 3), st.integers(0, 9), st.integers(0, 2**32))
def test_grammar_captions_survive_the_round_trip(source, colour, label, seed):
    names = CLASS_NAMES[source]
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


def test_saved_and_loaded_is_the_same(tmp_path):
    tokenizer = Tokenizer(CLASS_NAMES["fashion"])
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.words, loaded.names) == (tokenizer.words, CLASS_NAMES["fashion"])


@pytest.mark.promise("damage")
def test_damaged_or_foreign_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    tree = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"nine"', '"nin"'))
    with pytest.raises(SettingsError, match="damaged"):
        Tokenizer.load(path)
    for content in ("", "[]", "{}", '{"words": 3, "sha256": ""}', path.read_text()[:100]):
        path.write_text(content)
        with pytest.raises(SettingsError, match="no saved tokenizer"):
            Tokenizer.load(path)
    path.write_text(json.dumps(tree | {"length": 99}))
    with pytest.raises(SettingsError, match="another caption grammar"):
        Tokenizer.load(path)
    with pytest.raises(SettingsError, match="no saved tokenizer"):
        Tokenizer.load(tmp_path / "missing.json")
