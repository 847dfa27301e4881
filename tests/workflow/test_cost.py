"""What a plan costs: totals against the declarations as they stand in YAML, bounds and choices by hand."""

import itertools
import json
import math
import re
import statistics
import subprocess
import sys
from collections import Counter
from copy import copy
from dataclasses import asdict, replace

import pytest
import yaml

from cpt_repro.declarations.scale import Execution
from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError
from cpt_repro.files import digest, write_json
from cpt_repro.models.architecture import GB
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Records
from cpt_repro.workflow.cost import Bound, ModelCost, Options, RunCost, bounds, estimate, print_estimate
from cpt_repro.workflow.jobs import Workflow

BATCH = 1104 * 2048
SMALL, LARGE = 2_724_986_880, 6 * (36 * 12 * 4608**2 + 50688 * 4608) + 12 * 36 * 4608 * 2048
FIGURE = "ibrahim2024/figure_05"


def project_in(repository, folder):
    """The committed declarations; no results, store or measurements."""
    (folder / "root").mkdir()
    for name in ("configs", "data_manifests"):
        (folder / "root" / name).symlink_to(repository.root.resolve() / name)
    places = {name: folder / name for name in ("results", "data", "store", "figures")}
    return replace(repository, root=folder / "root", **places)


@pytest.fixture(scope="module")
def work(repository, tmp_path_factory):
    """`work(scale, **changes)`: the jobs of a scale, parts of it changed; tests write nothing there."""
    project, made = project_in(repository, tmp_path_factory.mktemp("clean")), {}

    def of(name, **changes):
        if name not in made:
            made[name] = Workflow(project, name)
        if not changes:
            return made[name]
        workflow = copy(made[name])
        workflow.plan = Plan(project, workflow.scale.model_copy(update=changes))
        workflow.scale, workflow.records = workflow.plan.scale, Records(workflow.plan)
        return workflow

    return of


@pytest.fixture
def own(repository, tmp_path):
    """`own(scale)`: the same in a project of the test's own."""
    project = project_in(repository, tmp_path)
    return lambda name: Workflow(project, name)


def cost_of(workflow, *exhibits, **options):
    return estimate(workflow, parse(Options, {"exhibits": exhibits} | options, "the command line"))


def refused(call):
    with pytest.raises(UserError) as raised:
        call()
    return str(raised.value)


def test_needs_neither_torch_nor_composer():
    heavy = "{'torch', 'composer', 'transformers', 'matplotlib'}"
    code = f"import sys, cpt_repro.workflow.cost; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- totals, from the papers' declarations as they stand in YAML


def declared(repository, paper):
    """(run, its declaration) with `each` written out."""
    for name, body in yaml.safe_load((repository.papers / paper / "runs.yaml").read_text())["runs"].items():
        each = body.get("each", {})
        for values in itertools.product(*each.values()):
            text = json.dumps([name, body])
            for key, value in zip(each, values, strict=True):
                text = text.replace(f'"{{{key}}}"', json.dumps(value)).replace(f"{{{key}}}", str(value))
            yield json.loads(text)


def read_by_corpus(runs):
    """Run -> Counter of tokens by corpus. Replay draws on all that the lineage was trained on before."""
    done = {}

    def tokens(name):
        if name not in done:
            run = runs[name]
            batch = run.get("batch", {}).get("sequences", 1104) * 2048
            until = round(run["until"] * 1e9 / batch) if "until" in run else math.inf
            total, replay = min(run["iterations"], until) * batch, run.get("replay_fraction", 0)
            new = {key.partition("/")[0]: share * (1 - replay) * total for key, share in run["data"].items()}
            own = Counter(new)
            if replay:
                before, at = Counter(), name
                while at := runs[at].get("init_from", {}).get("run"):
                    before += tokens(at)
                seen = sum(before.values())
                own += Counter({corpus: replay * total * count / seen for corpus, count in before.items()})
            done[name] = own
        return done[name]

    return [tokens(name) for name in runs]


