"""The whole pipeline by `snakemake`, in a project with a study that is nothing but declarations."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from tiny_project import PAPER, SNAKEMAKE, Pipeline

from cpt_repro.files import read_json

pytestmark = pytest.mark.slow

FIGURE, TABLE = f"figures/smoke/{PAPER}/figure_01.png", f"figures/smoke/{PAPER}/table_01.csv"


def place(name, file="receipt"):
    return f"results/smoke/runs/{PAPER}/{name}/seed-0/{file}.json"


def said(result):
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


def jobs(result):
    """What a dry run would do: (rule, number of jobs) by the table that it prints."""
    lines = said(result).partition("\njob ")[2].partition("\ntotal")[0].splitlines()[2:]
    return {name: int(count) for name, count in (line.split() for line in lines)}


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def numbers(path):
    """A receipt without how fast it was."""
    return {key: value for key, value in read_json(path).items() if key != "measured"}


def copied(pipeline, folder, *parts):
    """Another checkout with the same declarations, and with some folders of this one's."""
    clone = Pipeline(folder)
    for part in parts:
        shutil.copytree(pipeline.folder / part, folder / part, copy_function=shutil.copy)
    return clone


# -- what is made


def test_everything_is_made(pipeline):
    figures = pipeline.folder / "figures" / "smoke"
    assert set(contents(figures)) == {
        *(f"{PAPER}/figure_01.{suffix}" for suffix in ("png", "svg", "pdf", "json")),
        *(f"{PAPER}/table_01.{suffix}" for suffix in ("csv", "md", "tex", "json")),
        *("claims.json", "claims.md", "values.csv", "index.html", "index.json"),
    }
    assert read_json(figures / PAPER / "table_01.json")["missing"] == []
    assert "not run" not in (figures / PAPER / "table_01.md").read_text()
    assert len(list(pipeline.folder.glob("results/smoke/runs/**/receipt.json"))) == 4
    assert len(list(pipeline.folder.glob("results/smoke/runs/**/evaluation.json"))) == 5
    for path in pipeline.folder.glob("results/**/*.json"):
        assert str(pipeline.folder) not in path.read_text()


def test_a_second_call_has_nothing_to_do(pipeline):
    before = pipeline.records()
    assert "Nothing to be done" in said(pipeline.snakemake())
    assert pipeline.records() == before


def test_what_is_finished_is_up_to_date_as_a_target(pipeline):
    """With its scale in its name: no --config is needed."""
    corpus = "data/smoke/pile/fingerprint.json"
    targets = (place("pile"), place("ties", "evaluation"), FIGURE, corpus, "figures/smoke/claims.md")
    assert "Nothing to be done" in said(pipeline.snakemake("-n", *targets))


def test_what_is_asked_for_is_what_is_made(complete):
    """A run, then what a figure needs beside it, then everything; training under the names asked for."""
    run, figure, everything = complete.steps
    assert run == {place("german")}
    assert figure - run == set(map(place, ("pile", "update/replay-0", "update/replay-0.25")))
    models = ("pile", "german", "update/replay-0", "update/replay-0.25", "ties")
    assert everything - figure == {place(model, "evaluation") for model in models}


def test_one_figure_is_drawn_again_alone(pipeline):
    figure, table = pipeline.folder / FIGURE, pipeline.folder / TABLE
    before, drawn, records = table.stat().st_mtime_ns, figure.read_bytes(), pipeline.records()
    figure.unlink()
    said(pipeline.snakemake())
    assert figure.read_bytes() == drawn
    assert (table.stat().st_mtime_ns, pipeline.records()) == (before, records)


def test_receipts_alone_redraw_everything(pipeline, tmp_path):
    """As in a fresh clone of a frozen replication: no data, no weights, no training."""
    clone = copied(pipeline, tmp_path / "clone", "results")
    said(clone.snakemake())
    assert not (clone.folder / "data").exists() and not list(clone.folder.rglob("*.safetensors"))
    assert contents(clone.folder / "figures") == contents(pipeline.folder / "figures")


def test_a_copied_checkout_makes_no_data_trains_nothing_and_draws_nothing(pipeline, tmp_path):
    """Whatever the times of its files are: what is there is what is wanted."""
    clone = copied(pipeline, tmp_path / "clone", "results", "figures", "data", "store")
    for number, path in enumerate(sorted(clone.folder.rglob("*"), reverse=True)):
        os.utime(path, (1e9 + number, 1e9 + number))
    left = jobs(clone.snakemake("-n"))
    assert set(left) <= {"claims", "report", "figures/"}
    targets = (place("update/replay-0.25"), "data/smoke/german/fingerprint.json", FIGURE)
    assert "Nothing to be done" in said(clone.snakemake("-n", *targets))


