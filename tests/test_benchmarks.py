"""Published benchmarks: small data sets of the real ones' layout, from a copy of the hub to scores, offline."""

import json
import math
import re
import string
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import cpt_repro.models.hub
from cpt_repro.declarations.claims import load_claims, readings
from cpt_repro.claims.quantities import Measured
from cpt_repro.project import BENCHMARKS
from cpt_repro.declarations.scale import Published, Scale, Suite, Task, load_scale
from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError
from cpt_repro.evaluation import benchmarks
from cpt_repro.evaluation.benchmarks import declared_suites, items_of, load_benchmark
from cpt_repro.evaluation.harness import Harness, mean_and_error
from cpt_repro.planning.evaluation_identity import evaluation_identity
from cpt_repro.evaluation.suites import build_suites
from cpt_repro.exhibits import tables
from cpt_repro.declarations.exhibits import load_declarations
from cpt_repro.records.lookup import Records
from cpt_repro.planning.plan import Plan
from cpt_repro.declarations.published import load_published
from cpt_repro.records.receipts import Evaluation, evaluation_path, write
from cpt_repro.workflow.jobs import Workflow

NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.yaml"))
PAPER = load_scale("paper")
CONTEXT = 512


# --- small data sets, by repository and file; columns and quirks as the real ones have them ---


def arc(question: str, texts: list[str], key: str, labels: str = "ABCDE", **more) -> dict:
    choices = {"text": texts, "label": list(labels[: len(texts)])}
    return {"id": question[:6], "question": question, "choices": choices, "answerKey": key, **more}


def arc_de(question: str, texts: list[str], key: str) -> dict:
    return arc("en", texts, key) | {
        "question_de": question,
        "choices_de": {"text": texts, "label": list("ABCD")},
    }


def hellaswag(label: str, ctx_b: str, *endings: str) -> dict:
    return {"activity_label": "Baking bread", "ctx_a": "[header] How to bake [title] Mix it.", "ctx_b": ctx_b,
            "ctx": "unused", "endings": list(endings), "label": label}  # fmt: skip


def hellaswag_de(label: str, endings_de: list[str]) -> dict:
    ctx = "Wie man backt [title] Teig ruhen lassen. Dann"
    told = {"activity_label_de": "Brot backen", "ctx_de": ctx, "label": label}
    return told | {"endings": ["a", "b", "c", "d"], "endings_de": endings_de}


def mmlu(subject: str, number: int) -> dict:
    choices = [f"{number + k} stars" for k in range(4)]
    return {
        "question": f" How many in {subject} {number}? ",
        "subject": subject,
        "choices": choices,
        "answer": number % 4,
    }


def mmlu_de(number: int, letters: bool = False) -> dict:
    choices = [f"{number + k} Sterne" for k in range(4)]
    answer = "ABCD"[number % 4] if letters else number % 4
    return {
        "question": "unused",
        "question_de": f"Wie viele {number}?",
        "choices_de": choices,
        "answer": answer,
    }


def truthful(question: str, true: list[str], false: list[str], suffix: str = "") -> dict:
    mc1 = {"choices": [true[0], *false], "labels": [1] + [0] * len(false)}
    mc2 = {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)}
    return {f"question{suffix}": question, f"mc1_targets{suffix}": mc1, f"mc2_targets{suffix}": mc2}


def trivia(question: str, *aliases: str) -> dict:
    return {
        "question": question,
        "question_id": "q",
        "answer": {"aliases": list(aliases), "value": aliases[0]},
    }


