"""Scores through lm-eval: right, repeatable, silent, each task by itself, and no code in what is shared."""

import copy
import hashlib
import json
import math
import random
import re
import shutil
import string

import pytest
import torch
from small_hub import write_hub
from tiny_evaluation import (
    DATA,
    END,
    chain,
    local_suites,
    new_project,
    published_suites,
    scale_of,
    write_corpora,
    write_model,
    write_tokenizer,
)

from cpt_repro.declarations.benchmarks import scoring_of
from cpt_repro.declarations.scale import load_scale
from cpt_repro.declarations.study import Studies
from cpt_repro.errors import UserError
from cpt_repro.evaluation.harness import Harness, load_tokenizer
from cpt_repro.evaluation.suites import build_suites
from cpt_repro.exhibits.catalogue import load_exhibits
from cpt_repro.models.weights import load_model_folder
from cpt_repro.records.receipts import Score, SuiteScores

SCALE, CONTEXT = scale_of(local_suites()), 512
TEXT = chain(random.Random(0), 6000)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(project with suites and the model `random`; harness)."""
    project = new_project(tmp_path_factory.mktemp("evaluation"))
    write_corpora(project.data / "tiny")
    fast = write_tokenizer(project.data / "tiny" / "tokenizer", TEXT)
    build_suites(project, SCALE, DATA)
    write_model(project.root / "random", len(fast), seed=1)
    return project, Harness(project, SCALE, DATA)


@pytest.fixture
def guessing(world):
    """A model that has learned nothing."""
    return load_model_folder(world[0].root / "random")


@pytest.fixture(scope="module")
def trained(world):
    """A model that has learned the chain."""
    project, harness = world
    ids = harness.tokenizer(TEXT).input_ids
    return load_model_folder(write_model(project.root / "trained", len(harness.tokenizer), seed=2, ids=ids))


# --- local tasks ---


@pytest.mark.slow
def test_trained_is_above_chance_and_random_is_not(world, trained, guessing, capfd):
    learned, guessed = (world[1].evaluate(model)["english"].tasks for model in (trained, guessing))
    for name, metric in (("continuation", "acc_norm"), ("last_word", "acc")):
        score = learned[name]
        assert (score.metric, score.documents, score.truncated) == (metric, 40, 0)
        assert score.stderr == pytest.approx(math.sqrt(score.value * (1 - score.value) / 39))
        assert len(score.answers) == 40 and sum(score.answers) == round(40 * score.value)
        assert score.value > 0.6 and guessed[name].value < 0.5
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_scores_repeat_exactly_and_no_task_depends_on_the_others(world, trained):
    project, harness = world
    first = harness.evaluate(trained)
    assert first == harness.evaluate(trained) == Harness(project, SCALE, DATA).evaluate(trained)
    alone = local_suites()
    del alone["english"]["tasks"]["continuation"]
    score = Harness(project, scale_of(alone), DATA).evaluate(trained)["english"]
    assert score.tasks == {"last_word": first["english"].tasks["last_word"]}
    assert score.average == score.tasks["last_word"].value != first["english"].average


@pytest.mark.slow
def test_likelihoods_are_those_of_lm_evals_own_path(world, guessing):
    """Ours tokenises a task at once, and makes logits of the places that are asked for alone."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    _, harness = world
    words = TEXT.split()
    pairs = [(" ".join(words[k : k + 3 + k % 40]), " " + words[k + 43]) for k in range(0, 300, 3)]
    pairs += [("spaces at the end  ", "word"), (END + " begins", " so"), (f"{words[0]}", ""), ("", " alone")]
    pairs = [pair for pair in pairs if pair[1]]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    options = {"tokenizer": harness.tokenizer, "backend": "causal", "batch_size": 16}
    options |= {"max_length": CONTEXT, "softmax_dtype": "float32"}
    theirs = HFLM(pretrained=guessing, **options).loglikelihood(requests, disable_tqdm=True)
    ours = harness._model(guessing).loglikelihood(requests)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)
    assert len({value for value, _ in ours}) > 90


def test_known_scores_are_kept_where_the_task_is_the_same(world, guessing):
    scores = world[1].evaluate(guessing)["english"]
    for declaration, kept in ((scores.tasks["last_word"].declaration, True), ("another", False)):
        marked = scores.tasks["last_word"].model_copy(update={"value": 1.0, "declaration": declaration})
        known = SuiteScores(tasks={"last_word": marked})
        after = world[1].evaluate(guessing, {"english": known})["english"]
        assert after.tasks["continuation"] == scores.tasks["continuation"]
        assert after.tasks["last_word"] == (marked if kept else scores.tasks["last_word"])


def test_truncated_items_are_counted(world, guessing):
    model, harness = guessing, world[1]
    model.config.max_position_embeddings = 16
    with pytest.raises(UserError, match="context is 16 tokens"):
        harness.evaluate(model)
    short = scale_of(local_suites(documents=4), sequence_length=16)
    build = new_project_with(world, short)
    scores = Harness(build, short, DATA).evaluate(model)["english"].tasks
    assert {name: score.truncated for name, score in scores.items()} == {"continuation": 4, "last_word": 0}


