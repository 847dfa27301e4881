"""Manifests, synthetic languages, source files, tokenizer, shards and the builder."""

import hashlib
import json
import math
from collections import Counter

import numpy as np
import pytest
import yaml
import zstandard

from cpt_repro import manifests as manifest
from cpt_repro.project import MANIFESTS
from cpt_repro.declarations.scale import load_scale
from cpt_repro.declarations.strict import parse
from cpt_repro.data import build, shards
from cpt_repro.data.languages import entropy_rate, make_documents, make_topics, make_words
from cpt_repro.data.text import documents
from cpt_repro.data.tokenizer import END_OF_TEXT_ID, load_tokenizer, sample_evenly
from cpt_repro.errors import UserError
from cpt_repro.declarations.manifests import load_manifest

LENGTH = 16
LANGUAGE = "b28151e49a0d447942e204a9666fbe2edcee2893a573c68b7b3640f18648698a"


def texts(split, count):
    """Documents of two domains; some hold what a tokenizer may trip over."""
    odd = [
        "Grüße, Jürgen! — naïve œuvre 東京 🙂",
        "a <|endoftext|> that is only text",
        "  spaces\n\n\ttabs \r\n end ",
    ]
    for i in range(count):
        domain = "law" if i % 3 == 0 else "prose"
        words = " ".join(f"{split}{(i * j) % 37}" for j in range(20 + i % 7))
        yield {"id": f"{split}/{i}", "domain": domain, "text": f"{odd[i % 3]} {words}"}


class Corpus:
    """A tiny `files` corpus below a temporary folder, in place of the project's manifests."""

    def __init__(self, folder):
        self.manifests, self.files, self.root = folder / "manifests", folder / "corpora", folder / "data"
        self.manifests.mkdir()
        self.files.mkdir()
        self.scale = load_scale("smoke")
        tokenizer = self.scale.tokenizer.model_copy(update={"vocab_size": 300, "train_characters": 4000})
        update = {"sequence_length": LENGTH, "tokenizer": tokenizer, "corpora": {"pile": "tiny"}}
        self.scale = self.scale.model_copy(update=update)
        self.write({split: list(texts(split, count)) for split, count in (("train", 60), ("validation", 12))})

    def write(self, splits, domains=None):
        raw = {
            split: value
            if isinstance(value, bytes)
            else "".join(json.dumps(x) + "\n" for x in value).encode()
            for split, value in splits.items()
        }
        entries = {}
        for split, data in raw.items():
            packed = zstandard.compress(data)
            (self.files / f"{split}.jsonl.zst").write_bytes(packed)
            entries[split] = {
                "file": f"{split}.jsonl.zst",
                "sha256": hashlib.sha256(packed).hexdigest(),
                "sha256_jsonl": hashlib.sha256(data).hexdigest(),
                "documents": 0,
                "text_bytes": 0,
                "domains": {},
            }
        self.value = {
            "kind": "files",
            "name": "tiny",
            "about": "made by a test",
            "licence": "CC0",
            "extraction": "none",
            "domains": domains or {"prose": None, "law": None},
            "sources": [{"url": "https://example.org", "commit": "0", "licence": "CC0"}],
            "splits": entries,
        }
        self.save()

    def save(self):
        (self.manifests / "tiny.yaml").write_text(yaml.safe_dump(self.value))

    def build(self, root=None, **more):
        return build.build_corpus(self.scale, "pile", root or self.root, progress=False, **more)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    made = Corpus(tmp_path)
    monkeypatch.setattr(manifest, "MANIFESTS", made.manifests)
    monkeypatch.setenv("CPT_REPRO_CORPORA", str(made.files))
    monkeypatch.setattr(build, "PART_DOCUMENTS", 7)
    return made


def all_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_all_manifests_load():
    values = {path.stem: yaml.safe_load(path.read_text()) for path in MANIFESTS.glob("*.yaml")}
    names = {name for name, value in values.items() if "kind" in value}
    assert {"smoke_upstream", "smoke_weak", "smoke_strong", "english_upstream", "pile", "german_cc"} <= names
    for name in names:
        found = load_manifest(name)
        shares = [share for share in found.domains.values() if share is not None]
        assert not shares or math.isclose(sum(shares), 1, abs_tol=1e-3)
        if isinstance(found, manifest.Files):
            assert all(sum(s.domains.values()) == s.documents for s in found.splits.values())
    assert list(load_manifest("smoke_weak").domains.items()) == list(
        load_manifest("slimpajama").domains.items()
    )


