"""Damaged, exchanged and stale data: found before a sample is trained on, named, and rebuilt on request.

Also what comes from elsewhere and is not to be trusted: names that lead out of a folder, files that could run code.
"""

import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest
import yaml
import zstandard
from typer.testing import CliRunner

from cpt_repro import manifests as manifest
from cpt_repro.declarations.scale import load_scale
from cpt_repro.declarations.strict import parse
from cpt_repro.data import build, shards
from cpt_repro.errors import UserError
from cpt_repro.files import digest, read_json, write_json
from cpt_repro.declarations.manifests import load_manifest

LENGTH = 16
FIRST, SECOND = "part.00000/shard.00000.mds", "part.00001/shard.00000.mds"


def texts(split, count, word="w"):
    for i in range(count):
        domain = "law" if i % 2 else "prose"
        words = " ".join(f"{word}{split[0]}{(i * j) % 37}" for j in range(30 + i % 7))
        yield {"id": f"{split}/{i}", "domain": domain, "text": words}


class Project:
    """A tiny `files` corpus `pile` of two domains below a temporary folder."""

    def __init__(self, folder, patch):
        self.folder, self.manifests, self.files = folder, folder / "manifests", folder / "corpora"
        self.root = folder / "data" / "smoke"
        self.manifests.mkdir()
        self.files.mkdir()
        patch.setattr(manifest, "MANIFESTS", self.manifests)
        patch.setenv("CPT_REPRO_CORPORA", str(self.files))
        patch.setattr(build, "PART_DOCUMENTS", 5)
        scale = load_scale("smoke")
        tokenizer = scale.tokenizer.model_copy(update={"vocab_size": 300, "train_characters": 4000})
        update = {"sequence_length": LENGTH, "tokenizer": tokenizer, "corpora": {"pile": "tiny"}}
        self.scale = scale.model_copy(update=update)
        self.write()

    def write(self, word="w", **more):
        splits = {}
        for split, count in (("train", 40), ("validation", 20)):
            lines = more.get(split) or [json.dumps(document) for document in texts(split, count, word)]
            raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
            packed = zstandard.compress(raw)
            (self.files / f"{split}.jsonl.zst").write_bytes(packed)
            hashes = {"sha256": packed, "sha256_jsonl": raw}
            entry = {name: hashlib.sha256(data).hexdigest() for name, data in hashes.items()}
            splits[split] = entry | {
                "file": f"{split}.jsonl.zst",
                "documents": 0,
                "text_bytes": 0,
                "domains": {},
            }
        self.value = {
            "kind": "files",
            "name": "tiny",
            "about": "a test",
            "licence": "CC0",
            "extraction": "none",
        }
        self.value |= {"domains": {"prose": 0.5, "law": 0.5}, "splits": splits}
        self.value["sources"] = [{"url": "https://example.org", "commit": "0", "licence": "CC0"}]
        self.save()

    def save(self):
        (self.manifests / "tiny.yaml").write_text(yaml.safe_dump(self.value))

    def build(self, root=None, **more):
        return build.build_corpus(self.scale, "pile", root or self.root, progress=False, **more)

    def open_all(self):
        """Opens every domain of both splits, as training and validation do."""
        fingerprint = build.load_fingerprint(self.root, "pile")
        for split in ("train", "validation"):
            for domain in ("prose", "law"):
                build.open_domain(self.root, "pile", split, domain, fingerprint)


@pytest.fixture
def project(tmp_path, monkeypatch):
    return Project(tmp_path, monkeypatch)


def all_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(action):
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


def flip(path, at=-5):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def exchange(one, other):
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


# -- what is done to a built corpus -> (the file that is named at fault, a word of the message)


def _flip(project, corpus):
    flip(corpus / "train" / "law" / SECOND)
    return f"train/law/{SECOND}", "altered"


