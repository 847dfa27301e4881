"""Texts to tokens, three times as fast as the tokenizer's library alone: pieces that were met before are looked up."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from cpt_repro.data.tokenizer import END_OF_TEXT
from cpt_repro.errors import UserError

#: Pieces and tokens that are remembered before all is forgotten; a few hundred megabytes at most.
MOST_PIECES, MOST_TOKENS = 1 << 20, 1 << 24

#: White space and the word behind it. A tokenizer that splits as GPT-2's does has no token across the places where
#: these pieces meet: before white space that follows something else, and between a letter and ASCII punctuation.
#: Letters of old blocks only, because another version of Unicode may not know a newer one for a letter.
_PIECES = re.compile(
    r"\s*+(?:(?:(?![×÷])[A-Za-z\u00c0-\u024f\u0386\u0388-\u03ff\u0400-\u0481])++(?=[\s!-/:-@\[-`{-~]|\Z)|\S++)|\s++"
)
#: White space to one library and not to another.
_DOUBTFUL = re.compile(r"[\x1c-\x1f\x85\u180e\u200b\ufeff]")


def _splits_as_gpt2(tokenizer: Any) -> bool:
    """Whether pieces may be encoded one by one: byte-level BPE with GPT-2's pattern, as GPT-NeoX-20B's is."""
    told = json.loads(tokenizer.to_str())
    model, split = told["model"], told["pre_tokenizer"] or {}
    return (
        (model["type"], model.get("dropout"), told["truncation"], told["padding"])
        == ("BPE", None, None, None)
        and told["normalizer"] in (None, {"type": "NFC"})
        and split.get("type") == "ByteLevel"
        and split.get("use_regex", True)
        and not split.get("add_prefix_space", True)
        # Added tokens are special ones, which text never yields, and runs of blanks, which lie within a piece.
        and all(
            token["special"]
            or (
                not token["content"].strip(" ")
                and not (token["lstrip"] or token["rstrip"] or token["single_word"])
            )
            for token in told["added_tokens"]
        )
    )


class _Numbers(dict):
    """Piece -> number; a new piece gets the next one and is put on the list `new`."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, piece: str) -> int:
        number = self[piece] = len(self) + 1  # 0 is the end of a text
        self.new.append(piece)
        return number


class Encoder:
    """`encode(texts)`: their tokens, the same as the tokenizer gives, and behind each text its end-of-text token."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(END_OF_TEXT)
        if self.end is None:
            raise UserError(f"the tokenizer has no {END_OF_TEXT}.", do="Use one that has it.")
        self._whole = not _splits_as_gpt2(tokenizer)
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbers()
        # Piece number k is the `_lengths[k]` tokens from `_starts[k]` on.
        self._flat, self._starts, self._lengths = (np.array(first, dtype) for first, dtype in
            (([self.end], np.uint16), ([0], np.int64), ([1], np.int64)))  # fmt: skip

    def _cut(self, text: str) -> list[str]:
        return [text] if self._whole or _DOUBTFUL.search(text) else _PIECES.findall(text)

    def _library(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all texts behind each other, and how many each has."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        pieces = [np.array(encoding.ids, dtype=np.uint16) for encoding in encodings]
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint16), lengths

    def _learn(self, new: list[str]) -> None:
        flat, lengths = self._library(new)
        self._starts = np.append(self._starts, len(self._flat) + np.cumsum(lengths) - lengths)
        self._lengths = np.append(self._lengths, lengths)
        self._flat = np.append(self._flat, flat)
        new.clear()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Tokens of all texts, uint16 of shape (n,)."""
        if len(self._starts) > MOST_PIECES or len(self._flat) > MOST_TOKENS:
            self._forget()
        number, numbers = self._numbers.__getitem__, []
        for text in texts:
            numbers += map(number, self._cut(text))
            numbers.append(0)
        if self._numbers.new:
            self._learn(self._numbers.new)
        chosen = np.array(numbers, dtype=np.int64)
        lengths = self._lengths[chosen]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
            self._starts[chosen] - (ends - lengths), lengths
        )
        return self._flat[places]
