"""What a plan costs: formulas against papers and models, totals against the declarations, schedules by hand."""

import copy
import functools
import itertools
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import yaml

from cpt_repro import cost, sizes
from cpt_repro.cli import app
from cpt_repro.project import PAPERS, SCALES
from cpt_repro.declarations.scale import Execution, ModelSize, load_scale
from cpt_repro.declarations.strict import parse
from cpt_repro.planning.cost import Options, Process, critical_path, estimate, schedule
from cpt_repro.errors import StorageError, UserError
from cpt_repro.files import digest, write_json
from cpt_repro.declarations.manifests import load_manifest
from cpt_repro.declarations.runs import Paper
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import corpus_path, receipt_path
from cpt_repro.report.cost_table import print_estimate
from cpt_repro.models.sizes import GB
from cpt_repro.training.train import train_segments
from cpt_repro.training.store import Store, check_room, kept_bytes
from cpt_repro.workflow.jobs import Workflow

SCALE_NAMES = sorted(path.stem for path in SCALES.glob("*.yaml"))
BATCH = 1104 * 2048
#: FLOPs per token of the larger model.
LARGE = 6 * (36 * 12 * 4608**2 + 50688 * 4608) + 12 * 36 * 4608 * 2048
PYTHIA = ModelSize(layers=24, width=1024, heads=16, eta_factor=1)


