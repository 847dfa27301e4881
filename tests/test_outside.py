"""Models from outside: every format bit for bit, what is refused, training from them, export, published weights."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM
from typer.testing import CliRunner

from cpt_repro import cli, hub
from cpt_repro.declarations.scale import load_scale
from cpt_repro.declarations.strict import parse
from cpt_repro.data.tokenizer import save_tokenizer, train_tokenizer
from cpt_repro.errors import UserError
from cpt_repro.evaluation import released
from cpt_repro.exhibits.draw import draw
from cpt_repro.files import file_digest, read_json, write_json
from cpt_repro.models.outside import Outside, architecture, check_fits, our_architecture
from cpt_repro.declarations.runs import Paper
from cpt_repro.planning.plan import Plan, streams
from cpt_repro.records.receipts import read_evaluation, read_receipt, receipt_path
from cpt_repro.training.export import export_run
from cpt_repro.models.neox import neox_config, new_model
from cpt_repro.models.load_outside import START, check_tokenizer, load_outside, start_outside
from cpt_repro.training.train import train_segments
from cpt_repro.training.store import Store

SMOKE = load_scale("smoke")
SIZE, ROWS, LENGTH = SMOKE.models["405m"], 640, 64
TOKENS = torch.randint(0, ROWS, (3, 40), generator=torch.Generator().manual_seed(0))
PYTHIA = "gupta2023/deduplicated-upstream/pythia"


def fresh(seed=1):
    return new_model(neox_config(SIZE, ROWS, LENGTH), seed)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS).logits


def old_config(**changes):
    """A config.json as the published Pythia models have it."""
    told = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu"}
    told |= {"hidden_size": SIZE.width, "num_hidden_layers": SIZE.layers, "num_attention_heads": SIZE.heads}
    told |= {"intermediate_size": 4 * SIZE.width, "vocab_size": ROWS, "max_position_embeddings": 128}
    told |= {
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "layer_norm_eps": 1e-5,
    }
    told |= {"tie_word_embeddings": False, "torch_dtype": "float16", "bos_token_id": 0, "eos_token_id": 0}
    return told | changes


def write_model(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", old_config(**config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def theirs():
    """A model as transformers itself makes one."""
    torch.manual_seed(5)
    told = {"hidden_size": SIZE.width, "num_hidden_layers": SIZE.layers, "num_attention_heads": SIZE.heads}
    config = GPTNeoXConfig(
        **told, intermediate_size=4 * SIZE.width, vocab_size=ROWS, max_position_embeddings=128
    )
    return GPTNeoXForCausalLM(config).eval()


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
    halves = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, own in halves.items():
        torch.save({name: state[name] for name in own}, root / "sharded bin" / file)
    index = {"metadata": {}, "weight_map": {name: file for file, own in halves.items() for name in own}}
    write_json(root / "sharded bin" / "pytorch_model.bin.index.json", index)
    buffers = {}
    for layer in range(SIZE.layers):
        at = f"gpt_neox.layers.{layer}.attention."
        buffers |= {
            at + "bias": torch.ones(1, 1, 128, 128).tril().byte(),
            at + "masked_bias": torch.tensor(-1e9),
        }
        buffers |= {at + "rotary_emb.inv_freq": torch.ones(2)}
    old = {**state, **buffers}
    torch.save(old, root / "with buffers" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return root


@pytest.mark.parametrize("name", ["safetensors", "sharded", "bin", "sharded bin", "with buffers"])
def test_every_format_gives_the_logits_of_transformers_bit_for_bit(formats, theirs, name):
    model, outside = fresh(), Outside(str(formats / name))
    check_fits(outside, SIZE, ROWS, "the scale")
    before = logits(model)
    found = load_outside(model, outside)
    assert torch.equal(logits(model), logits(theirs)) and not torch.equal(before, logits(theirs))
    # The digest is of the weights and not of the format.
    assert found == load_outside(fresh(2), Outside(str(formats / "safetensors")))


def test_half_precision_becomes_float32_exactly(theirs, tmp_path):
    halves = {name: tensor.half() for name, tensor in theirs.state_dict().items()}
    folder = write_model(tmp_path / "half", halves)
    model = fresh()
    load_outside(model, Outside(str(folder)))
    opened = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(logits(model), logits(opened)) and not torch.equal(logits(model), logits(theirs))


def test_what_we_expect_is_what_our_model_is():
    """`our_architecture` needs no imports of transformers; its installed version says the same of our configuration."""
    config = json.loads(neox_config(SIZE, ROWS, LENGTH).to_json_string(use_diff=False))
    assert architecture(config) == our_architecture(SIZE)
    newer = {key: value for key, value in old_config().items() if not key.startswith("rotary")}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    assert architecture(newer | {"rope_parameters": rope}) == our_architecture(SIZE)


# -- what is refused


def said(action):
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


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
        ({"vocab_size": 641}, ["641 rows", "640", "'vocab_size: 641'", "models.405m"]),
        ({"vocab_size": "many"}, ["'many'", "vocab_size"]),
    ],
)
def test_another_architecture_is_refused(tmp_path, changes, words):
    write_json(tmp_path / "config.json", old_config(**changes))
    text = said(lambda: check_fits(Outside(str(tmp_path)), SIZE, ROWS, "models.405m"))
    assert [word for word in words if word not in text] == [] and str(tmp_path) in text, text


LAST = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(LAST), ["1 tensors are missing", LAST]),
        (lambda state: state.update({"score.weight": torch.ones(2)}), ["no GPT-NeoX", "score.weight"]),
        (lambda state: state[LAST].__setitem__((0, 0), float("nan")), [LAST, "not finite"]),
        (lambda state: state[LAST].__setitem__((0, 0), float("inf")), [LAST, "not finite"]),
        (lambda state: state.update({LAST: torch.ones(32, 64)}), [LAST, "[32, 64]", "[32, 128]"]),
        (lambda state: state.update({LAST: torch.ones(32, 128, dtype=torch.int8)}), [LAST, "int8"]),
        (lambda state: state.update({LAST: torch.ones(32, 128, dtype=torch.float64)}), [LAST, "float64"]),
    ],
)
def test_weights_that_are_not_the_models_are_refused(theirs, tmp_path, change, words):
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    change(state)
    folder = write_model(tmp_path / "model", state)
    text = said(lambda: load_outside(fresh(), Outside(str(folder))))
    assert [word for word in words if word not in text] == [], text


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_not_whole_or_not_weights_are_refused(formats, tmp_path):
    def refused(name, damage):
        folder = tmp_path / name
        shutil.copytree(formats / name.partition(", ")[0], folder)
        damage(folder)
        return said(lambda: load_outside(fresh(), Outside(str(folder))))

    def cut(file, at=0.7):
        def damage(folder):
            data = (folder / file).read_bytes()
            (folder / file).write_bytes(data[: int(at * len(data))])

        return damage

    assert "not whole safetensors" in refused("safetensors, cut", cut("model.safetensors"))
    assert "not whole safetensors" in refused("safetensors, empty", cut("model.safetensors", 0))
    for at in (0.7, 0.001, 0):
        assert "not a file of tensors alone" in refused(f"bin, cut {at}", cut("pytorch_model.bin", at))
    gone = refused("sharded, one gone", lambda folder: next(folder.glob("model-*.safetensors")).unlink())
    assert "names the shard model-0000" in gone and "not there" in gone
    index = "pytorch_model.bin.index.json"
    outside = {"weight_map": {"a": "../bin/pytorch_model.bin"}}
    assert "not there" in refused("sharded bin, out", lambda folder: write_json(folder / index, outside))
    assert "no index" in refused("sharded bin, none", lambda folder: write_json(folder / index, {"a": 1}))
    twice = refused(
        "sharded bin, twice", lambda folder: torch.save(torch.load(folder / "a.bin"), folder / "b.bin")
    )
    assert "stands in two" in twice
    bomb = tmp_path / "went off"
    for what, held in (
        ("object", Bomb(bomb)),
        ("dict", {"a": Bomb(bomb)}),
        ("list", [1]),
        ("nested", {"model": {}}),
    ):
        text = refused(
            f"bin, {what}", lambda folder, held=held: torch.save(held, folder / "pytorch_model.bin")
        )
        assert "not a file of tensors alone" in text
    assert not bomb.exists()
    assert "has no weights" in refused("bin, bare", lambda folder: (folder / "pytorch_model.bin").unlink())


def test_another_tokenizer_is_refused(formats, smoke_data, tmp_path):
    folder = shutil.copytree(formats / "safetensors", tmp_path / "model")
    ours = smoke_data / "tokenizer"
    check_tokenizer(Outside(str(folder)), ours)  # it has none to compare
    shutil.copy(ours / "tokenizer.json", folder)
    check_tokenizer(Outside(str(folder)), ours)
    save_tokenizer(train_tokenizer(["another language altogether"] * 50, 300), folder)
    assert "another tokenizer" in said(lambda: check_tokenizer(Outside(str(folder)), ours))


# -- the hub


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder of copies instead of the hub, and a lock file of its own."""
    monkeypatch.setenv("CPT_REPRO_HUB", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "LOCK", tmp_path / "hub.lock.json")
    (tmp_path / "hub" / "models" / "authors").mkdir(parents=True)
    return tmp_path / "hub" / "models" / "authors"


