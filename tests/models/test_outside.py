"""Models from outside: every format bit for bit, what they are, what is refused."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import requests
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RevisionNotFoundError
from tiny_models import ROWS, SIZE, fresh, logits, made_elsewhere, old_config, write_model
from transformers import AutoModelForCausalLM

from cpt_repro.data.tokenizer import save_tokenizer, train_tokenizer
from cpt_repro.declarations.runs import OutsideSize
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, read_json, write_json
from cpt_repro.models.outside import (
    Outside,
    check_fits,
    check_size,
    check_tokenizer,
    load_outside,
    outside_identity,
)


@pytest.fixture(scope="module")
def theirs():
    return made_elsewhere()


@pytest.fixture(scope="module")
def formats(theirs, tmp_path_factory):
    """The same weights in every format, by name."""
    root = tmp_path_factory.mktemp("formats")
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    theirs.save_pretrained(root / "safetensors")
    theirs.save_pretrained(root / "sharded", max_shard_size="60KB")
    assert len(list((root / "sharded").glob("model-*.safetensors"))) > 2
    for name in ("bin", "sharded bin", "with buffers"):
        (root / name).mkdir()
        write_json(root / name / "config.json", old_config())
    torch.save(state, root / "bin" / "pytorch_model.bin")
    names = sorted(state)
    for number, own in enumerate((names[::2], names[1::2]), 1):
        file = root / "sharded bin" / f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in own}, file)
    buffers = {}
    for layer in range(SIZE.layers):
        at = f"gpt_neox.layers.{layer}.attention."
        buffers[at + "bias"] = torch.ones(1, 1, 128, 128).tril().byte()
        buffers[at + "masked_bias"] = torch.tensor(-1e9)
        buffers[at + "rotary_emb.inv_freq"] = torch.ones(2)
    old = {**state, **buffers}
    torch.save(old, root / "with buffers" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return root


@pytest.fixture
def refused(project):
    """Why the weights of a folder are refused."""

    def why(folder):
        with pytest.raises(UserError) as caught:
            load_outside(Outside(project, str(folder)), fresh())
        assert str(folder) in str(caught.value)
        return str(caught.value)

    return why


# -- weights


@pytest.mark.parametrize("name", ["safetensors", "sharded", "bin", "sharded bin", "with buffers"])
def test_every_format_gives_the_same_logits_bit_for_bit(project, formats, theirs, name):
    model, outside = fresh(), Outside(project, str(formats / name))
    check_fits(outside, SIZE, ROWS, "the scale")
    before, random = logits(model), torch.random.get_rng_state()
    digest = load_outside(outside, model)
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.equal(logits(model), logits(theirs)) and not torch.equal(before, logits(theirs))
    # The digest is of the weights and not of the format.
    assert digest == load_outside(Outside(project, str(formats / "safetensors")), fresh(2))


def test_half_precision_becomes_float32_exactly(project, theirs, tmp_path):
    halves = {name: tensor.half() for name, tensor in theirs.state_dict().items()}
    folder, model = write_model(tmp_path / "half", halves), fresh()
    load_outside(Outside(project, str(folder)), model)
    opened = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(logits(model), logits(opened)) and not torch.equal(logits(model), logits(theirs))


LAST = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(LAST), ["1 of its tensors are missing", LAST]),
        (
            lambda state: state.update({"score.weight": torch.ones(2)}),
            ["1 of its tensors are unknown", "score.weight"],
        ),
        (lambda state: state[LAST].__setitem__((0, 0), float("nan")), [LAST, "not finite"]),
        (lambda state: state[LAST].__setitem__((0, 0), float("inf")), [LAST, "not finite"]),
        (lambda state: state.update({LAST: torch.ones(32, 64)}), ["of another shape", LAST]),
        (lambda state: state.update({LAST: torch.ones(32, 128, dtype=torch.int8)}), ["not whole", "copying"]),
    ],
)
def test_weights_that_are_not_the_models_are_refused(refused, theirs, tmp_path, change, words):
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    change(state)
    text = refused(write_model(tmp_path / "model", state))
    assert [word for word in words if word not in text] == [], text


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("share", [0.7, 0.001, 0])
@pytest.mark.parametrize(
    ("name", "file"), [("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")]
)
def test_files_that_are_cut_are_refused(refused, formats, tmp_path, name, file, share):
    folder = shutil.copytree(formats / name, tmp_path / "model")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(share * len(content))])
    assert "its weights are not whole" in refused(folder)


@pytest.mark.parametrize("kind", ["object", "dict", "list", "nested"])
def test_pickles_do_not_run(refused, formats, tmp_path, kind):
    bomb = tmp_path / "went off"
    held = {"object": Bomb(bomb), "dict": {"a": Bomb(bomb)}, "list": [1], "nested": {"model": {}}}[kind]
    folder = shutil.copytree(formats / "bin", tmp_path / "model")
    torch.save(held, folder / "pytorch_model.bin")
    text = refused(folder)
    assert ("tensors are missing" if kind == "nested" else "not tensors alone") in text and not bomb.exists()


def test_folders_that_are_not_whole_are_refused(refused, formats, tmp_path):
    folder = shutil.copytree(formats / "sharded bin", tmp_path / "sharded")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "of its tensors are missing" in refused(folder)
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    assert "has no weights" in refused(folder)
    (folder / "config.json").unlink()
    # An adapter's weights are never taken, nor those of the model that it names.
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "someone/else"})
    shutil.copy(formats / "safetensors" / "model.safetensors", folder / "adapter_model.safetensors")
    assert "has no weights" in refused(folder)


# -- what it is, and whether it fits


def test_a_folder_is_what_it_holds_wherever_it_lies(project, formats, tmp_path):
    first = shutil.copytree(formats / "bin", tmp_path / "first")
    identity = outside_identity(project, str(first))
    (first / "README.md").write_text("a word")
    shutil.move(first, tmp_path / "second")
    assert outside_identity(project, "./second") == identity  # below the project
    assert outside_identity(project, str(formats / "safetensors")) != identity
    # Between the plan and the start it may change.
    outside = Outside(project, "./second")
    load_outside(outside, fresh(), identity)
    state = torch.load(tmp_path / "second" / "pytorch_model.bin")
    torch.save(
        {name: tensor * 2 for name, tensor in state.items()}, tmp_path / "second" / "pytorch_model.bin"
    )
    with pytest.raises(UserError, match="has changed since the run was planned"):
        load_outside(Outside(project, "./second"), fresh(), identity)
    assert outside_identity(project, "./second") != identity
    # One of the hub is not looked at, and need not be there.
    assert outside_identity(project, "authors/tiny@step10") == "authors/tiny@step10"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, ["model_type llama", "gpt_neox"]),
        ({"num_hidden_layers": 3}, ["layers 3", "not 2"]),
        ({"hidden_size": 64}, ["width 64", "not 32"]),
        ({"num_attention_heads": 4}, ["heads 4"]),
        ({"intermediate_size": 64}, ["feed-forward", "64"]),
        ({"hidden_act": "gelu_new"}, ["activation gelu_new"]),
        ({"use_parallel_residual": False}, ["parallel residual False"]),
        ({"tie_word_embeddings": True}, ["tied embeddings True"]),
        ({"attention_bias": False}, ["biases", "False"]),
        ({"layer_norm_eps": 1e-6}, ["epsilon", "1e-06"]),
        ({"rotary_pct": 1.0}, ["rotated share", "1.0"]),
        ({"rotary_emb_base": 500000}, ["base of the rotary", "500000"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rotary", "linear"]),
        ({"rope_parameters": {"rope_theta": 20000.0}}, ["base of the rotary", "20000"]),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, ["code of its own", "modeling.Mine"]),
        ({"quantization_config": {"load_in_8bit": True}}, ["quantized weights"]),
        ({"vocab_size": 641}, ["641 rows", "640", "'vocab_size: 641'", "models.small"]),
        ({"vocab_size": "many"}, ["'vocab_size'"]),
    ],
)
def test_another_architecture_is_refused(project, tmp_path, changes, words):
    write_json(tmp_path / "config.json", old_config(**changes))
    with pytest.raises(UserError) as caught:
        check_fits(Outside(project, str(tmp_path), "paper/run"), SIZE, ROWS, "models.small")
    text = str(caught.value)
    assert [word for word in [*words, f"paper/run, {tmp_path}"] if word not in text] == [], text


def test_a_plan_tells_what_cannot_fit(project, formats, tmp_path):
    def check(model, size=None):
        check_size(project, model, size, SIZE, ROWS, "runs.yaml, run 'child'", "models.small")

    check(str(formats / "bin"))
    size = {"layers": 2, "width": 32, "heads": 2, "vocab_size": ROWS}
    check("authors/tiny@step10", OutsideSize(**size))
    words = "run 'child'.*24 layers, width 32, 2 heads and 640 rows of embedding; models.small has 2 layers"
    with pytest.raises(UserError, match=words):
        check("authors/tiny@step10", OutsideSize(**size | {"layers": 24}))
    with pytest.raises(UserError, match="run 'child'.*the folder does not exist"):
        check(str(tmp_path / "nowhere"))
    write_json(tmp_path / "config.json", old_config(vocab_size=50304))
    with pytest.raises(UserError, match="run 'child'.*'vocab_size: 50304' of models.small"):
        check(str(tmp_path))


def test_another_tokenizer_is_refused(project, formats, tmp_path):
    folder, ours = shutil.copytree(formats / "safetensors", tmp_path / "model"), tmp_path / "tokenizer"
    ours.mkdir()
    save_tokenizer(train_tokenizer(["one language"] * 50, 300), ours)
    check_tokenizer(Outside(project, str(folder)), ours)  # it has none to compare
    shutil.copy(ours / "tokenizer.json", folder)
    check_tokenizer(Outside(project, str(folder)), ours)
    save_tokenizer(train_tokenizer(["another language altogether"] * 50, 300), folder)
    with pytest.raises(UserError, match="another tokenizer"):
        check_tokenizer(Outside(project, str(folder)), ours)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer, or ours, cannot be read"):
        check_tokenizer(Outside(project, str(folder)), ours)


# -- the hub


def test_revisions_of_a_repository_are_kept_apart_and_pinned(project, formats, theirs):
    copies = project.hub_copies / "models" / "authors"
    shutil.copytree(formats / "bin", copies / "tiny@step10")
    model, weights = fresh(), copies / "tiny@step10" / "pytorch_model.bin"
    digest = load_outside(Outside(project, "authors/tiny@step10"), model)
    assert torch.equal(logits(model), logits(theirs))
    locked = read_json(project.hub_lock)["model:authors/tiny@step10"]
    assert locked["files"] == {"pytorch_model.bin": file_digest(weights)}
    # A copy without a revision in its name could be that of any step.
    shutil.copytree(formats / "bin", copies / "tiny")
    with pytest.raises(UserError, match="does not say that it is revision step20"):
        Outside(project, "authors/tiny@step20")
    assert load_outside(Outside(project, "authors/tiny"), fresh()) == digest
    torch.save({name: tensor + 1 for name, tensor in theirs.state_dict().items()}, weights)
    with pytest.raises(UserError, match="it changed since it was first used"):
        load_outside(Outside(project, "authors/tiny@step10"), model)
    with pytest.raises(UserError, match="leads elsewhere"):
        Outside(project, "authors/../../tiny")


def test_a_vanished_revision_is_told_before_training(project, monkeypatch):
    def vanished(*_, **__):
        raise RevisionNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(HfApi, "repo_info", vanished)
    outside = Outside(replace(project, hub_copies=None), "authors/tiny@step99")
    with pytest.raises(UserError, match="authors/tiny, revision step99: the hub does not give it: 404"):
        check_fits(outside, SIZE, ROWS, "x")


def test_without_a_network_what_was_taken_before_is_used(project, monkeypatch, formats, theirs):
    def unreachable(*_, **__):
        raise requests.ConnectionError("no route")

    commit, online = "a" * 40, replace(project, hub_copies=None)
    monkeypatch.setattr(HfApi, "repo_info", unreachable)
    with pytest.raises(UserError, match="no route"):
        _ = Outside(online, "authors/tiny@step10").config
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project.root / "cache"))
    cached = project.root / "cache" / "models--authors--tiny" / "snapshots" / commit
    shutil.copytree(formats / "bin", cached)
    files = {name: file_digest(cached / name) for name in ("config.json", "pytorch_model.bin")}
    write_json(project.hub_lock, {"model:authors/tiny@step10": {"commit": commit, "files": files}})
    model = fresh()
    load_outside(Outside(online, "authors/tiny@step10"), model)
    assert torch.equal(logits(model), logits(theirs))
    (cached / "pytorch_model.bin").write_bytes(b"another")
    with pytest.raises(UserError, match="it changed since it was first used"):
        load_outside(Outside(online, "authors/tiny@step10"), model)