@pytest.mark.parametrize(
    "domains",
    [
        {"prose": -0.1, "law": 1.1},
        {"prose": 0.8, "law": 0.3},
        {"prose": 0.1, "law": 0.1},
        {"prose": 1, "law": None},
    ],
)
def test_bad_shares_name_file_and_key(corpus, domains):
    corpus.value["domains"] = domains
    corpus.save()
    with pytest.raises(UserError, match=r"tiny\.yaml: the key 'domains"):
        load_manifest("tiny")


def test_bad_kind_and_unknown_manifest(corpus):
    corpus.value["kind"] = "file"
    corpus.save()
    with pytest.raises(UserError, match="Known kinds: generated, files, hub"):
        load_manifest("tiny")
    with pytest.raises(UserError, match="There is: tiny"):
        load_manifest("large")


def test_hub_corpora_need_the_hub_or_a_copy(tmp_path):
    scale = load_scale("smoke").model_copy(update={"corpora": {"pile": "pile"}})
    with pytest.raises(
        UserError, match=r"hub cannot be reached.*put a copy below \$CPT_REPRO_HUB/datasets/monology"
    ):
        build.build_corpus(scale, "pile", tmp_path)


def language(**more):
    value = {
        "kind": "generated",
        "name": "toy",
        "about": "made by a test",
        "licence": "CC0",
        "domains": {"a": 0.75, "b": 0.25},
        "vocabulary": {"seed": 1, "words": 60, "shapes": ["cvcv", "cvccv"]},
        "topics": 2,
        "topic_words": 40,
        "topic_seed": 2,
        "successors": 12,
        "mixes": {"a": [1, 0], "b": [0.5, 0.5]},
        "document_words": [60, 200],
        "words": {"train": 100_000, "validation": 2000},
        "seed": 3,
    }
    return parse(manifest.Generated, value | more, "a test")


def test_language_is_fixed():
    # Pinned: the text must not change with the versions of Python or numpy.
    text = "\n".join(document["text"] for document in make_documents(language(), "validation"))
    assert hashlib.sha256(text.encode()).hexdigest() == LANGUAGE
    other = language(seed=4)
    assert make_topics(other) == make_topics(language())
    assert list(make_documents(other, "validation")) != list(make_documents(language(), "validation"))


def test_languages_of_the_smoke_scale():
    upstream, weak, strong = (load_manifest(f"smoke_{name}") for name in ("upstream", "weak", "strong"))
    assert make_topics(weak) == make_topics(upstream)
    words = make_words(upstream.vocabulary)
    assert len(set(words)) == len(words) == 148
    others = {word for topic in make_topics(strong) for word in topic.words}
    assert 20 <= len(others & set(words)) <= 30 < 100 <= len(others)


def test_faulty_languages_are_refused():
    for fault in (
        {"topic_words": 61},
        {"mixes": {"a": [1, 0]}},
        {"mixes": {"a": [1, 1], "b": [1, 0]}},
        {"topics": 3},
    ):
        with pytest.raises(UserError, match="a test: the key"):
            language(**fault)


def test_entropy_rate_equals_an_empirical_estimate():
    toy = language(domains={"b": 1.0}, mixes={"b": [0, 1]})
    pairs, firsts = Counter(), Counter()
    for document in make_documents(toy, "train"):
        words = document["text"].split()
        assert 60 <= len(words) <= 200
        pairs.update(zip(words, words[1:], strict=False))
        firsts.update(words[:-1])
    total = sum(pairs.values())
    estimate = -sum(n / total * math.log(n / firsts[a]) for (a, _), n in pairs.items())
    estimate += (len(pairs) - len(firsts)) / (2 * total)  # Miller-Madow, for the bias of counted frequencies
    assert estimate == pytest.approx(entropy_rate(toy), abs=0.01)
    # The long-run probabilities of the words are met as well.
    topic = make_topics(toy)[1]
    seen = np.array([firsts[word] for word in topic.words]) / total
    assert np.abs(seen - topic.stationary).sum() < 0.05


