"""Items of published benchmarks, made from small data sets of the real ones' layout, offline."""

import json
import re
from pathlib import Path

import pytest
import yaml
from small_hub import FOUR, HUB, arc, write_hub
from tiny_evaluation import DATA, new_project, published_suites, scale_of

from cpt_repro.declarations.benchmarks import load_benchmark, scoring_of
from cpt_repro.declarations.scale import Published
from cpt_repro.errors import UserError
from cpt_repro.evaluation.items import PublishedTask
from cpt_repro.evaluation.suites import build_suites


@pytest.fixture
def project(tmp_path):
    return new_project(tmp_path)


def items_of(project, name: str, num_fewshot: int | None = None) -> list:
    """The items of a benchmark."""
    benchmark = scoring_of(project, Published(benchmark=name, num_fewshot=num_fewshot))
    return PublishedTask(project, benchmark).items()


OWN = {
    "hellaswag": "hellaswag/hellaswag",
    "arc_challenge": "arc/arc_challenge",
    "arc_easy": "arc/arc_easy",
    "boolq": "super_glue/boolq/default",
    "mathqa": "mathqa/mathqa",
    "mmlu": "mmlu/default/mmlu_{subject}",
    "openbookqa": "openbookqa/openbookqa",
    "piqa": "piqa/piqa",
    "winogrande": "winogrande/default",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2",
    "nq_open": "nq_open/nq_open",
    "triviaqa": "triviaqa/default",
}


def rows_of(benchmark, split: str) -> dict[str, dict]:
    """id -> row of a split, as `HUB` has them."""
    files = HUB[benchmark.dataset_path]
    fitting = sorted(f for f in files if re.fullmatch(benchmark.files[split].replace("*", ".*"), f))
    return {f"{file}#{n}": row for file in fitting for n, row in enumerate(files[file], 1)}


