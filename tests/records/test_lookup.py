"""Records are found by what they are, whatever they are called; what is missing is measured."""

import json
import re
import shutil
from statistics import fmean

import pytest
import yaml

from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import FAILED, NO_COUNTERPART, NOT_RUN, Evidence, Records
from cpt_repro.records.receipts import (
    LaterLosses,
    Receipt,
    read_record,
    write_record,
)

WEAK = "405m/pile--sp/replay-0.05"


@pytest.fixture
def pocket(third_project, repository):
    """A project of its own with the committed receipts of some runs of pocket; `pocket()` reads it anew."""
    source, target = repository.results / "pocket", third_project.results / "pocket"
    for run in ("405m/pile", WEAK, "405m/sp", "405m/german"):
        shutil.copytree(source / "runs" / "ibrahim2024" / run, target / "runs" / "ibrahim2024" / run)

    def read(*papers):
        return Records(Plan(third_project, load_scale(third_project, "pocket"), papers))

    return read


def edit(project, file, old, new):
    path = project.root / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_committed_receipts_are_current(plan_of):
    records = Records(plan_of("pocket"))
    for run in records.plan.runs.values():
        receipt = records.receipt(run)
        assert receipt.identity == run.identity and receipt.training == run.training
        assert records.to_measure(run) == [] == records.incomplete_curves(run)
        wanted = records.plan.wanted(run.identity)
        assert {c: losses.data for c, losses in receipt.losses.items()} == {
            c: records.plan.data[c] for c in wanted.corpora
        }


def test_a_run_of_evidence(pocket):
    evidence = Evidence(pocket("ibrahim2024"), "ibrahim2024")
    first, *others = evidence.runs("405m/pile")
    assert [one.seed for one in (first, *others)] == [
        0,
        1,
        2,
    ] and first.parameters == first.receipt.parameters
    curve = first.curve("pile")
    assert curve[0][0] == 0 and curve[-1][0] == pytest.approx(first.run.billions) == pytest.approx(
        299.3, abs=0.1
    )
    # The end is of all sequences and of two evaluations, the curve of the first of them.
    last = {along: fmean(first.sequence_losses("pile", along)) for along in (True, False)}
    assert curve[-1][1] == pytest.approx(last[True], abs=1e-5)
    assert first.final["pile"].evaluations == 2
    # The standard error of two values is half of what lies between them.
    apart = abs(first.final["pile"].loss - last[False])
    assert apart == pytest.approx(first.final["pile"].stderr, abs=1e-5) and apart > 0
    assert len(first.sequence_losses("pile")) == 1000 and len(first.sequence_losses("pile", True)) == 250
    assert first.entropy_floor("pile") is None
    assert first.curve("nowhere") == [] == list(first.sequence_losses("nowhere"))
    assert set(evidence.digests) == {f"receipt ibrahim2024/405m/pile/seed-{k}" for k in range(3)}
    assert (
        evidence.runs("405m/pile+sp") == []
        and len(evidence.missing) == 3
        and evidence.why("405m/pile+sp") == NOT_RUN
    )
    assert evidence.planned("405m/ties/sp-0.5").name == "405m/sp"


def test_a_run_that_the_scale_lacks_is_no_gap(pocket, third_project):
    (large,) = re.findall("10b: {.*}", (third_project.scales / "pocket.yaml").read_text())
    edit(third_project, "configs/scales/pocket.yaml", large, "10b: null")
    evidence = Evidence(pocket("ibrahim2024"), "ibrahim2024")
    assert evidence.runs("10b/pile") == [] and evidence.without
    assert evidence.why("10b/pile") == NO_COUNTERPART and not evidence.missing


def test_a_digest_leaves_out_how_fast_it_was(pocket):
    records = pocket("ibrahim2024")
    (run, *_) = records.plan.find("ibrahim2024", "405m/pile")
    path, before = records.receipt_path(run), records.digest(records.receipt_path(run))
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"measured": {"seconds": 1}}))
    assert pocket("ibrahim2024").digest(path) == before
    path.write_text(json.dumps(told | {"parameters": 1}))
    assert pocket("ibrahim2024").digest(path) != before


def test_a_renamed_run_has_its_receipt(pocket, third_project):
    before = pocket("ibrahim2024")
    place = before.receipt_path(before.plan.find("ibrahim2024", "405m/german")[0])
    papers, scales = third_project.papers / "ibrahim2024", third_project.scales
    for path in (papers / "runs.yaml", papers / "exhibits.yaml", scales / "pocket.yaml"):
        path.write_text(path.read_text().replace("405m/german", "405m/deutsch"))
    records = pocket("ibrahim2024")
    (run, *_) = records.plan.find("ibrahim2024", "405m/deutsch")
    assert records.has_receipt(run) and records.receipt_path(run) == place


def test_an_equal_training_of_another_paper_has_it_too(pocket):
    records = pocket("third2026", "ibrahim2024")
    (run, *_) = records.plan.find("third2026", "german-alone")
    assert records.receipt(run).run.id == "ibrahim2024/405m/german/seed-0"
    # Not trained yet: the name that comes first is where it will lie.
    (twin, *_) = records.plan.find("ibrahim2024", "405m/pile--german/replay-0.25")
    assert records.receipt_path(twin).parent == records.place_of("third2026/continued/replay-0.25/seed-0")


def test_a_changed_training_is_not_run(pocket, third_project):
    line = "405m/pile: {model: 405m, data: {pile: 1}, iterations: 132366"
    edit(third_project, "configs/papers/ibrahim2024/runs.yaml", line, line.replace("132366", "132000"))
    records = pocket("ibrahim2024")
    there = {
        name: records.has_receipt(records.plan.find("ibrahim2024", name)[0])
        for name in ("405m/pile", WEAK, "405m/sp")
    }
    assert there == {"405m/pile": False, WEAK: False, "405m/sp": True}