def _flip_in_header(project, corpus):
    flip(corpus / "train" / "law" / SECOND, 1)
    return f"train/law/{SECOND}", "altered"


def _truncate(project, corpus):
    path = corpus / "train" / "law" / SECOND
    path.write_bytes(path.read_bytes()[:-5])
    return f"train/law/{SECOND}", "truncated"


def _empty(project, corpus):
    (corpus / "train" / "prose" / FIRST).write_bytes(b"")
    return f"train/prose/{FIRST}", "truncated"


def _remove(project, corpus):
    (corpus / "train" / "law" / SECOND).unlink()
    return f"train/law/{SECOND}", "missing"


def _remove_part(project, corpus):
    shutil.rmtree(corpus / "train" / "law" / "part.00001")
    return f"train/law/{SECOND}", "missing"


def _swap(project, corpus):
    exchange(corpus / "train" / "law" / FIRST, corpus / "train" / "law" / SECOND)
    return f"train/law/{FIRST}", f"that of {SECOND}"


def _swap_parts(project, corpus):
    """Whole parts with their own indexes; the domain's index is made to fit."""
    domain = corpus / "train" / "law"
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        (domain / f"part.0000{old}").rename(domain / f"part.0000{new}")
    shards.merge_indexes(domain, sorted(p.name for p in domain.glob("part.*")))
    return f"train/law/{FIRST}", f"that of {SECOND}"


def _other_domain(project, corpus):
    shutil.copy(corpus / "train" / "prose" / FIRST, corpus / "train" / "law" / FIRST)
    return f"train/law/{FIRST}", "another build"


def _other_split(project, corpus):
    shutil.rmtree(corpus / "train" / "law")
    shutil.copytree(corpus / "validation" / "law", corpus / "train" / "law")
    return f"train/law/{FIRST}", "another build"


def _stale(project, corpus):
    """Shards and indexes of an earlier build of other text, under the fingerprint of now."""
    now = (corpus / "fingerprint.json").read_bytes()
    project.write("other")
    project.build(project.folder / "earlier")
    shutil.rmtree(corpus / "train")
    shutil.copytree(project.folder / "earlier" / "pile" / "train", corpus / "train")
    project.write()
    assert (corpus / "fingerprint.json").read_bytes() == now
    return f"train/prose/{FIRST}", "another build"


def _flip_validation(project, corpus):
    flip(corpus / "validation" / "prose" / FIRST)
    return f"validation/prose/{FIRST}", "altered"


def _index_of_fewer(project, corpus):
    path = corpus / "train" / "law" / "index.json"
    index = read_json(path)
    index["shards"].pop()
    write_json(path, index)
    return "train/law/index.json", "does not fit the shard"


def _index_in_another_order(project, corpus):
    path = corpus / "train" / "law" / "index.json"
    index = read_json(path)
    index["shards"].reverse()
    write_json(path, index)
    return "train/law/index.json", "another order"


def _index_of_wrong_samples(project, corpus):
    path = corpus / "train" / "law" / "index.json"
    index = read_json(path)
    index["shards"][0]["samples"] -= 1
    index["shards"][1]["samples"] += 1
    write_json(path, index)
    return "train/law/index.json", "does not fit the shard"


def _index_broken(project, corpus):
    (corpus / "train" / "law" / "index.json").write_text('{"version": 2, "sha')
    return "train/law/index.json", "not valid JSON"


def _index_missing(project, corpus):
    (corpus / "train" / "law" / "index.json").unlink()
    return "train/law/index.json", "missing"


def _fingerprint_edited(project, corpus):
    path = corpus / "fingerprint.json"
    path.write_text(path.read_text().replace('"sequence_length": 16', '"sequence_length": 17'))
    return "pile/fingerprint.json", "does not match its contents"