def test_entropy_floor_of_a_built_language(corpus):
    (corpus.manifests / "toy.yaml").write_text(yaml.safe_dump(language().model_dump(mode="json")))
    corpus.scale = corpus.scale.model_copy(update={"corpora": {"pile": "toy"}})
    folder = corpus.build()
    held_out = [json.loads(line)["text"] for line in (folder / "validation.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(corpus.root / "tokenizer")
    tokens = sum(len(tokenizer.encode(text).ids) + 1 for text in held_out)
    floor = entropy_rate(language()) * sum(len(text.split()) for text in held_out) / tokens
    fingerprint = build.load_fingerprint(corpus.root, "pile")
    assert fingerprint["entropy_floor"] == pytest.approx(floor, abs=1e-6)
    assert fingerprint["shares"] == {"a": 0.75, "b": 0.25}


def test_same_bytes_for_any_number_of_processes(corpus, tmp_path):
    results = [all_bytes(corpus.build(tmp_path / f"p{n}", processes=n)) for n in (1, 2, 5)]
    assert results[0] == results[1] == results[2]
    assert sum(name.endswith(".mds") for name in results[0]) > 8


def test_sequences_decode_to_the_text(corpus):
    folder = corpus.build()
    tokenizer = load_tokenizer(corpus.root / "tokenizer")
    fingerprint = build.load_fingerprint(corpus.root, "pile")
    wanted = {"prose": [], "law": []}
    for document in texts("train", 60):
        wanted[document["domain"]].append(document["text"])
    for domain, expected in wanted.items():
        entry = fingerprint["splits"]["train"][domain]
        sequences = shards.Sequences(folder / "train" / domain)
        assert len(sequences) == entry["sequences"] and entry["documents"] == len(expected)
        start = 0
        for part in sorted((folder / "train" / domain).glob("part.*")):
            rows = shards.Sequences(part).take(np.arange(len(shards.Sequences(part))))
            assert rows.shape[1] == LENGTH + 1 and rows.dtype == np.uint16
            assert (rows[1:, 0] == rows[:-1, -1]).all()
            stream = np.concatenate([rows[:1, 0], rows[:, 1:].ravel()])
            pieces = np.split(stream, np.flatnonzero(stream == END_OF_TEXT_ID))
            decoded = [tokenizer.decode(piece[piece != END_OF_TEXT_ID].tolist()) for piece in pieces]
            text = "|".join(decoded)
            assert "|".join(expected[start : start + 7] + [""]).startswith(text.rstrip("\ufffd"))
            assert len(text) > 0.8 * sum(map(len, expected[start : start + 7]))
            start += 7
    tokens = {domain: fingerprint["splits"]["train"][domain]["tokens"] for domain in wanted}
    assert fingerprint["shares"]["law"] == pytest.approx(tokens["law"] / sum(tokens.values()))
    held_out = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert sorted(x["text"] for x in held_out) == sorted(x["text"] for x in texts("validation", 12))


def test_random_access_agrees_with_streaming(corpus):
    sequences = shards.Sequences(corpus.build() / "train" / "prose")
    order = np.random.default_rng(0).permutation(len(sequences))
    rows = sequences.take(order)
    for row, index in zip(rows, order, strict=True):
        assert np.array_equal(row, sequences[index])
    read = [reader[i]["tokens"] for reader in sequences._readers for i in range(reader.samples)]
    assert np.array_equal(np.stack(read)[order], rows)
    with pytest.raises(IndexError):
        sequences[len(sequences)]


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_damaged_shards_are_found(corpus, damage):
    folder = corpus.build() / "train" / "law"
    shards.verify(folder)
    path = folder / "part.00001" / "shard.00000.mds"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            data[:-5] if damage == "truncated" else data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
        )
    with pytest.raises(UserError, match=rf"part\.00001/shard\.00000\.mds: the shard is {damage}.*--rebuild"):
        shards.verify(folder)
    if damage != "altered":
        with pytest.raises(UserError, match="shard"):
            shards.Sequences(folder)


def test_interrupted_build_resumes_to_the_same_bytes(corpus, tmp_path, monkeypatch):
    whole = all_bytes(corpus.build(tmp_path / "whole"))
    write, written = build._write_part, []

    def stop_at(limit):
        def stopping(target, *rest):
            if len(written) == limit:
                (target.parent / f".{target.name}.aside").mkdir(parents=True)  # as a kill leaves it
                raise KeyboardInterrupt
            written.append(target)
            write(target, *rest)

        monkeypatch.setattr(build, "_write_part", stopping)

    for limit in (2, 6):
        stop_at(limit)
        with pytest.raises(KeyboardInterrupt):
            corpus.build()
        with pytest.raises(UserError, match="is not built"):
            build.load_fingerprint(corpus.root, "pile")
    stop_at(-1)
    folder = corpus.build()
    assert len(written) == len(set(written))
    assert all_bytes(folder) == whole
    before = (folder / "fingerprint.json").stat().st_mtime_ns
    corpus.build()
    assert (folder / "fingerprint.json").stat().st_mtime_ns == before


def test_changed_text_is_built_anew(corpus):
    first = build.load_fingerprint(corpus.build().parent, "pile")
    corpus.write({"train": list(texts("other", 30)), "validation": list(texts("validation", 12))})
    second = build.load_fingerprint(corpus.build().parent, "pile")
    assert first["fingerprint"] != second["fingerprint"]
    assert second["splits"]["train"]["law"]["documents"] == 10


def test_missing_and_altered_source_files(corpus):
    path = corpus.files / "train.jsonl.zst"
    expected = corpus.value["splits"]["train"]["sha256"]
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(UserError, match=rf"train\.jsonl\.zst.*{expected}.*{found}.*CPT_REPRO_CORPORA"):
        corpus.build()
    path.unlink()
    with pytest.raises(UserError, match=r"does not exist.*cpt-repro corpora extract"):
        corpus.build()


def test_altered_text_behind_a_good_file_hash(corpus):
    corpus.value["splits"]["train"]["sha256_jsonl"] = "0" * 64
    corpus.save()
    with pytest.raises(UserError, match="the decompressed text is not what the manifest says"):
        corpus.build()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "1", "domain": "law", "text": "\xff"}\n', r"line 1: not valid UTF-8"),
        (b'{"id": "1", "domain": "law", "text": "\\ud800"}\n', r"line 1: not valid UTF-8"),
        (b'{"id": "1", "domain": "law"}\n', r"line 1: not a JSON object"),
        (b'{"id": "1", "domain": "poems", "text": "x"}\n', r"the domain 'poems' is not declared"),
        (b"", r"has no text in its train split"),
        (b'{"id": "1", "domain": "law", "text": " "}\n', r"has no text in its train split"),
    ],
)
def test_bad_text_is_named(corpus, line, message):
    corpus.write({"train": line, "validation": b""})
    with pytest.raises(UserError, match=message):
        list(documents(load_manifest("tiny"), "train"))