def taken(mixture, tokens):
    """Counter of tokens by corpus that a planned mixture takes."""
    parts = [(part, part.share * tokens) for part in mixture]
    own = (Counter({p.stream.corpus: n}) if p.stream else taken(p.parts, n) for p, n in parts)
    return sum(own, Counter())


def test_totals_of_paper_are_those_of_the_declarations(repository, work):
    cost = cost_of(work("paper"))
    runs = [
        run for p in ("gupta2023", "ibrahim2024") for run in read_by_corpus(dict(declared(repository, p)))
    ]
    assert len(runs) == cost.all.trainings == len(cost.runs) == 87
    by_corpus = sum(runs, Counter())
    assert cost.all.tokens == round(sum(by_corpus.values()))
    assert (round(cost.units, 2), cost.unit) == (46.62, "300B tokens")
    planned = [one[0].training for one in work("paper").plan.trainings.values()]
    read = sum((taken(one.mixture, one.tokens) for one in planned), Counter())
    assert read == pytest.approx(by_corpus, rel=1e-6)
    assert sorted(run.tokens for run in cost.runs) == sorted(round(sum(run.values())) for run in runs)
    per_token = {"405m": SMALL, "10b": LARGE}
    assert {name: model.flops_per_token for name, model in cost.models.items()} == per_token
    assert cost.all.training_flops == sum(run.tokens * per_token[run.model] for run in cost.runs)
    assert cost.evaluations == 40 and len(cost.exhibits) == 37


def test_validation_is_counted_apart(work):
    cost = cost_of(work("paper"))
    run = next(run for run in cost.runs if run.id == "ibrahim2024/405m/pile/seed-0")
    # Every 100 iterations from 0, between them to 2,650, and ten times in the last 90; at 1, 2, 10, 20 and
    # 257B, which claims ask for, and ten times before 40, 50 and 100B, where runs end; on three corpora.
    assert run.validation_flops == (1324 + 27 + 10 + 5 + 30) * 3 * 11040 * 2048 * SMALL // 3
    assert cost.models["405m"].tokens_per_second == pytest.approx(0.45 * 989e12 / SMALL)
    assert run.device_hours == pytest.approx(
        (run.training_flops + run.validation_flops) / (0.45 * 989e12) / 3600
    )
    assert 560 < run.device_hours < 566


# -- what is chosen, what is done, what sharing saves


def test_exhibits_choose_runs_with_ancestors(work):
    workflow = work("paper")
    cost = cost_of(workflow, "ibrahim2024/figure_10", "ibrahim2024/figure_10")
    assert cost.exhibits == ["ibrahim2024/figure_10"] and list(cost.models) == ["405m"]
    chosen = {run.id for run in cost.runs}
    assert len(chosen) == 16 and "ibrahim2024/405m/sp-3x100/cosine/split-3/seed-0" in chosen
    one = cost_of(workflow, "gupta2023/figure_09")
    assert "gupta2023/410m/pile/seed-0" in {
        run.id for run in one.runs
    }  # shown by none, but all start from it
    both = cost_of(workflow, "ibrahim2024/figure_10", "gupta2023/figure_09")
    assert {run.id for run in both.runs} >= {run.id for run in (*one.runs, *cost.runs)}


def test_merges_need_what_they_are_made_of(work):
    cost = cost_of(work("paper"), "ibrahim2024/table_07")
    names = {run.id.removeprefix("ibrahim2024/405m/").removesuffix("/seed-0") for run in cost.runs}
    assert {"german", "pile--german/replay-0.25"} <= names and cost.evaluations == 7


def test_exhibit_without_training(work, capsys):
    cost = cost_of(work("paper"), "ibrahim2024/figure_02")
    assert cost.runs == [] and cost.all.device_hours == sum(one.bytes for one in cost.disk) == 0
    print_estimate(cost)
    assert "nothing to train" in capsys.readouterr().out


def test_of_very_many_runs_the_first_are_listed(work, capsys, monkeypatch):
    cost = cost_of(work("paper"), "ibrahim2024/figure_10")
    monkeypatch.setattr("cpt_repro.workflow.cost.MOST_ROWS", 4)
    print_estimate(cost)
    told = capsys.readouterr().out
    assert "and 12 more, which --json lists" in told and "16 trainings" in told