def test_a_figure_from_receipts_at_hand_is_stale_as_soon_as_its_runs_can_be_had(pipeline, tmp_path):
    clone = copied(pipeline, tmp_path / "clone", "results", "data", "store")
    shutil.rmtree((clone.folder / place("update/replay-0")).parent)
    assert clone.cpt("draw", f"{PAPER}/figure_01").returncode == 0
    assert read_json(clone.folder / FIGURE.replace("png", "json"))["missing"]
    assert jobs(clone.snakemake("-n", FIGURE)) == {"train": 1, "figure": 1}
    for command in ("claims --write", "report"):
        assert clone.cpt(*command.split()).returncode == 0
    assert jobs(clone.snakemake("-n", "figures/smoke/claims.md"))["train"] == 1


# -- after a change


def test_a_changed_schedule_trains_what_depends_on_it(pipeline, wait_for):
    """Interrupted on the way, the next call goes on; what does not depend on the change stays as it is."""
    declared, before = pipeline.runs.read_text(), pipeline.records()
    of_german = "iterations: 86000, schedule: *cosine"
    changed = declared.replace(of_german, "iterations: 86000, schedule: {<<: *cosine, warmup_frac: 0.05}", 1)
    assert changed != declared
    pipeline.runs.write_text(changed)
    identity = pipeline.plan.runs[f"{PAPER}/german/seed-0"].identity
    state = pipeline.folder / "store" / "smoke" / identity[:16] / "resume.json"
    running = pipeline.start()
    wait_for(lambda: state.exists() or running.poll() is not None, "a saved state")
    assert running.poll() is None, running.stderr.read()[-3000:]
    os.killpg(running.pid, signal.SIGINT)
    running.communicate(timeout=120)
    assert running.returncode != 0
    assert not [path for path in pipeline.folder.rglob("*.aside*") if ".snakemake" not in path.parts]
    said(pipeline.snakemake())
    after = pipeline.records()
    touched = {path for path in after if after[path] != before.get(path)}
    assert touched == {place("german"), place("german", "evaluation"), place("ties", "evaluation")}
    # The declaration as it was: its weights are still in the store, and its receipt comes from there.
    pipeline.runs.write_text(declared)
    assert jobs(pipeline.snakemake("-n"))["train"] == 1
    said(pipeline.snakemake())
    assert "Nothing to be done" in said(pipeline.snakemake())


def test_more_validation_is_measured_on_kept_weights(pipeline, tmp_path):
    clone = copied(pipeline, tmp_path / "clone", "results", "data", "store", "figures")
    clone.declare(validation=yaml.safe_load(clone.scale.read_text())["validation"] | {"sequences": 49})
    asked = jobs(clone.snakemake("-n"))
    assert asked["measure"] == 4 and not {"train", "evaluate", "corpus"} & set(asked)
    said(clone.snakemake(FIGURE))
    assert len(list(clone.folder.rglob("losses.json"))) == 2
    sidecar = read_json(clone.folder / FIGURE.replace("png", "json"))
    assert len(sidecar["to_be_measured"]) == 2 and "To be measured" in " ".join(sidecar["notes"])
    assert "curves to be measured: 4 runs, 2 of them on weights that are kept" in clone.cpt("status").stdout


def test_weights_that_are_gone_are_made_again_for_those_that_need_them(pipeline, tmp_path):
    clone = copied(pipeline, tmp_path / "clone", "results", "data", "store")
    (clone.folder / place("update/replay-0")).unlink()
    shutil.rmtree(clone.folder / "store")
    before = numbers(clone.folder / place("pile"))
    assert jobs(clone.snakemake("-n", place("update/replay-0"))) == {"train": 1, "weights": 1}
    said(clone.snakemake(place("update/replay-0")))
    assert numbers(clone.folder / place("pile")) == before
    assert numbers(clone.folder / place("update/replay-0")) == numbers(
        pipeline.folder / place("update/replay-0")
    )
    assert "Nothing to be done" in said(clone.snakemake("-n", place("pile"), place("update/replay-0")))
    assert not list(clone.folder.glob(".snakemake/wishes/weights/**/*.json"))


def test_a_corpus_that_is_another_is_built_again(pipeline, tmp_path):
    clone = copied(pipeline, tmp_path / "clone", "data")
    manifest = clone.folder / "data_manifests" / "smoke_strong.yaml"
    manifest.write_text(manifest.read_text().replace("seed: ", "seed: 1"))
    target = "data/smoke/german/fingerprint.json"
    assert jobs(clone.snakemake("-n", target)) == {"corpus": 1}
    said(clone.snakemake(target))
    assert "Nothing to be done" in said(clone.snakemake("-n", target))


