"""The plan of both papers, worked out by hand where that can be; what a scale lacks; refusals."""

from collections import Counter

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cpt_repro.data.order import cumulative_counts
from cpt_repro.declarations.scale import Scale, load_scale
from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError
from cpt_repro.planning.mixture import streams
from cpt_repro.planning.plan import Plan
from cpt_repro.project import Project

BATCH = {"sequences": 1104, "sequence_length": 2048}
COSINE = {"kind": "cosine", "eta_max": 3e-4, "eta_min": 3e-5}
INFINITE = {"kind": "infinite", "cooldown": "cosine", "eta_max": 3e-4, "eta_const": 1e-4, "eta_min": 1e-5}


@pytest.fixture
def smoke(plan_of) -> Plan:
    return plan_of("smoke")


def check(plan: Plan) -> None:
    """What holds for every plan that is accepted at all."""
    earlier = set()
    for key, run in plan.runs.items():
        training, validation = run.training, run.validation
        assert key == run.id and (run.parent is None or run.parent in earlier)
        earlier.add(key)
        if run.parent:
            parent = plan.runs[run.parent].training
            assert training.start.parent == parent.identity and 0 <= run.parent_iteration <= parent.iterations
            assert run.parent_iteration in plan.kept(parent.identity)
        assert 1 <= training.iterations <= training.schedule_iterations
        assert {0, training.iterations} <= set(validation.evaluations) <= set(range(training.iterations + 1))
        assert set(validation.closing) <= set(validation.evaluations)
        assert sum(cumulative_counts(training.mixture, 997)) == 997
        assert {stream.corpus for stream in streams(training.mixture)} == set(training.data)


# -- both papers


def test_number_of_runs(smoke, plan_of):
    # Gupta: upstream 1, scratch 1, maximum rates 3, constant 1, warm-ups 3, earlier checkpoints 4, on the
    # Pile 4. Ibrahim 405M: scratch and unions 5; Pile -> SP 6 replay + 2 rates + 2 constant + 3 warm-ups =
    # 13, German as many; Pile -> Pile 5; infinite 2; three splits 2 x 3 + 2 x 3 annealed + 3 cosine = 15;
    # domains 7; sizes 4; optimizer 1. Ibrahim 10B: scratch and union 3, replay 2.
    expected = {("gupta2023", "405m"): 17, ("ibrahim2024", "405m"): 65, ("ibrahim2024", "10b"): 5}
    assert len(smoke.shares("sp")) == 7 and not smoke.absent
    assert Counter((run.paper, run.model_name) for run in smoke.runs.values()) == expected
    pocket = plan_of("pocket")
    first = [run for run in pocket.runs.values() if run.seed == pocket.scale.seeds[0]]
    assert Counter((run.paper, run.model_name) for run in first) == expected and not pocket.absent


def test_new_data_of_fewer_domains_have_fewer_stages(third_project):
    path = third_project.manifests / "smoke_weak.yaml"
    manifest = yaml.safe_load(path.read_text())
    of = {name: list(manifest[name].items())[:3] for name in ("domains", "mixes")}
    whole = sum(share for _, share in of["domains"])
    shares = {name: share / whole for name, share in of["domains"]}
    path.write_text(yaml.safe_dump(manifest | {"domains": shares, "mixes": dict(of["mixes"])}))
    plan = plan_at(third_project)
    stages = {("ibrahim2024", f"405m/pile--sp-domains/stage-{k}") for k in (4, 5, 6, 7)}
    assert set(plan.absent) == stages
    assert set(plan.absent.values()) == {"smoke_weak has 3 domains only"}
    # Three stages are as long as seven: each has its domain's share of the whole.
    three = [plan.find("ibrahim2024", f"405m/pile--sp-domains/stage-{k}")[0] for k in (1, 2, 3)]
    assert sum(run.billions for run in three) == pytest.approx(299.28, abs=0.5)