def leave(workflow, run, identity=None):
    """As much of a receipt as tells that its training is done."""
    path = workflow.records.place_of(run.id) / "receipt.json"
    write_json(path, {"schema_version": 2, "identity": identity or run.identity})
    vars(workflow.records).pop("_places", None)


def test_what_is_done_is_not_left(own):
    workflow, exhibit = own("paper"), "ibrahim2024/figure_13"
    names = ("pile", "pile--sp/replay-0", "pile--sp/keep-optimizer")
    base, child, third = (workflow.plan.runs[f"ibrahim2024/405m/{name}/seed-0"] for name in names)
    leave(workflow, child)
    assert [run.done for run in cost_of(workflow, exhibit).runs] == [False, True, False]
    leave(workflow, base)
    # The receipt is there, but not the weights and the optimizer's state that a child still wants.
    assert cost_of(workflow, exhibit).done.trainings == 1
    weights = workflow.store.weights(base.identity, base.training.iterations)
    weights.mkdir(parents=True)
    (weights / "optimizer.pt").touch()
    cost = cost_of(workflow, exhibit)
    assert (cost.all.trainings, cost.done.trainings, cost.left.trainings) == (3, 2, 1)
    assert cost.left.device_hours == cost.runs[-1].device_hours and cost.runs[-1].id == third.id
    assert cost.done.tokens + cost.left.tokens == cost.all.tokens
    assert cost.wall[-1].left_hours == pytest.approx(cost.left.device_hours / 8)
    leave(workflow, child, "of another training")
    assert cost_of(workflow, exhibit).done.trainings == 1
    # What others lack is not left of what was asked.
    for run in (base, child, third):
        leave(workflow, run)
    weights.joinpath("optimizer.pt").unlink()
    assert cost_of(workflow, exhibit).left.trainings == 0


def test_what_sharing_saves(work):
    """Figure 13: one run and two that start from its end."""
    cost = cost_of(work("paper"), "ibrahim2024/figure_13")
    base, *children = (run.tokens for run in cost.runs)
    assert cost.alone.training_flops == (2 * base + sum(children)) * SMALL
    assert cost.alone.device_hours == pytest.approx(cost.alone.training_flops / (0.45 * 989e12) / 3600)
    # Figure 10: a branch leaves its trunk before that one's end, which is not trained for it alone.
    cost = cost_of(work("paper"), "ibrahim2024/figure_10")
    of_run = {run.id.split("/", 2)[2].removesuffix("/seed-0"): run for run in cost.runs}
    kinds = ("infinite-cosine", "infinite-inverse_sqrt")
    tokens = sum(run.tokens for name, run in of_run.items() if not any(kind in name for kind in kinds))
    for kind in kinds:
        splits = [of_run[f"sp-3x100/{kind}/split-{k}"].tokens for k in (1, 2, 3)]
        branches = [of_run[f"sp-3x100/{kind}/split-{k}-annealed"] for k in (1, 2, 3)]
        starts = [work("paper").plan.runs[branch.id].parent_iteration * BATCH for branch in branches]
        tokens += sum(splits) + sum(branch.tokens for branch in branches) + sum(starts)
        tokens += 2 * splits[0] + splits[1]  # before the branches of the second split and of the third
    assert cost.alone.training_flops == tokens * SMALL


# -- speed


GPU_ROW = {
    "model": "405m",
    "parameters": 405_334_016,
    "hardware": "H200",
    "tokens_per_second": 1.2e6,
    "gpus": 8,
}


