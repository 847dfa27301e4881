"""What ids of runs and corpora are called where people read of claims."""

from __future__ import annotations

import re

from cpt_repro.declarations.study import Study

#: When a quantity is read -> in words.
_WHEN = (
    (r"@(\S+)", r" at \1B"),
    ("start", " at its start"),
    (r"(peak|mean)\[(\S+),(\S+)\]", r", \1 from \2B to \3B"),
    ("peak", ", peak"),
    ("mean", ", mean"),
    (r"\[(\S+),(\S+)\]", r" from \1B to \2B"),
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
    out, tokens = [], text.split()
    while tokens:
        token = tokens.pop(0)
        before, run, after = re.fullmatch(r"(\(*)(.*?)(\)*)", token).groups()
        if "/" not in run or not tokens:
            out.append(token)
            continue
        what = tokens.pop(0)
        what, closing = what.rstrip(")"), ")" * what.count(")")
        when = ""
        if tokens and not closing:
            last = tokens[0].rstrip(")")
            for pattern, words in _WHEN:
                if match := re.fullmatch(pattern, last):
                    when, closing = match.expand(words), ")" * tokens.pop(0).count(")")
                    break
        out.append(f"{before}{_what(study, what)} of {run_in_words(study, run)}{when}{after}{closing}")
    return " ".join(out)


def _what(study: Study, what: str) -> str:
    kind, _, of = what.partition(":")
    if kind == "suite":
        return f"{of} suite"
    if kind == "task":
        return of.partition("/")[2]
    if what in study.paper.corpora:
        return f"loss on {study.paper.corpora[what].stands_for}"
    return "average loss" if what == "average" else what