@pytest.mark.parametrize("scale", ["smoke", "pocket", "paper"])
def test_plan_holds_together(plan_of, scale):
    plan = plan_of(scale)
    check(plan)
    assert len(plan.trainings) == len(
        plan.runs
    )  # the papers' schedules differ: no training of one is the other's


@pytest.mark.parametrize("scale", ["smoke", "pocket"])
def test_units_of_300_billion_tokens(plan_of, scale):
    # Gupta: 299.9 + 5 x 239.3 + 11 x 50 = 2046.4. Ibrahim 405M: 299.3 + 299.3 + 194.4 + 598.6 + 493.7 =
    # 1885.3 from scratch; SP 10 x 299.3 + 3 x 50 = 3142.8; German 10 x 194.4 + 150 = 2094.5; Pile 500;
    # infinite 598.6; splits 900 + 6 x 14; domains 299.3; sizes 600; optimizer 40; together 10144.4. 10B: 4 x
    # 299.3 + 598.6 = 1795.7.
    plan, units = plan_of(scale), Counter()
    for run in plan.runs.values():
        if run.seed == plan.scale.seeds[0]:
            units[run.paper, run.model_name] += run.billions / plan.studies[run.paper].paper.unit.billions
    assert units["gupta2023", "405m"] == pytest.approx(2046.4 / 300, abs=0.02)
    assert units["ibrahim2024", "405m"] == pytest.approx(10144.4 / 300, abs=0.05)
    assert units["ibrahim2024", "10b"] == pytest.approx(1795.7 / 300, abs=0.02)


@pytest.mark.parametrize(
    ("scale", "iterations"),
    # Pythia's batch has 1024 x 2048 tokens: 10,000 are 20.97152B, 27,000 are 56.623104B, 143,000 are
    # 299.892736B. smoke: 1,000 tokens a billion, 1,024 a batch; pocket: 26,667 and 2,048: 20.97152 x 26667 /
    # 2048 = 273.07.
    [("smoke", (20, 55, 293)), ("pocket", (273, 737, 3905))],
)
def test_earlier_upstream_checkpoints(plan_of, scale, iterations):
    plan = plan_of(scale)
    upstream, *_ = plan.find("gupta2023", "410m/pile")
    assert plan.kept(upstream.identity) == dict.fromkeys(iterations, False)
    for published, expected in zip((10000, 27000), iterations, strict=False):
        child, *_ = plan.find("gupta2023", f"410m/pile@{published}--sp/warmup-0.01")
        assert child.parent_iteration == expected


def test_checkpoints_asked_of_parents(smoke):
    def kept(name):
        return smoke.kept(smoke.find("ibrahim2024", name)[0].identity)

    # 132,366 iterations are 299.28B tokens: 299,278.5 / 1,024 = 292.3; one child keeps the optimizer's state.
    assert kept("405m/pile") == {292: True}
    # 44,229 are 100.0014B: 97.66, so 98; the annealed branch leaves at 38,037 (86.0014B: 83.99, so 84) with
    # it.
    assert kept("405m/sp-3x100/infinite-cosine/split-1") == {84: True, 98: False}
    assert kept("405m/german") == {190: False}  # 194.445B


def test_rates_lengths_and_versions(smoke):
    for run in smoke.runs.values():
        declared = smoke.studies[run.paper].paper.runs[run.name].schedule
        assert run.training.schedule == declared.scaled(smoke.scale.models[run.model_name].eta_factor)
    (gupta,), (ibrahim,) = (
        smoke.find(paper, f"{size}/pile--sp/warmup-0.02")
        for paper, size in (("gupta2023", "410m"), ("ibrahim2024", "405m"))
    )
    # 131,296 x 2,260,992 tokens = 296.859B: 289.9 batches; 50B: 48.8.
    assert (gupta.training.schedule_iterations, gupta.training.iterations) == (290, 49)
    assert (gupta.training.schedule.version, ibrahim.training.schedule.version) == (1, 2)