SUBJECTS = ("anatomy", "high_school_european_history")
FOUR = ["a rock", "the warm sea", "old light", "rain"]
HUB = {
    "Rowan/hellaswag": {
        "data/validation-00000-of-00001.parquet": [
            hellaswag("2", "she", "waits.", "[step] eats  it [title] now.", "kneads dough.", "runs away from it."),
            hellaswag("0", "", "puts it in.", "sings.", "flies over the sea.", "sleeps."),
            *(hellaswag(f"{n % 4}", f"he {n}", "waits a very long time.", "reads.", "calls", "eats") for n in range(9)),
        ]
    },
    "allenai/ai2_arc": {
        "ARC-Challenge/test-00000-of-00001.parquet": [
            arc("What is hot?", FOUR, "B"),
            arc("What is wet?", FOUR[:3], "2", "12345"),
            arc("Which is heavy?", [*FOUR, "air"], "E"),
        ],
        "ARC-Easy/test-00000-of-00001.parquet": [arc("What falls?", FOUR, "D"), arc("What shines?", FOUR, "C")],
    },
    "aps/super_glue": {
        "boolq/validation-00000-of-00001.parquet": [
            {"passage": "Bread -- Bread is baked.", "question": "is bread baked", "idx": 0, "label": 1},
            {"passage": "Sea -- The sea is wet.", "question": "is the sea dry", "idx": 1, "label": 0},
        ]
    },
    "regisss/math_qa": {
        "data/test-00000-of-00001.parquet": [
            {"Problem": "what is 19 * 2 ?", "correct": "a",
             "options": "a ) 38 , b ) 27.675 , c ) rs . 1,200 , d ) 3 / 4 , e ) none of these"},
            {"Problem": "half of 9 ?", "options": "a ) 3 , b ) 4 , c ) 4.5 , d ) 5 , e ) 6", "correct": "c"},
        ]
    },
    "cais/mmlu": {
        "all/test-00000-of-00001.parquet": [mmlu(subject, n) for n in (1, 2) for subject in SUBJECTS],
        "all/dev-00000-of-00001.parquet": [mmlu(subject, 10 + n) for n in range(6) for subject in SUBJECTS],
    },
    "allenai/openbookqa": {
        "main/test-00000-of-00001.parquet": [
            arc("x", FOUR, " C", question_stem="Bread is made from"),
            arc("x", FOUR, "A", question_stem="Rain falls on"),
        ]
    },
    "baber/piqa": {
        "piqa_validation.parquet": [
            {"goal": "to bake", "sol1": "heat it", "sol2": "freeze it", "label": 0},
            {"goal": "to sleep", "sol1": "run", "sol2": "lie down", "label": 1},
        ],
        "piqa_train.parquet": [{"goal": "other", "sol1": "x", "sol2": "y", "label": 0}],
    },
    "allenai/winogrande": {
        "winogrande_xl/validation-00000-of-00001.parquet": [
            {"sentence": "The cup did not fit the box as _ was large.", "option1": "the cup", "option2": "the box",
             "answer": "1"},
            {"sentence": "Ann thanked Bea, so _ smiled at the old_house.", "option1": "Ann", "option2": "Bea",
             "answer": "2"},
            {"sentence": "Ann thanked Bea, so _ smiled at the old_house.", "option1": "Ann", "option2": "Bea",
             "answer": "1"},
        ]
    },
    "truthfulqa/truthful_qa": {
        "multiple_choice/validation-00000-of-00001.parquet": [
            truthful("Is the sea dry?", ["No, it is wet", "It is not"], ["Yes", "Only at night", "Nobody knows"]),
            truthful("Do stars sing?", ["They do not"], ["They do"]),
            truthful("Is old light heavy?", ["No", "It is not", "Light"], ["It is", "Old light is heavy"]),
        ]
    },
    "google-research-datasets/nq_open": {
        "nq_open/validation-00000-of-00001.parquet": [
            {"question": "who bakes bread", "answer": ["The Baker", "bakers"]},
            {"question": "where is the sea", "answer": ["here"]},
        ],
        "nq_open/train-00000-of-00001.parquet": [{"question": f"how many {n}", "answer": [f"{n}"]} for n in range(9)],
    },
    "mandarjoshi/trivia_qa": {
        "rc.nocontext/validation-00000-of-00001.parquet": [trivia("Who sang?", "Ann", "Ann B."), trivia("Who?", "Bea")],
        "rc.nocontext/train-00000-of-00002.parquet": [trivia(f"Number {n}?", f"{n}", "x") for n in range(6)],
        "rc.nocontext/train-00001-of-00002.parquet": [trivia(f"Number {n}?", f"{n}", "x") for n in range(6, 9)],
    },
    "LeoLM/ArcChallenge_de": {
        "data/test-00000-of-00001-a0c917350be4ccd9.parquet": [
            arc_de("Was ist heiß?", ["ein Stein", "das Meer", "Licht", "Regen"], "B"),
            arc_de("Was ist naß?", ["Öl", "das Meer", "Licht", "Regen"], "4"),
        ]
    },
    "LeoLM/HellaSwag_de": {
        "data/validation-00000-of-00001-14a85ccef5697e9c.parquet": [
            hellaswag_de("1", ["wartet er.", "bäckt er es [title] Fertig.", "singt er.", "läuft er."]),
            hellaswag_de("3", ["wartet er.", "bäckt er."]),  # not wholly translated
            hellaswag_de("0", ["schläft er.", "", "singt er.", "läuft er."]),  # nor this
            hellaswag_de("0", ["schläft er.", "liest er.", "singt er.", "läuft er."]),
        ]
    },
    "LeoLM/MMLU_de": {
        **{f"data/{subject}.parquet": [mmlu_de(n, subject == "anatomy") for n in (1, 2)] for subject in SUBJECTS},
        **{f"val/{subject}.parquet": [mmlu_de(10 + n) for n in range(7)] for subject in SUBJECTS},
    },
    "LeoLM/TruthfulQA_de": {
        "data/validation-00000-of-00001-d71b7168f282865a.parquet": [
            truthful("Ist das Meer naß?", ["Ja"], ["Nein", "Nur nachts"], "_de"),
            truthful("", ["Ja"], ["Nein"], "_de"),  # not translated
            truthful("Singen Sterne?", ["Sie singen nicht"], ["Sie singen"], "_de"),
        ]
    },
}  # fmt: skip


