"""From the text of a corpus to token sequences in shards, part by part; what is finished survives a kill.

Layout below `<project.data>/<scale>`:

    tokenizer/                            tokenizer.json, tokenizer_config.json, training.json
    <corpus>/<split>/<domain>/index.json  all shards of the domain, which lie in part.<n>/
    <corpus>/validation.jsonl             held-out documents (of a `hub` corpus the first 2,000)
    <corpus>/fingerprint.json             written last: what was built, with hashes
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from cpt_repro.data import parts, shards, tokenizer
from cpt_repro.data.corpus import load_fingerprint
from cpt_repro.data.languages import entropy_rate
from cpt_repro.data.parts import Corpus, Part
from cpt_repro.data.text import documents
from cpt_repro.declarations.manifests import SPLITS, Generated, Hub, Manifest, Split, load_manifest
from cpt_repro.declarations.scale import Scale
from cpt_repro.declarations.strict import nearest
from cpt_repro.errors import UserError
from cpt_repro.files import digest, file_digest, locked, read_json, whole_folder, write_json, write_text
from cpt_repro.models.hub import Repository
from cpt_repro.project import Project

log = logging.getLogger(__name__)

#: Raise it whenever equal inputs would give other shards.
FORMAT = 1
#: Documents of a `hub` corpus that are kept as held-out text: prompts and tasks need no more.
HELD_OUT = 2000


def _manifest(project: Project, scale: Scale, corpus: str) -> Manifest:
    if corpus not in scale.corpora:
        do = nearest(corpus, scale.corpora)
        raise UserError(f"the scale '{scale.name}' has no corpus '{corpus}'.", do=do)
    return load_manifest(project, scale.corpora[corpus])


# -- the tokenizer


def build_tokenizer(project: Project, scale: Scale, rebuild: bool = False) -> Path:
    """Trains the scale's tokenizer on upstream training text, or fetches it; returns its folder.

    Does nothing if it is there already, of the same settings and text, or name and revision. One that was
    altered is a `UserError`; with `rebuild` it is made again.
    """
    folder, settings = project.data / scale.name / "tokenizer", scale.tokenizer
    with locked(folder.with_name(".tokenizer.lock")):
        try:
            if _is_current(project, scale):
                tokenizer.verify_tokenizer(folder)
                return folder
        except UserError:
            if not rebuild:
                raise
        with whole_folder(folder) as aside:
            if settings.kind == "train":
                manifest = _manifest(project, scale, scale.upstream)
                # Two passes, so that the sample is even without holding all text.
                totals: Counter[str] = Counter()
                for document in documents(project, manifest, "train"):
                    totals[document["domain"]] += len(document["text"])
                texts = ((text["domain"], text["text"]) for text in documents(project, manifest, "train"))
                wanted, shares = settings.train_characters, manifest.domains
                sample = tokenizer.sample_by_shares(texts, totals, shares, wanted)
                tokenizer.save_tokenizer(tokenizer.train_tokenizer(sample, settings.vocab_size), aside)
            else:
                source = Repository(project, "model", settings.name, settings.revision)
                tokenizer.fetch_tokenizer(source, settings.vocab_size, aside)
            record = _origin(project, scale) | {"sha256": tokenizer.hashes(aside)}
            write_json(aside / "training.json", record)
    return folder


def _origin(project: Project, scale: Scale) -> dict[str, Any]:
    """What a scale's tokenizer is made from, as its `training.json` says it."""
    settings = scale.tokenizer
    if settings.kind == "train":
        text = _manifest(project, scale, scale.upstream).digest
        source = {"manifest": text, "train_characters": settings.train_characters}
    else:
        source = {"name": settings.name, "revision": settings.revision}
    return source | {"format": FORMAT, "vocab_size": settings.vocab_size}


def _is_current(project: Project, scale: Scale) -> bool:
    record = tokenizer.read_origin(project.data / scale.name / "tokenizer")
    return bool(record.pop("sha256", None)) and record == _origin(project, scale)


def current_tokenizer(project: Project, scale: Scale) -> str:
    """SHA-256 of the scale's tokenizer; missing, altered or of other settings it is a `UserError`."""
    folder = project.data / scale.name / "tokenizer"
    if not _is_current(project, scale):
        do = f"Make it: `cpt-repro corpus tokenizer --scale {scale.name}`."
        raise UserError(f"the tokenizer of scale '{scale.name}' is not made.", where=str(folder), do=do)
    tokenizer.verify_tokenizer(folder)
    return file_digest(folder / "tokenizer.json")


# -- a corpus