def test_stages_replay_by_the_reservoir(smoke):
    third = smoke.find("ibrahim2024", "405m/pile--sp-domains/stage-3")[0].training
    replay, *new = third.mixture
    domains = list(smoke.shares("sp"))
    assert replay.share == 0.05 and sum(part.share for part in new) == pytest.approx(0.95)
    # The replayed share of a stage is its own domain, not what it replayed itself.
    assert [{s.corpus for s in streams((part,))} for part in replay.parts] == [{"pile"}, {"sp"}, {"sp"}]
    assert [s.domain for part in replay.parts[1:] for s in streams((part,))] == domains[:2]
    assert [s.domain for s in streams(tuple(new))] == domains[2:3]


def test_seeds(repository, smoke):
    several = Plan(repository, smoke.scale.model_copy(update={"seeds": (0, 1, 2)}))
    assert len(several.runs) == 3 * 87
    assert all(run.parent is None or run.parent.endswith(f"seed-{run.seed}") for run in several.runs.values())
    told = {"seeds": (5, 6), "runs": ("ibrahim2024/405m/pile--sp/replay-0.0*",)}
    more = Plan(repository, parse(Scale, smoke.scale.model_dump() | {"more_seeds": told}, "smoke"))
    repeated = {"405m/pile", *(f"405m/pile--sp/replay-{r}" for r in (0.005, 0.01, 0.05))}
    assert {run.name for run in more.runs.values() if run.seed == 5} == repeated
    # A merge has the seeds that both of its runs have.
    assert more.ids("ibrahim2024", "405m/ties/sp-0.5") == ["ibrahim2024/405m/ties/sp-0.5/seed-0"]
    assert all(more.runs[name].identity == run.identity for name, run in smoke.runs.items())
    wrong = smoke.scale.model_dump() | {"more_seeds": {"seeds": (1,), "runs": ("*/pile-sp/*",)}}
    with pytest.raises(UserError, match=r"no run fits '\*/pile-sp/\*'"):
        Plan(repository, parse(Scale, wrong, "smoke"))


def test_merges_are_known_by_their_runs(smoke):
    (model_id,) = smoke.ids("ibrahim2024", "405m/ties/sp-0.5")
    merge = smoke.model(model_id)
    assert merge.density == 0.5 and [run.name for run, _ in merge.weights] == ["405m/pile", "405m/sp"]
    run_id = merge.weights[0][0].id
    assert smoke.model(run_id).identity == smoke.runs[run_id].identity != merge.identity


# -- papers side by side


def plan_at(project, *papers, scale="smoke"):
    return Plan(project, load_scale(project, scale), papers)


def test_a_third_paper_goes_on_from_another_ones_run(third_project):
    plan = plan_at(third_project, "third2026")
    check(plan)
    # Only what the third paper needs of the other is planned.
    assert {run.id for run in plan.runs.values() if run.paper == "ibrahim2024"} == {
        "ibrahim2024/405m/pile/seed-0"
    }
    (child,) = plan.find("third2026", "continued/replay-0.25")
    assert child.parent == "ibrahim2024/405m/pile/seed-0"
    assert plan.find("third2026", "ibrahim2024/405m/pile")[0].id == child.parent


def test_equal_trainings_are_one_with_several_names(third_project):
    plan = plan_at(third_project, "ibrahim2024", "third2026")
    both = [
        plan.find("ibrahim2024", "405m/pile--german/replay-0.25"),
        plan.find("third2026", "continued/replay-0.25"),
    ]
    (first,), (second,) = both
    assert first.identity == second.identity and plan.trainings[first.identity] == [first, second]
    # Of the third paper's three runs, two are trainings of Ibrahim's 70.
    assert len(plan.runs) == 70 + 3 and len(plan.trainings) == 70 + 1
    assert plan.wanted(first.identity).corpora == ("pile", "german")