def asked_by_lm_eval(name: str, row: dict, examples: list[dict]) -> tuple[list[tuple], object]:
    """(requests, target) that lm-eval's own declaration makes of a row, with these examples before it."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    path = OWN[name].format(subject=row.get("subject"))
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / f"{path}.yaml")
    splits = dict.fromkeys(("train", "validation", "test", "dev"), datasets.Dataset.from_list([row]))
    for key in ("tag", "task_alias", "include"):
        config.pop(key, None)
    task = ConfigurableTask(config=config | {"custom_dataset": lambda **_: splits})
    task.sampler.sample = lambda n, **_: examples
    row = next(iter(task.eval_docs))
    context = task.fewshot_context(row, num_fewshot=len(examples))
    asked = task.construct_requests(row, context, metadata=(name, 0, 1))
    return [one.args for one in (asked if isinstance(asked, list) else [asked])], task.doc_to_target(row)


@pytest.mark.parametrize("name", sorted(OWN))
def test_prompts_are_those_of_lm_eval(name, project):
    items = items_of(project, name, 5 if name in ("nq_open", "triviaqa") else None)
    benchmark = load_benchmark(project, name)
    rows = rows_of(benchmark, benchmark.test_split)
    pool = rows_of(benchmark, benchmark.fewshot_split) if benchmark.fewshot_split else {}
    assert [item.id for item in items] == list(rows)
    for item in items:
        assert len(item.examples) == (5 if name in ("mmlu", "nq_open", "triviaqa") else 0)
        theirs, target = asked_by_lm_eval(name, rows[item.id], [pool[example] for example in item.examples])
        if benchmark.choices_in_context:
            ours = [(context, f" {item.continuation}") for context in item.contexts]
        elif benchmark.output_type == "multiple_choice":
            ours = [(item.context, f" {choice}") for choice in item.choices]
            assert item.answer == target
        else:
            ours, theirs = [item.context], [theirs[0][0]]
            assert list(item.answers) == target
        assert ours == theirs


def test_german_items(project):
    first, second = items_of(project, "arc_challenge_de")
    assert (first.context, first.answer, second.answer) == ("Frage: Was ist heiß?\nAntwort:", 1, 3)
    first, _ = items_of(project, "hellaswag_de")  # two rows that are not wholly translated are left out
    assert first.context == "Brot backen: Wie man backt. Teig ruhen lassen. Dann"
    assert (first.choices[1], first.answer) == ("bäckt er es. Fertig.", 1)
    first, _ = items_of(project, "truthfulqa_mc1_de")
    assert first.context.endswith("Barcelona, Spanien, statt.\n\nF: Ist das Meer naß?\nA:")
    first, *_, last = items_of(project, "mmlu_de")
    assert first.choices == tuple(f"{n} Sterne" for n in (1, 2, 3, 4)) and first.answer == 1
    begin = "Es folgen multiple-choice Fragen (mit Antworten) über das Thema Anatomie.\n\nFrage: "
    options = "A. 1 Sterne\nB. 2 Sterne\nC. 3 Sterne\nD. 4 Sterne"
    assert first.context.startswith(begin)
    assert first.context.endswith(f"\n\nFrage: Wie viele 1?\nOptionen:\n{options}\nAntwort: ")
    assert len(first.examples) == 5
    assert {example.split("#")[0] for example in first.examples} == {"val/anatomy.parquet"}
    assert {example.split("#")[0] for example in last.examples} != {"val/anatomy.parquet"}


def test_every_subject_of_mmlu_has_a_german_name(project):
    import lm_eval

    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    subjects = [path.stem.removeprefix("mmlu_") for path in folder.glob("mmlu_*.yaml")]
    assert len(subjects) == 57
    benchmark = load_benchmark(project, "mmlu_de")
    texts = {benchmark.of("description", {"_stem": subject}) for subject in subjects}
    assert len(texts) == 57
    assert all(re.fullmatch(r".* das Thema [A-ZÄÖÜ][\w\- ]+\.\n\n", text) for text in texts)


def test_examples_are_drawn_for_each_question_by_itself(project):
    five = items_of(project, "nq_open", 5)
    assert five == items_of(project, "nq_open", 5)
    assert five[0].examples != five[1].examples and all(len(set(item.examples)) == 5 for item in five)
    assert five[0].context.count("Q: ") == 6 and "\n\nQ" not in five[0].context.split("\n\n", 1)[1]
    # Another first question leaves the others' examples as they are.
    rows = HUB["google-research-datasets/nq_open"]["nq_open/validation-00000-of-00001.parquet"]
    other = [{"question": "new", "answer": ["x"]}, *rows[1:]]
    write_hub(
        project.hub_copies,
        {"google-research-datasets/nq_open": {"nq_open/validation-00000-of-00001.parquet": other}},
    )
    project.hub_lock.unlink()
    assert items_of(project, "nq_open", 5)[1] == five[1]
    # MMLU: the first five of the subject, in their order; the two subjects take turns in the file.
    anatomy = items_of(project, "mmlu")[0]
    assert [int(example.split("#")[1]) for example in anatomy.examples] == [1, 3, 5, 7, 9]
    with pytest.raises(
        UserError, match="7 examples are asked for, and there are 6 rows of the group 'anatomy'"
    ):
        items_of(project, "mmlu", 7)


# --- faults of the data ---


def test_changed_content_is_refused_and_the_files_are_the_same_bytes_again(project):
    small = scale_of(published_suites(piqa="piqa", wg="winogrande"))

    def built() -> dict[str, bytes]:
        folder = build_suites(project, small, DATA).parent
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    first = built()
    lock = json.loads(project.hub_lock.read_text())
    assert {tuple(entry["files"]) for entry in lock.values()} == {
        ("piqa_validation.parquet",),
        ("winogrande_xl/validation-00000-of-00001.parquet",),
    }
    assert built() == first
    rows = [{"goal": "to bake", "sol1": "heat it", "sol2": "cool it", "label": 0}]
    write_hub(project.hub_copies, {"baber/piqa": {"piqa_validation.parquet": rows}})
    with pytest.raises(UserError, match=r"(?s)piqa_validation.parquet.*it changed since it was first used"):
        built()
    assert not (project.data / "tiny" / "suites" / "fingerprint.json").exists()


def test_missing_and_broken_files_are_named(project):
    path = project.hub_copies / "datasets/baber/piqa/piqa_validation.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"(?s)piqa_validation.parquet.*not a whole file"):
        items_of(project, "piqa")
    path.unlink()
    with pytest.raises(UserError, match=r"(?s)baber/piqa.*used before are missing, piqa_validation.parquet"):
        items_of(project, "piqa")
    project.hub_lock.unlink()
    with pytest.raises(UserError, match=r"(?s)baber/piqa.*no file fits 'piqa_validation.parquet'"):
        items_of(project, "piqa")
    write_hub(project.hub_copies, {"baber/piqa": {"piqa_validation.parquet": []}})
    with pytest.raises(UserError, match=r"(?s)baber/piqa.*the split 'validation' has no rows"):
        items_of(project, "piqa")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sol2": None, "solution2": "x"}, "'choices.1' is wrong"),
        ({"goal": None}, "'doc_to_text' of the benchmark piqa does not fit a row ('goal' is undefined)"),
        ({"label": 2}, "the answer 2 is none of the 2 choices"),
        ({"label": -1}, "'answer' is wrong"),
        ({"label": "0"}, "'answer' is wrong"),
        ({"sol1": ""}, "'choices.0' is wrong"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_that_do_not_fit_are_named(change, said, kind, project):
    row = {"goal": "to bake", "sol1": "heat it", "sol2": "cool it", "label": 0}
    wrong = {key: value for key, value in (row | change).items() if value is not None}
    name = f"validation.{kind}"
    declared = yaml.safe_load((project.benchmarks / "piqa.yaml").read_text(encoding="utf-8"))
    declared["files"]["validation"] = name
    (project.benchmarks / "piqa.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    write_hub(project.hub_copies, {"baber/piqa": {name: [wrong]}})
    with pytest.raises(UserError) as error:
        items_of(project, "piqa")
    assert said in str(error.value) and f"{name}, row 1" in str(error.value)


def test_a_row_that_a_template_does_not_fit_is_named(project):
    rows = [arc("What is hot?", FOUR, "B"), arc("What is wet?", FOUR, "F")]
    write_hub(project.hub_copies, {"allenai/ai2_arc": {"ARC-Easy/test-00000-of-00001.parquet": rows}})
    with pytest.raises(UserError, match=r"(?s)ARC-Easy.*row 2.*'doc_to_target' of the benchmark arc_easy"):
        items_of(project, "arc_easy")


def test_labels_are_one_for_each_choice_with_a_true_one(project):
    file = "multiple_choice/validation-00000-of-00001.parquet"
    for labels in ([1], [0, 0], [1, 2]):
        targets = {"choices": ["Yes", "No"], "labels": labels}
        rows = [{"question": "Is it?", "mc1_targets": targets, "mc2_targets": targets}]
        write_hub(project.hub_copies, {"truthfulqa/truthful_qa": {file: rows}})
        project.hub_lock.unlink(missing_ok=True)
        with pytest.raises(UserError, match=r"(?s)row 1.*labels"):
            items_of(project, "truthfulqa_mc2")


def test_code_in_a_declaration_does_not_run(project, tmp_path, monkeypatch):
    """A template of `configs/benchmarks/*.yaml`, as the reported attack had it."""
    monkeypatch.chdir(tmp_path)
    path = project.benchmarks / "piqa.yaml"
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    attacks = ["cycler.__init__.__globals__.os.popen('touch ATTACKED').read()", "''.__class__.__mro__"]
    for attack in attacks:
        path.write_text(yaml.safe_dump(declared | {"doc_to_text": f"{{{{ goal }}}}{{{{ {attack} }}}}"}))
        with pytest.raises(UserError, match="piqa"):
            items_of(project, "piqa")
    assert not (tmp_path / "ATTACKED").exists()