def measured(workflow, *rows):
    folder = workflow.project.measurements
    folder.mkdir(exist_ok=True)
    (folder / "2030-01-01.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def speeds(workflow, *exhibits, **options):
    models = cost_of(workflow, *(exhibits or ("ibrahim2024/figure_07",)), **options).models
    return {name: (one.speed_from.split()[0], one.tokens_per_second) for name, one in models.items()}


def test_speed_is_given_measured_or_assumed(own):
    workflow = own("paper")
    assumed = {"405m": 0.45 * 989e12 / SMALL, "10b": 0.45 * 989e12 / LARGE}
    assert speeds(workflow) == {name: ("assumed", pytest.approx(speed)) for name, speed in assumed.items()}
    measured(
        workflow,
        GPU_ROW | {"date": "2030-02-01", "scale": "paper", "arm": "uncompiled", "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-02-01", "scale": "paper", "arm": "composer", "device": "gpu"},
        GPU_ROW | {"date": "2030-01-01", "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-03-01", "scale": "desk", "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-03-01", "arm": "plain", "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-03-01", "gpus": 0, "tokens_per_second": 7},
        GPU_ROW | {"date": "2030-03-01", "parameters": 405_334_015, "tokens_per_second": 7},
    )
    assert speeds(workflow) == {
        "405m": ("measured", 150_000),
        "10b": ("assumed", pytest.approx(assumed["10b"])),
    }
    assert speeds(workflow, mfu=0.9)["405m"] == ("given", pytest.approx(2 * assumed["405m"]))
    assert speeds(workflow, peak_tflops=989 / 2)["10b"] == ("given", pytest.approx(assumed["10b"] / 2))
    both = speeds(workflow, tokens_per_second=("10b=5000",))
    assert both == {"405m": ("measured", 150_000), "10b": ("given", 5000)}
    source = cost_of(workflow).models["405m"].speed_from
    assert all(word in source for word in ("2030-01-01.jsonl", "2030-02-01", "H200"))


def test_small_models_do_not_fill_a_gpu(work, capsys):
    cost = cost_of(work("desk"))
    assert {model.tokens_per_second for model in cost.models.values()} == {None}
    assert cost.all.device_hours is None and cost.wall == []
    print_estimate(cost)
    assert "Wall time: unknown" in capsys.readouterr().out
    print_estimate(cost_of(work("desk"), mfu=0.02))
    assert "it is too small to fill a GPU" in capsys.readouterr().out


def test_speed_on_cpus(repository, own):
    workflow = own("pocket")
    assert speeds(workflow) == {"405m": ("unknown", None), "10b": ("unknown", None)}
    row = {"scale": "pocket", "model": "405m", "parameters": 63_648, "tokens_per_second": 50_000}
    row |= {"date": "2030-01-01"}
    measured(workflow, row, row | {"scale": "smoke", "tokens_per_second": 7}, {"scale": "pocket", "build": 7})
    assert speeds(workflow) == {"405m": ("measured", 50_000), "10b": ("unknown", None)}
    arms = {"plain": 9_000, "composer": 8_000, "deterministic": 7_000}
    large = {"scale": "pocket", "model": "10b", "parameters": 281_152}
    rows = [large | {"arm": arm, "tokens_per_second": arms[arm]} for arm in arms]
    measured(workflow, row, *rows)
    assert speeds(workflow) == {"405m": ("measured", 50_000), "10b": ("measured", 7_000)}
    done = Workflow(repository.with_(store=workflow.project.store), "pocket")
    large = [
        done.records.receipt(run).measured.tokens_per_second
        for run in done.plan.runs.values()
        if run.model_name == "10b"
    ]
    assert speeds(done)["10b"] == ("measured", statistics.median(large))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("[1]", "line 1"),
        ('{"benchmark":', "line 1: the key '(top level)' is wrong: Invalid JSON"),
        (json.dumps(GPU_ROW | {"tokens_per_second": 0}), "line 1: the key 'tokens_per_second' is wrong"),
        (json.dumps(GPU_ROW | {"gpus": "many"}), "line 1: the key 'gpus' is wrong"),
    ],
)
def test_broken_measurements(row, fault, own):
    workflow = own("paper")
    measured(workflow)
    (workflow.project.measurements / "broken.jsonl").write_text(row + "\n")
    text = refused(lambda: cost_of(workflow))
    assert fault in text and "broken.jsonl" in text