def test_empty_documents_are_left_out_and_counted(corpus):
    empty = [{"id": "e", "domain": "law", "text": "\n"}]
    corpus.write(
        {"train": empty + list(texts("train", 30)) + empty, "validation": list(texts("validation", 12))}
    )
    fingerprint = build.load_fingerprint(corpus.build().parent, "pile")
    assert fingerprint["empty_documents"] == {"train": 2, "validation": 0}
    assert fingerprint["splits"]["train"]["law"]["documents"] == 10


def test_domain_without_validation_text(corpus):
    only = [document for document in texts("validation", 12) if document["domain"] == "prose"]
    corpus.write({"train": list(texts("train", 30)), "validation": only})
    with pytest.raises(UserError, match="domain 'law' of corpus 'tiny' has too little validation text"):
        corpus.build()


def test_tokenizer_is_repeatable_and_loads_in_transformers(corpus, tmp_path):
    first = build.build_tokenizer(corpus.scale, tmp_path / "a")
    second = build.build_tokenizer(corpus.scale, tmp_path / "b")
    assert all_bytes(first) == all_bytes(second)
    from transformers import PreTrainedTokenizerFast

    loaded = PreTrainedTokenizerFast.from_pretrained(first)
    assert loaded.eos_token_id == END_OF_TEXT_ID and len(loaded) == 300
    text = "Grüße 東京  x\n"
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.encode(text) == load_tokenizer(first).encode(text).ids


def test_sample_evenly():
    pieces = list(sample_evenly(["ab"] * 100, 200, 50))
    assert sum(map(len, pieces)) == 50
    assert "".join(sample_evenly(["abc", "de"], 5, 99)) == "abcde"


def test_quotas_follow_the_shares():
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert build._quotas(shares, {"a": 99, "b": 99, "c": 99}, 7) == {"a": 4, "b": 2, "c": 1}
    assert build._quotas(shares, {"a": 99, "b": 99, "c": 1}, 10) == {"a": 6, "b": 3, "c": 1}
    assert build._quotas(shares, {"a": 2, "b": 2, "c": 2}, 6) == {"a": 2, "b": 2, "c": 2}


def test_validation_sample(corpus):
    corpus.build()
    sample = build.validation_sample(corpus.root, "pile", 12)
    assert sample.shape == (12, LENGTH + 1)
    assert len({row.tobytes() for row in sample}) == 12
    assert np.array_equal(sample, build.validation_sample(corpus.root, "pile", 12))
    with pytest.raises(UserError, match="validation sequences are wanted"):
        build.validation_sample(corpus.root, "pile", 10_000)