def test_what_a_scale_lacks_is_absent_with_the_reason(third_project):
    plan = plan_at(third_project, "gupta2023", "ibrahim2024", "third2026")
    large = "scale smoke has no counterpart of the model 70b"
    reasons = {"finnish": "scale smoke has no corpus finnish", "large": large, "after-large": large}
    assert {run: why for (paper, run), why in plan.absent.items() if paper == "third2026"} == reasons
    assert plan.why_absent("third2026", "finnish") and plan.find("third2026", "finnish") == []
    assert len(plan_at(third_project, "gupta2023", "ibrahim2024").runs) == 87


def test_which_papers_are_made(third_project, repository, smoke):
    assert smoke.papers == ("gupta2023", "ibrahim2024") == plan_at(third_project).papers
    path = third_project.scales / "smoke.yaml"
    path.write_text(path.read_text().replace("papers: [gupta2023, ibrahim2024]\n", ""))
    assert plan_at(third_project).papers == ("gupta2023", "ibrahim2024", "regime", "third2026")
    with pytest.raises(UserError, match="the paper 'gupta2032' is unknown.*Did you mean 'gupta2023'"):
        plan_at(repository, "gupta2032")


# -- what the user is told


def run(**changes):
    out = {
        "model": "405m",
        "data": {"pile": 1},
        "iterations": 20000,
        "schedule": COSINE,
        "validate": ["pile", "sp"],
    }
    return {key: value for key, value in (out | changes).items() if value is not None}


FAMILY = {"parent": run(), "child": run(init_from={"run": "parent"}, data={"sp": 1}, replay_fraction=0.05)}


