"""Weights that authors published: evaluated apart, beside what they printed; a failure stops no other."""

import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from third_study import put_third_study
from tiny_models import made_elsewhere, old_config, write_model

from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.evaluation.released import evaluate_released, released_models
from cpt_repro.evaluation.suites import build_suites
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.files import read_json, write_json
from cpt_repro.planning.plan import Plan
from cpt_repro.report.released import compare, print_comparison

RUN = "ibrahim2024/405m/pile"


def test_what_is_declared(plan_of):
    models = list(released_models(plan_of("paper")))
    assert len(models) == 15 and {one.paper for one in models} == {"ibrahim2024"}
    repositories = [one.declared.repository for one in models]
    assert len(set(repositories)) == len(repositories)
    collection = {name for one in models for name in (one.declared.repository, one.declared.also) if name}
    assert len([name for name in collection if name.startswith("cerc-aai/")]) == 10
    compared = compare(Catalogue(plan_of("paper")))
    assert compared.scores == [] and compared.not_measured.keys() == {one.name for one in models}
    assert f"{repositories[0]}, weights named" == compared.not_measured[models[0].name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"405m/pyle": {}}, "'405m/pyle' is not declared. Did you mean '405m/pile'"),
        ({"405m/pile": {"repository": "../authors"}}, "repository"),
        ({"405m/pile": {"revision": "main"}}, "revision"),
    ],
)
def test_declarations_that_are_refused(third_project, change, words):
    one = {"repository": "authors/tiny", "weights": "named", "note": "a test"}
    models = {run: one | more for run, more in change.items()}
    path = third_project.papers / "ibrahim2024" / "released.yaml"
    path.write_text(yaml.safe_dump({"source": "a test", "models": models}))
    with pytest.raises(UserError) as caught:
        list(released_models(Plan(third_project, load_scale(third_project, "smoke"))))
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.fixture
def plan(built, tmp_path):
    """A plan of smoke with one task, and four models that are declared as published, two of them there."""
    project = put_third_study(tmp_path / "project")
    project = replace(project, hub_copies=tmp_path / "hub")
    path = project.scales / "smoke.yaml"
    task = {"kind": "last_word", "documents": 20, "context_words": 8}
    suites = {"english": {"corpora": ["pile"], "tasks": {"hellaswag": task}}}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"suites": suites}))
    shutil.copytree(built.data / "smoke", project.data / "smoke")
    one = {"weights": "named", "note": "a test"}
    models = {
        "405m/pile": {"repository": "authors/tiny", **one},
        "405m/sp": {"repository": "authors/gone", **one},
        "405m/german": {"repository": "authors/small", **one},
        "10b/pile": {"repository": "authors/nothing", **one, "weights": "empty"},
    }
    released = project.papers / "ibrahim2024" / "released.yaml"
    released.write_text(yaml.safe_dump({"source": "a test", "models": models}, sort_keys=False))
    copies, state = project.hub_copies / "models" / "authors", made_elsewhere().state_dict()
    (copies / "tiny").mkdir(parents=True)
    write_json(copies / "tiny" / "config.json", old_config())
    torch.save(state, copies / "tiny" / "pytorch_model.bin")
    small = {name: tensor[:600] if "embed" in name else tensor for name, tensor in state.items()}
    write_model(copies / "small", small, vocab_size=600)
    plan = Plan(project, load_scale(project, "smoke"))
    build_suites(project, plan.scale, plan.data)
    return plan


@pytest.mark.slow
def test_they_are_evaluated_apart(plan, capsys):
    from cpt_repro.evaluation.harness import Harness

    lines = []
    with pytest.raises(UserError) as caught:
        evaluate_released(plan, "*", lines.append)
    for words in ("2 of 3 could not", "405m/sp", "the model 600"):
        assert words in str(caught.value)
    assert not [line for line in lines if "10b/pile" in line]  # without weights, and passed over
    first, *others = released_models(plan)
    record, results = first.evaluation, plan.project.results / "smoke"
    assert first.path == results / "released" / f"{RUN}.json" and record.id == f"released/{RUN}"
    assert record.environment["repository"] == "authors/tiny" and not (results / "runs").exists()
    assert [one.evaluation for one in others] == [None] * 3
    assert record.suites == Harness(plan.project, plan.scale, plan.data).evaluate(made_elsewhere())
    # Beside it stands what is printed: Table 5: 40.95 on HellaSwag, 33.95 on average.
    compared = compare(Catalogue(plan))
    scores = {one.task: one for one in compared.scores}
    assert {(one.run, one.suite) for one in compared.scores} == {(RUN, "english")}
    assert (scores["hellaswag"].published, scores["AVG"].published) == (40.95, 33.95)
    assert scores["AVG"].measured == 100 * record.suites["english"].average
    assert list(compared.not_measured) == [one.name for one in others]
    print_comparison(compared)
    printed = capsys.readouterr().out
    assert f"{scores['AVG'].measured - 33.95:+.2f}" in printed
    assert "40.95" in printed and "not a reproduction" in printed
    assert "not measured: ibrahim2024/405m/sp (authors/gone, weights named)" in printed
    # What is there is not evaluated again.
    before = first.path.stat().st_mtime_ns
    with pytest.raises(UserError, match="2 of 3"):
        evaluate_released(plan, "*", lines.append)
    evaluate_released(plan, RUN, lines.append)
    assert first.path.stat().st_mtime_ns == before
    # Of other tasks it does not count.
    content = read_json(first.path)
    content["suites"]["english"]["tasks"]["hellaswag"]["declaration"] = "of another"
    write_json(first.path, content)
    assert next(released_models(plan)).evaluation is None and not compare(Catalogue(plan)).scores


def test_a_pattern_that_fits_nothing(plan_of):
    with pytest.raises(UserError, match="no published weights fit 'x/\\*'.*cpt-repro released"):
        evaluate_released(plan_of("smoke"), "x/*", print)