def test_revisions_of_a_repository_are_kept_apart_and_pinned(copies, formats, theirs):
    shutil.copytree(formats / "bin", copies / "tiny@step10")
    model, outside = fresh(), Outside("authors/tiny@step10")
    found = load_outside(model, outside)
    assert torch.equal(logits(model), logits(theirs))
    locked = read_json(hub.LOCK)["model:authors/tiny@step10"]
    assert locked["files"] == {"pytorch_model.bin": file_digest(copies / "tiny@step10" / "pytorch_model.bin")}
    # A copy without a revision in its name could be that of any step.
    shutil.copytree(formats / "bin", copies / "tiny")
    assert "does not say that it is revision step20" in said(lambda: Outside("authors/tiny@step20"))
    assert load_outside(fresh(), Outside("authors/tiny")) == found
    torch.save(
        torch.load(copies / "tiny@step10" / "pytorch_model.bin"), copies / "tiny@step10" / "pytorch_model.bin"
    )
    other = {name: tensor + 1 for name, tensor in theirs.state_dict().items()}
    torch.save(other, copies / "tiny@step10" / "pytorch_model.bin")
    assert "it changed since it was first used" in said(
        lambda: load_outside(model, Outside("authors/tiny@step10"))
    )
    assert "'..'" in said(lambda: Outside("authors/../../tiny"))


