"""The plan of both papers, the reservoir's shares, and what the user is told when a declaration is wrong."""

import copy
import random
from collections import Counter
from graphlib import TopologicalSorter

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpt_repro import papers
from cpt_repro.project import SCALES
from cpt_repro.declarations.scale import Scale, load_scale
from cpt_repro.declarations.strict import load, parse, read_yaml
from cpt_repro.data.order import cumulative_counts
from cpt_repro.errors import UserError
from cpt_repro.declarations.exhibits import find_exhibit
from cpt_repro.declarations.runs import Paper
from cpt_repro.planning.plan import Part, Plan, reservoir_shares, streams
from cpt_repro.workflow.jobs import Workflow

# Same examples every time, and no clock: a busy machine is no fault.
settings.register_profile("calm", deadline=None, derandomize=True)
settings.load_profile("calm")

SMOKE = load_scale("smoke")
SCALE_NAMES = sorted(path.stem for path in SCALES.glob("*.yaml"))


@pytest.fixture(scope="module", params=["smoke", "pocket"])
def plan(request):
    return Plan(load_scale(request.param))


# -- what both papers need


def test_number_of_segments_seven_domains():
    plan = Plan(SMOKE)
    assert len(plan._shares["sp"]) == 7
    # Gupta: upstream 1, scratch 1, maximum rates 3, constant 1, warm-ups 3, earlier checkpoints 4, on the Pile 4.
    # Ibrahim 405M: scratch and unions 5; Pile -> SP 6 replay + 2 rates + 2 constant + 3 warm-ups = 13, German as many;
    # Pile -> Pile 5; infinite 2; three splits 2 x 3 + 2 x 3 annealed + 3 cosine = 15; domains 7; sizes 4; optimizer 1.
    # Ibrahim 10B: scratch and union 3, replay 2.
    assert Counter((s.paper, s.model_name) for s in plan.segments.values()) == {
        ("gupta2023", "405m"): 17,
        ("ibrahim2024", "405m"): 65,
        ("ibrahim2024", "10b"): 5,
    }
    assert len(plan.segments) == 87 and not plan.absent


def test_number_of_segments_three_domains():
    plan = Plan(load_scale("pocket").model_copy(update={"more_seeds": None}))
    assert len(plan._shares["sp"]) == 3
    assert Counter((s.paper, s.model_name) for s in plan.segments.values()) == {
        ("gupta2023", "405m"): 17,
        ("ibrahim2024", "405m"): 61,
        ("ibrahim2024", "10b"): 5,
    }
    assert len(plan.segments) == 83
    assert set(plan.absent) == {("ibrahim2024", f"405m/pile--sp-domains/stage-{k}") for k in (4, 5, 6, 7)}


def test_units_of_300_billion_tokens(plan):
    # Gupta: 299.9 + 5 x 239.3 + 11 x 50 = 2046.4.
    # Ibrahim 405M: 299.3 + 299.3 + 194.4 + 598.6 + 493.7 = 1885.3 from scratch; SP 10 x 299.3 + 3 x 50 = 3142.8;
    # German 10 x 194.4 + 150 = 2094.5; Pile 500; infinite 598.6; splits 900 + 6 x 14; domains 299.3; sizes 600;
    # optimizer 40; together 10144.4. 10B: 4 x 299.3 + 598.6 = 1795.7.
    units = Counter()
    for segment in plan.segments.values():
        if segment.seed != plan.scale.seeds[0]:
            continue
        units[segment.paper, segment.model_name] += segment.billions / 300
    assert units["gupta2023", "405m"] == pytest.approx(2046.4 / 300, abs=0.02)
    assert units["ibrahim2024", "405m"] == pytest.approx(10144.4 / 300, abs=0.05)
    assert units["ibrahim2024", "10b"] == pytest.approx(1795.7 / 300, abs=0.02)
    assert sum(units.values()) == pytest.approx(46.6, abs=0.1)


