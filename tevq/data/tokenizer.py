"""Word-level tokenizer with the fixed vocabulary of the caption grammar."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from tevq.config import SettingsError
from tevq.data import captions
from tevq.data.captions import BOS, EOS, PAD
from tevq.runs.storage import write_json

__all__ = ["BOS", "EOS", "PAD", "Tokenizer"]
_KIND = "tevq tokenizer"
_TOKEN = re.compile(r"[,.]|[^\s,.]+")


class Tokenizer:
    """Captions to token ids and back: PAD = 0, BOS = 1, EOS = 2, then words.

    names: the ten class words; they have the same ids for every item source.
    >>> t = Tokenizer(CLASS_NAMES["mnist"]); t.decode(t.encode("the center is red two."))
    'the center is red two.'
    """

    length = captions.LENGTH  # tokens of the longest caption, with BOS and EOS

    def __init__(self, names: Iterable[str]):
        self.names = tuple(names)
        self.words = captions.vocabulary(self.names)
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
        for word in _TOKEN.findall(text):
            index = self._ids.get(word, PAD)
            if index <= EOS:
                raise SettingsError(f"{word!r} is not in the vocabulary of the captions; known: "
                                    f"{' '.join(self.words[EOS + 1:])}")
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

    def save(self, path: str | Path) -> None:
        """JSON with the words in order and their SHA-256."""
        write_json(Path(path), {"kind": _KIND, "length": self.length,
                                "words": list(self.words), "sha256": _checksum(self.words)})

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """What `save` saved. Raises SettingsError for a damaged file or another grammar."""
        try:
            tree = json.loads(Path(path).read_text())
            words, checksum = tree["words"], tree["sha256"]
            if tree["kind"] != _KIND:
                raise ValueError(f"it is of kind {tree['kind']!r}")
            tokenizer = cls(words[-10:])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"{path} is no saved tokenizer ({error}); save it again") from None
        if checksum != _checksum(words):
            raise SettingsError(f"{path} is damaged: checksum differs; save it again")
        if tokenizer.words != tuple(words) or tree.get("length") != cls.length:
            raise SettingsError(f"{path} was saved with another caption grammar; save it again")
        return tokenizer


def _checksum(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
