"""Model folders: what is written is what is read, what is altered is refused, and no code of theirs runs."""

import hashlib
import json
import pickle

import pytest
import torch
from tiny_models import fresh, logits

from cpt_repro.errors import UserError
from cpt_repro.files import read_json, write_json
from cpt_repro.models.weights import (
    check_weights,
    load_model_folder,
    load_optimizer,
    load_weights,
    save_model,
)


class Boom:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


@pytest.fixture
def saved(tmp_path):
    """(model, optimizer's state, SHA-256 of the weights, folder)"""
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    state = optimizer.state_dict()
    return model, state, save_model(model, tmp_path / "model", state), tmp_path / "model"


def flip(path):
    """Flips one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_is_written_is_read(saved, tmp_path):
    model, state, sha256, folder = saved
    other = fresh(2)
    assert load_weights(other, folder, sha256) == sha256 == check_weights(folder)
    assert torch.equal(logits(other), logits(model))
    assert torch.equal(logits(load_model_folder(folder)), logits(model))
    for mapped in (False, True):
        step = load_optimizer(folder, mapped)["state"][0]
        assert torch.equal(step["exp_avg"], state["state"][0]["exp_avg"])
    # Of a sharded model the whole tensors are given.
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert save_model(fresh(3), tmp_path / "given", weights=whole) == sha256
    assert not (tmp_path / "given" / "optimizer.pt").exists()


def test_the_bytes_are_those_of_ever(tmp_path):
    """Weights of a seed, with names and metadata, as every earlier version wrote them."""
    sha256 = "79be94e0f30153f2c3f08344f6cb75a13eab6e64a85cd0e44409c5fc1eb72412"
    assert save_model(fresh(3), tmp_path / "model") == sha256


def test_altered_weights_are_refused(saved, faults):
    model, _, sha256, folder = saved
    flip(folder / "model.safetensors")
    for action in (lambda: check_weights(folder, sha256), lambda: load_weights(model, folder, sha256)):
        with pytest.raises(UserError, match=f"the weights are altered: SHA-256 {sha256}"):
            action()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights are missing"):
        load_weights(model, folder)
    faults("checkpoint: flipped bit in a model to be evaluated", 1, "found and named")


def test_an_altered_optimizer_is_refused(saved, faults):
    folder = saved[3]
    path, record = folder / "optimizer.pt", folder / "optimizer.json"
    whole = path.read_bytes()
    flip(path)  # which torch reads without a word
    with pytest.raises(UserError, match=hashlib.sha256(whole).hexdigest()):
        load_optimizer(folder)
    for content in (pickle.dumps(Boom()), b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        write_json(record, {"sha256": hashlib.sha256(content).hexdigest()})
        with pytest.raises(UserError, match="not an optimizer's state"):
            load_optimizer(folder)
    for file in (record, path):
        file.unlink()
        with pytest.raises(UserError, match="state is missing"):
            load_optimizer(folder)
    faults("checkpoint: flipped bit in the optimizer's state", 1, "found and named")


def test_weights_of_another_size_do_not_fit(saved):
    model, _, _, folder = saved
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "layers.1" not in name}
    save_model(model, folder, weights=tensors)
    with pytest.raises(UserError, match="do not fit this model"):
        load_weights(fresh(), folder)


def with_header(whole, change):
    """Weights whose first tensor is described otherwise."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header[next(name for name in header if name != "__metadata__")] |= change
    content = json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + whole[8 + length :]


@pytest.mark.parametrize(
    "bomb",
    [
        lambda whole: (1 << 63).to_bytes(8, "little") + whole[8:],
        lambda whole: (1 << 40).to_bytes(8, "little") + whole[8:],
        lambda whole: (100_000).to_bytes(8, "little") + b"[" * 100_000,
        lambda whole: b"",
        lambda whole: whole[:-4],
        lambda whole: whole + b"more",
        *(
            lambda whole, change=change: with_header(whole, change)
            for change in (
                {"data_offsets": [-1, 4]},
                {"data_offsets": [4, 81924]},
                {"data_offsets": [81920, 0]},
                {"data_offsets": [0, 1 << 60]},
                {"shape": [1 << 62, 4]},
                {"shape": [0, 1 << 62]},
                {"dtype": "F64"},
                {"dtype": "EVIL"},
                {"dtype": [1]},
            )
        ),
    ],
)
def test_headers_that_promise_more_than_the_file_has_are_one_sentence(saved, bomb):
    model, _, _, folder = saved
    path = folder / "model.safetensors"
    path.write_bytes(bomb(path.read_bytes()))
    with pytest.raises(UserError, match="do not fit this model .*header"):
        load_weights(model, folder)
    with pytest.raises(UserError, match="cannot be read .*header"):
        load_model_folder(folder)


def test_model_folders_run_no_code(saved, monkeypatch):
    folder = saved[3]
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (folder / "modeling_evil.py").write_text('raise SystemExit("code from a model folder was run")\n')
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Boom()))
    config = read_json(folder / "config.json")
    evil = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    write_json(folder / "config.json", config | {"auto_map": evil})
    assert load_model_folder(folder).config.model_type == config["model_type"]  # the library's own class
    write_json(folder / "config.json", config | {"auto_map": evil, "model_type": "evil"})
    with pytest.raises(UserError, match=f"{folder}: the model cannot be read"):
        load_model_folder(folder)
    write_json(folder / "config.json", config)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(UserError, match="cannot be read"):
        load_model_folder(folder)
    with pytest.raises(UserError, match="do not fit"):
        load_weights(saved[0], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read.*no file named model.safetensors"):
        load_model_folder(folder)