def check(plan):
    """What holds for every plan that is accepted at all."""
    identities = [segment.identity for segment in plan.segments.values()]
    assert len(set(identities)) == len(identities)
    earlier = {}
    for key, segment in plan.segments.items():
        assert key == segment.id
        if segment.parent:
            parent = earlier[segment.parent]  # parents precede
            assert segment.parent_identity == parent.identity
            assert 0 <= segment.parent_iteration <= parent.iterations
            assert segment.parent_iteration in plan.checkpoints[parent.id]
        earlier[key] = segment
        assert 1 <= segment.iterations <= segment.schedule_iterations
        assert {0, segment.iterations} <= set(segment.evaluations)
        assert set(segment.closing) <= set(segment.evaluations) <= set(range(segment.iterations + 1))
        assert list(segment.evaluations) == sorted(set(segment.evaluations))
        check_shares(segment.mixture)
        assert sum(cumulative_counts(segment.mixture, 997)) == 997
        assert {stream.corpus for stream in streams(segment.mixture)} | set(segment.validate_on) == set(
            segment.data
        )
    bundled = [segment.id for members in plan.bundles.values() for segment in members]
    assert sorted(bundled) == sorted(plan.segments)
    job_of = {segment.id: job for job, members in plan.bundles.items() for segment in members}
    after = {job: set() for job in plan.bundles}
    for job, members in plan.bundles.items():
        done = set()
        for segment in members:
            assert segment.parent is None or segment.parent in done or job_of[segment.parent] != job
            done.add(segment.id)
            if segment.parent and job_of[segment.parent] != job:
                after[job].add(job_of[segment.parent])
        assert len({segment.model_name for segment in members}) == 1
        assert len(members) == 1 or sum(segment.billions for segment in members) <= plan.scale.bundle + 1e-6
    # No two jobs wait for each other: sorting by what they wait for comes to an end.
    assert len(list(TopologicalSorter(after).static_order())) == len(plan.bundles)


def check_shares(parts: tuple[Part, ...]):
    assert abs(sum(part.share for part in parts) - 1) < 1e-3
    for part in parts:
        assert bool(part.parts) != bool(part.stream)
        if part.parts:
            check_shares(part.parts)


def test_plan_holds_together(plan):
    check(plan)


def test_bundle_of_nothing_is_one_process_a_segment():
    plan = Plan(SMOKE.model_copy(update={"bundle": 0}))
    assert all(len(members) == 1 for members in plan.bundles.values())
    assert len(plan.bundles) == len(plan.segments)


def test_bundles_are_fewer_processes(plan):
    assert len(plan.bundles) < len(plan.segments) / 2


def test_names_follow_the_papers_settings(plan):
    for name in (
        "replay-0",
        "replay-0.005",
        "eta_max-1.5e-4",
        "eta_max-6e-4",
        "constant-3e-5",
        "warmup-0.02",
    ):
        assert plan.find("ibrahim2024", f"405m/pile--sp/{name}")
    assert plan.find("gupta2023", "410m/pile@10000--sp/warmup-0.01")
    assert plan.find("gupta2023", "410m/pile@1--sp/warmup-0.01") == []


def test_seeds_multiply_the_segments():
    plan = Plan(SMOKE.model_copy(update={"seeds": (0, 1, 2)}))
    assert len(plan.segments) == 3 * 87
    check(plan)
    assert [s.seed for s in plan.find("ibrahim2024", "405m/pile")] == [0, 1, 2]
    assert all(s.parent is None or s.parent.endswith(f"seed-{s.seed}") for s in plan.segments.values())


def test_more_seeds_of_some_runs_bring_their_ancestors():
    more = {"seeds": (5, 6), "runs": ("ibrahim2024/405m/pile--sp/replay-0.0*",)}
    plan = Plan(parse(Scale, SMOKE.model_dump() | {"more_seeds": more}, "smoke"))
    check(plan)
    repeated = {"405m/pile", *(f"405m/pile--sp/replay-{r}" for r in (0.005, 0.01, 0.05))}
    assert {s.name for s in plan.segments.values() if s.seed == 5} == repeated
    assert len(plan.segments) == 87 + 2 * 4
    assert [s.seed for s in plan.find("ibrahim2024", "405m/pile--sp/replay-0.05")] == [0, 5, 6]
    # A merge has the seeds that both of its runs have.
    assert plan.ids("ibrahim2024", "405m/ties/sp-0.5") == ["ibrahim2024/405m/ties/sp-0.5/seed-0"]
    first = Plan(SMOKE)
    assert all(plan.segments[name].identity == segment.identity for name, segment in first.segments.items())