@pytest.fixture(autouse=True)
def nothing_done(tmp_path, monkeypatch):
    """No receipts, no store, no measurements but a test's own."""
    monkeypatch.setenv("CPT_REPRO_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(cost, "MEASUREMENTS", tmp_path / "benchmarks")


@pytest.fixture
def work(tmp_path):
    """`work(scale, **changes)`: the jobs of a scale, parts of it changed, below a temporary folder."""

    def made(name, papers=None, **changes):
        workflow = copy.copy(built(name))
        workflow.results, workflow.data, workflow.store = tmp_path / "results", tmp_path / "data", Store(name)
        if changes or papers:
            workflow.plan = Plan(workflow.plan.scale.model_copy(update=changes), papers)
        if papers:
            workflow.exhibits, workflow.evaluations = {}, []
        return workflow

    return made


@functools.cache
def built(name):
    workflow = Workflow(name)
    assert workflow.evaluations  # kept for copies
    return workflow


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The cost of the scale `paper` with nothing done and nothing measured."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("paper")
        patch.setattr(cost, "MEASUREMENTS", folder)
        workflow = copy.copy(built("paper"))
        workflow.results, workflow.data, workflow.store = folder, folder, Store("paper", folder)
        return estimate(workflow, Options(price=2))


def refused(call):
    with pytest.raises(UserError) as raised:
        call()
    return str(raised.value)


# -- formulas


@pytest.mark.parametrize(("model", "count"), [("405m", 405_334_016), ("10b", 9_642_249_216)])
def test_parameters_are_those_the_papers_print(model, count):
    size = load_scale("paper").models[model]
    assert sizes.parameters(size, size.vocab_size) == count


def test_parameters_are_those_of_the_model():
    import torch
    from transformers import GPTNeoXForCausalLM

    from cpt_repro.models.neox import neox_config

    seen = set()
    for name in SCALE_NAMES:
        for segment in Plan(load_scale(name)).segments.values():
            key = segment.model, segment.vocabulary, segment.sequence_length
            if key in seen:
                continue
            seen.add(key)
            with torch.device("meta"):
                model = GPTNeoXForCausalLM(neox_config(*key))
            assert sizes.parameters(*key[:2]) == sum(p.numel() for p in model.parameters())
            # Biases and layer norms are vectors; the input embedding is looked up.
            matrices = sum(
                p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed_in" not in n
            )
            assert sizes.matmul_parameters(*key[:2]) == matrices
    assert len(seen) >= 2 * len(SCALE_NAMES)


def test_flops_per_token():
    full, causal = (sizes.flops_per_token(PYTHIA, 50304, 2048, kind) for kind in ("full", "causal"))
    assert round(full / 1e9, 3) == 2.725
    # Each query meets every key, or on average half of them; a product and its two gradients, 2 FLOPs a term.
    pairs = 24 * 2 * 2048 * 1024 * 2 * 3
    assert full == 6 * 353_501_184 + pairs and causal == 6 * 353_501_184 + pairs // 2
    assert sizes.flops_per_token(PYTHIA, 50304, 2048) == full


def test_needs_neither_torch_nor_composer():
    code = (
        "import sys, cpt_repro.cost; sys.exit(bool({'torch', 'composer', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- totals, from the papers' declarations as they stand in YAML


def declared(paper):
    """(run, its declaration) with `each` written out."""
    for name, body in yaml.safe_load((PAPERS / paper / "runs.yaml").read_text())["runs"].items():
        each = body.get("each", {})
        for values in itertools.product(*each.values()):
            text = json.dumps([name, body])
            for key, value in zip(each, values, strict=True):
                text = text.replace(f'"{{{key}}}"', json.dumps(value)).replace(f"{{{key}}}", str(value))
            yield json.loads(text)


def read_by_corpus(runs):
    """Run -> Counter of tokens by corpus. Replay draws on all that the lineage was trained on so far, as it was."""
    done = {}

    def tokens(name):
        if name not in done:
            run = runs[name]
            batch = run.get("batch", {}).get("sequences", 1104) * 2048
            iterations = min(
                run["iterations"],
                round(run.get("until", math.inf) * 1e9 / batch) if "until" in run else 10**9,
            )
            total, replay = iterations * batch, run.get("replay_fraction", 0)
            own = Counter(
                {key.partition("/")[0]: share * (1 - replay) * total for key, share in run["data"].items()}
            )
            if replay:
                before, at = Counter(), name
                while at := runs[at].get("init_from", {}).get("run"):
                    before += tokens(at)
                seen = sum(before.values())
                own += Counter({corpus: replay * total * count / seen for corpus, count in before.items()})
            done[name] = own
        return done[name]

    return {name: tokens(name) for name in runs}


def test_totals_of_paper_are_those_of_the_declarations(paper):
    told = paper
    by_run = {
        (p, n): c for p in ("gupta2023", "ibrahim2024") for n, c in read_by_corpus(dict(declared(p))).items()
    }
    assert len(by_run) == told["all"]["segments"] == len(told["segments"]) == 87
    by_corpus = sum(by_run.values(), Counter())
    assert told["tokens"] == told["all"]["tokens"] == round(sum(by_corpus.values()))
    assert told["units_of_300B"] == pytest.approx(46.62, abs=0.01)
    for corpus, told_of in told["disk"]["corpora"].items():
        assert told_of["tokens_read"] == pytest.approx(by_corpus[corpus], rel=1e-6)
    lengths = sorted(round(sum(corpora.values())) for corpora in by_run.values())
    assert sorted(row["tokens"] for row in told["segments"]) == lengths
    for row in told["segments"]:
        if row["iterations"] == 132_366:
            assert round(row["tokens"] / 1e9, 2) == 299.28
    per_token = {"405m": 2_724_986_880, "10b": LARGE}
    flops = sum(row["tokens"] * per_token[row["model"]] for row in told["segments"])
    assert told["all"]["training_flops"] == flops


def test_validation_is_counted_apart(paper):
    told = paper
    row = next(row for row in told["segments"] if row["id"] == "ibrahim2024/405m/pile/seed-0")
    # Every 1,000 iterations from 0, the end, and ten times in the last 90, each on three corpora.
    times = 133 + 10
    assert row["validation_flops"] == times * 3 * 11040 * 2048 * 2_724_986_880 // 3
    speed = told["models"]["405m"]["tokens_per_second_per_device"]
    assert speed == pytest.approx(0.45 * 989e12 / 2_724_986_880)
    work_of = row["training_flops"] + row["validation_flops"]
    assert row["device_hours"] == pytest.approx(work_of / (0.45 * 989e12) / 3600)
    assert 511 < row["device_hours"] < 516
    assert told["all"]["device_hours"] == pytest.approx(sum(row["device_hours"] for row in told["segments"]))


def test_takes_no_time(work):
    began = time.process_time()
    estimate(work("paper"), Options(gpus=1000))
    assert time.process_time() - began < 20


# -- what is chosen, what is done, what sharing saves


def test_exhibits_choose_segments_with_ancestors(work):
    workflow = work("paper")
    told = estimate(workflow, Options(exhibits=("ibrahim2024/figure_10", "ibrahim2024/figure_10")))
    assert told["exhibits"] == ["ibrahim2024/figure_10"]
    chosen = {row["name"] for row in told["segments"]}
    assert len(chosen) == 16 and "405m/sp-3x100/cosine/split-3" in chosen and list(told["models"]) == ["405m"]
    one = estimate(workflow, Options(exhibits=("gupta2023/figure_09",)))
    assert "410m/pile" in {row["name"] for row in one["segments"]}  # shown by none, but all start from it
    both = estimate(workflow, Options(exhibits=("ibrahim2024/figure_10", "gupta2023/figure_09")))
    assert {row["id"] for row in both["segments"]} >= {
        row["id"] for row in (*one["segments"], *told["segments"])
    }


def test_merges_need_what_they_are_made_of(work):
    told = estimate(work("paper"), Options(exhibits=("ibrahim2024/table_07",)))
    assert {"405m/german", "405m/pile--german/replay-0.25"} <= {row["name"] for row in told["segments"]}
    assert told["evaluations"] == 7


def test_exhibit_without_training(work, capsys):
    told = estimate(work("paper"), Options(exhibits=("ibrahim2024/figure_02",)))
    assert told["segments"] == [] and told["all"]["device_hours"] == 0 and told["disk"]["total_bytes"] == 0
    print_estimate(told)
    assert "nothing to train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("exhibit", "says"),
    [
        ("ibrahim2024/figure_99", "figure_13|figure_09|figure"),
        ("ibrahim2042/figure_01", "ibrahim2024"),
        ("figure_01", "Write <paper>/<exhibit>"),
        ("", "Write <paper>/<exhibit>"),
    ],
)
def test_unknown_exhibits(exhibit, says, work):
    text = refused(lambda: estimate(work("paper"), Options(exhibits=(exhibit,))))
    assert any(word in text for word in says.split("|"))


def receipt(workflow, segment, **measured):
    path = receipt_path(workflow.results, workflow.scale, segment.id)
    told = {"schema_version": 1, "identity": segment.identity, "measured": measured}
    write_json(path, told | {"environment": {"hardware": "a made-up machine"}})


def test_what_is_done_is_not_left(work):
    workflow = work("paper")
    base, child = (
        workflow.plan.segments[f"ibrahim2024/405m/{name}/seed-0"] for name in ("pile", "pile--sp/replay-0")
    )
    receipt(workflow, child)
    options = Options(exhibits=("ibrahim2024/figure_13",))
    told = estimate(workflow, options)
    assert {row["name"]: row["done"] for row in told["segments"]} == {
        "405m/pile": False,
        "405m/pile--sp/replay-0": True,
        "405m/pile--sp/keep-optimizer": False,
    }
    receipt(workflow, base)
    # The receipt is there, but not the weights and the optimizer's state that a child still wants.
    assert estimate(workflow, options)["done"]["segments"] == 1
    workflow.store.weights(base, base.iterations).mkdir(parents=True)
    (workflow.store.weights(base, base.iterations) / "optimizer.pt").touch()
    told = estimate(workflow, options)
    assert (told["all"]["segments"], told["done"]["segments"], told["left"]["segments"]) == (3, 2, 1)
    assert told["left"]["device_hours"] == pytest.approx(told["segments"][-1]["device_hours"])
    assert told["done"]["tokens"] + told["left"]["tokens"] == told["all"]["tokens"]
    assert told["critical_path_hours"]["left"] == pytest.approx(told["left"]["device_hours"] / 8)
    # Its identity is another: a receipt of something else.
    write_json(receipt_path(workflow.results, "paper", child.id), {"schema_version": 1, "identity": "other"})
    assert estimate(workflow, options)["done"]["segments"] == 1


def test_what_others_lack_is_not_left_of_what_was_asked(work):
    workflow, options = work("paper"), Options(exhibits=("ibrahim2024/figure_13",))
    for row in estimate(workflow, options)["segments"]:
        receipt(workflow, workflow.plan.segments[row["id"]])
    # Other exhibits would want the weights of 405m/pile again.
    assert estimate(workflow, options)["left"]["segments"] == 0


def made_up(**more):
    """A trunk, a branch from half of it, a run from its end, and one that goes on from that."""
    run = {"model": "405m", "data": {"pile": 1}, "iterations": 20000, "validate": ["pile"]}
    run["schedule"] = {"kind": "cosine", "eta_max": 3e-4, "eta_min": 3e-5}
    runs = {
        "trunk": run,
        "branch": run | {"init_from": {"run": "trunk", "iteration": 10000}, "data": {"sp": 1}},
        "next": run | {"init_from": {"run": "trunk"}, "data": {"sp": 1}, "keep": ["optimizer"]},
        "last": run | {"init_from": {"run": "next"}, "data": {"german": 1}},
    }
    batch = {"sequences": 1104, "sequence_length": 2048}
    raw = {"paper": "made_up", "reference": "none", "batch": batch, "runs": runs | more}
    return [parse(Paper, raw, "runs.yaml")]


def test_what_sharing_saves(work):
    told = estimate(work("paper", made_up()), Options())
    # By themselves: half a trunk and the branch; trunk, next and last.
    assert told["sharing"]["alone_tokens"] == (10000 + 20000 + 3 * 20000) * BATCH
    assert told["sharing"]["times"] == pytest.approx(9 / 8)
    assert told["all"]["tokens"] == 80000 * BATCH


# -- speed


def rows(tmp_path, *told):
    path = tmp_path / "benchmarks" / "2030-01-01.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in told))


GPU_ROW = {
    "benchmark": "gpu",
    "model": "405m",
    "hardware": "H200",
    "tokens_per_second": 1.2e6,
    "gpus": 8,
    "mfu": 0.4,
}


def speeds(workflow, exhibits=("ibrahim2024/figure_07",), **options):
    told = estimate(workflow, Options(exhibits, **options))["models"]
    return {name: (model["speed"], model["tokens_per_second_per_device"]) for name, model in told.items()}


def test_speed_is_given_measured_or_assumed(work, tmp_path):
    workflow = work("paper")
    assumed = {"405m": 0.45 * 989e12 / 2_724_986_880, "10b": 0.45 * 989e12 / LARGE}
    found = speeds(workflow)
    assert {name: kind for name, (kind, _) in found.items()} == {"405m": "assumed", "10b": "assumed"}
    assert {name: speed for name, (_, speed) in found.items()} == pytest.approx(assumed)
    rows(
        tmp_path,
        GPU_ROW | {"date": "2030-02-01", "scale": "paper", "arm": "uncompiled", "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-02-01", "scale": "paper", "arm": "composer", "device": "gpu"},
        GPU_ROW | {"date": "2030-01-01", "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-03-01", "scale": "desk", "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-03-01", "benchmark": "train", "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-03-01", "arm": "plain", "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-03-01", "device": "cpu", "gpus": 0, "tokens_per_second": 7},
    )
    assert speeds(workflow)["405m"] == ("measured", 150_000)
    assert speeds(workflow)["10b"][0] == "assumed"
    assert speeds(workflow, mfu=0.9)["405m"] == ("given", pytest.approx(2 * assumed["405m"]))
    assert speeds(workflow, peak_tflops=989 / 2)["10b"] == ("given", pytest.approx(assumed["10b"] / 2))
    told = speeds(workflow, tokens_per_second=("10b=5000",))
    assert told == {"405m": ("measured", 150_000), "10b": ("given", 5000)}
    source = estimate(workflow, Options())["models"]["405m"]["speed_source"]
    assert "2030-01-01.jsonl" in source and "2030-02-01" in source and "H200" in source


def test_causal_formula_counts_less_work_and_so_more_tokens(work):
    workflow = work("paper")
    some = ("ibrahim2024/figure_05",)
    full, causal = (estimate(workflow, Options(some, attention=kind)) for kind in ("full", "causal"))
    assert full["formula"]["flops_per_token"] == "6 N_matmul + 12 L h s"
    assert causal["formula"]["flops_per_token"] == "6 N_matmul + 6 L h s"
    ratio = (2_724_986_880 - 6 * 24 * 1024 * 2048) / 2_724_986_880
    assert causal["models"]["405m"]["flops_per_token"] / full["models"]["405m"]["flops_per_token"] == ratio
    hours = [told["models"]["405m"]["all"]["device_hours"] for told in (causal, full)]
    assert hours[0] / hours[1] == pytest.approx(ratio)


def test_small_models_do_not_fill_a_gpu(work, capsys):
    told = estimate(work("desk"), Options())
    assert {model["speed"] for model in told["models"].values()} == {"unknown"}
    assert told["all"]["device_hours"] is None and told["critical_path_hours"] == {"all": None, "left": None}
    assert told["all"]["training_flops"] > 0 and told["disk"]["total_bytes"] > 0
    print_estimate(told)
    assert "Wall time: unknown" in capsys.readouterr().out
    told = estimate(work("desk"), Options(mfu=0.02))
    assert all(model["at_best"] for model in told["models"].values())
    print_estimate(told)
    assert "405m is too small to fill a GPU" in capsys.readouterr().out


def test_speed_on_cpus(work, tmp_path):
    workflow = work("pocket")
    assert speeds(workflow) == {"405m": ("unknown", None), "10b": ("unknown", None)}
    row = {"benchmark": "train", "scale": "pocket", "composer": 50_000, "plain": 60_000, "date": "2030-01-01"}
    rows(tmp_path, row, row | {"scale": "smoke", "composer": 7})
    assert speeds(workflow)["405m"] == ("measured", 50_000)
    assert speeds(workflow)["10b"] == ("unknown", None)  # the benchmark is of the first segment's model
    large = [s for s in workflow.plan.segments.values() if s.model_name == "10b"]
    for segment, speed in zip(large, (9_000, 10_000, 30_000), strict=False):
        receipt(workflow, segment, tokens_per_second=speed)
    assert speeds(workflow)["10b"] == ("measured", 10_000)
    assert "a made-up machine" in estimate(workflow, Options())["models"]["10b"]["speed_source"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("[1]", "line 1"),
        ('{"benchmark":', "line 1"),
        (json.dumps(GPU_ROW | {"tokens_per_second": 0}), "tokens_per_second must be a number above 0"),
        (json.dumps(GPU_ROW | {"gpus": "many"}), "gpus must be a number above 0"),
        (json.dumps({"benchmark": "gpu", "model": "405m"}), "tokens_per_second must be a number above 0"),
    ],
)
def test_broken_measurements(row, says, work, tmp_path):
    rows(tmp_path)
    (tmp_path / "benchmarks" / "broken.jsonl").write_text(row + "\n")
    text = refused(lambda: estimate(work("paper"), Options()))
    assert says in text and "broken.jsonl" in text