def test_more_validation_marks_measurements_and_trains_nothing(pocket, third_project):
    edit(
        third_project,
        "configs/scales/pocket.yaml",
        "{sequences: 1000, along: 250, every: 40",
        "{sequences: 2000, along: 500, every: 40",
    )
    records = pocket("ibrahim2024")
    (run, *_) = records.plan.find("ibrahim2024", WEAK)
    assert records.has_receipt(run)
    assert records.to_measure(run) == ["pile", "sp"] == records.incomplete_curves(run)
    evidence = Evidence(records, "ibrahim2024")
    (trained, *_) = evidence.runs(WEAK)
    assert (
        trained.final["pile"].loss > 0 and run.id in evidence.to_be_measured
    )  # what there is is shown, and named


def test_another_corpus_is_measured_on_kept_weights(pocket, third_project):
    line = "data: {german: 1}, iterations: 86000, schedule: *cosine, validate: [pile, german"
    edit(third_project, "configs/papers/ibrahim2024/runs.yaml", line, line + ", sp")
    records = pocket("ibrahim2024")
    (run, *_) = records.plan.find("ibrahim2024", "405m/german")
    assert records.has_receipt(run) and records.to_measure(run) == ["sp"] == records.incomplete_curves(run)
    receipt = records.receipt(run)
    one = receipt.losses["pile"].model_copy(
        update={"data": records.plan.data["sp"], "curve": ((run.training.iterations, 9.0),)}
    )
    later = LaterLosses(identity=run.identity, losses={"sp": one}, environment={})
    write_record(records.later_path(run), later)
    records = pocket("ibrahim2024")
    assert records.to_measure(run) == [] and records.incomplete_curves(run) == ["sp"]
    (trained, *_) = Evidence(records, "ibrahim2024").runs("405m/german")
    assert trained.curve("sp") == [(pytest.approx(run.billions), 9.0)] and "pile" in trained.final
    # Of other weights it counts as nothing.
    write_record(records.later_path(run), later.model_copy(update={"identity": "0" * 64}))
    assert pocket("ibrahim2024").to_measure(run) == ["sp"]


def test_losses_on_another_text_count_as_nothing(pocket, third_project):
    path = third_project.manifests / "english_web.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["splits"]["train"]["sha256_jsonl"] = "0" * 64
    path.write_text(yaml.safe_dump(manifest))
    records = pocket("ibrahim2024")
    (old, *_), (new, *_) = (records.plan.find("ibrahim2024", name) for name in ("405m/pile", "405m/sp"))
    # What was trained on it is to be trained anew; what was only validated on it is not.
    assert records.has_receipt(old) and not records.has_receipt(new)
    assert records.to_measure(old) == ["sp"]


def test_what_failed_is_called_so(pocket, third_project):
    records = pocket("ibrahim2024")
    place = records.place_of("ibrahim2024/405m/pile+sp/seed-0")
    place.mkdir(parents=True)
    (place / "failure.json").write_text("{}")
    assert Evidence(records, "ibrahim2024").why("405m/pile+sp") == FAILED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: [1], "schema_version is None"),
        (lambda r: r | {"schema_version": 1}, "schema_version is 1"),
        (lambda r: r | {"identity": "0" * 64}, "'identity' is not that of 'training'"),
        (lambda r: {k: v for k, v in r.items() if k != "parameters"}, "'parameters'"),
        (lambda r: r | {"measured": {"seconds": "fast"}}, "'measured.seconds'"),
        (lambda r: r | {"environment": [1]}, "'environment'"),
        (lambda r: r | {"losses": {"pile": r["losses"]["pile"] | {"curve": []}}}, "'losses.pile.curve'"),
        (
            lambda r: r | {"losses": {"pile": r["losses"]["pile"] | {"curve": [[0, 10**400]]}}},
            "losses.pile.curve.0.1",
        ),
        (lambda r: r | {"surprise": 1}, "'surprise' is unknown"),
    ],
)
def test_a_broken_receipt_is_one_sentence(pocket, tmp_path, change, said):
    records = pocket("ibrahim2024")
    source = records.receipt_path(records.plan.find("ibrahim2024", "405m/pile")[0])
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(change(json.loads(source.read_text()))))
    with pytest.raises(UserError) as caught:
        read_record(Receipt, path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_scores_are_those_of_the_tasks_as_they_are_declared(pocket, third_project, repository):
    model = "ibrahim2024/405m/pile/seed-0"
    score = pocket("ibrahim2024").scores(model)
    assert set(score.suites) == {"english", "german"}
    tasks = score.suites["english"].tasks
    assert score.suites["english"].average == sum(one.value for one in tasks.values()) / 2
    assert score.suites["english"].stderr == pytest.approx(
        sum(one.stderr**2 for one in tasks.values()) ** 0.5 / 2
    )
    # A further task: its suite is not whole, the others stand. A dropped one: the rest is what the suite is
    # now.
    line = "      last_word: {kind: last_word, documents: 2000, context_words: 20}\n"
    edit(third_project, "configs/scales/pocket.yaml", line, line + line.replace("last_word:", "another:", 1))
    assert set(pocket("ibrahim2024").scores(model).suites) == {"german"}
    edit(third_project, "configs/scales/pocket.yaml", line + line.replace("last_word:", "another:", 1), "")
    assert set(pocket("ibrahim2024").scores(model).suites["english"].tasks) == {"continuation"}
