"""Identity: what decides weights changes it, and nothing else does."""

import re

import pytest
import yaml
from pydantic import Field, create_model

from cpt_repro.declarations.scale import Size, load_scale
from cpt_repro.planning.plan import Plan
from cpt_repro.planning.training import Training

RUN = (
    "405m/german: {model: 405m, data: {german: 1}, iterations: 86000, schedule: *cosine, "
    "validate: [pile, german]}"
)


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text, old
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def identities(project, scale="pocket"):
    return {run_id: run.identity for run_id, run in Plan(project, load_scale(project, scale)).runs.items()}


def changed(project, file, old, new, scale="pocket"):
    """Runs whose identity is another after an edit, those of new names included; and those that are gone."""
    before = identities(project, scale)
    edit(project.root / file, old, new)
    after = identities(project, scale)
    return {run for run, identity in after.items() if before.get(run) != identity}, set(before) - set(after)


RUNS, POCKET = "configs/papers/ibrahim2024/runs.yaml", "configs/scales/pocket.yaml"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        # another validation corpus, on a run that most others start from
        (RUNS, "schedule: *cosine, validate: [pile, sp, german]", "schedule: *cosine, validate: [pile, sp]"),
        (RUNS, RUN, RUN.replace("[pile, german]", "[pile, german, sp]")),
        (POCKET, "validation: {sequences: 1000", "validation: {sequences: 500"),
        (POCKET, "every: 40,", "every: 20,"),
        (POCKET, "closing_evaluations: 2", "closing_evaluations: 9"),
        # a further benchmark task
        (
            POCKET,
            "      last_word: {",
            "      shorter: {kind: last_word, documents: 50, context_words: 9}\n      last_word: {",
        ),
        # labels, words, folders and habits
        (RUNS, "models: {405m: 405M", "models: {405m: 400M"),
        (RUNS, "stands_for: SlimPajama", "stands_for: RedPajama"),
        (POCKET, "about: Real", "about: True"),
        (POCKET, "save_every: 50", "save_every: 10"),
        ("configs/papers/ibrahim2024/exhibits.yaml", 'label: "SlimPajama"', 'label: "Slim Pajama"'),
    ],
)
def test_what_is_measured_and_said_changes_no_identity(third_project, file, old, new):
    assert changed(third_project, file, old, new) == (set(), set())


def test_a_renamed_run_keeps_its_identity_and_its_children(third_project):
    before = identities(third_project)
    paper = third_project.papers / "gupta2023"
    for path in (paper / "runs.yaml", paper / "exhibits.yaml", third_project.scales / "pocket.yaml"):
        text = path.read_text()
        path.write_text(re.sub(r"410m/pile(?=[:,}\s\"@])(?!@)", "410m/upstream", text))
    after = identities(third_project)
    assert after["gupta2023/410m/upstream/seed-0"] == before.pop("gupta2023/410m/pile/seed-0")
    assert {run: identity for run, identity in after.items() if run in before} == {
        run: identity for run, identity in before.items() if run in after
    }


def descendants(project, name, scale="pocket"):
    plan = Plan(project, load_scale(project, scale))
    return {run for run in plan.runs if any(ancestor.name == name for ancestor in plan.lineage(run))}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("iterations: 86000", "iterations: 86100"),
        ("data: {german: 1}", "data: {sp: 1}"),
        ("data: {german: 1}", "data: {german: 0.9, sp: 0.1}"),
        ("schedule: *cosine", "schedule: {<<: *cosine, eta_max: 2.0e-4}"),
        ("schedule: *cosine", "schedule: {<<: *cosine, warmup_frac: 0.02}"),
        ("schedule: *cosine", "schedule: {<<: *cosine, version: 1}"),
        ("schedule: *cosine", "schedule: {kind: constant, eta_const: 3.0e-5}"),
        ("schedule: *cosine", "start: 10, schedule: *cosine"),
        ("schedule: *cosine", "until: 50, schedule: *cosine"),
        ("data: {german: 1}", "init_from: {run: 405m/pile}, data: {german: 1}"),
    ],
)
def test_what_decides_weights_changes_the_identity_of_the_run_alone(third_project, old, new):
    own = {run for run in identities(third_project) if run.startswith("ibrahim2024/405m/german/")}
    assert changed(third_project, RUNS, RUN, RUN.replace(old, new))[0] == own


def test_a_changed_parent_changes_what_starts_from_it(third_project):
    expected = descendants(third_project, "405m/pile")
    line = "405m/pile: {model: 405m, data: {pile: 1}, iterations: 132366"
    assert changed(third_project, RUNS, line, line.replace("132366", "132000"))[0] == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sequence_length: 128", "sequence_length: 64"),
        ("batch_sequences: 16", "batch_sequences: 8"),
        ("vocab_size: 1024", "vocab_size: 512"),
        ("tokens_per_billion: 26667", "tokens_per_billion: 20000"),
        ("seeds: [0", "seeds: [7"),
        ("405m: {layers: 2, width: 24, heads: 1", "405m: {layers: 2, width: 48, heads: 1"),
        ("eta_factor: ", "eta_factor: 1"),
        ("\nseeds: ", "\nprecision: amp_bf16\nseeds: "),
        ("\nseeds: ", "\nthreads: 2\nseeds: "),
        ("pile: english_broad, sp: english_web", "pile: english_web, sp: english_broad"),
    ],
)
def test_what_decides_weights_in_a_scale(third_project, old, new):
    first = {
        run
        for run in identities(third_project)
        if run.startswith("ibrahim2024/405m") and run.endswith("seed-0")
    }
    edited, gone = changed(third_project, POCKET, old, new)
    assert first <= edited | gone


def test_another_text_changes_what_reads_it_and_what_starts_from_that(third_project):
    path = third_project.manifests / "german_downstream.yaml"
    manifest = yaml.safe_load(path.read_text())
    before = identities(third_project)
    manifest["splits"]["train"]["sha256_jsonl"] = "0" * 64
    path.write_text(yaml.safe_dump(manifest))
    after = identities(third_project)
    reading = {run for run in before if "german" in run}
    assert {run for run in after if after[run] != before[run]} == reading


def test_a_new_field_with_a_default_changes_no_identity(plan_of):
    """Of the model's declaration, and of a training's."""
    run = next(iter(plan_of("pocket").runs.values()))
    wider = create_model("Wider", __base__=Size, experts=(int, 1))
    model = {"model": (wider, Field()), "dropout": (float, 0.0)}
    longer = create_model("Longer", __base__=Training, **model)
    dumped = run.training.model_dump()
    assert longer(**dumped).identity == run.identity
    assert longer(**dumped | {"dropout": 0.1}).identity != run.identity
    assert longer(**dumped | {"model": {**dumped["model"], "experts": 2}}).identity != run.identity


def test_the_identity_is_no_accident(plan_of):
    """Receipts are known by it: a change here makes all of them stale, and must be meant."""
    first = next(iter(plan_of("pocket").runs.values()))
    assert (first.id, first.identity[:16]) == ("gupta2023/410m/pile/seed-0", "5927c2484772f540")
