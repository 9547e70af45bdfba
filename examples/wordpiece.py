"""BERT's uncased WordPiece tokenizer (Devlin et al. 2018, arXiv:1810.04805), from a vocab.txt."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

LONGEST_WORD = 100  # characters; longer words are unknown


class WordPiece:
    """Text -> token ids: clean, lower, split at spaces and punctuation, then the longest known pieces.

    Examples
    --------
    >>> WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "float", "##s", "."]).encode("Floats.")
    [2, 4, 5, 6, 3]
    """

    def __init__(self, vocabulary: list[str]) -> None:
        self.ids = {piece: i for i, piece in enumerate(vocabulary)}

    @classmethod
    def load(cls, path: Path) -> WordPiece:
        return cls(path.read_text("utf-8").splitlines())

    def encode(self, text: str, limit: int = 256) -> list[int]:
        """[CLS] pieces [SEP], at most `limit` ids."""
        pieces = [piece for word in words(text) for piece in self._pieces(word)]
        return [self.ids["[CLS]"], *pieces[: limit - 2], self.ids["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        unknown = [self.ids["[UNK]"]]
        if len(word) > LONGEST_WORD:
            return unknown
        found: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in self.ids)
            end = next(ends, None)
            if end is None:
                return unknown
            found.append(self.ids[prefix + word[start:end]])
            start = end
        return found


def words(text: str) -> Iterator[str]:
    """Lowercase words without accents; each punctuation mark and CJK character is a word."""
    word = ""
    for char in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(char)
        if category == "Mn" or char in "\0\ufffd" or (category[0] == "C" and char not in "\t\n\r"):
            continue
        alone = _is_punctuation(char, category) or _is_cjk(ord(char))
        if alone or char.isspace():
            if word:
                yield word
            word = ""
            if alone:
                yield char
        else:
            word += char
    if word:
        yield word


def _is_punctuation(char: str, category: str) -> bool:
    """Unicode's, and all of ASCII's symbols ($, ^, `, ...)."""
    return category[0] == "P" or (char.isascii() and char.isprintable() and not char.isalnum() and char != " ")


def _is_cjk(code: int) -> bool:
    ranges = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
    return any(low <= code <= high for low, high in ranges)