def new_project_with(world, scale):
    """The same data under another folder, with the suites of `scale`."""
    project = world[0]
    other = project.with_(data=project.root / f"data-{scale.sequence_length}")
    shutil.copytree(project.data, other.data, dirs_exist_ok=True)
    build_suites(other, scale, DATA)
    return other


def test_unfit_models_are_refused(world, tmp_path):
    project, harness = world
    with pytest.raises(UserError, match="entries"):
        harness.evaluate(load_model_folder(write_model(tmp_path / "small", 100, seed=0)))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="GPU"):
            Harness(project, SCALE.model_copy(update={"device": "gpu"}), DATA)


# --- what is shared is data ---

CODE = "{{ cycler.__init__.__globals__.os.popen('touch ATTACKED').read() }}"


def test_code_in_shared_suites_does_not_run(world, guessing, tmp_path, monkeypatch):
    """The reported attack in lm-eval's declarations beside the items, and in items whose hashes fit."""
    monkeypatch.chdir(tmp_path)
    project = new_project_with(world, scale_of(local_suites(), sequence_length=32))
    folder = project.data / "tiny" / "suites"
    record = json.loads((folder / "fingerprint.json").read_text())
    for name in ("continuation", "last_word"):
        config = f'{{"task": "english.{name}", "doc_to_text": "{CODE}", "description": "{CODE}"}}'
        (folder / "english" / f"{name}.yaml").write_text(config)
        items = [
            {
                "id": CODE,
                "corpus": CODE,
                "context": CODE,
                "choices": [CODE, CODE + "a"],
                "answer": 0,
                "examples": [CODE],
            }
        ] * 4
        content = "".join(json.dumps(item) + "\n" for item in items).encode()
        (folder / "english" / f"{name}.jsonl").write_bytes(content)
        record["tasks"][f"english/{name}"]["items"] = hashlib.sha256(content).hexdigest()
    (folder / "fingerprint.json").write_text(json.dumps(record))
    harness = Harness(project, scale_of(local_suites(), sequence_length=32), DATA)
    longer = load_model_folder(write_model(tmp_path / "long", len(harness.tokenizer), seed=1, context=256))
    scores = harness.evaluate(longer)["english"].tasks
    assert {score.documents for score in scores.values()} == {4}
    asked = {
        text for task in harness._tasks["english"].values() for one in task.instances for text in one.args
    }
    assert asked == {CODE, f" {CODE}", f" {CODE}a"}  # as it stands
    assert not list(tmp_path.glob("ATTACKED"))
    with pytest.raises(UserError, match="a choice has .* tokens, and the model's context 64"):
        harness.evaluate(guessing)


def test_tokenizer_folders_run_no_code_and_are_checked(world, tmp_path):
    folder = shutil.copytree(world[0].data / "tiny" / "tokenizer", tmp_path / "tokenizer")
    before = load_tokenizer(folder)("bara dose").input_ids
    (folder / "evil.py").write_text('raise SystemExit("code from a tokenizer folder was run")\n')
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.E", "evil.E"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="code of its own"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Evil"}')  # and is not read
    assert load_tokenizer(folder)("bara dose").input_ids == before
    assert load_tokenizer(folder).eos_token == END
    (folder / "training.json").write_text(json.dumps({"sha256": {"tokenizer.json": "0" * 64}}))
    with pytest.raises(UserError, match="the tokenizer is altered"):
        load_tokenizer(folder)
    (folder / "training.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(folder)


# --- published benchmarks ---


@pytest.fixture(scope="module")
def papers(repository, tmp_path_factory):
    """(project, scale with the paper's 17 tasks, model that knows some answers, tokenizer, harness)."""
    project = new_project(tmp_path_factory.mktemp("benchmarks"))
    suites = {
        name: suite.model_dump(mode="json") for name, suite in load_scale(repository, "paper").suites.items()
    }
    scale = scale_of(suites, CONTEXT)
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(project.benchmarks.glob("*.yaml")))
    fast = write_tokenizer(project.data / "tiny" / "tokenizer", text, 900)
    folder = write_model(project.root / "model", len(fast), 3, context=CONTEXT, initializer_range=0.15)
    model = load_model_folder(folder)
    # Questions whose answer is what the model says, in other letters, with an article and full stops.
    questions = [f"who bakes bread {n}" for n in range(12)]
    said = [answered(model, fast, f"Answer these questions:\n\nQ: {q}?\nA:") for q in questions]
    known = [(q, s) for q, s in zip(questions, said, strict=True) if re.search("[a-zA-Z]", s)]
    assert len(known) >= 3
    rows = [{"question": q, "answer": ["nothing of this kind", f"the {s.upper()}!"]} for q, s in known[:3]]
    rows += [{"question": q, "answer": ["nothing of this kind"]} for q in questions[:2]]
    file = "nq_open/validation-00000-of-00001.parquet"
    write_hub(project.hub_copies, {"google-research-datasets/nq_open": {file: rows}})
    build_suites(project, scale, DATA)
    return project, scale, model, fast, Harness(project, scale, DATA)


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