# -- options


BAD = [
    *(
        {name: value}
        for name in ("price", "mfu", "peak_tflops", "gpu_memory")
        for value in (0, -1, math.nan, math.inf)
    ),
    *({"gpus": value} for value in (0, -8)),
    {"mfu": 1.5},
    {"attention": "flash"},
    {"cores": 8},
    *({"tokens_per_second": (f"405m={value}",)} for value in ("0", "-3", "nan", "fast", "")),
    {"tokens_per_second": ("150000",)},
    {"tokens_per_second": ("7b=150000",)},
    {"tokens_per_second": ("405m=1", "405m=2")},
    {"tokens_per_second": ("405m=1",), "mfu": 0.5},
    {"gpus": 47},
    {"gpu_memory": 6},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_options(options, work):
    name = next(iter(options))
    text = refused(lambda: estimate(work("paper"), Options(**options)))
    told = {
        "gpus": "one process of the model 10b needs 48 GPUs, and there are 47",
        "gpu_memory": "6.5 GB on each GPU",
    }
    assert cost._flag(name) in text or told[name] in text


@pytest.mark.parametrize("name", ["gpus", "mfu", "peak_tflops", "price", "gpu_memory"])
def test_options_for_gpus_at_a_scale_for_cpus(name, work):
    text = refused(lambda: estimate(work("pocket"), Options(**{name: 1})))
    assert f"{cost._flag(name)}: the scale 'pocket' runs on CPUs" in text and "--cores" in text
    assert "--cores" in refused(lambda: estimate(work("paper"), Options(cores=2)))


def test_one_speed_for_the_only_model(work):
    assert speeds(work("paper"), exhibits=("ibrahim2024/figure_05",), tokens_per_second=("100000",)) == {
        "405m": ("given", 100_000)
    }


# -- wall time


def process(name, seconds, after=(), devices=1, part=1.0, states=0):
    return Process(name, set(after), devices, part, seconds, states)


def test_longest_path_goes_first():
    # On two devices in the order given: a and b, then c on its chain ends at 2 + 4; the long chain first ends at 5.
    some = [process("a", 2), process("b", 2), process("c", 1), process("d", 4, ["c"])]
    assert critical_path(some) == 5
    assert schedule(some, 2) == (5, 0) and schedule(some, 1) == (9, 0) and schedule(some, 100) == (5, 0)


def test_several_devices_at_once():
    wide = [process("a", 3, devices=8), process("b", 2, devices=8), process("c", 4, devices=4, states=10)]
    assert schedule(wide, 8)[0] == 9
    assert schedule(wide, 16)[0] == 5 and schedule(wide, 20) == (4, 10)


def test_those_that_share_a_device_share_its_speed():
    four = [process(str(k), 10, part=0.25, states=1) for k in range(4)]
    assert schedule(four, 1) == (pytest.approx(40), 4)
    assert schedule(four, 2) == (pytest.approx(20), 4)
    assert schedule(four[:1], 1) == (10, 1)
    # Alone from its tenth second on, the longer one is faster.
    assert schedule([process("a", 5, part=0.5), process("b", 8, part=0.5)], 1)[0] == pytest.approx(13)


def test_schedules_keep_the_bounds():
    draw = random.Random(7)
    for _ in range(200):
        some = []
        for k in range(draw.randint(1, 12)):
            after = draw.sample([p.name for p in some], draw.randint(0, min(2, len(some))))
            some.append(process(str(k), draw.uniform(0.1, 9), after, draw.choice([1, 1, 2, 4])))
        count = draw.randint(4, 12)
        seconds, _ = schedule(some, count)
        worked = sum(p.seconds * p.devices for p in some)
        assert seconds >= max(critical_path(some), worked / count) * (1 - 1e-9)
        assert seconds <= sum(p.seconds for p in some) * (1 + 1e-9)
        assert schedule(some, 10**6)[0] == pytest.approx(critical_path(some))


def test_wall_time_of_paper(work, paper):
    workflow, told = work("paper"), paper
    walls = [row["all_hours"] for row in told["wall"]]
    assert [row["devices"] for row in told["wall"]][:2] == [48, 96] and walls == sorted(walls, reverse=True)
    path = told["critical_path_hours"]["all"]
    assert walls[-1] <= 1.01 * path
    # The chain is the larger model's union: no parent, twice as long as the others.
    (union,) = (row for row in told["segments"] if row["name"] == "10b/pile+sp")
    two = sum(
        row["device_hours"]
        for row in told["segments"]
        if row["name"] in ("10b/pile", "10b/pile--sp/replay-0")
    )
    assert path == pytest.approx(max(union["device_hours"], two) / 48)
    for row in told["wall"]:
        assert row["all_hours"] * row["devices"] * row["busy_share"] == pytest.approx(
            told["all"]["device_hours"]
        )
    asked = estimate(workflow, Options(gpus=64, price=2.0))
    assert [row["devices"] for row in asked["wall"]] == [64]
    assert asked["all"]["price_usd"] == pytest.approx(2 * asked["all"]["device_hours"])
    assert asked["wall"][0]["held_usd"] == pytest.approx(2 * 64 * asked["wall"][0]["left_hours"])


def test_bundles_are_processes(work, tmp_path):
    workflow = work("pocket")
    row = {"benchmark": "train", "scale": "pocket", "composer": 50_000, "date": "2030-01-01"}
    rows(tmp_path, row, row | {"model": "10b", "composer": 10_000})
    told = estimate(workflow, Options(cores=2))
    assert told["all"]["processes"] == len(workflow.plan.bundles) < told["all"]["segments"]
    assert told["wall"][0]["all_hours"] >= told["all"]["device_hours"] / 2
    more = work("pocket", threads=4)
    assert {model["devices_per_process"] for model in estimate(more, Options())["models"].values()} == {4}
    assert "needs 4 cores, and there are 3" in refused(lambda: estimate(more, Options(cores=3)))


# -- memory and disk


def test_memory_of_a_gpu(work, paper):
    scale, one = load_scale("paper"), ("ibrahim2024/figure_11",)
    told = paper["models"]
    assert told["405m"]["memory_gb_per_device"] == pytest.approx(16 * 405_334_016 / GB)
    assert told["10b"]["memory_gb_per_device"] == pytest.approx(16 * 9_642_249_216 / 48 / GB)
    whole = scale.execution | {"10b": scale.execution["10b"].model_copy(update={"fsdp": False})}
    text = refused(lambda: estimate(work("paper", execution=whole), Options()))
    assert "the model 10b needs 154.3 GB" in text and "has 80" in text and "fsdp" in text
    assert estimate(
        work("paper", execution=whole), Options(gpu_memory=192, exhibits=("ibrahim2024/figure_07",))
    )
    assert estimate(work("paper", execution=whole), Options(exhibits=one))
    shared = {"405m": Execution(jobs_per_gpu=3), "10b": scale.execution["10b"]}
    told = estimate(work("paper", execution=shared), Options(exhibits=one))["models"]["405m"]
    assert told["memory_gb_per_device"] == pytest.approx(3 * 16 * 405_334_016 / GB)


def test_disk(paper):
    disk = paper["disk"]
    assert disk["corpora"]["sp"] | {"tokens_read": 0} == {
        "tokens": 299_280_000_000,
        "bytes": round(299_280_000_000 * 2 * 2049 / 2048),
        "basis": "manifest",
        "tokens_read": 0,
    }
    # 87 ends; earlier ones of Pythia (2) and of the trunks' splits (2 x 3, with the optimizer's state). The upstream
    # model of Ibrahim keeps the optimizer's state at its end.
    small, large = 405_334_016, 9_642_249_216
    assert disk["checkpoints"] == 87 + 2 + 6
    assert (
        disk["checkpoints_bytes"] == 4 * (82 * small + 5 * large) + 2 * 4 * small + 6 * 12 * small + 8 * small
    )
    assert disk["total_bytes"] == sum(disk[f"{part}_bytes"] for part in ("shards", "checkpoints", "states"))


def test_a_published_data_set_is_built_whole_at_any_scale(work):
    small = work("paper", tokens_per_billion=1e8)
    told = estimate(small, Options(exhibits=("ibrahim2024/figure_05",)))
    assert told["disk"]["corpora"]["german"]["tokens"] == 195_430_000_000
    assert told["disk"]["corpora"]["german"]["tokens_read"] < 150e9


def test_states_of_what_runs_at_a_time(work):
    workflow = work("paper")
    one, many = (
        estimate(workflow, Options(exhibits=("ibrahim2024/figure_05",), gpus=gpus))["disk"]["states_bytes"]
        for gpus in (8, 80)
    )
    # Two are kept while the next is written.
    assert one == 3 * 12 * 405_334_016 and many == 10 * one
    told = estimate(work("paper", save_every=0), Options(exhibits=("ibrahim2024/figure_05",)))
    assert told["disk"]["states_bytes"] == 0


def test_shards_as_built_count_before_estimates(work):
    workflow = work("pocket")
    manifest, length = load_manifest("german_downstream"), 128
    size = estimate(workflow, Options())["disk"]["corpora"]["german"]
    assert size["basis"].startswith("estimate") and size["tokens"] == (37110970 + 1033103) // 4
    domain = {
        "documents": 1,
        "tokens": 1290,
        "sequences": 10,
        "text_bytes": 5000,
        "shards": {"shard.00000.mds": "0"},
    }
    built = {
        "name": "german_downstream",
        "manifest": manifest.digest,
        "tokenizer": "0",
        "sequence_length": length,
        "splits": {split: dict.fromkeys(manifest.domains, domain) for split in ("train", "validation")},
        "shares": manifest.domains,
        "entropy_floor": None,
        "empty_documents": {},
        "validation_documents": "0",
    }

    def write(path, **changes):
        write_json(path, built | changes | {"fingerprint": digest(built | changes)})

    record = corpus_path(workflow.results, "pocket", "german")
    write(record)
    count = 2 * len(manifest.domains)
    size = estimate(workflow, Options())["disk"]["corpora"]["german"]
    assert (size["basis"], size["tokens"], size["bytes"]) == ("built", 1290 * count, 10 * 129 * 2 * count)
    write(record, manifest="of another text")
    assert estimate(workflow, Options())["disk"]["corpora"]["german"]["basis"].startswith("estimate")


def test_checkpoints_are_as_large_as_told(tmp_path):
    import torch

    from cpt_repro.models.neox import neox_config, new_model, save_model

    plan = Plan(load_scale("smoke"))
    segment = plan.segments["ibrahim2024/10b/pile/seed-0"]
    model = new_model(neox_config(segment.model, segment.vocabulary, segment.sequence_length), 0)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    sizes = []
    for with_optimizer in (False, True):
        folder = tmp_path / str(with_optimizer)
        save_model(model, folder, optimizer.state_dict() if with_optimizer else None)
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
    for found, kept in zip(sizes, ({5: False}, {5: True}), strict=True):
        assert kept_bytes(segment, kept) < found < 1.1 * kept_bytes(segment, kept)


# -- room before the first step


def free(monkeypatch, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size, seen=path.stat()))


