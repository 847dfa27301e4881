"""Declarations are read strictly; a wrong one is refused in one sentence with file, key and what to do."""

import pytest
import yaml

from cpt_repro.declarations.scale import load_scale
from cpt_repro.declarations.strict import read_yaml
from cpt_repro.declarations.study import Studies
from cpt_repro.errors import UserError
from cpt_repro.planning.plan import Plan
from cpt_repro.project import Project


def refused(action):
    with pytest.raises(UserError) as caught:
        action()
    assert caught.value.what and caught.value.do
    return str(caught.value)


def written(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        value if isinstance(value, str) else yaml.safe_dump(value, allow_unicode=True), encoding="utf-8"
    )
    return path


# -- projects


def test_a_project_is_the_folder_at_hand_or_one_above(third_project, monkeypatch):
    monkeypatch.chdir(third_project.root)
    assert Project.at().results.as_posix() == "results"  # names stay short
    monkeypatch.chdir(third_project.papers)
    assert Project.at().root == third_project.root
    monkeypatch.chdir("/")
    assert "there is no project here" in refused(Project.at)


@pytest.mark.parametrize(
    "name", ["CPT_REPRO_STORE", "CPT_REPRO_CORPORA", "CPT_REPRO_HUB", "CPT_REPRO_SHARDS_REMOTE"]
)
def test_variables_move_parts_of_a_project(third_project, monkeypatch, name):
    monkeypatch.setenv(name, "/elsewhere")
    moved = Project.at(third_project.root)
    assert "/elsewhere" in map(str, (moved.store, moved.corpora, moved.hub_copies, moved.shards_remote))
    monkeypatch.setenv(name, " ")
    assert f"${name}" in refused(lambda: Project.at(third_project.root))


# -- YAML


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", ["'a' stands twice", "line 3"]),
        ("a: {b: 1, c: {d: 1, d: 2}}", ["'d' stands twice"]),
        ("a: [", ["not valid YAML"]),
        ("{[1]: 2}: 3", ["not valid YAML"]),
        ("a: &a [1, *a]", ["not valid YAML"]),
        # A few lines that aliases multiply to 10^9 values.
        (
            "".join(f"x{k}: &x{k} [{', '.join([f'*x{k - 1}'] * 10) if k else 1}]\n" for k in range(10)),
            ["aliases"],
        ),
        (b"\xff\xfe", ["not valid YAML"]),
        ("[" * 100_000, ["not valid YAML"]),
        ("- " * 100_000, ["not valid YAML"]),
        ("a: !!python/object/apply:os.system [echo]", ["not valid YAML"]),
        ("<<: 3", ["not valid YAML"]),
        ("a: 2020-99-99", ["not valid YAML"]),
    ],
)
def test_wrong_yaml_is_refused(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    told = refused(lambda: read_yaml(path))
    assert [part for part in (str(path), *said) if part not in told] == []


def test_merge_keys_may_be_overridden(tmp_path):
    path = written(tmp_path / "merge.yaml", "base: &base {a: 1, b: 2}\nown: {<<: *base, b: 3}\n")
    assert read_yaml(path)["own"] == {"a": 1, "b": 3}
    # It is read once and handed out as often as wanted: what one reader does to it, no other sees.
    read_yaml(path)["own"]["a"] = 2
    assert read_yaml(path)["own"] == {"a": 1, "b": 3}
    path.write_text("own: 1")
    assert read_yaml(path) == {"own": 1}


# -- scales


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda raw: raw.update(sequence_lenght=64),
            ["'sequence_lenght'", "Did you mean 'sequence_length'?"],
        ),
        (lambda raw: raw["models"]["405m"].update(eta_facter=1), ["models.405m.eta_facter", "'eta_factor'"]),
        (lambda raw: raw["validation"].update(evry=1), ["validation.evry", "'every'"]),
        (lambda raw: raw["models"]["405m"].update(heads=3), ["models.405m", "heads"]),
        (lambda raw: raw["models"]["405m"].update(architecture="lama"), ["models.405m", "lama"]),
        (lambda raw: raw.update(tokens_per_billion=0), ["tokens_per_billion"]),
        (lambda raw: raw.pop("corpora"), ["corpora"]),
        (lambda raw: raw.update(precision="fp8"), ["precision", "fp8"]),
        (lambda raw: raw.update(name="smok"), ["'name' says 'smok'"]),
        (lambda raw: raw.update(execution={"405m": {"ranks_per_node": 3}}), ["3 ranks do not divide"]),
        (lambda raw: raw.update(papers=["gupta2032"]), ["gupta2032", "Did you mean 'gupta2023'?"]),
        (lambda raw: raw.update(variants=["gupta2023/x/y"]), ["gupta2023/x/y", "unknown"]),
        (
            lambda raw: raw["suites"]["english"]["tasks"].update(
                x={"kind": "published", "benchmark": "helaswag"}
            ),
            ["suites.english.tasks.x", "Did you mean 'hellaswag'?"],
        ),
        (
            lambda raw: raw["suites"]["english"]["tasks"]["last_word"].update(documents=10**12),
            ["suites.english.tasks.last_word.last_word.documents", "less than or equal to 1000000"],
        ),
        (lambda raw: raw.update(seeds=[*range(1001)]), ["'seeds'", "at most 1000 items"]),
        (lambda raw: raw["validation"].update(early=[1] * 1001), ["validation.early", "at most 1000 items"]),
        (
            lambda raw: raw.update(more_seeds={"seeds": [*range(1000)], "runs": ["*"]}),
            ["combinations are too many: 20000", "more_seeds"],
        ),
        (lambda raw: raw.update(seeds=[*range(1000)]), ["combinations are too many: 20000"]),
    ],
)
def test_wrong_scale_is_refused_with_file_and_key(third_project, change, said):
    path = third_project.scales / "smoke.yaml"
    raw = yaml.safe_load(path.read_text())
    change(raw)
    written(path, raw)
    told = refused(lambda: Plan(third_project, load_scale(third_project, "smoke")))
    assert [part for part in said if part not in told] == [], told


