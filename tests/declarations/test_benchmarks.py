"""Declarations of published benchmarks, what decides a task, and templates that are not trusted."""

import pytest
import yaml
from tiny_evaluation import DATA, local_suites, new_project, published_suites, scale_of

from cpt_repro.declarations.benchmarks import Benchmark, load_benchmark, scoring_of, task_digests
from cpt_repro.declarations.scale import Published, Suite, load_scale
from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError


@pytest.fixture
def project(tmp_path):
    return new_project(tmp_path)


def declare(project, name: str, **changes) -> None:
    """Changes a declaration's file."""
    path = project.benchmarks / f"{name}.yaml"
    declared = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
    path.write_text(yaml.safe_dump(declared), encoding="utf-8")


def test_the_papers_tasks_have_their_metrics_and_shots(repository):
    # Ibrahim 2024, captions of Tables 5-7, 10 and 11.
    suites = load_scale(repository, "paper").suites
    english, german = (suites[name].tasks for name in ("english", "german"))
    assert (len(english), len(german)) == (13, 4)
    told = {name: scoring_of(repository, task) for name, task in {**english, **german}.items()}
    assert {name for name, b in told.items() if b.num_fewshot} == {"mmlu", "trqa", "mmlu_de"}
    assert {b.num_fewshot for b in told.values()} == {0, 5}
    assert {name for name, b in told.items() if b.metric == "acc_norm"} == {"hellaswag", "hellaswag_de"}
    assert {name for name, b in told.items() if b.metric == "exact_match"} == {"nq", "trqa"}
    assert [name for name, b in told.items() if b.metric == "mc2"] == ["tfqa2"]
    names = sorted(path.stem for path in repository.benchmarks.glob("*.yaml"))
    assert sorted({b.task for b in told.values()}) == names


def test_every_data_set_is_pinned_but_one_that_says_so(repository):
    declared = [load_benchmark(repository, path.stem) for path in repository.benchmarks.glob("*.yaml")]
    assert [benchmark.task for benchmark in declared if benchmark.revision is None] == ["mathqa"]
    assert "pinned at first use" in load_benchmark(repository, "mathqa").note


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metric": "accuracy"}, "metric"),
        ({"metrics": "acc"}, "Did you mean 'metric'"),
        ({"metric": "exact_match"}, "go together"),
        ({"metric": "mc2"}, "'labels' belong"),
        ({"doc_to_choice": None}, "'doc_to_choice' belongs"),
        ({"doc_to_text": "{{ goal "}, "a template is wrong"),
        ({"doc_to_target": "{{ label + }}"}, "a template is wrong"),
        ({"doc_to_text": "{{ goal | no_such_filter }}"}, "a template is wrong"),
        ({"test_split": "validate"}, "lack the split validate"),
        ({"num_fewshot": 5}, "5 examples need a 'fewshot_split'"),
        ({"revision": "main"}, "revision"),
        ({"dataset_path": "../../etc"}, "dataset_path"),
    ],
)
def test_wrong_declarations_name_file_and_key(change, said, project):
    declare(project, "piqa", **change)
    with pytest.raises(UserError) as error:
        load_benchmark(project, "piqa")
    assert said in str(error.value) and "piqa.yaml" in str(error.value)


def test_examples_that_a_scale_asks_for_need_a_split(project):
    assert scoring_of(project, Published(benchmark="nq_open", num_fewshot=5)).num_fewshot == 5
    with pytest.raises(UserError, match=r"(?s)piqa.yaml.*5 examples need a 'fewshot_split'"):
        scoring_of(project, Published(benchmark="piqa", num_fewshot=5))


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ({"tasks": {"a": {"kind": "published", "benchmark": "piqa", "shots": 1}}}, "unknown"),
        ({"corpora": ["old"], **published_suites(a="piqa")["english"]}, "no task is made from text"),
        ({"tasks": {"a": {"kind": "last_word", "documents": 2, "context_words": 3}}}, "'corpora' must name"),
        ({"tasks": {"a": {"kind": "publisht", "benchmark": "piqa"}}}, "published"),
    ],
)
def test_wrong_suites_are_refused(suite, said):
    with pytest.raises(UserError, match=said):
        parse(Suite, suite, "scale.yaml")