def test_room_is_looked_at_before_the_first_step(monkeypatch, tmp_path):
    plan, store = Plan(load_scale("paper"), made_up()), Store("paper", tmp_path / "deep" / "store")
    trunk = plan.segments["made_up/trunk/seed-0"]
    # Weights at 10,000 and at the end, there with the optimizer's state; three training states.
    needed = (4 + 12 + 3 * 12) * 405_334_016
    free(monkeypatch, needed)
    check_room(plan, [trunk], store)
    free(monkeypatch, needed - 1)
    with pytest.raises(
        StorageError, match=r"21\.1 GB are needed.*21\.1 GB are free.*CPT_REPRO_STORE"
    ) as raised:
        check_room(plan, [trunk], store)
    assert raised.value.where == str(tmp_path / "deep" / "store" / "paper")
    # What is there already, of an interrupted run, is not needed again.
    store.weights(trunk, 10000).mkdir(parents=True)
    (store.weights(trunk, 10000) / "model.safetensors").write_bytes(b"0" * 1000)
    free(monkeypatch, needed - 1000)
    check_room(plan, [trunk], store)
    free(monkeypatch, needed - 1001)
    with pytest.raises(StorageError):
        check_room(plan, [trunk], store)


def test_without_room_nothing_is_trained_and_nothing_lost(monkeypatch, tmp_path):
    plan, store = Plan(load_scale("smoke")), Store("smoke", tmp_path / "store")
    segment = next(iter(plan.segments.values()))
    free(monkeypatch, 1000)
    with pytest.raises(StorageError, match="are needed for checkpoints, and 1e-06 GB are free"):
        train_segments(plan, [segment], tmp_path / "no data", tmp_path / "results", store, print)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_looking_costs_nothing(tmp_path):
    plan, store = Plan(load_scale("smoke")), Store("smoke", tmp_path / "store")
    segments = list(plan.segments.values())
    began = time.perf_counter()
    for segment in segments:
        check_room(plan, [segment], store)
    assert (time.perf_counter() - began) / len(segments) < 0.01