def test_unknown_scale_is_refused(repository):
    assert "Did you mean 'smoke'?" in refused(lambda: load_scale(repository, "smok"))
    assert "Known: " in refused(lambda: load_scale(repository, "../../etc"))


# -- runs


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runs: []", "runs"),
        ("runs: {a: 3}", "mappings"),
        ("runs:\n  'a-{x}': {each: 3, model: m}", "each"),
        ("runs:\n  'a-{x}': {each: {x: 3}, model: m}", "each"),
        ("runs:\n  a: {each: {x: [1, 2]}, model: m}", "'a' is declared twice"),
        ("runs:\n  a: {model: m, schedule: {kind: cosine, eta_min_ratio: 0.1}}", "eta_min_ratio"),
        # YAML 1.1 reads 3e-4 as text: it wants 3.0e-4. What is not a number cannot be multiplied.
        (
            "runs:\n  a: {model: m, schedule: {kind: cosine, eta_max: high, eta_min_ratio: 0.1}}",
            "eta_min_ratio",
        ),
        ("runs:\n  a: {model: m}\n  a: {model: n}", "'a' stands twice"),
        ("- a\n- b", "must hold a mapping"),
        ("", "must hold a mapping"),
    ],
)
def test_wrong_file_of_runs_is_refused(third_project, text, said):
    written(third_project.papers / "third2026" / "runs.yaml", text)
    told = refused(lambda: Studies(third_project)["third2026"].paper)
    assert "runs.yaml" in told and said in told


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("paper: third2026", "paper: fourth", "'paper' says 'fourth'"),
        ("base: continued/replay-0.02", "base: nobody", "merges.ties"),
        ("role: old", "role: new", "none has the role 'old'"),
        ("billions: 200", "billions: 0", "unit.billions"),
        ("models: {405m: 405M, 70b: 70B}", "models: {405m: 405M}", "'70b', which 'models' lacks"),
    ],
)
def test_wrong_paper_is_refused(third_project, old, new, said):
    path = third_project.papers / "third2026" / "runs.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert said in refused(lambda: Plan(third_project, load_scale(third_project, "smoke"), ("third2026",)))


def test_names_of_runs(third_project):
    study = Studies(third_project)["third2026"]
    assert study.resolve("large") == ("third2026", "large")
    assert study.resolve("ibrahim2024/405m/pile") == ("ibrahim2024", "405m/pile")
    study.check_run("ties", "here", merges=True)
    for wrong, near in (("lrge", "large"), ("ibrahim2024/405m/pil", "ibrahim2024/405m/pile"), ("ties", "")):
        told = refused(lambda wrong=wrong: study.check_run(wrong, "here"))
        assert wrong in told and near in told


# -- variants


def variant(project, runs, sets, paper="gupta2023"):
    """A discrepancy with one variant, put into a paper; `<paper>/made-up/other` switches it on."""
    path = project.papers / paper / "discrepancies.yaml"
    raw = yaml.safe_load(path.read_text())
    source = {"place": "x", "mark": "printed", "says": "y"}
    raw["discrepancies"].append(
        {"id": "made-up", "what": "w", "sources": [source] * 2, "default": "d"}
        | {"variants": {"other": {"says": "s", "changes": [{"runs": runs, "set": sets}]}}}
    )
    written(path, raw)
    return Studies(project, (f"{paper}/made-up/other",))


def test_variants_switch_what_they_say(third_project):
    paper = variant(third_project, ["410m/pile--sp/warmup-*"], {"schedule.warmup_frac": 0.5})[
        "gupta2023"
    ].paper
    assert {run.schedule.warmup_frac for name, run in paper.runs.items() if "pile--sp/warmup" in name} == {
        0.5
    }
    assert paper.runs["410m/pile"].schedule.warmup_frac == 0.01


@pytest.mark.parametrize(
    ("runs", "sets", "said"),
    [
        (["nobody-*"], {"iterations": 3}, "no run fits 'nobody-*'"),
        (["410m/pile"], {"shedule.x.y": 1}, "leads nowhere"),
        (["410m/pile"], {"iteratons": 3}, "Did you mean 'iterations'?"),
    ],
)
def test_wrong_variants_are_refused(third_project, runs, sets, said):
    studies = variant(third_project, runs, sets)
    assert said in refused(lambda: studies["gupta2023"].paper)
    assert "'made-up/other' is unknown" in refused(lambda: Studies(third_project, ("made-up/other",)))


def test_clashing_variants_are_refused(third_project):
    variant(third_project, ["410m/pile"], {"iterations": 3})
    path = third_project.papers / "gupta2023" / "discrepancies.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["discrepancies"][-1]["variants"]["more"] = {
        "says": "s",
        "changes": [{"runs": ["410m/*"], "set": {"iterations": 4}}],
    }
    written(path, raw)
    studies = Studies(third_project, ("gupta2023/made-up/other", "gupta2023/made-up/more"))
    assert "both set 'iterations'" in refused(lambda: studies["gupta2023"].paper)


def test_every_variant_makes_a_plan(repository):
    scale = load_scale(repository, "paper")
    for name in Studies(repository).names:
        study = Studies(repository)[name]
        for one in study.discrepancies:
            for other in one.variants:
                if "pythia" not in other:  # starts from a model of the hub
                    assert Plan(
                        repository, scale.model_copy(update={"variants": (f"{name}/{one.id}/{other}",)})
                    ).runs