DAMAGES = [
    _flip,
    _flip_in_header,
    _truncate,
    _empty,
    _remove,
    _remove_part,
    _swap,
    _swap_parts,
    _other_domain,
    _other_split,
    _stale,
    _flip_validation,
    _index_of_fewer,
    _index_in_another_order,
    _index_of_wrong_samples,
    _index_broken,
    _index_missing,
    _fingerprint_edited,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_is_found_named_and_rebuilt_to_the_same_bytes(project, damage, faults, caplog):
    corpus = project.build()
    whole = all_bytes(corpus)
    project.open_all()
    hashes = {p: hashlib.sha1(p.read_bytes()).hexdigest() for p in corpus.rglob("*.mds")}
    file, said = damage(project, corpus)
    text = refused(project.open_all)
    assert f"{file}: " in text and said in text
    if file.endswith(".mds"):  # both hashes
        assert hashes[corpus / file] in text and "--rebuild" in text
        if (corpus / file).exists():
            assert hashlib.sha1((corpus / file).read_bytes()).hexdigest() in text
    project.build(rebuild=True)
    assert all_bytes(corpus) == whole
    project.open_all()
    faults(
        f"data: {damage.__name__.strip('_').replace('_', ' ')}",
        1,
        "found, named and rebuilt to the same bytes",
    )


def test_only_damaged_parts_are_built_again(project, monkeypatch):
    corpus = project.build()
    written, write = [], build._write_part
    monkeypatch.setattr(
        build, "_write_part", lambda target, *rest: (written.append(target), write(target, *rest))
    )
    project.build(rebuild=True)
    assert written == []
    flip(corpus / "train" / "law" / SECOND)
    project.build(rebuild=True)
    assert written == [corpus / "train" / "law" / "part.00001"]


@pytest.mark.parametrize("file", ["part.json", "index.json"])
@pytest.mark.parametrize("content", ["[]", "{", "3", '{"sequences": 1}', '{"sequences": "1"}', None])
def test_rebuild_mends_what_a_part_says_of_itself(project, file, content):
    corpus = project.build()
    whole = all_bytes(corpus)
    path = corpus / "train" / "law" / "part.00001" / file
    if content is None:  # a count that is wrong, and looks like one
        path.write_text(path.read_text().replace('"documents": 5', '"documents": 4').replace("1}", "2}"))
    else:
        path.write_text(content)
    project.build(rebuild=True)
    assert all_bytes(corpus) == whole


def test_a_rebuild_that_is_killed_leaves_nothing_that_passes(project, monkeypatch):
    corpus = project.build()
    whole = all_bytes(corpus)
    flip(corpus / "train" / "law" / SECOND)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_write_part", stop)
        with pytest.raises(KeyboardInterrupt):
            project.build(rebuild=True)
    refused(project.open_all)
    project.build()  # an ordinary call goes on
    assert all_bytes(corpus) == whole


def test_rebuild_from_the_command_line(project, monkeypatch):
    from cpt_repro import cli, config

    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(config, "load_scale", lambda name: project.scale)
    arguments = ["corpus", "pile", "--scale", "smoke"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    whole = all_bytes(project.root)
    flip(project.root / "pile" / "train" / "law" / FIRST)
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    refused(project.open_all)  # without the option what is there is left alone
    assert CliRunner().invoke(cli.app, [*arguments, "--rebuild"]).exit_code == 0
    assert all_bytes(project.root) == whole


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("missing", [False, True])
def test_altered_tokenizer_is_found_and_trained_again(project, file, missing, faults):
    corpus = project.build()
    whole = all_bytes(project.root)
    path = project.root / "tokenizer" / file
    path.unlink() if missing else flip(path, len(path.read_bytes()) // 2)
    text = refused(project.build)
    assert (
        str(path) in text and read_json(project.root / "tokenizer" / "training.json")["sha256"][file] in text
    )
    assert missing or hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert (corpus / "fingerprint.json").exists()  # nothing was built with it
    project.build(rebuild=True)
    assert all_bytes(project.root) == whole
    faults("data: altered or missing tokenizer", 1, "found, named, trained again to the same bytes")


def test_altered_tokenizer_and_held_out_text_are_not_evaluated_with(project):
    from cpt_repro.evaluation.harness import load_tokenizer
    from cpt_repro.evaluation.suites import held_out

    corpus = project.build()
    assert len(held_out(project.root, "pile")) == 20
    path = corpus / "validation.jsonl"
    flip(path, -20)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = build.load_fingerprint(project.root, "pile")["validation_documents"]
    text = refused(lambda: held_out(project.root, "pile"))
    assert all(part in text for part in (str(path), found, expected, "--rebuild"))
    assert load_tokenizer(project.root / "tokenizer")
    flip(project.root / "tokenizer" / "tokenizer.json", 300)
    assert "the tokenizer is altered" in refused(lambda: load_tokenizer(project.root / "tokenizer"))


def test_altered_benchmark_tasks_are_found(tmp_path):
    from cpt_repro.evaluation.suites import verify_suites

    (tmp_path / "suites" / "english").mkdir(parents=True)
    task = tmp_path / "suites" / "english" / "last_word.jsonl"
    task.write_text('{"answer": 1}\n')
    files = {"english/last_word.jsonl": hashlib.sha256(task.read_bytes()).hexdigest()}
    record = tmp_path / "suites" / "fingerprint.json"
    write_json(record, {"files": files, "fingerprint": digest(files)})
    assert verify_suites(tmp_path) == digest(files)
    flip(task, -4)
    text = refused(lambda: verify_suites(tmp_path))
    assert str(task) in text and files["english/last_word.jsonl"] in text
    task.unlink()
    assert "no file" in refused(lambda: verify_suites(tmp_path))
    for wrong in ([], {"files": files, "fingerprint": "0"}, {"files": 3}):
        write_json(record, wrong)
        assert str(record) in refused(lambda: verify_suites(tmp_path))


def test_training_refuses_data_of_another_manifest_or_length(project):
    from cpt_repro.training.trainer import Corpora

    project.build()
    assert Corpora(project.root, project.scale).fingerprint("pile")["name"] == "tiny"
    before = load_manifest("tiny").digest
    project.write("other")
    text = refused(lambda: Corpora(project.root, project.scale).sequences("pile", "law"))
    assert before in text and load_manifest("tiny").digest in text


@pytest.fixture(scope="module")
def smoke_plan():
    from cpt_repro.planning.plan import Plan

    return Plan(load_scale("smoke"))


def test_training_refuses_sequences_of_another_length(project):
    from cpt_repro.training.trainer import Corpora

    project.build()
    longer = project.scale.model_copy(update={"sequence_length": 2 * LENGTH})
    text = refused(lambda: Corpora(project.root, longer).sequences("pile", "law"))
    assert f"have {LENGTH} tokens; {2 * LENGTH} are wanted" in text


def test_validation_losses_are_not_taken_on_damaged_shards(project):
    corpus = project.build()
    assert len(build.validation_sample(project.root, "pile", 4)) == 4
    flip(corpus / "validation" / "law" / FIRST)
    assert f"validation/law/{FIRST}" in refused(lambda: build.validation_sample(project.root, "pile", 4))


# -- corpora that are odd


def test_invalid_utf_8_is_named_by_file_and_line(project):
    good = [json.dumps(document).encode() for document in texts("train", 3)]
    project.write(train=[*good, b'{"id": "a", "domain": "law", "text": "\xff\xfe"}'])
    assert "train.jsonl.zst, line 4: not valid UTF-8" in refused(project.build)
    assert not (project.root / "pile" / "fingerprint.json").exists()


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "9" * 5000, '"text"', "null", '{"id": 1}', '{"text": []}', "{", ""]
)
def test_lines_that_are_no_documents(project, line):
    project.write(train=[json.dumps(next(texts("train", 1))), line])
    assert "train.jsonl.zst, line 2: not a JSON object" in refused(project.build)


def test_empty_documents_are_left_out_and_counted(project):
    project.write(
        train=[json.dumps(d | {"text": d["text"] if i > 7 else "\n"}) for i, d in enumerate(texts("t", 40))]
    )
    project.build()
    assert build.load_fingerprint(project.root, "pile")["empty_documents"] == {"train": 8, "validation": 0}


def test_a_document_longer_than_a_shard_or_a_part_is_kept_whole(project, monkeypatch):
    whole = shards.write_shards
    monkeypatch.setattr(shards, "write_shards", lambda folder, rows: whole(folder, rows, size_limit=2000))
    monkeypatch.setattr(build, "PART_CHARACTERS", 3000)
    long = " ".join(f"v{i % 53}" for i in range(5000))
    documents = [*texts("train", 12), {"id": "long", "domain": "law", "text": long}]
    project.write(train=[json.dumps(document) for document in documents])
    corpus = project.build()
    assert len(list((corpus / "train" / "law").rglob("*.mds"))) > 5
    project.open_all()
    fingerprint = build.load_fingerprint(project.root, "pile")
    rows = build.open_domain(project.root, "pile", "train", "law", fingerprint)
    tokenizer = build.load_tokenizer(project.root / "tokenizer")
    tokens = np.concatenate([row[:-1] for row in rows.take(np.arange(len(rows)))])
    assert long[:15000] in tokenizer.decode(tokens.tolist())
    before = all_bytes(corpus)
    assert all_bytes(project.build(project.folder / "again", processes=2)) == before


def test_a_domain_without_validation_text_and_one_without_any(project):
    project.write(validation=[json.dumps(d) for d in texts("v", 20) if d["domain"] == "prose"])
    assert "domain 'law' of corpus 'tiny' has too little validation text" in refused(project.build)
    project.write()
    project.value["domains"] = {"prose": 0.5, "law": 0.4, "verse": 0.1}
    project.save()
    assert "domain 'verse' of corpus 'tiny' has too little train text" in refused(project.build)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_documents_at_all(project, split):
    project.write(**{split: [json.dumps({"id": "a", "domain": "law", "text": " "})]})
    assert f"has no text in its {split} split" in refused(project.build)


def test_ids_may_stand_twice(project):
    project.write(train=[json.dumps(d | {"id": "same"}) for d in texts("train", 40)])
    project.build()
    built = build.load_fingerprint(project.root, "pile")["splits"]["train"]
    assert sum(domain["documents"] for domain in built.values()) == 40


# -- names that lead out of a folder

OUTSIDE = ["../../x", "/etc/x", "..", ".", "", "a/b", "a\\b", ".hidden", "a\n", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_manifests_cannot_reach_outside_their_folders(project, name):
    before = all_bytes(project.folder)
    project.value["splits"]["train"]["file"] = name
    project.save()
    assert "splits.train.file" in refused(project.build)
    project.write()
    project.value["domains"] = {"prose": 0.5, name: 0.5}
    project.save()
    assert "domains." in refused(project.build)
    project.write()
    assert all_bytes(project.folder) == before


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name])
def test_scales_and_papers_cannot_reach_outside_their_folders(name):
    from cpt_repro.project import SCALES
    from cpt_repro.declarations.scale import Scale
    from cpt_repro.declarations.strict import read_yaml
    from cpt_repro.declarations.runs import Paper

    raw = read_yaml(SCALES / "smoke.yaml")
    suites = raw["suites"]
    for change in (
        {"name": name},
        {"corpora": raw["corpora"] | {name: "smoke_weak"}},
        {"corpora": raw["corpora"] | {"sp": name}},
        {"models": raw["models"] | {name: None}},
        {"suites": suites | {name: next(iter(suites.values()))}},
    ):
        assert next(iter(change)) in refused(lambda change=change: parse(Scale, raw | change, "a test"))
    run = {"model": "405m", "data": {"pile": 1}, "iterations": 9, "validate": ["pile"]}
    run["schedule"] = {"kind": "constant", "eta_const": 1e-4}
    paper = {
        "paper": "p",
        "reference": "",
        "batch": {"sequences": 1, "sequence_length": 8},
        "runs": {"a": run},
    }
    parse(Paper, paper, "a test")
    # A slash is part of a run's name.
    for outside in (name, f"a/{name}", f"{name}/a") if name != "a/b" else ():
        assert "runs." in refused(
            lambda outside=outside: parse(Paper, paper | {"runs": {outside: run}}, "a test")
        )