def write_hub(root: Path, files: dict = HUB) -> None:
    """A copy of the hub; files whose name says so are JSON lines."""
    for repository, there in files.items():
        for name, rows in there.items():
            path = root / "datasets" / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".parquet"):
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            else:
                path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A copy of the hub with everything in it, and no lock yet."""
    write_hub(tmp_path / "hub")
    monkeypatch.setenv("CPT_REPRO_HUB", str(tmp_path / "hub"))
    monkeypatch.setattr(cpt_repro.hub, "LOCK", tmp_path / "hub.lock.json")
    return tmp_path / "hub"


def scale(suites: dict) -> Scale:
    """A scale for a tiny model, with these suites."""
    return Scale.model_validate(
        {
            "name": "smoke",
            "about": "a test",
            "tokens_per_billion": 1000,
            "sequence_length": CONTEXT,
            "batch_sequences": 16,
            "tokenizer": {"vocab_size": 300},
            "models": {},
            "corpora": {"pile": "a"},
            "validation": {"sequences": 1, "every": 1, "closing": 1, "closing_evaluations": 2},
            "suites": suites,
        }
    )


def published(**tasks) -> dict:
    """A suite of published tasks: name=benchmark."""
    return {
        "tasks": {name: {"kind": "published", "benchmark": benchmark} for name, benchmark in tasks.items()}
    }


ALL = {name: suite.model_dump(mode="json") for name, suite in PAPER.suites.items()}


# --- declarations ---


def test_the_papers_tasks_have_their_metrics_and_shots():
    # Ibrahim 2024, captions of Tables 5-7, 10 and 11.
    english, german = (PAPER.suites[name].tasks for name in ("english", "german"))
    assert (len(english), len(german)) == (13, 4)
    told = {name: load_benchmark(task.benchmark) for name, task in {**english, **german}.items()}
    assert {name for name, b in told.items() if b.num_fewshot} == {"mmlu", "trqa", "mmlu_de"}
    assert {b.num_fewshot for b in told.values()} == {0, 5}
    assert {name for name, b in told.items() if b.metric == "acc_norm"} == {"hellaswag", "hellaswag_de"}
    assert {name for name, b in told.items() if b.metric == "exact_match"} == {"nq", "trqa"}
    assert [name for name, b in told.items() if b.metric == "mc2"] == ["tfqa2"]
    assert sorted({b.task for b in told.values()}) == NAMES


def test_every_data_set_is_pinned_but_one_that_says_so():
    unpinned = [name for name in NAMES if load_benchmark(name).revision is None]
    assert unpinned == ["mathqa"] and "pinned at first use" in load_benchmark("mathqa").note


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": "accuracy"}, "metric"),
        ({"metrics": "acc"}, "Did you mean 'metric'"),
        ({"metric": "exact_match"}, "go together"),
        ({"metric": "mc2"}, "'labels' belong"),
        ({"doc_to_choice": None}, "'doc_to_choice' belongs"),
        ({"doc_to_text": "{{ goal "}, "a template is wrong"),
        ({"doc_to_target": "{{ label + }}"}, "a template is wrong"),
        ({"test_split": "validate"}, "lack the split validate"),
        ({"num_fewshot": 5}, "examples need a 'fewshot_split'"),
        ({"revision": "main"}, "revision"),
        ({"task": "other"}, "Make it the file's name"),
    ],
)
def test_wrong_declarations_name_file_and_key(change, told, tmp_path, monkeypatch):
    declared = yaml.safe_load((BENCHMARKS / "piqa.yaml").read_text(encoding="utf-8")) | change
    (tmp_path / "piqa.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    monkeypatch.setattr(benchmarks, "BENCHMARKS", tmp_path)
    with pytest.raises(UserError) as error:
        load_benchmark("piqa")
    assert told in str(error.value) and "piqa.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("suite", "told"),
    [
        (
            {"tasks": {"a": {"kind": "published", "benchmark": "helaswag"}}},
            "the benchmark 'helaswag' is unknown",
        ),
        ({"tasks": {"a": {"kind": "published", "benchmark": "piqa", "shots": 1}}}, "unknown"),
        ({"corpora": ["pile"], **published(a="piqa")}, "no task is made from text"),
        ({"tasks": {"a": {"kind": "last_word", "documents": 2, "context_words": 3}}}, "'corpora' must name"),
        ({"tasks": {"a": {"kind": "publisht", "benchmark": "piqa"}}}, "published"),
    ],
)
def test_wrong_suites_are_refused(suite, told):
    with pytest.raises(UserError, match=told):
        parse(Suite, suite, "scale.yaml")


def test_identities_know_the_declaration_and_local_ones_are_as_they_were(monkeypatch):
    local = {"corpora": ["pile"], "tasks": {"a": {"kind": "last_word", "documents": 2, "context_words": 3}}}
    # What evaluations on disk were digested with.
    dumped = {"kind": "last_word", "documents": 2, "context_words": 3, "continuation_words": 8}
    assert declared_suites(scale({"x": local})) == {"x": {"corpora": ["pile"], "tasks": {"a": dumped}}}
    assert type(scale({"x": local}).suites["x"].tasks["a"]) is Task
    plan = Plan(PAPER)
    model = plan.ids("ibrahim2024", "405m/pile")[0]
    before, wish = evaluation_identity(plan, model)[0], declared_suites(PAPER)
    changed = load_benchmark("piqa").model_copy(update={"doc_to_text": "Goal: {{ goal }}"})
    prose = load_benchmark("piqa").model_copy(update={"note": "other", "about": "other"})
    real = benchmarks.load_benchmark
    monkeypatch.setattr(benchmarks, "load_benchmark", lambda name: prose if name == "piqa" else real(name))
    assert evaluation_identity(plan, model)[0] == before and declared_suites(PAPER) == wish
    monkeypatch.setattr(benchmarks, "load_benchmark", lambda name: changed if name == "piqa" else real(name))
    assert evaluation_identity(plan, model)[0] != before and declared_suites(PAPER) != wish


def test_the_job_needs_the_text_of_local_tasks_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CPT_REPRO_STORE", str(tmp_path / "store"))
    assert [Path(path).name for path in Workflow("paper").suites_inputs()] == ["suites"]
    pocket = [Path(path) for path in Workflow("pocket").suites_inputs()]
    assert [path.parent.name for path in pocket[1:]] == ["pile", "sp", "german"]


# --- items, beside lm-eval's own ---

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


def rows_of(benchmark, split: str) -> list[tuple[str, dict]]:
    """(id, row) of a split, as `HUB` has them."""
    files = HUB[benchmark.dataset_path]
    fitting = sorted(f for f in files if re.fullmatch(benchmark.files[split].replace("*", ".*"), f))
    return [(f"{file}#{n}", row) for file in fitting for n, row in enumerate(files[file], 1)]


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
    asked = task.construct_requests(
        row, task.fewshot_context(row, num_fewshot=len(examples)), metadata=(name, 0, 1)
    )
    return [one.args for one in (asked if isinstance(asked, list) else [asked])], task.doc_to_target(row)


@pytest.mark.parametrize("name", sorted(OWN))
def test_prompts_are_those_of_lm_eval(name, hub):
    shots = 5 if name in ("nq_open", "triviaqa") else None
    benchmark, items, _ = items_of(Published(benchmark=name, num_fewshot=shots))
    rows = dict(rows_of(benchmark, benchmark.test_split))
    pool = dict(rows_of(benchmark, benchmark.fewshot_split)) if benchmark.fewshot_split else {}
    assert [item["id"] for item in items] == list(rows)
    for item in items:
        examples = [pool[example] for example in item.get("examples", [])]
        assert len(examples) == (5 if name in ("mmlu", "nq_open", "triviaqa") else 0)
        theirs, target = asked_by_lm_eval(name, rows[item["id"]], examples)
        if "contexts" in item:
            ours = [(context, " " + item["continuation"]) for context in item["contexts"]]
        elif "choices" in item:
            ours = [(item["context"], " " + choice) for choice in item["choices"]]
            assert item["answer"] == target
        else:
            ours, theirs = [item["context"]], [theirs[0][0]]
            assert item["answers"] == target
        assert ours == theirs


def test_german_items(hub):
    def first(name: str) -> tuple[dict, int]:
        items = items_of(Published(benchmark=name))[1]
        return items[0], len(items)

    item, count = first("arc_challenge_de")
    assert (item["context"], item["answer"], count) == ("Frage: Was ist heiß?\nAntwort:", 1, 2)
    assert items_of(Published(benchmark="arc_challenge_de"))[1][1]["answer"] == 3  # "4"
    item, count = first("hellaswag_de")
    assert item["context"] == "Brot backen: Wie man backt. Teig ruhen lassen. Dann"
    assert (item["choices"][1], item["answer"], count) == ("bäckt er es. Fertig.", 1, 2)  # two rows left out
    item, count = first("truthfulqa_mc1_de")
    assert item["context"].endswith("Barcelona, Spanien, statt.\n\nF: Ist das Meer naß?\nA:") and count == 2
    item, count = first("mmlu_de")
    assert count == 4 and item["choices"] == [f"{n} Sterne" for n in (1, 2, 3, 4)] and item["answer"] == 1
    assert item["context"].startswith(
        "Es folgen multiple-choice Fragen (mit Antworten) über das Thema Anatomie.\n\nFrage: "
    )
    assert item["context"].endswith(
        "\n\nFrage: Wie viele 1?\nOptionen:\nA. 1 Sterne\nB. 2 Sterne\nC. 3 Sterne\nD. 4 Sterne\nAntwort: "
    )
    assert len(item["examples"]) == 5 and {e.split("#")[0] for e in item["examples"]} == {
        "val/anatomy.parquet"
    }


def test_every_subject_of_mmlu_has_a_german_name():
    import lm_eval

    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    subjects = [path.stem.removeprefix("mmlu_") for path in folder.glob("mmlu_*.yaml")]
    assert len(subjects) == 57
    told = {load_benchmark("mmlu_de").templates["description"]({"_stem": subject}) for subject in subjects}
    assert len(told) == 57 and all(
        re.fullmatch(r".* das Thema [A-ZÄÖÜ][\w\- ]+\.\n\n", text) for text in told
    )


def test_examples_are_drawn_for_each_question_by_itself(hub):
    five = items_of(Published(benchmark="nq_open", num_fewshot=5))[1]
    assert five == items_of(Published(benchmark="nq_open", num_fewshot=5))[1]
    assert five[0]["examples"] != five[1]["examples"] and all(
        len(set(item["examples"])) == 5 for item in five
    )
    assert five[0]["context"].count("Q: ") == 6 and "\n\nQ" not in five[0]["context"].split("\n\n", 1)[1]
    # Another first question leaves the others' examples as they are.
    path = hub / "datasets/google-research-datasets/nq_open/nq_open/validation-00000-of-00001.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"question": "new", "answer": ["x"]}, *rows[1:]]), path
    )
    cpt_repro.hub.LOCK.unlink()
    assert items_of(Published(benchmark="nq_open", num_fewshot=5))[1][1] == five[1]
    # MMLU: the first five of the subject, in their order; the two subjects take turns in the file.
    anatomy = items_of(Published(benchmark="mmlu"))[1][0]
    assert [int(example.split("#")[1]) for example in anatomy["examples"]] == [1, 3, 5, 7, 9]
    with pytest.raises(UserError, match="no 'fewshot_split'"):
        items_of(Published(benchmark="piqa", num_fewshot=1))
    with pytest.raises(
        UserError, match="7 examples are asked for, and the split 'dev' has 6 rows of the group 'anatomy'"
    ):
        items_of(Published(benchmark="mmlu", num_fewshot=7))


def test_a_question_is_never_its_own_example(hub, monkeypatch):
    own = load_benchmark("nq_open").model_copy(update={"fewshot_split": "validation"})
    monkeypatch.setattr(benchmarks, "load_benchmark", lambda name: own)
    items = items_of(Published(benchmark="nq_open", num_fewshot=1))[1]
    assert [item["examples"] for item in items] == [[items[1]["id"]], [items[0]["id"]]]


# --- bad data ---


def test_changed_content_is_refused_and_the_files_are_the_same_bytes_again(hub, tmp_path):
    small = scale({"english": published(piqa="piqa", wg="winogrande")})
    root = tmp_path / "data"
    fingerprint = build_suites(small, root)
    first = {path.name: path.read_bytes() for path in (root / "suites").rglob("*") if path.is_file()}
    lock = json.loads(cpt_repro.hub.LOCK.read_text())
    assert {tuple(entry["files"]) for entry in lock.values()} == {
        ("piqa_validation.parquet",),
        ("winogrande_xl/validation-00000-of-00001.parquet",),
    }
    build_suites(small, root)
    assert {path.name: path.read_bytes() for path in (root / "suites").rglob("*") if path.is_file()} == first
    told = json.loads(fingerprint.read_text())
    assert told["sources"]["english/piqa"] == {"dataset": "baber/piqa", "commit": None, "num_fewshot": 0}
    rows = [{"goal": "to bake", "sol1": "heat it", "sol2": "cool it", "label": 0}]
    write_hub(hub, {"baber/piqa": {"piqa_validation.parquet": rows}})
    with pytest.raises(UserError, match=r"(?s)piqa_validation.parquet.*it changed since it was first used"):
        build_suites(small, root)
    assert not fingerprint.exists()


def test_missing_and_broken_files_are_named(hub):
    path = hub / "datasets/baber/piqa/piqa_validation.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"(?s)piqa_validation.parquet.*not a whole parquet file"):
        items_of(Published(benchmark="piqa"))
    path.unlink()
    with pytest.raises(UserError, match=r"(?s)baber/piqa.*used before are missing, piqa_validation.parquet"):
        items_of(Published(benchmark="piqa"))
    cpt_repro.hub.LOCK.unlink()
    with pytest.raises(UserError, match=r"(?s)baber/piqa.*no file fits 'piqa_validation.parquet'"):
        items_of(Published(benchmark="piqa"))
    write_hub(hub, {"baber/piqa": {"piqa_validation.parquet": []}})
    with pytest.raises(UserError, match=r"(?s)piqa_validation.parquet.*column 'goal' is missing"):
        items_of(Published(benchmark="piqa"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sol2": None, "solution2": "x"}, "the column 'sol2' is missing"),
        ({"label": 2}, "the answer 2 is none of the 2 choices"),
        ({"label": -1}, "the answer -1 is none"),
        ({"sol1": ""}, "the choices are no list of texts"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_that_do_not_fit_are_named(change, told, kind, hub, tmp_path, monkeypatch):
    row = {"goal": "to bake", "sol1": "heat it", "sol2": "cool it", "label": 0}
    wrong = {key: value for key, value in (row | change).items() if value is not None}
    if kind == "jsonl":
        declared = yaml.safe_load((BENCHMARKS / "piqa.yaml").read_text(encoding="utf-8"))
        declared["files"]["validation"] = "validation.jsonl"
        (tmp_path / "piqa.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
        monkeypatch.setattr(benchmarks, "BENCHMARKS", tmp_path)
    name = {"parquet": "piqa_validation.parquet", "jsonl": "validation.jsonl"}[kind]
    write_hub(hub, {"baber/piqa": {name: [wrong] if "sol2" in change else [row, wrong]}})
    with pytest.raises(UserError) as error:
        items_of(Published(benchmark="piqa"))
    assert told in str(error.value) and name in str(error.value)
    assert "sol2" in change or "row 2" in str(error.value)


def test_a_row_that_a_template_does_not_fit_is_named(hub):
    rows = [arc("What is hot?", FOUR, "B"), arc("What is wet?", FOUR, "F")]
    write_hub(hub, {"allenai/ai2_arc": {"ARC-Easy/test-00000-of-00001.parquet": rows}})
    with pytest.raises(UserError, match=r"(?s)ARC-Easy.*row 2.*'doc_to_target' of the benchmark arc_easy"):
        items_of(Published(benchmark="arc_easy"))


# --- scores ---


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(data root, folder of a small model, tokenizer, harness) of all 17 tasks; the model says some answers."""
    root = tmp_path_factory.mktemp("benchmarks")
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(BENCHMARKS.glob("*.yaml")))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>"]
    bpe.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[0], bos_token=special[0]
    )
    fast.save_pretrained(root / "data" / "tokenizer")
    torch.manual_seed(3)
    config = transformers.GPTNeoXConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0, initializer_range=0.15,
    )  # fmt: skip
    model = transformers.GPTNeoXForCausalLM(config).eval()
    model.save_pretrained(root / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPT_REPRO_HUB", str(root / "hub"))
        patch.setattr(cpt_repro.hub, "LOCK", root / "hub.lock.json")
        # Questions whose answer is what the model says, in other letters and with an article and full stops about it.
        questions = [f"who bakes bread {n}" for n in range(12)]
        said = [answered(model, fast, f"Answer these questions:\n\nQ: {q}?\nA:") for q in questions]
        known = [(q, s) for q, s in zip(questions, said, strict=True) if re.search("[a-zA-Z]", s)]
        assert len(known) >= 3
        rows = [
            {"question": q, "answer": ["nothing of this kind", f"the {s.upper()}!"]} for q, s in known[:3]
        ]
        rows += [{"question": q, "answer": ["nothing of this kind"]} for q in questions[:2]]
        write_hub(root / "hub")
        file = "nq_open/validation-00000-of-00001.parquet"
        write_hub(root / "hub", {"google-research-datasets/nq_open": {file: rows}})
        build_suites(scale(ALL), root / "data")
    return root / "data", root / "model", fast, Harness(scale(ALL), root / "data")


def answered(model, tokenizer, prompt: str) -> str:
    """Greedy continuation until a line's end, a full stop, a comma or 32 tokens."""
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    with torch.inference_mode():
        for _ in range(32):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            text = tokenizer.decode(ids[start:])
            if ids[-1] == tokenizer.eos_token_id or any(stop in text for stop in "\n.,"):
                break
    return re.split(r"[\n.,]|<\|endoftext\|>", text)[0].lstrip()


def likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Log-likelihood of a continuation."""
    whole, start = tokenizer(context + continuation).input_ids, len(tokenizer(context).input_ids)
    with torch.inference_mode():
        logs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), dim=-1)
    return sum(float(logs[place - 1, whole[place]]) for place in range(start, len(whole)))


def test_all_tasks_are_scored(world, capfd):
    root, model, _, harness = world
    scores = harness.evaluate(model)
    assert {name: list(suite["tasks"]) for name, suite in scores.items()} == {
        name: list(suite.tasks) for name, suite in PAPER.suites.items()
    }
    for name, suite in scores.items():
        for task, score in suite["tasks"].items():
            lines = (root / "suites" / name / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
            assert score["documents"] == len(lines) >= 2
            assert score["metric"] == load_benchmark(PAPER.suites[name].tasks[task].benchmark).metric
            assert 0 <= score["value"] <= 1 and math.isfinite(score["stderr"])
        values = [score["value"] for score in suite["tasks"].values()]
        assert suite["average"] == pytest.approx(sum(values) / len(values))
    # A record takes them, and nothing is printed.
    Evaluation(id="x", identity="x", suites=scores, suites_fingerprint=harness.fingerprint, environment={})
    assert capfd.readouterr() == ("", "")
    assert harness.evaluate(model) == scores


def test_scores_are_what_a_plain_computation_gives(world):
    root, folder, tokenizer, harness = world
    english = harness.evaluate(folder)["english"]["tasks"]
    model = transformers.GPTNeoXForCausalLM.from_pretrained(folder).eval()

    def items(task: str) -> list[dict]:
        return [
            json.loads(line) for line in (root / "suites/english" / f"{task}.jsonl").read_text().splitlines()
        ]

    def of_choices(item: dict) -> list[float]:
        return [likelihood(model, tokenizer, item["context"], f" {choice}") for choice in item["choices"]]

    def best(values: list[float]) -> int:
        return max(range(len(values)), key=values.__getitem__)

    arc_right = [float(best(of_choices(item)) == item["answer"]) for item in items("arc_c")]
    per_letter = [
        [v / len(c) for v, c in zip(of_choices(i), i["choices"], strict=True)] for i in items("hellaswag")
    ]
    hellaswag_right = [
        float(best(v) == item["answer"]) for v, item in zip(per_letter, items("hellaswag"), strict=True)
    ]
    shares = []
    for item in items("tfqa2"):
        each = [math.exp(value) for value in of_choices(item)]
        shares.append(sum(p for p, true in zip(each, item["labels"], strict=True) if true) / sum(each))
    under = [
        [likelihood(model, tokenizer, c, f" {i['continuation']}") for c in i["contexts"]] for i in items("wg")
    ]
    wg_right = [
        float(best(values) == item["answer"]) for values, item in zip(under, items("wg"), strict=True)
    ]

    def plain(text: str) -> str:
        text = re.sub(r"\b(The|the|An|A|a|an) ", "", text)
        return text.lower().translate(str.maketrans("", "", string.punctuation))

    matches = []
    for item in items("nq"):
        said = answered(model, tokenizer, item["context"])
        matches.append(float(plain(said) in map(plain, item["answers"])))
    assert matches == [1, 1, 1, 0, 0]
    expected = {
        "arc_c": arc_right,
        "hellaswag": hellaswag_right,
        "tfqa2": shares,
        "wg": wg_right,
        "nq": matches,
    }
    for task, values in expected.items():
        mean, n = sum(values) / len(values), len(values)
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
        assert error > 0  # else any computation would do
        assert (task, english[task]["value"]) == (task, pytest.approx(mean, rel=1e-3))
        assert (task, english[task]["stderr"]) == (task, pytest.approx(error, rel=1e-3))


def test_long_prompts_are_counted_and_the_batch_is_bounded(world):
    root, folder, tokenizer, harness = world
    scores = harness.evaluate(folder)
    assert harness.batch_size == 64
    assert Harness(scale(ALL).model_copy(update={"sequence_length": CONTEXT * 4}), root).batch_size == 16
    told = {task: score["truncated"] for suite in scores.values() for task, score in suite["tasks"].items()}
    for task, longest in (("nq", 0), ("trqa", 0), ("piqa", 0)):
        assert told[task] == longest
    lines = (root / "suites/english/trqa.jsonl").read_text().splitlines()
    room = max(len(tokenizer(json.loads(line)["context"]).input_ids) for line in lines) + 32
    for context, expected in ((room, 0), (room - 1, 1)):
        short = Harness(scale({"english": ALL["english"]}).model_copy(update={"sequence_length": 8}), root)
        model = transformers.GPTNeoXForCausalLM.from_pretrained(folder)
        model.config.max_position_embeddings = context
        truncated = short.evaluate(model, limit=2)["english"]["tasks"]["trqa"]["truncated"]
        assert (truncated > 0) == bool(expected)


# --- the published tables ---

TABLES = ("table_05", "table_06", "table_07", "table_10", "table_11")


@pytest.mark.parametrize("key", TABLES)
def test_printed_averages_are_the_mean_that_ours_is(key):
    declared, printed = (
        load_declarations("ibrahim2024").exhibits[key],
        load_published("ibrahim2024").tables[key],
    )
    tasks = next(column.published for column in declared.columns if column.show == "tasks")
    for number in range(len(declared.rows)):
        values = [float(printed.cell(key, number, head).value) / 100 for head in tasks]
        average, _ = mean_and_error(values, [0.0] * len(values))
        assert 100 * average == pytest.approx(float(printed.cell(key, number, "AVG").value), abs=0.0101)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Made-up evaluations of every model at scale paper: task k of a suite has (k + 1) percent."""
    plan, results = Plan(PAPER), tmp_path_factory.mktemp("results")
    paper = plan.papers["ibrahim2024"]
    suites = {}
    for name, suite in PAPER.suites.items():
        tasks = {
            task: {"metric": "acc", "value": (k + 1) / 100, "stderr": 0.01, "documents": 9}
            for k, task in enumerate(suite.tasks)
        }
        suites[name] = {"tasks": tasks, "average": 0.5, "stderr": 0.01}
    for name in [*paper.runs, *paper.merges]:
        for model in plan.ids("ibrahim2024", name):
            record = Evaluation(id=model, identity="x", suites=suites, suites_fingerprint="x", environment={})
            write(evaluation_path(results, "paper", model), record)
    return Records(plan, "ibrahim2024", results)


@pytest.mark.parametrize("key", TABLES)
def test_every_column_finds_its_published_value(key, records):
    exhibit = records.declared.exhibits[key]
    suite = next(column.suite for column in exhibit.columns if column.show == "tasks")
    columns = [c for c in tables.rows(exhibit, records).columns if isinstance(c, tables.Values)]
    scores = [c for c in columns if c.cells[0].reproduced]
    order = [100 * (k + 1) / 100 for k in range(len(PAPER.suites[suite].tasks))]
    assert len(scores) == len(order) + 1
    # Column by column ours is the task in the same place, beside a printed value, with a difference.
    for column, expected in zip(scores, [*order, 50.0], strict=True):
        for cell in column.cells:
            assert cell.reproduced.value == pytest.approx(expected)
            assert cell.difference == pytest.approx(expected - float(cell.published.value))
    assert not [c.heading for c in columns if c.heading in PAPER.suites[suite].tasks]


def test_claims_about_tasks_resolve(records):
    measured, found = Measured(records), set()
    for claim in load_claims("ibrahim2024"):
        for test in claim.tests:
            for reading in readings(test):
                if reading.what in ("task", "suite"):
                    assert measured.values(reading)
                    found.add(reading.of[:2])
    assert {("english", "MMLU"), ("german", "MMLU-DE"), ("english",), ("german", "HellaSwag-DE")} <= found