def test_a_vanished_revision_is_told_before_training(monkeypatch, tmp_path):
    monkeypatch.delenv("CPT_REPRO_HUB", raising=False)
    monkeypatch.setattr(hub, "LOCK", tmp_path / "hub.lock.json")

    def vanished(*_, **__):
        raise RevisionNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(HfApi, "repo_info", vanished)
    text = said(lambda: check_fits(Outside("authors/tiny@step99"), SIZE, ROWS, "x"))
    assert "revision does not exist" in text and "authors/tiny" in text and "step99" in text


def test_without_a_network_what_was_taken_before_is_used(monkeypatch, tmp_path, formats, theirs):
    monkeypatch.delenv("CPT_REPRO_HUB", raising=False)
    monkeypatch.setattr(hub, "LOCK", tmp_path / "hub.lock.json")

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "list_repo_files", unreachable)
    monkeypatch.setattr(HfApi, "repo_info", unreachable)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda name, file, **_: str(formats / "bin" / file)
    )
    assert "cannot be reached" in said(lambda: Outside("authors/tiny@step10").files)
    files = {name: file_digest(formats / "bin" / name) for name in ("config.json", "pytorch_model.bin")}
    write_json(hub.LOCK, {"model:authors/tiny@step10": {"commit": "c0ffee", "files": files}})
    model = fresh()
    load_outside(model, Outside("authors/tiny@step10"))
    assert torch.equal(logits(model), logits(theirs))


# -- plans


def plan_of(init_from, scale=SMOKE, **changes):
    cosine = {"kind": "cosine", "eta_max": 3e-4, "eta_min": 3e-5}
    run = {
        "model": "405m",
        "iterations": 4000,
        "schedule": cosine,
        "data": {"sp": 1},
        "validate": ["pile", "sp"],
    }
    runs = {"child": run | {"init_from": init_from} | changes}
    batch = {"sequences": 1104, "sequence_length": 2048}
    told = {"paper": "made_up", "reference": "A test", "batch": batch, "runs": runs}
    return Plan(scale, papers=[parse(Paper, told, "runs.yaml")])