# -- options


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        *(
            ({name: value}, f"the key '{name}' is wrong")
            for name in ("price", "mfu", "peak_tflops", "gpu_memory")
            for value in (0, -1, math.nan, math.inf)
        ),
        ({"gpus": 0}, "the key 'gpus' is wrong"),
        ({"mfu": 1.5}, "the key 'mfu' is wrong"),
        ({"tokens_per_second": ("405m=nan",)}, "the key 'tokens_per_second.405m' is wrong"),
        ({"tokens_per_second": ("405m=",)}, "the key 'tokens_per_second.405m' is wrong"),
        ({"tokens_per_second": ("150000",)}, "the key 'tokens_per_second' is wrong: write MODEL=X"),
        ({"tokens_per_second": ("7b=150000",)}, "no training is of '7b'"),
        ({"gpus": 47}, "one training of the model 10b needs 48 GPUs, and there are 47"),
        ({"gpu_memory": 6}, "6.5 GB on each GPU"),
        ({"exhibits": ("ibrahim2024/figure_99",)}, "the exhibit 'figure_99' is unknown"),
        ({"exhibits": ("ibrahim2042/figure_01",)}, "the paper 'ibrahim2042' is unknown"),
        ({"exhibits": ("figure_01",)}, "Write <paper>/<exhibit>"),
    ],
    ids=str,
)
def test_bad_options(options, fault, work):
    assert fault in refused(lambda: cost_of(work("paper"), **options))


@pytest.mark.parametrize("name", ["gpus", "mfu", "peak_tflops", "price"])
def test_options_for_gpus_at_a_scale_for_cpus(name, work):
    assert "the scale 'pocket' runs on CPUs" in refused(lambda: cost_of(work("pocket"), **{name: 1}))


# -- wall time


def test_bounds_by_hand():
    """A trunk of 8 hours, a child of 4, and one alone of 2; a device each, two for the child."""
    models = {name: ModelCost(1, 1, 1, "given", devices, 1, 1) for name, devices in (("one", 1), ("two", 2))}

    def cost(run, parent, model, hours, done=False):
        work = {"tokens": 1, "training_flops": 1, "validation_flops": 1, "device_hours": hours}
        return RunCost(id=run, parent=parent, model=model, identity=run, done=done, **work)

    costs = [cost("trunk", None, "one", 8), cost("child", "trunk", "two", 4), cost("alone", None, "one", 2)]
    # The chain takes 8 hours and 4 / 2; 14 hours of work are to be shared out.
    assert bounds(costs, models, None) == [Bound(2, 10, 10), Bound(None, 10, 10)]
    assert bounds(costs, models, 1) == [Bound(1, 14, 14), Bound(None, 10, 10)]
    costs[0] = cost("trunk", None, "one", 8, done=True)
    assert bounds(costs, models, 1)[0] == Bound(1, 14, 6)
    assert bounds(costs, models, 4)[0] == Bound(4, 10, 2)


def test_wall_time_of_paper(work):
    cost = cost_of(work("paper"))
    hours = [bound.all_hours for bound in cost.wall]
    assert [bound.devices for bound in cost.wall] == [48, 96, 192, None]
    assert hours == sorted(hours, reverse=True) and hours[0] == pytest.approx(cost.all.device_hours / 48)
    # The chain is the larger model's union (no parent, twice as long as the others), or that model's update.
    of_run = {run.id.removesuffix("/seed-0"): run.device_hours for run in cost.runs}
    update = of_run["ibrahim2024/10b/pile"] + of_run["ibrahim2024/10b/pile--sp/replay-0"]
    assert hours[-1] == pytest.approx(max(update, of_run["ibrahim2024/10b/pile+sp"]) / 48)


def test_cores_of_a_training(work):
    assert {model.devices for model in cost_of(work("pocket", threads=4)).models.values()} == {4}


# -- memory and disk


def test_memory_of_a_gpu(work):
    models = cost_of(work("paper")).models
    assert models["405m"].memory_gb == pytest.approx(16 * 405_334_016 / GB)
    assert models["10b"].memory_gb == pytest.approx(16 * 9_642_249_216 / 48 / GB)
    execution = work("paper").scale.execution
    whole = work("paper", execution=execution | {"10b": execution["10b"].model_copy(update={"fsdp": False})})
    text = refused(lambda: cost_of(whole))
    assert "the model 10b needs 154.3 GB" in text and "has 80" in text and "fsdp" in text
    assert cost_of(whole, "ibrahim2024/figure_07", gpu_memory=192) and cost_of(whole, FIGURE)
    shared = work("paper", execution=execution | {"405m": Execution(jobs_per_gpu=3)})
    assert cost_of(shared, FIGURE).models["405m"].memory_gb == pytest.approx(3 * 16 * 405_334_016 / GB)