def build_corpus(
    project: Project, scale: Scale, corpus: str, processes: int = 1, rebuild: bool = False
) -> Path:
    """Builds the shards of one corpus (and the tokenizer, if it is not there) and returns its folder.

    Sequences hold `scale.sequence_length` + 1 tokens; files are byte-identical for any number of processes.
    Does nothing if the corpus is there already, built from the same manifest, tokenizer and length; continues
    an interrupted build. With `rebuild` all that is there is checked, and what is damaged is built again.
    `UserError`: text that is missing, altered or empty, and a domain without enough text.
    """
    manifest, folder = _manifest(project, scale, corpus), project.data / scale.name / corpus
    version = file_digest(build_tokenizer(project, scale, rebuild) / "tokenizer.json")
    built, record = Corpus(project, manifest, folder, version, scale.sequence_length), folder / "build.json"
    is_hub = isinstance(manifest, Hub)
    part = [parts.HUB_SHARD_BYTES] if is_hub else [parts.PART_DOCUMENTS, parts.PART_CHARACTERS]
    inputs = built.about | {"format": FORMAT, "part": part}
    with locked(folder.with_name(f".{corpus}.lock")):
        if not record.is_file() and any(path.name[0] != "." for path in folder.glob("*")):
            raise UserError("the folder holds something else.", where=str(folder), do="Move it away.")
        before = _remove_damaged(folder) if rebuild and record.is_file() else None
        if record.is_file() and read_json(record) != inputs:
            log.warning("%s: built from another manifest, tokenizer or length; building anew", folder)
            shutil.rmtree(folder)
        if not (folder / "fingerprint.json").is_file():
            _build(built, inputs, processes)
        if before and before != load_fingerprint(folder).fingerprint:
            log.warning("%s: what was kept does not fit; building all anew", folder)
            shutil.rmtree(folder)
            _build(built, inputs, processes)
    return folder


def _remove_damaged(folder: Path) -> str | None:
    """Removes parts that do not fit a corpus' fingerprint, then that; returns it (None: all was removed)."""
    try:
        fingerprint = load_fingerprint(folder)
    except UserError:  # nothing left to compare with
        shutil.rmtree(folder)
        return None
    for path in sorted(folder.glob("*/*/part.*")):
        split, domain, part = path.relative_to(folder).parts
        built = fingerprint.splits[split][domain].shards
        own = {Path(name).name: sha1 for name, sha1 in built.items() if Path(name).parent.name == part}
        try:
            shards.Sequences(path, fingerprint.sequence_length + 1, own)
            sum(read_json(path / "part.json").values())
        except (UserError, AttributeError, TypeError) as error:
            log.warning("removed, to be built again: %s (%s)", path, error)
            shutil.rmtree(path)
    (folder / "fingerprint.json").unlink()
    return fingerprint.fingerprint


def _build(corpus: Corpus, inputs: dict[str, Any], processes: int) -> None:
    folder, manifest = corpus.folder, corpus.manifest
    write_json(folder / "build.json", inputs)
    held_out, empty = _write_parts(corpus, processes)
    lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in held_out)
    write_text(folder / "validation.jsonl", "".join(lines))
    splits: dict[str, dict[str, Any]] = {}
    tokens, floor = Counter[str](), None
    for split in SPLITS:
        splits[split] = {domain: _join(corpus, split, domain) for domain in manifest.domains}
        for entry in splits[split].values():
            # Those of local corpora were counted while reading.
            empty[split] += entry.pop("empty_documents", 0)
            tokens[split] += entry["tokens"]
    if isinstance(manifest, Generated):
        words = sum(len(document["text"].split()) for document in held_out)
        # Rounded, because the last digits of a logarithm depend on the machine.
        floor = round(entropy_rate(manifest) * words / tokens["validation"], 6)
    fingerprint = corpus.about | {
        "splits": splits,
        "shares": {
            domain: splits["train"][domain]["tokens"] / tokens["train"] if share is None else share
            for domain, share in manifest.domains.items()
        },
        "entropy_floor": floor,
        "empty_documents": {split: empty[split] for split in SPLITS},
        "validation_documents": file_digest(folder / "validation.jsonl"),
    }
    write_json(folder / "fingerprint.json", fingerprint | {"fingerprint": digest(fingerprint)})


def _write_parts(corpus: Corpus, processes: int) -> tuple[list[dict[str, str]], Counter[str]]:
    """Writes what parts are missing; returns held-out text, and documents without text by split."""
    held_out: list[dict[str, str]] = []
    empty: Counter[str] = Counter()
    is_hub, console = isinstance(corpus.manifest, Hub), Console(stderr=True)
    listed = [*parts.hub_parts(corpus)] if is_hub else parts.local_parts(corpus, empty)

    def missing() -> Iterator[Part]:
        about = {"console": console, "disable": not console.is_terminal}
        for part in track(listed, f"{corpus.manifest.name}: parts", **about):
            if not all(part.folder(corpus, domain).is_dir() for domain in part.domains):
                yield part
            if part.split == "validation" and not is_hub:
                held_out.extend(part.source)
        if is_hub:
            held_out.extend(islice(documents(corpus.project, corpus.manifest, "validation"), HELD_OUT))

    parts.write_parts(corpus, missing(), processes)
    return held_out, empty


def _join(corpus: Corpus, split: Split, domain: str) -> dict[str, Any]:
    """Joins a domain's parts and returns its entry of the fingerprint."""
    folder, counts = corpus.folder / split / domain, Counter()
    names = sorted((part.name for part in folder.glob("part.*")), key=lambda name: (len(name), name))
    for name in names:
        counts.update(read_json(folder / name / "part.json"))
    if not counts["sequences"]:
        what = f"the domain '{domain}' of corpus '{corpus.manifest.name}' has too little {split} text for one"
        what += f" sequence ({counts['documents']} documents, {counts['tokens']} tokens)."
        raise UserError(what, do="Give it more text, or take the domain out of the manifest.")
    return dict(counts) | {"shards": shards.merge_indexes(folder, names)}
