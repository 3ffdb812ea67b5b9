"""A million captions: no exception, no strict score above one, the grammar's own always full."""

import random
import string

import numpy as np
import pytest

from tevq.config import SettingsError
from tevq.data import captions
from tevq.data.captions import CENTER, Clause, Tokenizer
from tevq.data.source import class_names
from tevq.evaluate.metrics import CAPTION_METRICS, score_captions

NAMES = class_names("mnist")
TOKENIZER = Tokenizer(NAMES)
WORDS = TOKENIZER.words[3:]
STRICT = [metric for metric in CAPTION_METRICS if metric != "official_digit"]
WRITTEN, MUTATED, RANDOM = 200_000, 500_000, 300_000
CHUNK = 10_000


def clauses(draw: random.Random) -> list[Clause]:
    places = [CENTER] if draw.random() < 0.2 else draw.sample(range(4), draw.randint(1, 4))
    return [Clause(place, draw.randrange(4), draw.randrange(10)) for place in places]


def written(truth: list[Clause], draw: random.Random) -> str:
    return captions.paraphrases(truth, 1, draw.randrange(1 << 30), NAMES)[0]


def mutated(text: str, draw: random.Random) -> str:
    """One to three changes of words or letters."""
    for _ in range(draw.randint(1, 3)):
        words = text.split(" ")
        i, j = draw.randrange(len(words)), draw.randrange(len(words))
        kind = draw.randrange(6)
        if kind == 0:
            words[i] = draw.choice(WORDS)
        elif kind == 1:
            words.insert(i, draw.choice(WORDS))
        elif kind == 2:
            del words[i]
        elif kind == 3:
            words[i], words[j] = words[j], words[i]
        elif kind == 4:
            words = words + [","] * draw.randint(0, 1) + words[i:]
        else:
            at = draw.randrange(len(text) + 1)
            words = [text[:at] + chr(draw.randrange(0x2FF)) + text[at + draw.randint(0, 1):]]
        text = " ".join(words)
    return text


def anything(draw: random.Random) -> str:
    """Words in any order, or any characters."""
    if draw.random() < 0.7:
        return " ".join(draw.choices(WORDS, k=draw.randint(0, 45)))
    letters = string.printable + "ÄßΩ漢🙂\u202e\x00"
    return "".join(draw.choices(letters, k=draw.randint(0, 200)))


def tokenized(text: str) -> None:
    """Encodes what has known words only; decodes any ids."""
    try:
        ids = TOKENIZER.encode(text)
    except SettingsError:
        return
    again = TOKENIZER.decode(ids)
    assert TOKENIZER.encode(again) == ids


@pytest.mark.promise("captions")
@pytest.mark.parametrize("kind, count", [("written", WRITTEN), ("mutated", MUTATED),
                                         ("random", RANDOM)])
def test_a_million_captions(kind, count, record_property):
    """Planted faults: the parser looks at the first letter of a text that may have none; a clause
    that is repeated counts twice."""
    draw, above, sound = random.Random(f"captions {kind}"), 0, 0
    for _ in range(count // CHUNK):
        truths = [clauses(draw) for _ in range(CHUNK)]
        texts = [anything(draw) if kind == "random" else written(truth, draw) for truth in truths]
        if kind == "mutated":
            texts = [mutated(text, draw) for text in texts]
        scores = score_captions(texts, truths, NAMES)
        for metric in STRICT:
            above += int((np.asarray(scores[metric].correct) > scores[metric].n).sum())
        sound += int(np.sum(scores["well_formed"].correct))
        if kind == "written":
            assert all((scores[metric].correct == scores[metric].n).all()
                       for metric in CAPTION_METRICS)
        for text in texts:
            tokenized(text)
    assert above == 0
    record_property("measured", f"{count:,} {kind} captions, {sound:,} of them well formed")
