"""What ids of runs and corpora are called where people read of claims."""

from __future__ import annotations

import itertools
import re

from cpt_repro.declarations.study import Study

#: <run> <what> [<when>]
_QUANTITY = re.compile(
    r"([^\s()]*/[^\s()]*) ([^\s()]+)"
    r"(?: (?:@([^\s)]+)|(start)|(peak|mean)?(?:\[([^\s,]+),([^\s\]]+)\])?)(?=[)\s]|$))?"
)
#: Between corpora in the name of a run: one after the other, and together.
_JOINED = {"--": " → ", "+": " ∪ "}


def run_in_words(study: Study, name: str) -> str:
    """405M: the Pile → SlimPajama, replay 0.05, of 405m/pile--sp/replay-0.05 as this paper writes it."""
    model, *parts = name.split("/")
    if model in study.studies.names and model != study.name:
        other = study.studies[model]
        return f"{other.paper.reference.split(',')[0]}: {run_in_words(other, '/'.join(parts))}"
    if declared := study.paper.runs.get(name):
        model = declared.model
    pieces = (re.split(r"(--|\+)", part) for part in parts)
    words = ("".join(_JOINED.get(piece) or _piece(study, piece) for piece in of) for of in pieces)
    return f"{study.paper.models.get(model, model)}: {', '.join(words)}"


def _piece(study: Study, piece: str) -> str:
    corpus = re.split(r"[-@]", piece)[0]
    if corpus in study.paper.corpora:
        piece = study.paper.corpora[corpus].stands_for + piece.removeprefix(corpus).replace("-", " ", 1)
    return re.sub(r"(?<=[a-z]{2})-(?=\d)|(?<=\d)-(?=[a-z])", " ", piece.replace("@", " at iteration "))


def says_in_words(study: Study, text: str) -> str:
    """A sentence of `claims.yaml`, whose lists may have put ids of runs and corpora into it."""

    def called(match: re.Match[str]) -> str:
        word = match[0]
        if word in study.paper.corpora:
            return study.paper.corpora[word].stands_for.removeprefix("the ")
        known = word in study.paper.runs or word in study.paper.merges
        return run_in_words(study, word) if known else word

    return re.sub(r"[^\s,;:()]+", called, text)


def quantity_in_words(study: Study, text: str) -> str:
    """A quantity, or several joined by words and signs, as `claims.yaml` writes them; other text stays."""

    def told(match: re.Match[str]) -> str:
        run, what, at, start, kind, first, last = match.groups()
        words = (f" at {at}B", " at its start", f", {kind}", f" from {first}B to {last}B")
        when = "".join(itertools.compress(words, (at, start, kind, first)))
        return f"{_what(study, what)} of {run_in_words(study, run)}{when}"

    return _QUANTITY.sub(told, " ".join(text.split()))


def _what(study: Study, what: str) -> str:
    if what in study.paper.corpora:
        return f"loss on {study.paper.corpora[what].stands_for}"
    kind, _, of = what.partition(":")
    words = {"suite": f"{of} suite", "task": of.partition("/")[2], "average": "average loss"}
    return words.get(kind, what)