def test_more_seeds_of_no_run_are_refused():
    scale = parse(
        Scale, SMOKE.model_dump() | {"more_seeds": {"seeds": (1,), "runs": ("*/pile-sp/*",)}}, "smoke"
    )
    with pytest.raises(UserError, match=r"no run fits '\*/pile-sp/\*'"):
        Plan(scale)


def test_central_comparisons_of_pocket_have_three_seeds():
    plan = Plan(load_scale("pocket"))
    shifts = [
        f"405m/pile--{new}/{arm}"
        for new in ("sp", "german")
        for arm in (
            "constant-3e-5",
            "constant-3e-4",
            "eta_max-1.5e-4",
            "eta_max-6e-4",
            "replay-0",
            "replay-0.05",
            "replay-0.5",
        )
    ]
    for name in [*shifts, "405m/pile", "405m/pile+sp", "405m/pile+german"]:
        assert len(plan.ids("ibrahim2024", name)) >= 3


@pytest.mark.parametrize(
    ("scale", "iterations"),
    # Pythia's batch has 1024 x 2048 tokens: 10,000 are 20.97152B, 27,000 are 56.623104B, 143,000 are 299.892736B.
    # smoke: 1,000 tokens a billion, 1,024 a batch; pocket: 26,667 and 2,048: 20.97152 x 26667 / 2048 = 273.07.
    [("smoke", (20, 55, 293)), ("pocket", (273, 737, 3905))],
)
def test_earlier_upstream_checkpoints(scale, iterations):
    plan = Plan(load_scale(scale))
    upstream, *_ = plan.find("gupta2023", "410m/pile")
    assert (20.97152 * plan.scale.tokens_per_billion) / (
        plan.scale.batch_sequences * plan.scale.sequence_length
    ) == pytest.approx(iterations[0], abs=0.5)
    assert plan.checkpoints[upstream.id] == dict.fromkeys(iterations, False)
    for paper_iteration, expected in zip((10000, 27000), iterations, strict=False):
        for warmup in ("0", "0.01"):
            (child,) = plan.find("gupta2023", f"410m/pile@{paper_iteration}--sp/warmup-{warmup}")
            assert child.parent_iteration == expected
    last, *_ = plan.find("gupta2023", "410m/pile--sp/eta_max-3e-4")
    assert last.parent_iteration == upstream.iterations == iterations[2]


def test_checkpoints_asked_of_parents():
    plan = Plan(SMOKE)
    # 132,366 iterations are 299.28B tokens: 299,278.5 / 1,024 = 292.3; one child keeps the optimizer's state.
    assert plan.checkpoints["ibrahim2024/405m/pile/seed-0"] == {292: True}
    # 44,229 are 100.0014B: 97.66, so 98; the annealed branch leaves at 38,037 (86.0014B: 83.99, so 84) with it.
    assert plan.checkpoints["ibrahim2024/405m/sp-3x100/infinite-cosine/split-1/seed-0"] == {
        84: True,
        98: False,
    }
    assert plan.checkpoints["ibrahim2024/405m/sp-3x100/infinite-cosine/split-1-annealed/seed-0"] == {
        14: False
    }
    assert plan.checkpoints["ibrahim2024/405m/german/seed-0"] == {190: False}  # 194.445B


def test_rates_are_scaled_by_the_models_factor(plan):
    for segment in plan.segments.values():
        declared = plan.papers[segment.paper].runs[segment.name].schedule
        assert segment.schedule == declared.scaled(plan.scale.models[segment.model_name].eta_factor)


def test_gupta_stops_early_on_a_long_schedule():
    plan = Plan(SMOKE)
    (run,) = plan.find("gupta2023", "410m/pile--sp/warmup-0.02")
    # 131,296 x 2,260,992 tokens = 296.859B: 289.9 batches; 50B: 48.8.
    assert (run.schedule_iterations, run.iterations) == (290, 49)
    assert run.schedule.version == 1
    (other,) = plan.find("ibrahim2024", "405m/pile--sp/warmup-0.02")
    assert other.schedule.version == 2


# -- the reservoir (Eq. 5)


def test_reservoir_of_one_dataset():
    assert reservoir_shares([300], 0.05) == [1.0]


def test_reservoir_of_two_by_hand():
    # D_0 300, D_1 100 with 5 % replay: R_2 holds 300 + 5 of D_0 and 95 of D_1 in 400.
    assert reservoir_shares([300, 100], 0.05) == pytest.approx([305 / 400, 95 / 400], rel=1e-12)


