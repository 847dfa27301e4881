"""Tokenizers that are trained or fetched, checked, and made again."""

import hashlib
import json
import shutil

import pytest
from tiny_corpora import all_bytes, flip, neox_like, refused
from tokenizers import Tokenizer

from cpt_repro.data import tokenizer as tokenizer_module
from cpt_repro.data.build import build_tokenizer, current_tokenizer
from cpt_repro.data.tokenizer import (
    END_OF_TEXT_ID,
    Encoder,
    load_tokenizer,
    sample_by_shares,
    train_tokenizer,
    verify_tokenizer,
)
from cpt_repro.files import file_digest, read_json, write_json


def sample_evenly(texts, total, wanted):
    return sample_by_shares((("-", text) for text in texts), {"-": total}, {"-": None}, wanted)


def test_a_sample_is_spread_evenly():
    pieces = list(sample_evenly((f"{i:02d}" for i in range(100)), 200, 50))
    assert sum(map(len, pieces)) == 50 and int(pieces[-1]) >= 90 and len(set(pieces)) == 25
    assert "".join(sample_evenly(["abc", "de"], 5, 99)) == "abcde"


def test_a_sample_by_shares_follows_them_and_not_the_text():
    texts = [("few" if i % 4 == 0 else "many", f"{i:03d}+") for i in range(400)]
    totals = {"few": 400, "many": 1200}

    def sample(shares, wanted=200):
        return list(sample_by_shares(iter(texts), totals, shares, wanted))

    even = list(sample_evenly((text for _, text in texts), 1600, 200))
    assert sample({"few": None, "many": None}) == sample({"few": 0.2505, "many": 0.7495}) == even
    few = {text for domain, text in texts if domain == "few"}
    for share in (0.8, 0.5, 0.0):
        pieces = sample({"few": share, "many": 1 - share})
        assert sum(map(len, pieces)) == 200 and sum(piece in few for piece in pieces) == share * 50
        assert int(pieces[-1][:3]) >= 350  # spread over the whole text
    pieces = sample({"few": 0.9, "many": 0.1}, 1000)
    assert sum(piece in few for piece in pieces) == 100  # all there is of it
    assert sum(map(len, pieces)) == 400 + 100


def test_the_text_it_is_trained_on_has_the_declared_shares(local, monkeypatch):
    given = {}

    def trained(texts, vocab_size):
        given[share] = "".join(texts)
        return train_tokenizer(given[share], vocab_size)

    monkeypatch.setattr(tokenizer_module, "train_tokenizer", trained)
    prose = {document["text"] for document in local.documents() if document["domain"] == "prose"}
    for share in (0.1, 0.9):
        local.save(domains={"prose": share, "law": 1 - share})
        build_tokenizer(local.project, local.scale)
        found = sum(len(text) for text in prose if text in given[share])
        assert found / len(given[share]) == pytest.approx(share, abs=0.1)


def test_one_that_is_trained_is_repeatable_and_loads_in_transformers(local, tmp_path):
    from transformers import PreTrainedTokenizerFast

    folder = build_tokenizer(local.project, local.scale)
    again = build_tokenizer(local.elsewhere(tmp_path / "again").project, local.scale)
    assert all_bytes(folder) == all_bytes(again)
    loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    assert loaded.eos_token_id == END_OF_TEXT_ID and len(loaded) == 300
    text = "Grüße 東京  x\n"
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.encode(text) == load_tokenizer(folder).encode(text).ids


def test_a_published_one_is_kept_as_it_is_and_loads_in_transformers(hub):
    from transformers import AutoTokenizer

    folder = build_tokenizer(hub.project, hub.scale)
    assert (folder / "tokenizer.json").read_bytes() == (hub.model / "tokenizer.json").read_bytes()
    assert current_tokenizer(hub.project, hub.scale) == file_digest(folder / "tokenizer.json")
    text = "Grüße    to  the house.\n\n  don't"
    loaded, ours = AutoTokenizer.from_pretrained(folder), Encoder(load_tokenizer(folder))([text])
    assert loaded.eos_token_id == ours[-1] == 1
    assert loaded(text).input_ids == ours[:-1].tolist()
    hub.model.rename(hub.model.with_name("gone"))
    assert build_tokenizer(hub.project, hub.scale) == folder  # not fetched again