def test_a_plan_tells_what_cannot_fit(formats, tmp_path):
    assert "does not exist" in said(lambda: plan_of(str(tmp_path / "nowhere")))
    write_json(tmp_path / "config.json", old_config(vocab_size=50304))
    text = said(lambda: plan_of(str(tmp_path)))
    assert "made_up" in text and "'vocab_size: 50304'" in text and "configs/scales/smoke.yaml" in text
    size = {"layers": 24, "width": 1024, "heads": 16, "vocab_size": 50304}
    text = said(lambda: plan_of({"model": "EleutherAI/pythia-410m@step143000", "size": size}))
    assert "24 layers, width 1024, 16 heads and 50304 rows" in text and "smoke.yaml has 2 layers" in text
    assert "belong to a 'model'" in said(lambda: plan_of({"run": "child", "size": size}))
    small = SMOKE.model_copy(update={"models": {"405m": SIZE.model_copy(update={"vocab_size": 600})}})
    text = said(lambda: plan_of(str(formats / "bin"), small))
    assert "600 rows, the tokenizer 640" in text
    assert "replay" in said(lambda: plan_of(str(formats / "bin"), replay_fraction=0.05))


def test_what_the_model_saw_is_replayed(formats):
    seen = {"model": str(formats / "bin"), "data": {"pile": 1}, "billions": 300}
    (segment,) = plan_of(seen, replay_fraction=0.25).segments.values()
    replay, new = segment.mixture
    assert (replay.share, new.share) == (0.25, 0.75) and {s.corpus for s in streams((replay,))} == {"pile"}
    (plain,) = plan_of(str(formats / "bin")).segments.values()
    assert plain.external.model == str(formats / "bin") and plain.parent is None
    (other,) = plan_of(str(formats / "safetensors")).segments.values()
    assert plain.identity != other.identity


def test_the_published_pythia_takes_the_place_of_the_upstream_run(tmp_path):
    scale = load_scale("paper").model_copy(update={"variants": (PYTHIA,)})
    plan = Plan(scale)
    assert "Pythia" in plan.absent["gupta2023", "410m/pile"]
    started = {s.name: s.external for s in plan.segments.values() if s.external}
    assert len(started) == 15 and {external.tokens for external in started.values()} == {
        143000 * 1024 * 2048,
        27000 * 1024 * 2048,
        10000 * 1024 * 2048,
    }
    assert started["410m/pile@27000--sp/warmup-0.01"].model == "EleutherAI/pythia-410m@step27000"
    assert not [s for s in plan.segments.values() if s.paper == "ibrahim2024" and s.external]
    deduplicated = Plan(scale.model_copy(update={"variants": (f"{PYTHIA}-deduped",)}))
    both = [{s.external.model for s in p.segments.values() if s.external} for p in (plan, deduplicated)]
    assert len(both[0] | both[1]) == 6
    for name in ("smoke", "pocket", "desk"):
        text = said(lambda name=name: Plan(load_scale(name).model_copy(update={"variants": (PYTHIA,)})))
        assert "24 layers, width 1024" in text and f"configs/scales/{name}.yaml" in text
    # Every exhibit is drawn, with nothing run.
    for key in ("figure_01", "figure_07", "figure_09"):
        assert all(
            path.exists() for path in draw(plan, "gupta2023", key, tmp_path / "none", tmp_path / "figures")
        )


# -- training from a model from outside, and ours for others