def test_reservoir_of_three_by_hand():
    # D_0 300, D_1 156, D_2 80, 5 % replay. R_1: D_0 alone. R_2: (300 + 7.8)/456 = 0.675 and 148.2/456 = 0.325.
    # R_3 of 536: D_0 300 + 7.8 + 0.675 x 4 = 310.5; D_1 148.2 + 0.325 x 4 = 149.5; D_2 76.
    expected = [310.5 / 536, 149.5 / 536, 76 / 536]
    assert reservoir_shares([300, 156, 80], 0.05) == pytest.approx(expected, rel=1e-12)


datasets = st.lists(st.floats(0.1, 1000), min_size=1, max_size=8)


@given(datasets, st.floats(0, 1))
def test_reservoir_sums_to_one(amounts, replay):
    shares = reservoir_shares(amounts, replay)
    assert len(shares) == len(amounts)
    assert all(0 <= share <= 1 + 1e-12 for share in shares)
    assert sum(shares) == pytest.approx(1, abs=1e-9)


@given(datasets)
def test_reservoir_without_replay_has_the_sizes_shares(amounts):
    assert reservoir_shares(amounts, 0) == pytest.approx(
        [amount / sum(amounts) for amount in amounts], rel=1e-9
    )


@pytest.mark.parametrize("replay", [0.05, 0.3])
def test_reservoir_is_what_a_buffer_would_hold(replay):
    """All that was trained on goes into the buffer; a stage replays from it as it stood at the stage's beginning."""
    amounts, draw = [6000, 3000, 1500, 2000], random.Random(0)
    buffer: list[int] = []
    for number, amount in enumerate(amounts):
        count = round(replay * amount) if buffer else 0
        replayed = draw.choices(buffer, k=count) if buffer else []
        buffer = buffer + replayed + [number] * (amount - count)
    seen = Counter(buffer)
    simulated = [seen[number] / len(buffer) for number in range(len(amounts))]
    assert reservoir_shares(amounts, replay) == pytest.approx(simulated, abs=0.01)


def test_stages_use_the_reservoir(plan):
    names = ["405m/pile", "405m/pile--sp-domains/stage-1", "405m/pile--sp-domains/stage-2"]
    tokens = [plan.find("ibrahim2024", name)[0].tokens for name in names]
    (third,) = plan.find("ibrahim2024", "405m/pile--sp-domains/stage-3")
    replay, *new = third.mixture
    assert replay.share == 0.05 and sum(part.share for part in new) == pytest.approx(0.95)
    assert [part.share for part in replay.parts] == pytest.approx(reservoir_shares(tokens, 0.05))
    domains = list(plan._shares["sp"])
    # The replayed share of a stage is its own domain, not what it replayed itself.
    assert [{s.corpus for s in streams((part,))} for part in replay.parts] == [{"pile"}, {"sp"}, {"sp"}]
    assert [s.domain for part in replay.parts[1:] for s in streams((part,))] == domains[:2]
    assert [s.domain for s in streams(tuple(new))] == domains[2:3]


# -- identities

BATCH = {"sequences": 1104, "sequence_length": 2048}
COSINE = {"kind": "cosine", "eta_max": 3e-4, "eta_min": 3e-5}


def run(**changes):
    out = {
        "model": "405m",
        "data": {"pile": 1},
        "iterations": 20000,
        "schedule": COSINE,
        "validate": ["pile", "sp"],
    }
    return {key: value for key, value in (out | changes).items() if value is not None}


def declared(runs, **more):
    return {"paper": "made_up", "reference": "none", "batch": BATCH, "runs": runs} | more


def plan_of(runs, scale=SMOKE, **more):
    return Plan(scale, papers=[parse(Paper, declared(runs, **more), "runs.yaml")])


def identity(runs, name="child", scale=SMOKE):
    (segment, *_) = plan_of(runs, scale).find("made_up", name)
    return segment.identity


FAMILY = {"parent": run(), "child": run(init_from={"run": "parent"}, data={"sp": 1}, replay_fraction=0.05)}


def family(parent=None, **child):
    return {"parent": FAMILY["parent"] | (parent or {}), "child": FAMILY["child"] | child}


