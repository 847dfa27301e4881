"""Byte-level BPE trained on upstream text, or a published one, in a folder that `transformers` loads."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import RootModel

# One thread: work is spread over processes, and a thread pool of the tokenizer would not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, read_json, write_json
from cpt_repro.models.hub import Repository

END_OF_TEXT = "<|endoftext|>"
#: Of a tokenizer that is trained here.
END_OF_TEXT_ID = 0
#: Tokens are stored in 16 bits.
MOST_TOKENS = 1 << 16

_FILES = ("tokenizer.json", "tokenizer_config.json")


def sample_by_shares(
    texts: Iterable[tuple[str, str]], totals: dict[str, int], shares: dict[str, float | None], wanted: int
) -> Iterator[str]:
    """Texts, of which every domain gives its share of `wanted` characters, evenly spread over its own.

    `texts` are (domain, text); `totals` the characters of each domain. Shares that are null, or within 0.01
    of those of the texts, ask for nothing special: all are one pool. A domain gives at most what it has; its
    last text is cut.
    """
    total = sum(totals.values())
    if all(share is None or abs(totals[name] / total - share) < 0.01 for name, share in shares.items()):
        texts, totals, quotas = (("", text) for _, text in texts), {"": total}, {"": wanted}
    else:
        quotas = {name: round(share * wanted) for name, share in shares.items()}
    seen, taken = Counter(), Counter()
    for domain, text in texts:
        quota = quotas[domain]
        # Take a text whenever what was taken lags behind the even pace.
        if taken[domain] * totals[domain] <= seen[domain] * quota and taken[domain] < quota:
            given = text[: quota - taken[domain]]
            taken[domain] += len(given)
            yield given
        seen[domain] += len(text)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with at most `vocab_size` tokens, of which `<|endoftext|>` is id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # all bytes, so that any text can be encoded
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.token_to_id(END_OF_TEXT) != END_OF_TEXT_ID:
        raise AssertionError("the first special token has another id")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` into an existing folder."""
    tokenizer.save(str(folder / "tokenizer.json"))
    _save_config(folder)


def _save_config(folder: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    # As GPT-NeoX has it: one token plays all three parts.
    config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    write_json(folder / "tokenizer_config.json", config)


def fetch_tokenizer(source: Repository, vocab_size: int, folder: Path) -> None:
    """Puts a published tokenizer, and its `tokenizer_config.json` if it has one, into an existing folder.

    `UserError`: it cannot be had or read, has not exactly `vocab_size` entries (added ones included), a token
    beyond 16 bits, or no end of text.
    """
    for file in {*source.files("tokenizer*.json")} & {*_FILES} | {"tokenizer.json"}:
        shutil.copyfile(*source.fetch(file), folder / file)
    verify_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    entries, largest = tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values(), default=0)
    fault = None
    if entries != vocab_size:
        fault = f"has {entries} entries, and 'tokenizer.vocab_size' of the scale says {vocab_size}"
    elif largest >= MOST_TOKENS:
        fault = f"has tokens up to {largest}, and tokens are stored in 16 bits"
    elif tokenizer.token_to_id(END_OF_TEXT) is None:
        fault = f"has no {END_OF_TEXT} to end documents with"
    if fault:
        do = "Correct the number, the name or the revision, or use another tokenizer."
        raise UserError(f"the tokenizer {fault}.", where=str(source), do=do)
    if not (folder / "tokenizer_config.json").is_file():
        _save_config(folder)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that make a saved tokenizer; "none" of one that is missing."""
    return {file: file_digest(folder / file) if (folder / file).is_file() else "none" for file in _FILES}


def read_origin(folder: Path) -> dict[str, Any]:
    """What a tokenizer was made from and its files' hashes, as `training.json` says; {}: it says nothing."""
    path = folder / "training.json"
    record = read_json(path) if path.is_file() else None
    return record if isinstance(record, dict) else {}


def verify_tokenizer(folder: Path) -> None:
    """Compares the files with the hashes in `training.json`, where they are; an altered one: `UserError`.

    So is a folder that names code: no code of a tokenizer is ever run, nor handed on.
    """
    expected = read_origin(folder).get("sha256")
    for file, actual in hashes(folder).items() if isinstance(expected, dict) else ():
        if actual != expected.get(file):
            what = f"the tokenizer is altered: SHA-256 {expected.get(file)} expected, {actual} found."
            do = "Make it again: `cpt-repro corpus tokenizer --scale SCALE --rebuild`."
            raise UserError(what, where=str(folder / file), do=do)
    path = folder / "tokenizer_config.json"
    config = parse(RootModel[dict[str, Any]], read_json(path), str(path)).root if path.is_file() else {}
    if "auto_map" in config:
        what = "the tokenizer brings code of its own (auto_map)."
        raise UserError(what, where=str(path), do="Use one that is a tokenizer.json alone.")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Opens a saved tokenizer; a missing or broken one: `UserError`. Text never yields special tokens."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:  # the library raises plain Exception, and a panic in Rust is not even that
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        do = "Build the tokenizer (again)."
        raise UserError(f"the tokenizer cannot be read ({error}).", where=str(path), do=do) from None
    # A text that happens to contain "<|endoftext|>" is text and must not end a document.
    tokenizer.encode_special_tokens = True
    return tokenizer


# -- texts to tokens

#: Pieces that are remembered before all is forgotten; some hundred megabytes.
MOST_PIECES = 1 << 20
#: Longer pieces are not remembered.
LONGEST_PIECE = 64

#: White space and the word behind it. A tokenizer that splits as GPT-2's does has no token across the places
#: where these pieces meet: before white space that follows something else, and between a letter and ASCII
#: punctuation. Letters of old blocks only: another version of Unicode may not know newer ones.
_PIECES = re.compile(
    r"\s*+(?:(?:(?![×÷])[A-Za-z\u00c0-\u024f\u0386\u0388-\u03ff\u0400-\u0481])++(?=[\s!-/:-@\[-`{-~]|\Z)"
    r"|\S++)|\s++"
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
    """`encode(texts)`: their tokens, the same as the tokenizer's, and behind each text its end of text.

    Three times as fast as the library alone: pieces that were met before are looked up.
    """

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