def family(parent=None, **child):
    return {"parent": FAMILY["parent"] | (parent or {}), "child": FAMILY["child"] | child}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory, repository):
    """`made_up(runs)`: the plan of smoke for one paper with these runs."""
    root = tmp_path_factory.mktemp("made-up")
    for name in ("data_manifests", "configs/scales", "configs/benchmarks"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(repository.root / name)
    folder = root / "configs" / "papers" / "made_up"
    folder.mkdir(parents=True)

    def plan(runs, **more):
        corpora = {
            key: {"role": "new", "called": key, "stands_for": key} for key in ("sp", "german", "dutch")
        }
        paper = {"paper": "made_up", "reference": "none", "batch": BATCH, "runs": runs}
        paper |= {"unit": {"billions": 300, "name": "300B tokens"}, "models": {"405m": "405M", "10b": "10B"}}
        paper |= {"corpora": {"pile": {"role": "old", "called": "old", "stands_for": "pile"}} | corpora}
        (folder / "runs.yaml").write_text(yaml.safe_dump(paper | more))
        project = Project.at(root)
        return Plan(project, load_scale(project, "smoke"), ("made_up",))

    return plan


WHERE = "configs/papers/made_up/runs.yaml"


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (family(data={"pile": -0.5, "sp": 1.5}), ["runs.child.data.pile", "-0.5"]),
        (family(data={"pile": 0.7, "sp": 0.7}), ["runs.child", "'data'", "1.4"]),
        (family(data={}), ["runs.child.data"]),
        (family(replay_fraction=1.1), ["runs.child.replay_fraction"]),
        (family(init_from=None), ["'replay_fraction'", "'init_from'"]),
        (family(schedule=INFINITE | {"constant_frac": 0.3}), ["runs.child.schedule", "anneal_frac", "1.05"]),
        (family(schedule=COSINE | {"eta_mix": 1}), ["schedule", "eta_mix", "Did you mean"]),
        (family(iterations=0), ["runs.child.iterations"]),
        (family(keep=["optimiser"]), ["runs.child.keep"]),
        (family(replay_fracton=0.1), ["runs.child.replay_fracton", "Did you mean 'replay_fraction'?"]),
        (family(valdate=["pile"]), ["runs.child.valdate", "Did you mean 'validate'?"]),
        (
            family(schedule=INFINITE | {"anneal_fraction": 0.1}),
            ["anneal_fraction", "Did you mean 'anneal_frac'?"],
        ),
        (
            family(init_from={"run": "parent", "iteration": 20001}),
            ["run 'child'", "20001", "'parent'", "20000"],
        ),
        (
            family(parent={"until": 10}, init_from={"run": "parent", "iteration": 20000}),
            ["run 'child'", "'init_from.iteration'", "'parent'", "'until'"],
        ),
        (family(init_from={"run": "parrent"}), ["run 'child'", "'parrent'", "Did you mean 'parent'?"]),
        (family(init_from="no-revision/given"), ["runs.child.init_from.model", "no-revision/given"]),
        (family(init_from={"run": "parent", "model": "a/b@c"}), ["either 'run' or 'model'"]),
        (family(init_from={"model": "a/b@c", "iteration": 5}), ["'iteration'", "revision"]),
        (family(init_from={"model": "a/b@c", "data": {"pile": 1}}), ["both 'data' and 'billions'"]),
        (family(init_from={"run": "parent", "billions": 3}), ["'data', 'billions' and 'size'"]),
        (family(init_from="a/b@c"), ["replay needs to know", "'init_from.data'"]),
        (family(init_from="a/b@c", keep=["optimizer"], replay_fraction=0), ["'keep'", "weights only"]),
        (family(init_from="./nowhere", replay_fraction=0), ["./nowhere", "does not exist"]),
        (family(parent={"init_from": {"run": "child"}}), ["its own ancestor", "'init_from'"]),
        (family(data={"slimpajama": 1}), ["runs.child", "'slimpajama'", "'corpora'"]),
        (family(validate=["pile", "slimpajama"]), ["runs.child", "'slimpajama'", "'corpora'"]),
        (family(data={"sp/x": 1}), ["sp/x"]),
        (family(data={"sp/0": 1}), ["sp/0"]),
        (family(model="20b"), ["runs.child", "'20b'", "'models'"]),
        (family(model="10b"), ["run 'child'", "10b", "405m", "'model'"]),
        (
            family(
                keep=["data"],
                data={"pile": 1},
                replay_fraction=0,
                init_from={"run": "parent", "iteration": 20000},
            ),
            ["run 'child'", "'init_from.iteration'", "nothing is left"],
        ),
        (family(keep=["data"], replay_fraction=0), ["run 'child'", "'keep'", "'parent'"]),
        (family() | {"next": run(init_from={"run": "child"}, replay_fraction=1)}, []),
        (
            family(replay_fraction=1) | {"next": run(init_from={"run": "child"}, replay_fraction=0.5)},
            ["run 'next'", "'replay_fraction' 1", "nothing"[:0]],
        ),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_wrong_run_is_refused_with_file_and_key(made_up, runs, said):
    if not said:  # replay alone may end a lineage
        return check(made_up(runs))
    with pytest.raises(UserError) as caught:
        made_up(runs)
    assert [
        part for part in (WHERE if "./nowhere" not in said else "", *said) if part not in str(caught.value)
    ] == []


def test_runs_that_are_left_out_take_those_that_start_from_them(made_up):
    plan = made_up(family(parent={"absent": "another takes its place"}) | {"aside": run(data={"german": 1})})
    assert [planned.name for planned in plan.runs.values()] == ["aside"]
    assert set(plan.absent.values()) == {"another takes its place"} and len(plan.absent) == 2
    # A corpus that the scale lacks is left out of the validation; where nothing is left, the run is absent.
    plan = made_up({"one": run(validate=["pile", "dutch"]), "two": run(validate=["dutch"], data={"sp": 1})})
    assert plan.find("made_up", "one")[0].validation.corpora == ("pile",)
    assert "no corpus dutch to validate on" in plan.absent["made_up", "two"]


def test_too_many_evaluations_are_refused(repository, smoke):
    validation = smoke.scale.validation.model_copy(update={"every": 0.02})
    with pytest.raises(UserError, match="too many evaluations.*validation.every"):
        Plan(repository, smoke.scale.model_copy(update={"validation": validation}))


@pytest.mark.parametrize(
    "template",
    [
        {"{a}-{b}-{c}-{d}": run() | {"each": {key: [*range(300)] for key in "abcd"}}},
        {f"{{a}}-{k}": run() | {"each": {"a": [*range(10_001)]}} for k in range(2)},
    ],
    ids=["one grid", "several"],
)
def test_a_grid_of_too_many_runs_is_refused_before_it_is_made(made_up, template):
    with pytest.raises(UserError, match="runs.yaml.* combinations are too many: 20000 are the most"):
        made_up(template)


@pytest.mark.slow
def test_ten_thousand_runs_are_planned(made_up):
    grid = {"{a}-{b}": run(iterations=1) | {"each": {key: [*range(100)] for key in "ab"}}}
    assert len(made_up(grid).runs) == 10_000


def test_a_line_of_runs_may_be_longer_than_the_stack_is_deep(made_up):
    line = {f"c{k}": run(init_from={"run": f"c{k - 1}"} if k else None, iterations=1) for k in range(2000)}
    plan = made_up(line | {"0": run(init_from={"run": "c1999"}, iterations=1)})  # the first of the file
    assert len(plan.lineage("made_up/0/seed-0")) == len(plan.runs) == 2001
    check(plan)


def test_replay_of_too_many_stages_is_refused(made_up):
    line = {f"c{k}": run(init_from={"run": f"c{k - 1}"} if k else None) for k in range(101)}
    replaying = run(init_from={"run": "c99"}, replay_fraction=0.1)
    assert len(made_up(line | {"last": replaying}).lineage("made_up/last/seed-0")) == 101
    replaying["init_from"] = {"run": "c100"}
    with pytest.raises(UserError, match="run 'last': it replays 101 stages; 100 are the most"):
        made_up(line | {"last": replaying})


def test_a_manifest_without_shares_makes_no_plan(third_project):
    path = third_project.manifests / "smoke_weak.yaml"
    manifest = yaml.safe_load(path.read_text())
    files = yaml.safe_load((third_project.manifests / "english_web.yaml").read_text())
    path.write_text(
        yaml.safe_dump(files | {"name": "smoke_weak", "domains": dict.fromkeys(files["domains"])})
    )
    assert manifest["kind"] == "generated"
    with pytest.raises(UserError, match="'smoke_weak'.*no shares"):
        plan_at(third_project)


numbers = st.one_of(
    st.integers(-3, 300_000), st.floats(-2, 2), st.sampled_from([float("inf"), float("nan"), 1e4])
)
keys = st.sampled_from(
    ["pile", "sp", "german", "dutch", "sp/1", "sp/7", "sp/8", "sp/0", "sp/-1", "sp/", "pile/²", "c4"]
)
names = st.sampled_from(["a", "b", "c", "d", "", "../a"])
anything = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=5), names, st.lists(keys, max_size=3)
)
FIELDS = {
    "model": st.one_of(st.sampled_from(["405m", "10b", "1b"]), anything),
    "init_from": st.one_of(
        st.builds(lambda name, at: {"run": name, "iteration": at}, names, numbers), anything
    ),
    "keep": st.one_of(st.lists(st.sampled_from(["optimizer", "data", "weights"]), max_size=3), anything),
    "data": st.one_of(keys.map(lambda key: {key: 1}), st.dictionaries(keys, numbers, max_size=3), anything),
    "replay_fraction": st.one_of(st.floats(0, 1), st.sampled_from([0, 1]), anything),
    "iterations": st.one_of(st.integers(1, 200_000), anything),
    "until": st.one_of(st.floats(0, 400), anything),
    "start": st.one_of(st.floats(0, 400), anything),
    "schedule": st.one_of(
        st.dictionaries(st.sampled_from([*COSINE, "version"]), anything, max_size=3), anything
    ),
    "validate": st.one_of(st.lists(keys, max_size=3), anything),
    "other": anything,
}
mutations = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda key: st.tuples(st.sampled_from(["a", "b", "c"]), st.just(key), FIELDS[key])
)
OUTCOMES = Counter()