@pytest.mark.parametrize(
    "changed",
    [
        family(schedule=COSINE | {"eta_max": 2e-4}),
        family(schedule=COSINE | {"version": 1}),
        family(schedule=COSINE | {"warmup_frac": 0.02}),
        family(data={"german": 1}),
        family(data={"sp/1": 1}),
        family(data={"sp": 0.9, "german": 0.1}),
        family(replay_fraction=0.1),
        family(start=10),
        family(iterations=21000),
        family(until=30),
        family(keep=["optimizer"]),
        family(validate=["pile"]),
        family(init_from={"run": "parent", "iteration": 10000}),
        family(parent={"iterations": 21000}),
        family(parent={"schedule": COSINE | {"eta_min": 2e-5}}),
        family(parent={"data": {"german": 1}}),
    ],
)
def test_identity_changes_with_what_decides_the_numbers(changed):
    assert identity(changed) != identity(FAMILY)


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": (1,)},
        {"batch_sequences": 8},
        {"sequence_length": 32},
        {"tokens_per_billion": 2000},
        {"precision": "amp_bf16"},
        {"threads": 2},
        {"tokenizer": SMOKE.tokenizer.model_copy(update={"vocab_size": 512})},
        {"models": SMOKE.models | {"405m": SMOKE.models["405m"].model_copy(update={"layers": 1})}},
        {"models": SMOKE.models | {"405m": SMOKE.models["405m"].model_copy(update={"eta_factor": 9})}},
        {"corpora": SMOKE.corpora | {"sp": "smoke_strong"}},
    ],
)
def test_identity_changes_with_the_scale(changes):
    assert identity(FAMILY, scale=SMOKE.model_copy(update=changes)) != identity(FAMILY)


def test_identity_does_not_change_with_the_name():
    renamed = {"parent": FAMILY["parent"], "another": FAMILY["child"]}
    assert identity(renamed, "another") == identity(FAMILY)


def test_identity_does_not_change_with_other_runs_or_what_is_not_trained_on():
    assert identity(FAMILY | {"aside": run(data={"german": 1})}) == identity(FAMILY)
    assert identity(
        FAMILY, scale=SMOKE.model_copy(update={"suites": {}, "bundle": 1, "save_every": 7})
    ) == identity(FAMILY)


def test_the_start_from_outside_decides_the_identity():
    def of(**told):
        return identity(family(init_from={"model": "a/b@c", "data": {"pile": 1}, "billions": 300} | told))

    others = [{"model": "a/b@d"}, {"data": {"german": 1}}, {"billions": 200}]
    assert len({of(), *(of(**told) for told in others), identity(FAMILY)}) == 5


def test_a_run_that_is_left_out_is_absent_with_what_starts_from_it():
    plan = plan_of(family(parent={"absent": "another takes its place"}) | {"aside": run(data={"german": 1})})
    assert [segment.name for segment in plan.segments.values()] == ["aside"]
    assert set(plan.absent.values()) == {"another takes its place"} and len(plan.absent) == 2


def test_the_same_training_twice_is_refused():
    assert "same training as 'made_up/child/seed-0'" in refused(
        lambda: plan_of(FAMILY | {"twin": FAMILY["child"]})
    )


# -- what the user is told


def refused(action):
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