# -- what is printed


def test_json_is_stable(paper):
    told = json.loads(json.dumps(paper, allow_nan=False))
    assert set(told) == {
        *(
            "scale",
            "device",
            "exhibits",
            "tokens",
            "units_of_300B",
            "evaluations",
            "formula",
            "models",
            "all",
            "done",
        ),
        *(
            "left",
            "wall",
            "critical_path_hours",
            "sharing",
            "disk",
            "segments",
            "no_counterpart",
            "not_counted",
        ),
    }
    assert set(told["models"]["405m"]) == {
        *(
            "parameters",
            "matmul_parameters",
            "flops_per_token",
            "tokens_per_second_per_device",
            "speed",
            "at_best",
        ),
        *("speed_source", "devices_per_process", "processes_per_device", "memory_gb_per_device", "all"),
    }
    sums = {
        "segments",
        "processes",
        "tokens",
        "training_flops",
        "validation_flops",
        "device_hours",
        "price_usd",
    }
    assert set(told["all"]) == set(told["left"]) == set(told["done"]) == sums
    assert set(told["wall"][0]) == {
        "devices",
        "all_hours",
        "left_hours",
        "busy_share",
        "held_usd",
        "states_bytes",
    }
    assert set(told["sharing"]) == {"alone_tokens", "alone_flops", "alone_device_hours", "times"}
    assert set(told["segments"][0]) == {
        *(
            "id",
            "paper",
            "name",
            "seed",
            "parent",
            "model",
            "process",
            "iterations",
            "tokens",
            "identity",
            "done",
        ),
        *("training_flops", "validation_flops", "device_hours", "kept_bytes"),
    }
    for key in set(told) | set(told["all"]) | set(told["models"]["405m"]) | set(told["disk"]):
        assert key in estimate.__doc__, f"{key} is not documented"