def test_a_link_beside_a_record_is_not_followed(pipeline, tmp_path):
    clone, victim = copied(pipeline, tmp_path / "clone", "data"), tmp_path / "victim"
    record = clone.folder / "results" / "smoke" / "corpora" / "pile.json"
    record.parent.mkdir(parents=True)
    record.with_name("pile.json.aside").symlink_to(victim)
    said(clone.snakemake(str(record.relative_to(clone.folder))))
    built = clone.folder / "data" / "smoke" / "pile" / "fingerprint.json"
    assert record.read_bytes() == built.read_bytes() and not victim.exists() and not record.is_symlink()


# -- what writes nothing


def test_a_dry_run_writes_nothing(pipeline, tmp_path):
    clone = copied(pipeline, tmp_path / "clone", "results")
    for path in clone.folder.glob("results/**/receipt.json"):
        path.write_text(path.read_text().replace('"identity": "', '"identity": "0'))
    (clone.folder / ".snakemake").mkdir()
    before = {path: path.stat().st_mtime_ns for path in clone.folder.rglob("*")}
    assert jobs(clone.snakemake("-n"))["train"] == 4
    notes = clone.folder / ".snakemake"
    after = {path: path.stat().st_mtime_ns for path in clone.folder.rglob("*") if notes not in path.parents}
    assert after | {notes: 0} == before | {notes: 0}