# --- what decides a task ---

SUITES = {
    **local_suites(),
    "published": published_suites(piqa="piqa", arc="arc_easy", nq="nq_open")["english"],
}


def changed(project, suites=SUITES, data=DATA, length=64, before=None):
    """The tasks whose digest is not the one before; without `before` the digests."""
    digests = task_digests(project, scale_of(suites, length), data)
    flat = {f"{suite}/{name}": one for suite, tasks in digests.items() for name, one in tasks.items()}
    return (
        flat if before is None else {name for name in {*flat, *before} if flat.get(name) != before.get(name)}
    )


def test_only_what_decides_a_task_changes_its_digest(project):
    before = changed(project)
    assert len(set(before.values())) == 5

    declare(project, "piqa", note="other", about="other")
    assert changed(project, before=before) == set()
    # A key that says its default is not there.
    declare(project, "piqa", num_fewshot=0, description="")
    assert changed(project, before=before) == set()
    declare(project, "piqa", doc_to_text="Goal: {{ goal }}")
    assert changed(project, before=before) == {"published/piqa"}


def test_a_further_task_and_other_text_leave_the_others_alone(project):
    before = changed(project)
    tasks = {**SUITES["published"]["tasks"], "more": {"kind": "published", "benchmark": "boolq"}}
    assert changed(project, {**SUITES, "published": {"tasks": tasks}}, before=before) == {"published/more"}
    tasks = {
        **SUITES["published"]["tasks"],
        "nq": {"kind": "published", "benchmark": "nq_open", "num_fewshot": 5},
    }
    assert changed(project, {**SUITES, "published": {"tasks": tasks}}, before=before) == {"published/nq"}

    local = {"english/continuation", "english/last_word"}
    assert changed(project, data=DATA | {"new": "rebuilt"}, before=before) == local
    assert changed(project, data=DATA | {"elsewhere": "more text"}, before=before) == set()
    assert changed(project, length=128, before=before) == local
    fewer = {**SUITES, "english": local_suites(documents=10)["english"]}
    fewer["english"]["tasks"]["last_word"] = SUITES["english"]["tasks"]["last_word"]
    assert changed(project, fewer, before=before) == {"english/continuation"}


# --- templates ---

ATTACKS = [
    "{{ cycler.__init__.__globals__.os.popen('touch ATTACKED').read() }}",
    "{{ lipsum.__globals__['os'].system('touch ATTACKED') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ goal.__class__.__base__.__subclasses__() }}",
    "before {{ goal.format.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(goal) }}",
    "{{ self.__init__.__globals__ }}",
]


@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_choice", "description", "keep", "group"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_templates_reach_nothing_but_the_row(attack, key, project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark = load_benchmark(project, "piqa")
    declared = Benchmark.model_validate(benchmark.model_dump() | {key: attack})
    with pytest.raises(Exception, match="unsafe|undefined|no attribute"):
        declared.of(key, {"goal": "g", "sol1": "a", "sol2": "b", "label": 0})
    assert not (tmp_path / "ATTACKED").exists()


def test_values_and_texts(project):
    benchmark = load_benchmark(project, "winogrande")
    row = {"sentence": "As _ was large.", "option1": "it", "option2": "that", "answer": "2"}
    assert benchmark.of("doc_to_text", row) == 1
    assert benchmark.of("doc_to_choice", row) == ["As it", "As that"]
    assert load_benchmark(project, "mmlu").of("doc_to_choice", {}) == ("A", "B", "C", "D")
    assert load_benchmark(project, "boolq").of("doc_to_target", {"label": 1}) == 1
    with pytest.raises(Exception, match="undefined"):
        load_benchmark(project, "boolq").of("doc_to_target", {})