@pytest.mark.parametrize("name", SCALE_NAMES)
def test_text_fits_80_columns(name, work, paper, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    told = paper if name == "paper" else estimate(work(name), Options())
    print_estimate(told)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    # Every run is a line of its own, with its numbers.
    runs = {(row["paper"], row["name"]) for row in told["segments"]}
    assert sum(line.rstrip().endswith(" no") for line in lines) == len(runs)
    assert any(told["formula"]["flops_per_token"] in line for line in lines)


def test_no_counterpart_is_told_of_what_was_asked(work):
    assert len(estimate(work("pocket"), Options())["no_counterpart"]) == 4
    assert not estimate(work("pocket"), Options(exhibits=("ibrahim2024/figure_05",)))["no_counterpart"]
    assert len(estimate(work("pocket"), Options(exhibits=("ibrahim2024/figure_11",)))["no_counterpart"]) == 4


def test_command_line(tmp_path):
    from typer.testing import CliRunner

    words = ["plan", "--scale", "paper", "--results", str(tmp_path), "--exhibit", "ibrahim2024/figure_05"]
    words += [
        "--exhibit",
        "ibrahim2024/figure_09",
        "--gpus",
        "16",
        "--price",
        "2.5",
        "--gpu-memory",
        "141",
        "--json",
    ]
    result = CliRunner().invoke(app, [*words, "--tokens-per-second", "405m=1e5", "--attention", "causal"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["exhibits"] == ["ibrahim2024/figure_05", "ibrahim2024/figure_09"]
    assert told["formula"]["attention"] == "causal" and told["wall"][0]["devices"] == 16
    assert told["models"]["405m"]["tokens_per_second_per_device"] == 1e5
    with pytest.raises(UserError, match="--gpus must be a number above 0"):
        CliRunner().invoke(app, ["plan", "--scale", "paper", "--gpus", "-1"], catch_exceptions=False)