@pytest.mark.parametrize(
    "name", ["../../secret.mds", "/etc/passwd", "part.00000/../../x", "shard.00000.mds.zstd"]
)
def test_an_index_cannot_reach_outside_its_folder(project, name):
    corpus = project.build()
    secret = project.folder / "secret.mds"
    shutil.copy(corpus / "train" / "law" / FIRST, secret)
    path = corpus / "train" / "law" / "index.json"
    index = read_json(path)
    index["shards"][0]["raw_data"]["basename"] = name
    write_json(path, index)
    for action in (shards.verify, shards.Sequences):
        text = refused(lambda action=action: action(corpus / "train" / "law"))
        assert str(path) in text and "basename" in text


# -- files that could run code


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("code from a file was run",))


def test_an_index_cannot_make_a_shard_be_unpickled(project):
    from streaming import MDSWriter

    corpus = project.build()
    folder = corpus / "train" / "law"
    with MDSWriter(out=str(folder / "evil"), columns={"tokens": "pkl"}, hashes=["sha1"]) as writer:
        writer.write({"tokens": Boom()})
    evil = folder / "evil"
    shutil.rmtree(folder / "part.00000")
    evil.rename(folder / "part.00000")
    with pytest.raises(UserError, match="column_encodings"):
        shards.merge_indexes(folder, ["part.00000"])
    index = read_json(folder / "part.00000" / "index.json")
    index["shards"][0]["column_sizes"] = [2 * (LENGTH + 1)]
    write_json(folder / "part.00000" / "index.json", index)
    for action in (shards.verify, shards.Sequences):
        with pytest.raises(UserError, match="column_encodings"):
            action(folder / "part.00000")