def test_a_read_only_checkout_can_be_looked_at(pipeline, tmp_path):
    """`setpriv` takes from root the right to write everywhere."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is needed")
    clone = copied(pipeline, tmp_path / "clone", "results")
    for path in (clone.folder, *clone.folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    before = {path: path.stat().st_mtime_ns for path in clone.folder.rglob("*")}
    drop = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
    snakemake = [*drop, *SNAKEMAKE]
    try:
        looked = clone.run([*snakemake, "-n", "figures/"])
        tried = clone.run([*snakemake, "figures/"])
    finally:
        for path in (clone.folder, *clone.folder.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
    assert jobs(looked) == {"figure": 1, "table": 1, "claims": 1, "report": 1, "figures/": 1}
    assert tried.returncode != 0 and "nothing may be written here. Make it writable" in tried.stderr
    assert "Traceback" not in tried.stderr
    assert {path: path.stat().st_mtime_ns for path in clone.folder.rglob("*")} == before


# -- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["figures/", "--config", "scale=smoky"], "the scale 'smoky' is unknown. Did you mean 'smoke'?"),
        ([FIGURE.replace("/smoke/", "/smoky/")], "the scale 'smoky' is unknown. Did you mean 'smoke'?"),
        ([FIGURE.replace("01", "07")], "the exhibit 'figure_07' is unknown"),
        ([FIGURE.replace(PAPER, "tiny2062")], f"the paper 'tiny2062' is unknown. Did you mean '{PAPER}'?"),
        ([place("pile/;reboot")], "there is no run"),
        (["figures/", "--config", "papers=tiny2062"], "the paper 'tiny2062' is unknown"),
        (["data/smoke/sp/fingerprint.json"], "has no corpus 'sp'"),
    ],
)
def test_what_is_unknown_is_one_sentence(pipeline, arguments, sentence):
    result = pipeline.snakemake(*arguments)
    told = result.stdout + result.stderr
    assert result.returncode != 0 and "Traceback" not in told
    assert sentence in told and told.rstrip().splitlines()[-1].startswith("cpt-repro: ")


@pytest.mark.parametrize("store", ["{x}/$HOME", ""])
def test_a_store_of_any_name(pipeline, store):
    result = pipeline.snakemake("-n", place("pile"), CPT_REPRO_STORE=store)
    if store:
        assert "Nothing to be done" in said(result)
    else:
        assert "cpt-repro: $CPT_REPRO_STORE: the variable is set and empty." in result.stderr


def test_a_bad_declaration_is_one_sentence_before_anything_runs(pipeline):
    pipeline.runs.write_text(
        pipeline.runs.read_text().replace('replay_fraction: "{r}"', "replay_fraction: -0.1")
    )
    result = pipeline.snakemake()
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("cpt-repro: configs/papers")
    assert "replay_fraction" in result.stderr


def test_papers_are_chosen(pipeline, tmp_path):
    """Those of the call are made, and every command is told of them."""
    clone = copied(pipeline, tmp_path / "clone", "results")
    other = clone.runs.parent.parent / "other2026"
    shutil.copytree(clone.runs.parent, other)
    for path in other.iterdir():
        path.write_text(path.read_text().replace(PAPER, "other2026"))
    # The same trainings under other names: nothing is trained.
    said(clone.snakemake("figures/", "--config", f"papers=other2026,{PAPER}"))
    drawn = {path.parent.name for path in clone.folder.glob("figures/smoke/*/figure_01.png")}
    assert drawn == {PAPER, "other2026"}
    assert "other2026" in (clone.folder / "figures" / "smoke" / "index.html").read_text()
    assert set(clone.records()) == set(pipeline.records())


# -- faults


def test_a_killed_snakemake_goes_on(pipeline, faults, wait_for):
    """Killed with all it started, then alone: what it started ends with it, and the next call goes on."""
    published = pipeline.folder / place("german")
    identity, expected = read_json(published)["identity"], numbers(published)
    figures = contents(pipeline.folder / "figures")
    states = pipeline.folder / "store" / "smoke" / identity[:16] / "resume.json"
    published.unlink()
    shutil.rmtree(states.parent)

    def saved():
        return read_json(states)[0]["iteration"] if states.exists() else 0

    first = _killed_after(pipeline, os.killpg, lambda: saved(), wait_for)
    assert not published.exists()
    first = _killed_after(pipeline, os.kill, lambda: saved() > first and saved(), wait_for)
    assert not published.exists()
    said(pipeline.snakemake())
    assert numbers(published) == expected and read_json(published)["measured"]["resumed_at"] >= first
    assert contents(pipeline.folder / "figures") == figures
    assert not [path for path in pipeline.folder.rglob("*.aside*") if ".snakemake" not in path.parts]
    faults("SIGKILL of snakemake with all it started, and alone", 2, "the next call ended with the same bits")


def _killed_after(pipeline, kill, saved, wait_for):
    """Kills a call when a state was saved, and waits until nothing works in the folder; the state's
    iteration.
    """
    running = pipeline.start()
    wait_for(lambda: saved() or running.poll() is not None, "a saved state")
    assert running.poll() is None, running.stderr.read()[-3000:]
    kill(running.pid, signal.SIGKILL)
    running.communicate()
    wait_for(lambda: not _in_folder(pipeline.folder), "the end of all that was started")
    return saved()


def _in_folder(folder):
    """Numbers of processes that work in a folder (Linux)."""
    out = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            out += [path.parent.name] if os.readlink(path) == str(folder) else []
    return out


def test_a_snakemake_killed_while_it_draws(pipeline, faults, wait_for):
    """What was drawn then may be torn or not all there: it is drawn again, without being asked for."""
    drawn = pipeline.folder / "figures" / "smoke" / PAPER
    figures = contents(drawn)
    for path in drawn.glob("figure_01.*"):
        path.unlink()
    running = pipeline.start()
    wait_for(lambda: any(drawn.glob("figure_01.*")), "a figure's first file")
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    said(pipeline.snakemake())
    assert contents(drawn) == figures
    faults("SIGKILL of snakemake while it draws", 1, "drawn again by the next call")


def test_two_calls_in_one_folder(pipeline, faults):
    """The second is refused before it removes or writes anything, and may run when the first has ended."""
    table = pipeline.folder / TABLE
    whole = table.read_bytes()
    table.unlink()
    refusal = "snakemake is already running for the scale 'smoke' in this folder"
    with open(pipeline.folder / ".snakemake" / "smoke.running") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        result = pipeline.snakemake()
        assert result.returncode != 0 and not table.exists()
        assert refusal in result.stderr and "Traceback" not in result.stderr
    both = [pipeline.start(), pipeline.start()]
    told = [call.communicate()[1] for call in both]
    assert 0 in [call.returncode for call in both], told
    assert all(call.returncode == 0 or refusal in text for call, text in zip(both, told, strict=True)), told
    assert table.read_bytes() == whole
    faults("two snakemake calls in one folder", 2, "the second is refused, nothing is lost")


def test_a_failed_training_leaves_what_was_there(pipeline, tmp_path):
    """The receipt of the declaration before stays, and the others are made."""
    clone = copied(pipeline, tmp_path / "clone", "results", "data")
    clone.runs.write_text(clone.runs.read_text().replace("{r: [0, 0.25]}", "{r: [0, 0.25, 0.5]}"))
    shard = next((clone.folder / "data" / "smoke" / "pile" / "train").rglob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    before = (clone.folder / place("pile")).read_bytes()
    result = clone.snakemake(place("update/replay-0.5"))
    assert result.returncode != 0 and "shard" in result.stdout + result.stderr
    assert (clone.folder / place("pile")).read_bytes() == before
    failure = json.loads((clone.folder / place("pile", "failure")).read_text())
    assert "shard" in failure["why"]