WHERE = "configs/papers/made_up/runs.yaml, run 'child'"


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (family(data={"pile": -0.5, "sp": 1.5}), ["runs.yaml", "runs.child.data.pile", "-0.5"]),
        (family(data={"pile": 0.7, "sp": 0.7}), ["runs.yaml", "runs.child", "'data'", "1.4"]),
        (family(data={"pile": 0.5}), ["runs.yaml", "runs.child", "'data'", "0.5"]),
        (family(data={}), ["runs.yaml", "runs.child.data"]),
        (family(replay_fraction=-0.1), ["runs.yaml", "runs.child.replay_fraction"]),
        (family(replay_fraction=1.1), ["runs.yaml", "runs.child.replay_fraction"]),
        (family(init_from=None), ["runs.yaml", "runs.child", "'replay_fraction'", "'init_from'"]),
        (
            family(
                schedule={"kind": "infinite", "cooldown": "cosine", "eta_max": 3e-4, "eta_const": 1e-4}
                | {"eta_min": 1e-5, "constant_frac": 0.3}
            ),
            ["runs.yaml", "runs.child.schedule", "anneal_frac", "1.05"],
        ),
        (family(schedule=COSINE | {"warmup_frac": 1.5}), ["runs.yaml", "runs.child.schedule", "warmup_frac"]),
        (
            family(schedule=COSINE | {"eta_mix": 1}),
            ["runs.yaml", "runs.child.schedule", "eta_mix", "Did you mean"],
        ),
        (family(iterations=0), ["runs.yaml", "runs.child.iterations"]),
        (family(keep=["optimiser"]), ["runs.yaml", "runs.child.keep"]),
        (
            family(replay_fracton=0.1),
            ["runs.yaml", "runs.child.replay_fracton", "Did you mean 'replay_fraction'?"],
        ),
        (family(valdate=["pile"]), ["runs.yaml", "runs.child.valdate", "Did you mean 'validate'?"]),
        (
            family(
                schedule={"kind": "infinite", "cooldown": "cosine", "eta_max": 3e-4, "eta_const": 1e-4}
                | {"eta_min": 1e-5, "anneal_fraction": 0.14}
            ),
            ["runs.yaml", "anneal_fraction", "Did you mean 'anneal_frac'?"],
        ),
        (
            family(init_from={"run": "parent", "iteration": 20001}),
            [WHERE, "'init_from.iteration'", "20001", "'parent'", "20000"],
        ),
        (
            family(parent={"until": 10}, init_from={"run": "parent", "iteration": 20000}),
            [WHERE, "'init_from.iteration'", "'parent'", "'until'"],
        ),
        (family(init_from={"run": "nobody"}), [WHERE, "'nobody'", "not declared"]),
        (
            family(init_from="no-revision/given"),
            ["runs.yaml", "runs.child.init_from.model", "no-revision/given"],
        ),
        (family(init_from={"run": "parent", "model": "a/b@c"}), ["runs.yaml", "either 'run' or 'model'"]),
        (family(init_from={"model": "a/b@c", "iteration": 5}), ["runs.yaml", "'iteration'", "revision"]),
        (
            family(init_from={"model": "a/b@c", "data": {"pile": 1}}),
            ["runs.yaml", "both 'data' and 'billions'"],
        ),
        (family(init_from={"run": "parent", "billions": 3}), ["runs.yaml", "'data', 'billions' and 'size'"]),
        (family(init_from="a/b@c"), ["runs.yaml", "replay needs to know", "'init_from.data'"]),
        (
            family(init_from="a/b@c", keep=["optimizer"], replay_fraction=0),
            ["runs.yaml", "'keep'", "weights only"],
        ),
        (family(init_from="./nowhere", replay_fraction=0), ["./nowhere", "does not exist"]),
        (family(parent={"init_from": {"run": "child"}}), ["runs.yaml", "its own ancestor", "'init_from'"]),
        (family(init_from={"run": "child"}), [WHERE, "its own ancestor", "'init_from'"]),
        (family(data={"slimpajama": 1}), [WHERE, "'slimpajama'", "'data'", "pile, sp, german"]),
        (family(data={"sp/x": 1}), [WHERE, "sp/x", "'data'"]),
        (family(data={"sp/0": 1}), [WHERE, "sp/0", "'data'"]),
        (family(data={"sp/-1": 1}), [WHERE, "sp/-1", "'data'"]),
        (family(validate=["pile", "slimpajama"]), [WHERE, "'slimpajama'", "'validate'"]),
        (family(until=float("inf")), ["runs.yaml", "child", "until"]),
        (family(start=float("inf")), ["runs.yaml", "child", "start"]),
        # Weights of one size do not fit the other.
        (family(model="10b"), [WHERE, "10b", "405m", "'model'"]),
        # A branch that goes on to the end of its trunk from the trunk's end has nothing to train.
        (
            family(
                keep=["data"],
                data={"pile": 1},
                replay_fraction=0,
                init_from={"run": "parent", "iteration": 20000},
            ),
            [WHERE, "'init_from.iteration'"],
        ),
        # It goes on with the trunk's mixture, so it cannot declare another.
        (family(keep=["data"], replay_fraction=0), [WHERE, "'keep'", "'parent'"]),
        (family(keep=["data"], data={"pile": 1}), [WHERE, "'keep'", "'parent'"]),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_wrong_run_is_refused_with_file_and_key(runs, said):
    text = refused(lambda: plan_of(runs))
    assert [part for part in said if part not in text] == [], text