@pytest.fixture
def model_folder(tmp_path):
    from cpt_repro.declarations.scale import ModelSize
    from cpt_repro.models.neox import neox_config, new_model, save_model
    from cpt_repro.training.trainer import adamw

    model = new_model(neox_config(ModelSize(layers=1, width=16, heads=1, eta_factor=1), 300, LENGTH), 0)
    optimizer = adamw(model)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return model, save_model(model, tmp_path / "model", optimizer.state_dict()), tmp_path / "model"


def test_models_from_elsewhere_run_no_code(model_folder, monkeypatch):
    from cpt_repro.evaluation.harness import load_model

    _, _, folder = model_folder
    assert load_model(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    code = 'raise SystemExit("code from a model folder was run")\n'
    (folder / "modeling_evil.py").write_text(code)
    config = read_json(folder / "config.json")
    evil = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    write_json(folder / "config.json", config | {"auto_map": evil})
    assert load_model(folder).config.model_type == "gpt_neox"  # the library's own class
    write_json(folder / "config.json", config | {"auto_map": evil, "model_type": "evil"})
    assert str(folder) in refused(lambda: load_model(folder))


def test_pickled_weights_are_not_read(model_folder):
    from cpt_repro.evaluation.harness import load_model
    from cpt_repro.evaluation.merge import merge_folders
    from cpt_repro.models.neox import load_weights

    model, _, folder = model_folder
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Boom()))
    assert load_model(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Boom()))
    assert str(folder) in refused(lambda: load_model(folder))
    assert str(folder) in refused(lambda: load_weights(model, folder))
    assert str(folder) in refused(lambda: merge_folders(folder, [folder], 0.5, folder.parent / "merged"))
    (folder / "model.safetensors").unlink()
    for action in (load_model, lambda folder: load_weights(model, folder)):
        assert "missing" in refused(lambda action=action: action(folder))