@given(st.lists(mutations, min_size=1, max_size=2))
def test_any_mutation_gives_a_valid_plan_or_one_sentence(made_up, changes):
    runs = {
        "a": run(),
        "b": run(init_from={"run": "a"}, data={"sp/1": 1}, replay_fraction=0.05),
        "c": run(init_from={"run": "b"}, data={"sp/2": 0.5, "german": 0.5}, replay_fraction=0.05),
    }
    for name, key, value in changes:
        runs[name][key] = value
    try:
        plan = made_up(runs)
    except UserError as error:
        assert "runs.yaml" in str(error) and error.do
        OUTCOMES["refused"] += 1
    else:
        check(plan)
        OUTCOMES["accepted"] += 1


def test_mutations_were_both_refused_and_accepted():
    assert OUTCOMES["refused"] > 20 and OUTCOMES["accepted"] > 5, OUTCOMES


def test_runs_of_a_paper_are_evaluated_where_claims_ask_and_where_others_stop(third_project):
    """Points of claims and exhibits, closing evaluations of runs that stop early: in all that go so far.

    They make no curve incomplete, and no training another.
    """
    claims = third_project.papers / "gupta2023" / "claims.yaml"
    exhibits = third_project.papers / "gupta2023" / "exhibits.yaml"
    before = Plan(third_project, load_scale(third_project, "pocket"), ("gupta2023",))
    for path, asked in ((claims, "[33.3, 121]"), (exhibits, "[44.4]")):
        text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("points:"))
        path.write_text(f"{text}\npoints: {asked}\n")
    plan = Plan(third_project, load_scale(third_project, "pocket"), ("gupta2023",))
    assert plan.studies["gupta2023"].points == (33.3, 44.4, 121)
    short, long = (
        plan.find("gupta2023", f"410m/pile--sp/{name}")[0] for name in ("warmup-0", "eta_max-3e-4")
    )
    asked = [plan.scale.iterations(x) for x in (33.3, 44.4, 121)]
    assert {*asked} <= {*long.validation.shared} and {*asked[:2]} <= {*short.validation.shared}
    assert max(short.validation.evaluations) == short.training.iterations == plan.scale.iterations(50)
    assert {*short.validation.closing} <= {*long.validation.evaluations}
    assert not {*long.validation.shared} & {*before.runs[long.id].validation.closing}
    at_50 = {i for i in long.validation.evaluations if i <= short.training.iterations}
    assert at_50 == {*short.validation.evaluations}
    assert {run.identity for run in plan.runs.values()} == {run.identity for run in before.runs.values()}
    wanted = plan.wanted(long.identity)
    assert wanted.shared == long.validation.shared and {*wanted.shared} < {*wanted.evaluations}
    exhibits.write_text(f"{exhibits.read_text()}".replace("[44.4]", "[-1]"))
    with pytest.raises(UserError, match=r"exhibits.yaml: the key 'points.0'"):
        Plan(third_project, load_scale(third_project, "pocket"), ("gupta2023",))


def test_tokens_of_a_lineage_are_all_that_its_weights_saw(smoke):
    def tokens(name):
        return smoke.lineage_tokens(f"{name}/seed-0")

    def own(name):
        return smoke.runs[f"{name}/seed-0"].training.tokens

    old, new = "ibrahim2024/405m/pile", "ibrahim2024/405m/pile--sp/replay-0"
    assert tokens(old) == own(old) and tokens(new) == own(old) + own(new)
    # 143,000 iterations of 1024 sequences came before; an earlier checkpoint leaves fewer behind it.
    late, early = (f"gupta2023/410m/pile{at}--sp/warmup-0" for at in ("", "@10000"))
    assert tokens(late) - own(late) > 14 * (tokens(early) - own(early)) > 0
    splits = [f"ibrahim2024/405m/sp-3x100/infinite-cosine/split-{k}" for k in (1, 2, 3)]
    assert tokens(splits[2]) == sum(map(own, splits))
    # A branch leaves its trunk before that one's end.
    assert tokens(f"{splits[2]}-annealed") - tokens(splits[2]) < own(f"{splits[2]}-annealed")