@pytest.mark.slow
def test_all_published_tasks_are_scored(papers, capfd):
    project, scale, model, _, harness = papers
    scores = harness.evaluate(model)
    assert {name: list(suite.tasks) for name, suite in scores.items()} == {
        name: list(suite.tasks) for name, suite in scale.suites.items()
    }
    for name, suite in scores.items():
        for task, score in suite.tasks.items():
            path = project.data / "tiny" / "suites" / name / f"{task}.jsonl"
            assert score.documents == len(path.read_text(encoding="utf-8").splitlines()) >= 2
            assert score.metric == scoring_of(project, scale.suites[name].tasks[task]).metric
            assert 0 <= score.value <= 1 and math.isfinite(score.stderr)
        values = [score.value for score in suite.tasks.values()]
        assert suite.average == pytest.approx(sum(values) / len(values))
    assert capfd.readouterr() == ("", "")
    assert harness.evaluate(model) == scores


@pytest.mark.slow
def test_scores_are_what_a_plain_computation_gives(papers):
    project, _, model, tokenizer, harness = papers
    scores = harness.evaluate(model)["english"].tasks

    def items(task: str) -> list[dict]:
        path = project.data / "tiny" / "suites" / "english" / f"{task}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def of_choices(item: dict) -> list[float]:
        return [likelihood(model, tokenizer, item["context"], f" {choice}") for choice in item["choices"]]

    def best(values: list[float]) -> int:
        return max(range(len(values)), key=values.__getitem__)

    def per_letter(item: dict) -> list[float]:
        return [v / len(c) for v, c in zip(of_choices(item), item["choices"], strict=True)]

    def share(item: dict) -> float:
        each = [math.exp(value) for value in of_choices(item)]
        return sum(p for p, true in zip(each, item["labels"], strict=True) if true) / sum(each)

    def under(item: dict) -> list[float]:
        return [likelihood(model, tokenizer, c, f" {item['continuation']}") for c in item["contexts"]]

    def plain(text: str) -> str:
        text = re.sub(r"\b(The|the|An|A|a|an) ", "", text)
        return text.lower().translate(str.maketrans("", "", string.punctuation))

    expected = {
        "arc_c": [float(best(of_choices(item)) == item["answer"]) for item in items("arc_c")],
        "hellaswag": [float(best(per_letter(item)) == item["answer"]) for item in items("hellaswag")],
        "tfqa2": [share(item) for item in items("tfqa2")],
        "wg": [float(best(under(item)) == item["answer"]) for item in items("wg")],
        "nq": [
            float(plain(answered(model, tokenizer, item["context"])) in map(plain, item["answers"]))
            for item in items("nq")
        ],
    }
    assert expected["nq"] == [1, 1, 1, 0, 0]
    for task, values in expected.items():
        mean, n = sum(values) / len(values), len(values)
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
        assert error > 0  # else any computation would do
        assert (task, scores[task].value) == (task, pytest.approx(mean, rel=1e-3))
        assert (task, scores[task].stderr) == (task, pytest.approx(error, rel=1e-3))


@pytest.mark.slow
def test_long_prompts_are_counted_and_the_batch_is_bounded(papers):
    project, scale, model, tokenizer, harness = papers
    assert harness.batch_size == 64
    small = scale_of(published_suites(trqa="triviaqa"), CONTEXT)
    longer = small.model_copy(update={"sequence_length": CONTEXT * 4})
    assert Harness(project, longer, DATA).batch_size == 16
    trqa = Harness(project, small.model_copy(update={"sequence_length": 8}), DATA)
    lines = (project.data / "tiny/suites/english/trqa.jsonl").read_text().splitlines()
    room = max(len(tokenizer(json.loads(line)["context"]).input_ids) for line in lines) + 32
    for context, some in ((CONTEXT, False), (room, False), (room - 1, True)):
        changed = copy.deepcopy(model)
        changed.config.max_position_embeddings = context
        assert (trqa.evaluate(changed)["english"].tasks["trqa"].truncated > 0) == some


@pytest.mark.parametrize("key", ["table_05", "table_06", "table_07", "table_10", "table_11"])
def test_printed_averages_are_the_mean_that_ours_is(key, repository):
    study = Studies(repository)["ibrahim2024"]
    declared, printed = load_exhibits(study).exhibits[key], study.published.tables[key]
    tasks = next(column.published for column in declared.columns if column.show == "tasks")
    for number in range(len(declared.rows)):
        values = {head: float(printed.cell(key, number, head).value) / 100 for head in tasks}
        scores = {
            h: Score(metric="acc", value=v, stderr=0, documents=1, declaration="") for h, v in values.items()
        }
        assert 100 * SuiteScores(tasks=scores).average == pytest.approx(
            float(printed.cell(key, number, "AVG").value), abs=0.0101
        )