def test_optimizer_state_is_read_as_tensors_only_and_checked(model_folder, faults):
    from cpt_repro.models.neox import load_optimizer

    _, _, folder = model_folder
    assert load_optimizer(folder)["state"]
    path = folder / "optimizer.pt"
    whole = path.read_bytes()
    # A flipped bit in the tensors, which torch reads without a word.
    flip(path, len(whole) // 2)
    text = refused(lambda: load_optimizer(folder))
    assert str(path) in text and hashlib.sha256(whole).hexdigest() in text
    (folder / "optimizer.json").unlink()
    for content in (pickle.dumps(Boom()), b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert str(path) in refused(lambda: load_optimizer(folder))
    path.write_bytes(whole)
    assert load_optimizer(folder)["state"]  # a folder of before the record
    faults("checkpoint: flipped bit in the optimizer's state", 1, "found and named")


def test_altered_weights_are_not_evaluated(model_folder, faults):
    from cpt_repro.models.neox import check_weights

    _, expected, folder = model_folder
    assert check_weights(folder, expected) == expected
    flip(folder / "model.safetensors")
    assert expected in refused(lambda: check_weights(folder, expected))
    faults("checkpoint: flipped bit in a model to be evaluated", 1, "found and named")


def test_evaluation_checks_the_weights_first(smoke_plan, tmp_path, monkeypatch):
    """The check stands between the store and the harness."""
    from types import SimpleNamespace

    from cpt_repro.evaluation import harness
    from cpt_repro.evaluation.evaluate import evaluate_models
    from cpt_repro.training.store import Store

    plan = smoke_plan
    segment = next(iter(plan.segments.values()))
    store = Store("smoke", tmp_path)
    folder = store.weights(segment, segment.iterations)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"not what was written")
    monkeypatch.setattr(Store, "recorded_hash", lambda *_: "0" * 64)
    monkeypatch.setattr(
        harness,
        "Harness",
        lambda *_: SimpleNamespace(evaluate=lambda _: pytest.fail("evaluated altered weights")),
    )
    text = refused(
        lambda: evaluate_models(plan, [segment.id], (), tmp_path, tmp_path / "results", store, print)
    )
    assert str(folder) in text and "0" * 64 in text


def test_tokenizers_from_elsewhere_run_no_code(project, monkeypatch):
    from cpt_repro.evaluation.harness import load_tokenizer

    project.build()
    folder = project.root / "tokenizer"
    (folder / "training.json").unlink()
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (folder / "evil.py").write_text('raise SystemExit("code from a tokenizer folder was run")\n')
    config = read_json(folder / "tokenizer_config.json")
    write_json(
        folder / "tokenizer_config.json", config | {"auto_map": {"AutoTokenizer": ["evil.E", "evil.E"]}}
    )
    assert load_tokenizer(folder)


def test_entities_are_refused_in_any_encoding(tmp_path):
    from cpt_repro.data.extract import tei_parts

    text = '<?xml version="1.0" encoding="{}"?><!DOCTYPE a [<!ENTITY e "boo">]><TEI><body><p>&e;</p></body></TEI>'
    for encoding in ("UTF-8", "UTF-16"):
        (tmp_path / "novel.xml").write_bytes(text.format(encoding).encode(encoding))
        assert "document type" in refused(lambda: tei_parts(tmp_path / "novel.xml", 10))
    (tmp_path / "novel.xml").write_bytes(b'<?xml version="1.0" encoding="no-such"?><TEI><body/></TEI>')
    assert "novel.xml" in refused(lambda: tei_parts(tmp_path / "novel.xml", 10))