def disk(workflow, *exhibits, **options):
    """What -> (bytes, what is said of it)."""
    return {one.what: (one.bytes, one.about) for one in cost_of(workflow, *exhibits, **options).disk}


def test_disk(work):
    disk_of_paper = disk(work("paper"))
    shards = round(299_280_000_000 * 2 * 2049 / 2048)
    assert disk_of_paper["shards of sp"] == (shards, "as the manifest says")
    # 87 ends; earlier ones of Pythia (2) and of the trunks' splits (2 x 3, with the optimizer's state). The
    # upstream model of Ibrahim keeps the optimizer's state at its end.
    small, large = 405_334_016, 9_642_249_216
    ends, branches = 4 * (82 * small + 5 * large), 2 * 4 * small + 6 * 12 * small
    assert disk_of_paper["checkpoints kept"] == (ends + branches + 8 * small, f"{87 + 2 + 6} of them")


def test_states_of_what_runs_at_a_time(work):
    one, many = (disk(work("paper"), FIGURE, gpus=gpus)["training states"][0] for gpus in (8, 80))
    # Two are kept while the next is written.
    assert one == 3 * 12 * 405_334_016 and many == 10 * one
    assert disk(work("paper", save_every=0), FIGURE)["training states"][0] == 0


def test_shards_as_built_count_before_estimates(own):
    workflow = own("pocket")
    manifest, length = workflow.plan.manifest("german"), workflow.scale.sequence_length
    expected = (37110970 + 1033103) / 4 * 2 * (length + 1) / length
    assert disk(workflow)["shards of german"] == (round(expected), "estimate: 4 bytes a token")
    domain = {"documents": 1, "tokens": 1290, "sequences": 10, "text_bytes": 5000, "shards": {"a": "0"}}
    built = {"name": manifest.name, "manifest": manifest.digest, "tokenizer": "0", "sequence_length": length}
    built |= {"splits": {split: dict.fromkeys(manifest.domains, domain) for split in ("train", "validation")}}
    built |= {"shares": manifest.domains, "entropy_floor": None, "empty_documents": {}}
    built |= {"validation_documents": "0"}

    def size(**changes):
        record = workflow.records.corpus_path("german")
        write_json(record, built | changes | {"fingerprint": digest(built | changes)})
        workflow.records._read.clear()
        return disk(workflow)["shards of german"]

    count = 2 * len(manifest.domains)
    assert size() == (10 * (length + 1) * 2 * count, "as built")
    assert size(manifest="of another text")[0] == round(expected)


# -- what is printed


@pytest.mark.parametrize("name", ["smoke", "pocket", "desk", "paper"])
def test_text_fits_80_columns(name, work, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    cost = cost_of(work(name))
    print_estimate(cost)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    # Every run is a line of its own, with its numbers.
    assert sum(line.rstrip().endswith(" no") for line in lines) == len(
        {run.id.rpartition("/")[0] for run in cost.runs}
    )
    assert any(cost.formula in line for line in lines)
    assert json.loads(json.dumps(asdict(cost), allow_nan=False))["all"]["trainings"] == len(cost.runs)


def test_no_counterpart_is_told_of_what_was_asked(work, third_project):
    assert not cost_of(work("pocket")).no_counterpart
    path = third_project.scales / "pocket.yaml"
    (large,) = re.findall("10b: {.*}", path.read_text())
    path.write_text(path.read_text().replace(large, "10b: null"))
    lacking = Workflow(third_project, "pocket")
    assert len(cost_of(lacking).no_counterpart) == 5 + 3 and not cost_of(lacking, FIGURE).no_counterpart
    assert len(cost_of(lacking, "ibrahim2024/figure_07").no_counterpart) == 5
