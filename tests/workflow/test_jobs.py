"""What is current and what is to be made, by pocket's committed receipts: no data, weights or training."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cpt_repro.errors import UserError
from cpt_repro.exhibits.draw import draw
from cpt_repro.files import write_json
from cpt_repro.project import Project
from cpt_repro.workflow.jobs import NEW, WEIGHTS, Workflow

BASE, CHILD = "ibrahim2024/405m/pile/seed-0", "ibrahim2024/405m/pile--sp/replay-0.05/seed-0"
TIES = "ibrahim2024/405m/ties/sp-0.25/seed-0"
TABLE = ("ibrahim2024", "table_02")


@pytest.fixture
def project(third_project, repository):
    """A project of its own with all receipts of pocket."""
    shutil.copytree(repository.results / "pocket", third_project.results / "pocket")
    return third_project


def work(project, *papers):
    return Workflow(project, "pocket", papers)


def edit(project, file, *changes):
    path = project.root / file
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


RUNS = "configs/papers/ibrahim2024/runs.yaml"
SCALE = "configs/scales/pocket.yaml"


def receipt(project, run_id):
    return str(project.results / "pocket" / "runs" / run_id / "receipt.json")


def test_everything_that_is_committed_is_current(project):
    jobs = work(project)
    assert not [run for run in jobs.plan.runs if jobs.training(run)]
    assert not [model for model in jobs.models if jobs.evaluating(model)]
    assert jobs.record("sp") == []
    status = jobs.status()
    assert (status.to_train, status.to_evaluate, status.to_be_measured) == ([], [], [])


def test_a_changed_run_and_what_starts_from_it_are_to_be_trained(project):
    base = "  405m/pile: {model: 405m, data: {pile: 1}, iterations: "
    edit(project, RUNS, (f"{base}132366", f"{base}132000"))
    jobs = work(project)
    corpora = [jobs.fingerprint(corpus) for corpus in ("pile", "sp", "german")]
    assert jobs.training(BASE) == [*corpora, NEW]  # its old receipt lies there
    assert jobs.training(CHILD) == [*corpora[:2], receipt(project, BASE), NEW]
    assert jobs.training("ibrahim2024/405m/sp/seed-0") == []
    left, models = jobs.outstanding(jobs.plan.runs, jobs.models)
    assert left[0].id == BASE and CHILD in {run.id for run in left} and TIES in models
    assert NEW in jobs.evaluating(TIES) and receipt(project, BASE) in jobs.evaluating(TIES)


def test_a_renamed_run_trains_nothing(project):
    """Its receipt lies under its old name, which as a target leads to it."""
    for path in (*project.papers.glob("ibrahim2024/*.*"), project.scales / "pocket.yaml"):
        path.write_text(path.read_text().replace("405m/pile+german", "405m/both"))
    jobs = work(project)
    old, new = (f"ibrahim2024/405m/{name}/seed-0" for name in ("pile+german", "both"))
    assert new in jobs.plan.runs and jobs.status().to_train == []
    assert receipt(project, old) in jobs.exhibit("ibrahim2024", "figure_05")
    assert jobs.named(old) == new and jobs.training(old) == []
    # So do its weights, where they are wanted again.
    run = jobs.plan.runs[new]
    assert [path.rpartition("/")[0] for path in jobs._weights(run, 1)] == [f"{WEIGHTS}/pocket/{old}"]
    assert set(jobs.training_again(old)) == {jobs.fingerprint(corpus) for corpus in ("pile", "german")}


def test_equal_trainings_lie_under_one_name(project):
    """That of another paper is its own; a path of its second name leads to the first."""
    jobs = work(project, "ibrahim2024", "third2026")
    second = "third2026/continued/replay-0.25/seed-0"
    first = "ibrahim2024/405m/pile--german/replay-0.25"
    with pytest.raises(UserError, match=f"is the same training as that of .*{first}"):
        jobs.training(second)
    assert all(
        "ibrahim2024" in path for path in jobs.exhibit("third2026", "table_01") if "replay-0.25" in path
    )


def test_weights_that_are_gone_are_wanted_by_what_is_to_be_made(project):
    Path(receipt(project, CHILD)).unlink()
    jobs = work(project)
    (weights,) = [path for path in jobs.training(CHILD) if path.startswith(WEIGHTS)]
    assert BASE in weights and receipt(project, BASE) not in jobs.training(CHILD)
    assert [run.id for run in jobs.outstanding([CHILD], ())[0]] == [BASE, CHILD]
    base = jobs.plan.runs[BASE]
    jobs.store.weights(base.identity, base.training.iterations).mkdir(parents=True)
    assert not [path for path in jobs.training(CHILD) if path.startswith(WEIGHTS)]
    assert [run.id for run in jobs.outstanding([CHILD], ())[0]] == [CHILD]
    # One more: a receipt that was written since is of other weights, which may be gone again.
    shutil.rmtree(jobs.store.root)
    os.utime(receipt(project, BASE), (1, 1))
    assert weights not in work(project).training(CHILD)
    assert [run.id for run in jobs.outstanding([BASE], (), again=True)[0]] == [BASE]


def test_more_validation_is_measured_where_weights_are_kept(project):
    edit(project, SCALE, ("{sequences: ", "{sequences: 1"))
    jobs = work(project)
    status = jobs.status()
    assert status.to_train == [] and len(status.to_be_measured) == status.trainings and not status.measurable
    run = jobs.plan.runs[CHILD]
    jobs.store.weights(run.identity, run.training.iterations).mkdir(parents=True)
    assert jobs.status().measurable == [CHILD]
    assert jobs.measuring(CHILD) == [jobs.fingerprint(corpus) for corpus in ("pile", "sp")]
    assert receipt(project, CHILD).replace("receipt", "losses") in jobs.exhibit("ibrahim2024", "figure_05")
    assert "1 of them on weights that are kept" in "\n".join(status.lines() + jobs.status().lines())


def test_a_further_task_is_to_be_evaluated_alone(project):
    tasks = "corpora: [german]\n    tasks:\n"
    edit(
        project, SCALE, (tasks, f"{tasks}      more: {{kind: last_word, documents: 20, context_words: 10}}\n")
    )
    jobs = work(project)
    status = jobs.status()
    assert status.to_train and set(status.to_evaluate) == set(jobs.models)  # weights are gone
    assert jobs.evaluating(TIES)[0].endswith("suites/fingerprint.json")
    assert {Path(path).parent.name for path in jobs.suites()} == set(jobs.scale.corpora)


def test_another_text_makes_corpora_and_records_anew(project):
    jobs = work(project)
    tokenizer = str(project.data / "pocket" / "tokenizer" / "tokenizer.json")
    assert (jobs.tokenizer(), jobs.corpus("sp")) == ([], [tokenizer])
    text = project.manifests / "english_web.yaml"
    text.write_text(text.read_text() + "# a remark\n")
    assert work(project).record("sp") == []
    edit(project, SCALE, ("sequence_length: ", "sequence_length: 1"))
    assert work(project).record("sp") == [jobs.fingerprint("sp"), NEW]


def test_an_exhibit_is_current_by_what_it_was_drawn_from(project):
    jobs = work(project)
    drawn = [path for path in jobs.exhibit(*TABLE)]
    assert drawn and NEW not in drawn
    draw(jobs.catalogue, jobs.records, *TABLE)
    assert work(project).exhibit(*TABLE) == []
    # Times are nothing, content is all.
    for path in drawn:
        os.utime(path)
    assert work(project).exhibit(*TABLE) == []
    changed = json.loads(Path(drawn[0]).read_text())
    write_json(Path(drawn[0]), changed | {"measured": changed["measured"] | {"seconds": 1.0}})
    assert work(project).exhibit(*TABLE) == []  # how fast it was shows nowhere
    write_json(Path(drawn[0]), changed | {"code": {"cpt_repro": "another"}})
    assert work(project).exhibit(*TABLE) == [*drawn, NEW]
    write_json(Path(drawn[0]), changed)
    sidecar = project.figures / "pocket" / TABLE[0] / f"{TABLE[1]}.json"
    sidecar.write_text(sidecar.read_text().replace('"caption"', '"earlier"'))
    assert work(project).exhibit(*TABLE) == [*drawn, NEW]  # of another version
    assert f"{TABLE[0]}/{TABLE[1]}" in work(project).status().to_draw


def test_formats_that_git_does_not_keep_are_no_exhibits_to_be_drawn(project):
    jobs, name = work(project), "/".join(TABLE)
    draw(jobs.catalogue, jobs.records, *TABLE)
    (project.figures / "pocket" / TABLE[0] / f"{TABLE[1]}.tex").unlink()
    status = work(project).status()
    assert name not in status.to_draw and name in status.incomplete
    line = "exhibits: 1 of 37 done (1 of them not in every format; `cpt-repro draw` makes all)"
    assert line in status.lines() and work(project).exhibit(*TABLE)


def test_an_exhibit_of_settings_is_stale_when_they_change(project):
    """It shows the plan and no record."""
    settings, jobs = ("ibrahim2024", "table_14"), work(project)
    draw(jobs.catalogue, jobs.records, *settings)
    assert work(project).exhibit(*settings) == []
    edit(project, SCALE, ("eta_factor: ", "eta_factor: 1"))
    assert work(project).exhibit(*settings) == [NEW]


def test_an_exhibit_of_what_is_missing_is_not_current(project):
    lost = receipt(project, CHILD)
    Path(lost).unlink()
    jobs = work(project)
    draw(jobs.catalogue, jobs.records, *TABLE)
    jobs = work(project)
    assert {lost, NEW} <= set(jobs.exhibit(*TABLE))
    write_json(project.figures / "pocket" / "claims.json", {})
    assert {lost, NEW} <= set(jobs.claims())


def test_claims_and_report_go_by_times(project):
    jobs = work(project)
    write_json(project.figures / "pocket" / "claims.json", {})
    assert NEW not in jobs.claims() and str(project.results / "pocket" / "analysis.yaml") in jobs.claims()
    assert len(jobs.everything()) == 22 * 4 + 15 * 4 + 5


@pytest.mark.parametrize(
    ("ask", "fault"),
    [
        (lambda jobs: jobs.training("ibrahim2024/405m/pile/seed-7"), "there is no run"),
        (lambda jobs: jobs.evaluating("../../x"), "there is no run"),
        (lambda jobs: jobs.corpus("suites"), "has no corpus 'suites'"),
        (lambda jobs: jobs.exhibit("ibrahim2024", "figure_99"), "is unknown"),
        (lambda jobs: jobs.exhibit_named("ibrahim2024"), "is no exhibit"),
    ],
)
def test_what_is_unknown_is_one_sentence(repository, ask, fault):
    with pytest.raises(UserError, match=fault):
        ask(Workflow(repository, "pocket"))


def test_asking_writes_nothing(project):
    def times():
        return {path: path.stat().st_mtime_ns for path in project.root.rglob("*")}

    path = Path(receipt(project, BASE))
    path.write_text(path.read_text().replace('"identity": "', '"identity": "0', 1))
    before = times()
    jobs = work(Project.at(project.root))
    assert jobs.training(BASE) and jobs.status().to_train and jobs.claims() and jobs.suites()
    assert times() == before