def test_one_without_a_configuration_gets_one(hub):
    (hub.model / "tokenizer_config.json").unlink()
    folder = build_tokenizer(hub.project, hub.scale)
    assert read_json(folder / "tokenizer_config.json")["eos_token"] == "<|endoftext|>"


def _too_large(folder):
    value = read_json(folder / "tokenizer.json")
    largest = max(value["model"]["vocab"].values())
    value["model"]["vocab"] |= {f"w{n}": n for n in range(largest + 1, 65_538)}
    for n, token in enumerate(token for token in value["added_tokens"] if not token["special"]):
        token["id"] = 65_538 + n
    (folder / "tokenizer.json").write_text(json.dumps(value))
    return Tokenizer.from_str(json.dumps(value)).get_vocab_size()


def _with_code(folder, config):
    write_json(folder / "tokenizer_config.json", config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: 500, "has 400 entries, and 'tokenizer.vocab_size' of the scale says 500"),
        (lambda folder: neox_like(folder, end="<|done|>"), "has no <|endoftext|>"),
        (_too_large, "are stored in 16 bits"),
        (lambda folder: write_json(folder / "tokenizer.json", {}), "cannot be read"),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "neox/tokenizer.json: the file is missing in the copy",
        ),
        (lambda folder: _with_code(folder, {"auto_map": {}}), "brings code of its own (auto_map)"),
        (lambda folder: _with_code(folder, ["auto_map"]), "tokenizer_config.json"),
        (shutil.rmtree, "put a copy below $CPT_REPRO_HUB/models/someone/neox"),
    ],
)
def test_published_ones_that_do_not_fit(hub, change, message):
    size = change(hub.model)
    settings = hub.scale.tokenizer.model_copy(update={"vocab_size": size if isinstance(size, int) else 400})
    scale = hub.scale.model_copy(update={"tokenizer": settings})
    assert message in refused(lambda: build_tokenizer(hub.project, scale))
    assert not (hub.root / "tokenizer").exists()


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("missing", [False, True])
def test_an_altered_one_is_found_and_trained_again(local, file, missing, faults):
    local.build()
    whole, path = all_bytes(local.root), local.root / "tokenizer" / file
    path.unlink() if missing else flip(path, len(path.read_bytes()) // 2)
    for action in (local.build, lambda: current_tokenizer(local.project, local.scale)):
        text = refused(action)
        assert f"{path}: " in text and read_json(path.with_name("training.json"))["sha256"][file] in text
        assert missing or hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert all(all_bytes(local.root)[name] == whole[name] for name in whole if "tokenizer" not in name)
    local.build(rebuild=True)
    assert all_bytes(local.root) == whole
    faults("data: altered or missing tokenizer", 1, "found, named, trained again to the same bytes")


def test_shards_of_another_tokenizer_are_built_anew(hub, caplog):
    hub.build()
    before = hub.fingerprint().tokenizer
    neox_like(hub.model, vocab_size=390)
    hub.project.hub_lock.unlink()
    settings = hub.scale.tokenizer.model_copy(update={"vocab_size": 390})
    hub.scale = hub.scale.model_copy(update={"tokenizer": settings})
    text = refused(lambda: current_tokenizer(hub.project, hub.scale))
    assert "the tokenizer of scale 'tiny' is not made" in text and str(hub.root / "tokenizer") in text
    hub.build()
    assert "another manifest, tokenizer or length" in caplog.text
    assert before != hub.fingerprint().tokenizer == current_tokenizer(hub.project, hub.scale)


def test_one_that_names_code_is_neither_used_nor_handed_on(local):
    local.build()
    path = local.root / "tokenizer" / "tokenizer_config.json"
    write_json(path, read_json(path) | {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}})
    path.with_name("training.json").unlink()  # nothing else would tell
    assert f"{path}: the tokenizer brings code of its own" in refused(lambda: verify_tokenizer(path.parent))