@pytest.fixture(scope="module")
def trained(formats, smoke_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    plan = plan_of(
        {"model": str(formats / "bin"), "data": {"pile": 1}, "billions": 300}, replay_fraction=0.25
    )
    (segment,) = plan.segments.values()
    store = Store("smoke", folder / "store")
    train_segments(plan, [segment], smoke_data, folder / "results", store, print)
    return plan, segment, store, read_receipt(receipt_path(folder / "results", "smoke", segment.id))


def test_training_starts_from_the_weights(trained, formats, theirs, smoke_data):
    from cpt_repro.training.trainer import CausalLM, Corpora

    plan, segment, store, receipt = trained
    assert receipt.parent_weights == load_outside(fresh(), Outside(str(formats / "bin")))
    assert receipt.segment.external.model == str(formats / "bin")
    corpora = Corpora(smoke_data, SMOKE)
    losses = CausalLM(theirs).sequence_losses(corpora.validation("pile", segment.validation_sequences))
    assert receipt.curves["pile"][0] == (0, losses.mean().item())
    assert receipt.curves["pile"][-1][1] != receipt.curves["pile"][0][1]


def test_a_model_that_changes_under_a_run_is_told(trained, tmp_path, theirs):
    _, segment, _, _ = trained
    folder = write_model(tmp_path / "model", theirs.state_dict())
    segment = segment.model_copy(
        update={"external": segment.external.model_copy(update={"model": str(folder)})}
    )
    first = start_outside(fresh(), segment, tmp_path / "own", None)
    assert read_json(tmp_path / "own" / START) == {"model": str(folder), "weights": first}
    assert start_outside(fresh(), segment, tmp_path / "own", None) == first
    write_model(folder, {name: tensor * 2 for name, tensor in theirs.state_dict().items()})
    assert "has changed since the run began" in said(
        lambda: start_outside(fresh(), segment, tmp_path / "own", None)
    )


def test_an_unfit_model_fails_its_run_before_the_first_step(formats, smoke_data, tmp_path):
    folder = shutil.copytree(formats / "bin", tmp_path / "model")
    plan = plan_of(str(folder))
    write_json(folder / "config.json", old_config(rotary_pct=0.5))  # after the plan
    (segment,) = plan.segments.values()
    store = Store("smoke", tmp_path / "store")
    action = lambda: train_segments(plan, [segment], smoke_data, tmp_path / "results", store, print)  # noqa: E731
    assert "rotated share of a head 0.5" in said(action)
    assert not list(store.folder(segment).glob("iteration-*"))


def test_export_opens_elsewhere_and_is_a_start_for_others(trained, smoke_data, tmp_path):
    plan, segment, store, receipt = trained
    out = export_run(plan, store, smoke_data, "made_up/child", tmp_path / "out")
    opened = AutoModelForCausalLM.from_pretrained(out)
    own = fresh()
    own.load_state_dict(load_file(store.weights(segment, segment.iterations) / "model.safetensors"))
    assert torch.equal(logits(opened), logits(own))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
    card = (out / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "transformers" and "base_model" not in head
    wanted = [segment.id, receipt.identity, receipt.checkpoints[segment.iterations], segment.external.model]
    wanted += [file_digest(out / "model.safetensors"), "smoke_upstream", "smoke_weak", "Licence"]
    assert [text for text in wanted if text not in card] == []
    assert read_receipt(out / "receipt.json") == receipt
    # Elsewhere it is a model from outside like any other, tokenizer included.
    (again,) = plan_of(str(out)).segments.values()
    model = fresh()
    start_outside(model, again, tmp_path / "own", smoke_data / "tokenizer")
    assert torch.equal(logits(model), logits(own))


def test_what_cannot_be_exported(trained, smoke_data, tmp_path, monkeypatch):
    plan, segment, store, _ = trained
    assert "unknown" in said(lambda: export_run(plan, store, smoke_data, "made_up/chil", tmp_path / "out"))
    assert "Kept are: 9" in said(lambda: export_run(plan, store, smoke_data, segment.id, tmp_path / "out", 3))
    none = Store("smoke", tmp_path / "none")
    assert "not trained" in said(lambda: export_run(plan, none, smoke_data, segment.id, tmp_path / "out"))
    assert "tokenizer is missing" in said(
        lambda: export_run(plan, store, tmp_path, segment.id, tmp_path / "out")
    )
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    assert "not an empty folder" in said(lambda: export_run(plan, store, smoke_data, segment.id, precious))
    assert (precious / "thesis.txt").read_text() == "mine"
    altered = Store("smoke", tmp_path / "altered")
    shutil.copytree(store.root, altered.root)
    write_model(altered.weights(segment, segment.iterations), fresh(9).state_dict())
    assert "altered" in said(lambda: export_run(plan, altered, smoke_data, segment.id, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    workflow = SimpleNamespace(plan=plan, store=store, data=smoke_data)
    monkeypatch.setattr(cli, "_workflow", lambda scale: workflow)
    done = CliRunner().invoke(cli.app, ["export", "made_up/child", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and (tmp_path / "out" / "README.md").exists(), done.output


# -- weights that the authors published


def test_what_is_declared_of_published_weights():
    plan = Plan(load_scale("paper"))
    declared = released.load_released(plan)
    assert len(declared) == 15 and {paper for paper, _ in declared} == {"ibrahim2024"}
    repositories = [one.repository for one in declared.values()]
    assert len(set(repositories)) == len(repositories)
    collection = {name for one in declared.values() for name in (one.repository, one.also) if name}
    assert len([name for name in collection if name.startswith("cerc-aai/")]) == 10
    done = CliRunner().invoke(cli.app, ["released", "--scale", "paper", "--json", "--results", "/nowhere"])
    told = json.loads(done.output)
    assert "not a reproduction" in told["note"] and len(told["models"]) == 15
    assert all(model["suites"] == {} for model in told["models"])
    heads = released._headings("ibrahim2024", "english", ["hellaswag", "arc_c", "trqa", "made_up"])
    assert heads == {"hellaswag": "HellaSwag", "arc_c": "ARC-c", "trqa": "TrQA"}


def test_published_weights_are_evaluated_apart(copies, formats, smoke_data, theirs, tmp_path, monkeypatch):
    from cpt_repro.evaluation.harness import Harness
    from cpt_repro.evaluation.suites import build_suites

    suites = {
        "english": {"corpora": ["pile"], "tasks": {"hellaswag": {"kind": "last_word", "documents": 20}}}
    }
    suites["english"]["tasks"]["hellaswag"]["context_words"] = 8
    scale = type(SMOKE).model_validate(SMOKE.model_dump() | {"suites": suites})
    plan, data = Plan(scale), shutil.copytree(smoke_data, tmp_path / "data")
    build_suites(scale, data)
    path = tmp_path / "papers" / "ibrahim2024" / "released.yaml"
    path.parent.mkdir(parents=True)
    one = {"weights": "named", "note": "a test"}
    models = {
        "405m/pile": {"repository": "authors/tiny", **one},
        "405m/sp": {"repository": "authors/gone", **one},
        "405m/german": {"repository": "authors/small", **one},
        "10b/pile": {"repository": "authors/nothing", "weights": "empty", "note": "a test"},
    }
    path.write_text(yaml.safe_dump({"source": "a test", "models": models}, sort_keys=False))
    monkeypatch.setattr(released, "PAPERS", path.parent.parent)
    monkeypatch.setattr(hub.Repository, "commit", "c0ffee")
    shutil.copytree(formats / "bin", copies / "tiny")
    small = {
        name: tensor[:600] if "embed" in name else tensor for name, tensor in theirs.state_dict().items()
    }
    write_model(copies / "small", small, vocab_size=600)
    lines = []
    action = lambda: released.evaluate_released(plan, "all", data, tmp_path / "results", lines.append)  # noqa: E731
    text = said(action)
    assert "2 of 4 could not" in text and "405m/sp" in text and "600 rows" in text and "640 entries" in text
    assert any("passed over" in line and "authors/nothing" in line for line in lines)
    record = read_evaluation(
        released.released_path(tmp_path / "results", "smoke", "ibrahim2024", "405m/pile")
    )
    assert record.id == "released/ibrahim2024/405m/pile"
    assert record.environment["repository"] == "authors/tiny" and record.environment["commit"] == "c0ffee"
    direct = Harness(scale, data).evaluate(theirs)["english"]
    assert record.suites["english"] == direct
    assert not (tmp_path / "results" / "smoke" / "runs").exists()
    (found, *others) = released.compare(plan, tmp_path / "results")
    # Table 5: 40.95 on HellaSwag, 33.95 on average.
    assert found["suites"]["english"]["hellaswag"]["published"] == 40.95
    average = found["suites"]["english"]["AVG"]
    assert average["published"] == 33.95 and average["measured"] == 100 * direct["average"]
    assert average["difference"] == pytest.approx(average["measured"] - 33.95) and not found["stale"]
    assert [other["suites"] for other in others] == [{}, {}, {}]
    released.print_comparison([found, *others])
    # What is there is not evaluated again; other suites make it stale.
    before = (
        released.released_path(tmp_path / "results", "smoke", "ibrahim2024", "405m/pile").stat().st_mtime_ns
    )
    said(action)
    after = (
        released.released_path(tmp_path / "results", "smoke", "ibrahim2024", "405m/pile").stat().st_mtime_ns
    )
    assert before == after
    assert released.compare(Plan(SMOKE), tmp_path / "results")[0]["stale"]
    assert "no published weights fit" in said(
        lambda: released.evaluate_released(plan, "x/*", data, tmp_path, print)
    )