def test_replaying_a_run_that_was_replay_alone():
    """A stage with `replay_fraction` 1 saw no new data; what follows it either replays the rest or is refused."""
    runs = family(replay_fraction=1) | {
        "next": run(init_from={"run": "child"}, data={"german": 1}, replay_fraction=0.5)
    }
    try:
        check(plan_of(runs))
    except UserError as error:
        assert "replay_fraction" in str(error)


def test_merge_of_an_undeclared_run_is_refused():
    merges = {"ties": {"base": "parent", "task": "nobody", "density": 0.5}}
    text = refused(lambda: plan_of(FAMILY, merges=merges))
    assert "runs.yaml" in text and "ties" in text and "nobody" in text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("runs: []", "runs"),
        ("runs: {a: 3}", "'a'"),
        ("runs:\n  'a-{x}': {each: 3, model: 405m}", "each"),
        ("runs:\n  'a-{x}': {each: {x: 3}, model: 405m}", "each"),
        ("runs:\n  'a-{x}': {each: , model: 405m}", "each"),
        ("runs:\n  a: {each: {x: [1, 2]}, model: 405m}", "'a'"),
        ("runs:\n  a: {model: 405m, schedule: {kind: cosine, eta_min_ratio: 0.1}}", "eta_min_ratio"),
        # YAML 1.1 reads 3e-4 as text: it wants 3.0e-4. What is not a number cannot be multiplied.
        ("runs:\n  a: {model: 405m, schedule: {kind: cosine, eta_max: high, eta_min_ratio: 0.1}}", "eta_m"),
        (
            "runs:\n  a: {model: 405m, schedule: {kind: cosine, eta_max: 3.0e-4, eta_min_ratio: low}}",
            "eta_min",
        ),
        ("runs:\n  a: {model: 405m}\n  a: {model: 10b}", "'a' stands twice"),
        ("runs: [", "not valid YAML"),
        ("- a\n- b", "runs.yaml"),
        ("just text", "runs.yaml"),
        ("", "runs.yaml"),
    ],
)
def test_wrong_file_of_runs_is_refused(tmp_path, monkeypatch, wrong, said):
    (tmp_path / "made_up").mkdir()
    (tmp_path / "made_up" / "runs.yaml").write_text(wrong)
    monkeypatch.setattr(papers, "PAPERS", tmp_path)
    text = refused(lambda: papers.load_paper.__wrapped__("made_up"))
    assert "runs.yaml" in text and said in text


def test_paper_without_a_folder_is_refused():
    assert "runs.yaml" in refused(lambda: papers.load_paper.__wrapped__("gupta2032"))


def scale_file(tmp_path, change):
    raw = copy.deepcopy(read_yaml(SCALES / "smoke.yaml"))
    change(raw)
    path = tmp_path / "smoke.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda raw: raw.update(sequence_lenght=64),
            ["'sequence_lenght'", "Did you mean 'sequence_length'?"],
        ),
        (lambda raw: raw["models"]["405m"].update(eta_facter=1), ["models.405m.eta_facter", "'eta_factor'"]),
        (lambda raw: raw["validation"].update(evry=1), ["validation.evry", "'every'"]),
        (lambda raw: raw["models"]["405m"].update(heads=3), ["models.405m", "divide"]),
        (lambda raw: raw.update(tokens_per_billion=0), ["tokens_per_billion"]),
        (lambda raw: raw.pop("corpora"), ["corpora"]),
        (lambda raw: raw.update(precision="fp8"), ["precision", "fp8"]),
    ],
)
def test_wrong_scale_is_refused_with_file_and_key(tmp_path, change, said):
    path = scale_file(tmp_path, change)
    text = refused(lambda: load(Scale, path))
    assert [part for part in (str(path), *said) if part not in text] == [], text


def test_doubled_key_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "smoke.yaml"
    path.write_text("name: smoke\nmodels:\n  405m: {layers: 2, width: 32}\n  405m: {layers: 3, width: 32}\n")
    text = refused(lambda: load(Scale, path))
    assert str(path) in text and "'405m' stands twice" in text and "line 3" in text
    (tmp_path / "nested.yaml").write_text("a: {b: 1, c: {d: 1, d: 2}}")
    assert "'d' stands twice" in refused(lambda: read_yaml(tmp_path / "nested.yaml"))


