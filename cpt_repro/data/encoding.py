"""Texts to tokens, three times as fast as the library alone: pieces that were met before are looked up."""

from __future__ import annotations

import json
import re

import numpy as np
from tokenizers import Tokenizer

from cpt_repro.data.tokenizer import END_OF_TEXT

#: Pieces that are remembered before all is forgotten; some hundred megabytes.
MOST_PIECES = 1 << 20
#: Longer pieces are not remembered.
LONGEST_PIECE = 64

#: White space and the word behind it. A tokenizer that splits as GPT-2's does has no token across the places
#: where these pieces meet: before white space that follows something else, and between a letter and ASCII
#: punctuation. Letters of old blocks only: another version of Unicode may not know newer ones.
_PIECES = re.compile(
    r"\s*+(?:(?:(?![×÷])[A-Za-z\u00c0-\u024f\u0386\u0388-\u03ff\u0400-\u0481])++(?=[\s!-/:-@\[-`{-~]|\Z)|\S++)|\s++"
)
#: White space to one library and not to another.
_DOUBTFUL = re.compile(r"[\x1c-\x1f\x85\u180e\u200b\ufeff]")


def _splits_as_gpt2(tokenizer: Tokenizer) -> bool:
    """Whether pieces may be encoded one by one: byte-level BPE with GPT-2's pattern, as GPT-NeoX-20B's is."""
    state = json.loads(tokenizer.to_str())
    model, split = state["model"], state["pre_tokenizer"] or {}
    return (
        (model["type"], model.get("dropout"), state["truncation"], state["padding"])
        == ("BPE", None, None, None)
        and state["normalizer"] in (None, {"type": "NFC"})
        and (split.get("type"), split.get("use_regex", True)) == ("ByteLevel", True)
        and not split.get("add_prefix_space", True)
        # Added tokens are special ones, which text never yields, and blanks, which lie within a piece.
        and not any(
            token["content"].strip(" ") or token["lstrip"] or token["rstrip"] or token["single_word"]
            for token in state["added_tokens"]
            if not token["special"]
        )
    )


class Encoder:
    """`encode(texts)`: their tokens, the same as the tokenizer's, and behind each text its end of text."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._end = np.uint16(tokenizer.token_to_id(END_OF_TEXT)).tobytes()
        self._whole = not _splits_as_gpt2(tokenizer)
        self._known: dict[str, bytes] = {}

    def _cut(self, text: str) -> list[str]:
        return [text] if self._whole or _DOUBTFUL.search(text) else _PIECES.findall(text)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Tokens of all texts, uint16 of shape (n,)."""
        cut = [self._cut(text) for text in texts]
        if len(self._known) > MOST_PIECES:
            self._known = {}
        new = list(set().union(*cut).difference(self._known))
        encoded = self.tokenizer.encode_batch_fast(new, add_special_tokens=False)
        for piece, encoding in zip(new, encoded, strict=True):
            self._known[piece] = np.array(encoding.ids, np.uint16).tobytes()
        tokens = b"".join(b"".join(map(self._known.__getitem__, pieces)) + self._end for pieces in cut)
        for piece in new:
            if len(piece) > LONGEST_PIECE:
                del self._known[piece]
        return np.frombuffer(tokens, np.uint16)
