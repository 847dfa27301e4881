"""Tiny corpora in projects of their own: of local files, and of a copy of the hub with a tokenizer in it."""

import gzip
import hashlib
import json
import random
from pathlib import Path

import pytest
import yaml
import zstandard
from pyarrow import Table, parquet
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cpt_repro.data.build import build_corpus
from cpt_repro.data.corpus import load_fingerprint, open_domain
from cpt_repro.data.text import documents
from cpt_repro.declarations.manifests import load_manifest
from cpt_repro.declarations.scale import Tokenizer as Settings
from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.project import Project

REPOSITORY = Project.at(Path(__file__).resolve().parents[1])
LENGTH = 16
COMMIT = "0" * 40
#: Hold what a tokenizer may trip over.
ODD = [
    "Grüße, Jürgen! — naïve œuvre 東京 🙂",
    "a <|endoftext|> that is only text",
    "  spaces\n\n\ttabs \r\n end ",
]
WORDS = ["the", "house,", "of", "trees;", "and", "rain", "(or", "snow)", '"old"', "don't"]
WORDS += ["stop\n\n", "", "x", "10"]
SETS = {"RedPajamaC4": "c4", "RedPajamaBook": "book"}


def refused(action, kind=UserError):
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


def all_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip(path, at=-5):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


class Tiny:
    """A project with one corpus, called `pile`, of a scale of its own."""

    manifest: str

    def __init__(self, folder, **tokenizer):
        (folder / "configs" / "scales").mkdir(parents=True)
        (folder / "data_manifests").mkdir()
        self.project = Project.at(folder)
        self.project.corpora.mkdir(parents=True)
        update = {"name": "tiny", "sequence_length": LENGTH, "corpora": {"pile": self.manifest}}
        scale = load_scale(REPOSITORY, "smoke")
        self.scale = scale.model_copy(update=update | {"tokenizer": Settings(**tokenizer)})

    @property
    def root(self):
        return self.project.data / "tiny"

    @property
    def corpus(self):
        return self.root / "pile"

    def save(self, **more):
        """Writes the manifest, with changes, and reads it."""
        self.value |= more
        text = yaml.safe_dump(self.value)
        (self.project.manifests / f"{self.manifest}.yaml").write_text(text, encoding="utf-8")
        return load_manifest(self.project, self.manifest)

    def elsewhere(self, data):
        """The same with other built data."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | {"project": self.project.with_(data=data)}
        return other

    def build(self, **more):
        return build_corpus(self.project, self.scale, "pile", **more)

    def fingerprint(self):
        return load_fingerprint(self.corpus)

    def open(self, domain, split="train", **more):
        return open_domain(self.project, "tiny", "pile", split, domain, self.fingerprint(), **more)

    def open_all(self):
        """Opens every domain of both splits, as training and validation do."""
        for split, domains in self.fingerprint().splits.items():
            for domain in domains:
                self.open(domain, split)

    def documents(self, split="train", **more):
        return list(documents(self.project, self.save(**more), split))


def texts(split, count, word="w"):
    """Documents of two domains in turn."""
    for i in range(count):
        words = " ".join(f"{word}{split[0]}{(i * j) % 37}" for j in range(20 + i % 7))
        domain = "law" if i % 2 else "prose"
        yield {"id": f"{split}/{i}", "domain": domain, "text": f"{ODD[i % 3]} {words}"}


class Local(Tiny):
    """Of local files; parts are of five documents (see the fixture `local`)."""

    manifest = "tiny"

    def __init__(self, folder):
        super().__init__(folder, vocab_size=300, train_characters=4000)
        self.value = {
            "kind": "files",
            "name": "tiny",
            "title": "tiny",
            "about": "-",
            "licence": "CC0",
            "extraction": "none",
        }
        self.value["sources"] = [{"url": "https://example.org", "commit": "0", "licence": "CC0"}]
        self.value["domains"] = {"prose": None, "law": None}
        self.write()

    def write(self, word="w", compress=zstandard.compress, **splits):
        """Writes the text; `train` or `validation`: lines, given as documents, texts or bytes."""
        entries = {}
        for split, count in (("train", 40), ("validation", 20)):
            given = splits.get(split, list(texts(split, count, word)))
            lines = [json.dumps(line) if isinstance(line, dict) else line for line in given]
            raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
            (self.project.corpora / f"{split}.jsonl.zst").write_bytes(packed := compress(raw))
            entries[split] = {
                "file": f"{split}.jsonl.zst", "documents": 100, "text_bytes": 10**6, "domains": {},
                "sha256": hashlib.sha256(packed).hexdigest(), "sha256_jsonl": hashlib.sha256(raw).hexdigest(),
            }  # fmt: skip
        self.save(splits=entries)


def neox_like(folder, vocab_size=400, end="<|endoftext|>"):
    """A tokenizer of GPT-NeoX-20B's kind: NFC, special tokens, runs of blanks, an end that is not 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 3,
        special_tokens=["<|padding|>", end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = random.Random(0)
    tokenizer.train_from_iterator([text_of(rng) + f" {i} {i * 7919} Grüße" for i in range(2000)], trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True, special=False) for n in (4, 3, 2)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "GPTNeoXTokenizerFast", "bos_token": end, "eos_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def text_of(rng, words=60):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(words // 2, words)))


def rows(file, count=24):
    """Rows of a file in SlimPajama's form; every sixth of them is without text."""
    rng = random.Random(file)
    for row in range(count):
        text = "" if row == 5 else text_of(rng)
        yield {"text": text, "meta": {"redpajama_set_name": list(SETS)[row % 2]}, "other": row}


def write_rows(path, given):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(Table.from_pylist(list(given)), path, row_group_size=7)
        return
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in given]
    raw = b"".join(line + b"\n" for line in lines)
    if path.suffix in (".zst", ".gz"):  # two streams, as a parallel compressor leaves them
        compress = zstandard.compress if path.suffix == ".zst" else gzip.compress
        raw = compress(raw[:1000]) + compress(raw[1000:])
    path.write_bytes(raw)


class OfHub(Tiny):
    """Of a data set in SlimPajama's layout and a published tokenizer, both in a copy of the hub."""

    manifest = "slim"
    first = "train/chunk1/example_train_0.jsonl.zst"

    def __init__(self, folder):
        super().__init__(folder, kind="pretrained", name="someone/neox", revision=COMMIT, vocab_size=400)
        self.project = self.project.with_(hub_copies=folder / "hub")
        self.copy, self.model = folder / "hub/datasets/someone/slim", folder / "hub/models/someone/neox"
        self.files = [f"train/chunk{c}/example_train_{k}.jsonl.zst" for c in (1, 2) for k in range(3)]
        for file in [*self.files, *(f"validation/chunk{c}/example_holdout_0.jsonl.zst" for c in (1, 2))]:
            write_rows(self.copy / file, rows(file))
        self.value = {
            "kind": "hub", "name": "slim", "title": "slim", "about": "a test", "licence": "CC0", "note": "-",
            "gating": "none",
            "domains": {"c4": 0.9, "book": 0.1}, "dataset": "someone/slim", "revision": COMMIT,
            "format": "jsonl.zst", "domain": {"column": "meta.redpajama_set_name", "names": SETS},
            "splits": {
                "train": {"files": ["train/chunk*/example_train_*.jsonl.zst"], "count": 6},
                "validation": {"files": ["validation/chunk*/example_holdout_*.jsonl.zst"]},
            },
            "files_per_part": 2, "tokens_billions": 1,
        }  # fmt: skip
        self.save()