def test_merge_keys_may_be_overridden(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nown: {<<: *base, b: 3}\n")
    assert read_yaml(path)["own"] == {"a": 1, "b": 3}


def test_unknown_scale_is_refused():
    text = refused(lambda: load_scale("smok"))
    assert "'smok'" in text and "Did you mean smoke?" in text and all(name in text for name in SCALE_NAMES)
    assert "Known: " in refused(lambda: load_scale("../smoke"))


def test_unknown_exhibit_is_refused():
    for action in (
        lambda: find_exhibit("ibrahim2024", "figure_5"),
        lambda: Workflow("smoke").exhibit_inputs("ibrahim2024", "figure_5"),
    ):
        text = refused(action)
        assert "'figure_5'" in text and "figure_05" in text and "exhibits.yaml" in text
    assert "gupta2032" in refused(lambda: find_exhibit("gupta2032", "figure_05"))


# -- whatever is declared, the answer is a plan or a paragraph

numbers = st.one_of(
    st.integers(-3, 300_000), st.floats(-2, 2), st.sampled_from([float("inf"), float("nan"), 1e4])
)
corpora = st.sampled_from(
    ["pile", "sp", "german", "sp/1", "sp/7", "sp/8", "sp/0", "sp/-1", "sp/x", "sp/", "pile/²", "c4"]
)
names = st.sampled_from(["a", "b", "c", "d", "", "../a"])
anything = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.text(max_size=5),
    names,
    corpora,
    st.lists(st.one_of(corpora, numbers, st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), numbers, max_size=2),
)
schedule_values = st.one_of(
    st.floats(1e-6, 1e-3), numbers, anything, st.sampled_from(["cosine", "constant", "infinite", "anneal"])
)
SCHEDULE_KEYS = [
    "kind",
    "version",
    "eta_max",
    "eta_min",
    "eta_const",
    "warmup_frac",
    "cooldown",
    "anneal_frac",
    "other",
]
fields = {
    "model": st.one_of(st.sampled_from(["405m", "10b", "1b"]), anything),
    "init_from": st.one_of(
        st.fixed_dictionaries({"run": names}, optional={"iteration": st.one_of(numbers, st.just(20000))}),
        anything,
    ),
    "keep": st.one_of(st.lists(st.sampled_from(["optimizer", "data", "weights"]), max_size=3), anything),
    "data": st.one_of(
        corpora.map(lambda key: {key: 1}),
        st.lists(corpora, min_size=2, max_size=3, unique=True).map(
            lambda keys: {k: 1 / len(keys) for k in keys}
        ),
        st.lists(corpora, min_size=2, max_size=3, unique=True).map(
            lambda keys: {k: float(k == keys[0]) for k in keys}
        ),
        st.dictionaries(corpora, numbers, max_size=3),
        anything,
    ),
    "replay_fraction": st.one_of(st.floats(0, 1), st.sampled_from([0, 1]), anything),
    "iterations": st.one_of(st.integers(1, 200_000), anything),
    "until": st.one_of(st.floats(0, 400), anything),
    "start": st.one_of(st.floats(0, 400), anything),
    "batch": st.one_of(
        st.fixed_dictionaries({"sequences": st.integers(0, 2000), "sequence_length": st.integers(0, 2048)}),
        anything,
    ),
    "schedule": st.one_of(
        st.dictionaries(st.sampled_from(SCHEDULE_KEYS), schedule_values, max_size=5).map(
            lambda d: COSINE | d
        ),
        anything,
    ),
    "validate": st.one_of(st.lists(corpora, max_size=3), anything),
    "validate_on": anything,
    "other": anything,
}
mutations = st.sampled_from(sorted(fields)).flatmap(
    lambda key: st.tuples(st.sampled_from(["a", "b", "c"]), st.just(key), fields[key])
)


@given(st.lists(mutations, min_size=1, max_size=3))
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_any_mutation_gives_a_valid_plan_or_a_user_error(changes):
    runs = {
        "a": run(),
        "b": run(init_from={"run": "a"}, data={"sp/1": 1}, replay_fraction=0.05),
        "c": run(init_from={"run": "b"}, data={"sp/2": 0.5, "german": 0.5}, replay_fraction=0.05),
    }
    for name, key, value in changes:
        runs[name][key] = value
    try:
        plan = plan_of(runs)
    except UserError as error:
        assert "runs.yaml" in str(error)
    else:
        check(plan)
