"""The evaluation stage: suites from held-out text, scores through lm-eval, TIES merges, generations."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cpt_repro.declarations.scale import Scale
from cpt_repro.errors import UserError
from cpt_repro.evaluation.generate import generate, held_out_prompts
from cpt_repro.evaluation.harness import Harness, mean_and_error
from cpt_repro.evaluation.merge import merge_folders, ties_merge, trim
from cpt_repro.evaluation.suites import build_suites

DOCUMENTS = 40


def scale(documents: int = DOCUMENTS, context_words: int = 12, corpora: tuple = ("pile", "sp")) -> Scale:
    """A scale with two tasks over `corpora`."""
    task = {"documents": documents, "context_words": context_words}
    return Scale.model_validate(
        {
            "name": "smoke",
            "about": "a test",
            "tokens_per_billion": 1000,
            "sequence_length": 64,
            "batch_sequences": 16,
            "tokenizer": {"vocab_size": 300},
            "models": {},
            "corpora": {"pile": "a", "sp": "b"},
            "validation": {"sequences": 1, "every": 1, "closing": 1, "closing_evaluations": 2},
            "suites": {
                "english": {
                    "corpora": corpora,
                    "tasks": {
                        "continuation": {"kind": "continuation", "continuation_words": 6, **task},
                        "last_word": {"kind": "last_word", **task},
                    },
                }
            },
        }
    )


def text_of_a_chain(rng: random.Random, words: int) -> str:
    """A bigram chain over 24 words, two successors each: easy to learn, and the true next word is one of two."""
    vocabulary = [a + b for a in ("ba", "do", "ki", "lu") for b in ("ra", "se", "ti", "mo", "nu", "ve")]
    word, out = rng.randrange(len(vocabulary)), []
    for _ in range(words):
        out.append(vocabulary[word])
        word = (word * 5 + rng.choice((1, 8))) % len(vocabulary)
    return " ".join(out)


def write_corpora(root: Path, documents: int = 20) -> None:
    """`root/{pile,sp}/validation.jsonl`, documents of 60 to 100 words."""
    for corpus in ("pile", "sp"):
        rng = random.Random(corpus)
        (root / corpus).mkdir(parents=True)
        rows = (
            {"id": f"{corpus}-{i}", "domain": "x", "text": text_of_a_chain(rng, rng.randint(60, 100))}
            for i in range(documents)
        )
        (root / corpus / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tokenizer(folder: Path, text: str) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 320 entries, `<|endoftext|>` the first."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    end, alphabet = "<|endoftext|>", pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end)
    fast.save_pretrained(folder)
    return fast


def write_model(folder: Path, vocabulary: int, seed: int, ids: list[int] | None = None) -> Path:
    """A tiny GPT-NeoX, random or trained on `ids` for a few seconds."""
    torch.manual_seed(seed)
    config = transformers.GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPTNeoXForCausalLM(config)
    if ids is not None:
        data = torch.tensor(ids)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(120):
            starts = torch.randint(len(data) - 64, (16, 1))
            batch = data[starts + torch.arange(64)]
            optimizer.zero_grad()
            model(batch, labels=batch).loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data root with corpora, tokenizer and suites; a random and a trained model; the harness."""
    root = tmp_path_factory.mktemp("evaluation")
    write_corpora(root)
    text = text_of_a_chain(random.Random(0), 6000)
    fast = write_tokenizer(root / "tokenizer", text)
    build_suites(scale(), root)
    write_model(root / "random", len(fast), seed=1)
    write_model(root / "trained", len(fast), seed=2, ids=fast(text).input_ids)
    return root, Harness(scale(), root)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- suites ---


@pytest.fixture
def root(tmp_path):
    write_corpora(tmp_path)
    write_tokenizer(tmp_path / "tokenizer", text_of_a_chain(random.Random(0), 2000))
    return tmp_path


def test_suites_are_the_same_bytes_in_two_builds(root):
    assert build_suites(scale(), root) == root / "suites" / "fingerprint.json"
    first = files_of(root / "suites")
    (root / "suites" / "english" / "left_over.jsonl").write_text("x")
    build_suites(scale(), root)
    assert files_of(root / "suites") == first
    assert str(root).encode() not in b"".join(first.values())


def test_suites_do_not_depend_on_the_hash_seed(root, tmp_path):
    code = (
        "import json, sys; from pathlib import Path; from cpt_repro.config import Scale;"
        "from cpt_repro.evaluation.suites import build_suites;"
        "print(build_suites(Scale.model_validate(json.loads(sys.argv[2])), Path(sys.argv[1])).read_text())"
    )
    arguments = [sys.executable, "-c", code, str(root), scale().model_dump_json()]
    texts = {
        subprocess.run(
            arguments, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_items_are_what_they_say(root):
    build_suites(scale(), root)
    texts = {
        row["id"]: row["text"]
        for corpus in ("pile", "sp")
        for row in map(json.loads, (root / corpus / "validation.jsonl").read_text().splitlines())
    }
    for name, length in (("continuation", 6), ("last_word", 1)):
        items = [
            json.loads(line) for line in (root / "suites/english" / f"{name}.jsonl").read_text().splitlines()
        ]
        assert len(items) == DOCUMENTS
        assert [item["corpus"] for item in items[:4]] == ["pile", "sp", "pile", "sp"]
        # 20 documents a corpus, 20 items from each: one from every document.
        assert len({item["id"].split("#")[0] for item in items}) == DOCUMENTS
        assert {item["answer"] for item in items} == {0, 1, 2, 3}
        for item in items:
            assert len(set(item["choices"])) == 4
            assert {len(choice.split()) for choice in item["choices"]} == {length}
            source = texts[item["id"].split("#")[0]]
            assert item["context"] + " " + item["choices"][item["answer"]] in source


def test_windows_of_one_document_do_not_overlap(root):
    build_suites(scale(documents=70, corpora=("pile",)), root)
    items = [json.loads(line) for line in (root / "suites/english/last_word.jsonl").read_text().splitlines()]
    places = [(item["id"].split("#")[0], int(item["id"].split("#")[1])) for item in items]
    assert len(set(places)) == 70
    assert all(start % 13 == 0 for _, start in places)


def test_too_little_text_says_how_many_and_which_key(root):
    with pytest.raises(UserError) as error:
        build_suites(scale(documents=5000), root)
    message = str(error.value)
    assert "2500 items are needed" in message and "suites.english.tasks.continuation" in message
    found = int(message.split("gives ")[1].split()[0])
    assert f"at most {2 * found}" in message
    assert not (root / "suites" / "fingerprint.json").exists()
    build_suites(scale(documents=2 * found), root)


def test_missing_and_broken_text_is_named(root):
    (root / "sp" / "validation.jsonl").write_text('{"id": "a", "text": "b c"}\n{"id": "a"}\n')
    with pytest.raises(UserError, match="line 2"):
        build_suites(scale(), root)
    (root / "sp" / "validation.jsonl").unlink()
    with pytest.raises(UserError, match="held-out text does not exist"):
        build_suites(scale(), root)


def test_one_document_gives_no_false_continuations(root):
    for corpus in ("pile", "sp"):
        path = root / corpus / "validation.jsonl"
        path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="false choices"):
        build_suites(scale(documents=2), root)


def test_choices_too_long_for_the_sequences_are_left_out(root):
    path = root / "pile" / "validation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:10]:
        row["text"] = " ".join(["Q" * 40] * 60)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_suites(scale(), root)
    for name in ("continuation", "last_word"):
        assert "Q" not in (root / "suites/english" / f"{name}.jsonl").read_text()


# --- scores ---


def test_trained_is_above_chance_and_random_is_not(world, capfd):
    root, harness = world
    trained, guessing = harness.evaluate(root / "trained"), harness.evaluate(root / "random")
    for name, metric in (("continuation", "acc_norm"), ("last_word", "acc")):
        score = trained["english"]["tasks"][name]
        assert score["metric"] == metric and score["documents"] == DOCUMENTS and score["truncated"] == 0
        assert score["value"] > 0.6
        assert guessing["english"]["tasks"][name]["value"] < 0.5
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_scores_repeat_exactly_and_take_a_model_too(world):
    root, harness = world
    model = transformers.GPTNeoXForCausalLM.from_pretrained(root / "trained").train()
    first = harness.evaluate(model)
    assert model.training
    assert first == harness.evaluate(root / "trained") == Harness(scale(), root).evaluate(root / "trained")


def test_errors_of_tasks_and_average(world):
    root, harness = world
    suite = harness.evaluate(root / "trained")["english"]
    for task in suite["tasks"].values():
        p, n = task["value"], task["documents"]
        assert task["stderr"] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert suite["average"] == pytest.approx(sum(task["value"] for task in suite["tasks"].values()) / 2)
    assert mean_and_error([0.25, 0.75], [0.03, 0.04]) == pytest.approx((0.5, 0.025))


def test_limit_takes_the_first_items(world):
    root, harness = world
    assert harness.evaluate(root / "random", limit=6)["english"]["tasks"]["last_word"]["documents"] == 6
    with pytest.raises(UserError, match="limit"):
        harness.evaluate(root / "random", limit=1)


def test_truncated_items_are_counted(world):
    root, harness = world
    model = transformers.GPTNeoXForCausalLM.from_pretrained(root / "random")
    model.config.max_position_embeddings = 16
    with pytest.raises(UserError, match="context is 16 tokens"):
        harness.evaluate(model)
    short = Harness(scale().model_copy(update={"sequence_length": 16}), root)
    assert short.evaluate(model)["english"]["tasks"]["continuation"]["truncated"] == DOCUMENTS


def test_unfit_models_are_refused(world, tmp_path):
    root, harness = world
    with pytest.raises(UserError, match="not a model folder"):
        harness.evaluate(tmp_path)
    with pytest.raises(UserError, match="entries"):
        harness.evaluate(write_model(tmp_path / "small", 100, seed=0))
    gpu = scale().model_copy(update={"device": "gpu"})
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="GPU"):
            Harness(gpu, root)


# --- TIES merges ---


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(7, 5, generator=generator), "b": torch.randn(11, generator=generator)}


def test_density_one_of_one_model_is_that_model():
    base, task = tensors(0), tensors(1)
    merged = ties_merge(base, [task], 1.0)
    assert all(torch.allclose(merged[name], task[name], atol=1e-6) for name in base)


@pytest.mark.parametrize("density", [0.25, 0.5, 0.75])
def test_the_largest_share_of_each_tensor_is_kept(density):
    base, task = tensors(0), tensors(1)
    merged = ties_merge(base, [task], density)
    for name in base:
        changed = merged[name] != base[name]
        delta = (task[name] - base[name]).abs()
        assert int(changed.sum()) == int(density * delta.numel())
        assert delta[changed].min() >= delta[~changed].max()


def test_signs_are_elected_and_only_those_that_agree_are_averaged():
    base = {"w": torch.zeros(5)}
    one = {"w": torch.tensor([4.0, -1.0, 3.0, 0.0, 2.0])}
    two = {"w": torch.tensor([2.0, 3.0, -5.0, 1.0, -2.0])}
    # Sums 6, 2, -2, 1, 0: both agree; only the second; only the second; only the second; the positive one at a tie.
    assert ties_merge(base, [one, two], 1.0)["w"].tolist() == [3.0, 3.0, -5.0, 1.0, 2.0]


def test_worked_example_with_trimming():
    base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
    one = {"w": torch.tensor([5.0, 0.5, -1.0, 1.0])}  # differences 4, -0.5, -2, 0: the half kept is 4, -2
    two = {"w": torch.tensor([1.5, 4.0, 3.0, 1.0])}  # differences 0.5, 3, 2, 0: the half kept is 3, 2
    # Trimmed sums 4, 3, 0, 0; where the signs cancel the positive 2 is elected; trimmed entries do not dilute a mean.
    assert ties_merge(base, [one, two], 0.5)["w"].tolist() == [5.0, 4.0, 3.0, 1.0]


def test_equal_magnitudes_trim_in_order_and_one_entry_always_stays():
    assert trim(torch.tensor([1.0, -1.0, 1.0, 1.0]), 0.5).tolist() == [1.0, -1.0, 0.0, 0.0]
    assert trim(torch.tensor([1.0, -2.0]), 0.1).tolist() == [0.0, -2.0]


def test_types_are_kept_and_counts_are_the_bases():
    base = {"w": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor([3])}
    task = {"w": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor([5])}
    merged = ties_merge(base, [task], 1.0)
    assert merged["w"].dtype == torch.bfloat16 and merged["n"].tolist() == [3]


def test_models_that_do_not_fit_are_refused():
    base = tensors(0)
    with pytest.raises(UserError, match="'b'"):
        ties_merge(base, [{"a": base["a"]}], 0.5)
    with pytest.raises(UserError, match="'a' is"):
        ties_merge(base, [{**base, "a": torch.zeros(5, 7)}], 0.5)
    with pytest.raises(UserError, match="density"):
        ties_merge(base, [base], 0.0)
    with pytest.raises(UserError, match="no task model"):
        ties_merge(base, [], 0.5)


def test_merged_folders_load_and_score(world, tmp_path):
    root, harness = world
    out = tmp_path / "merged"
    for density in (0.25, 1.0):
        assert merge_folders(root / "random", [root / "trained"], density, out) == out
        assert {path.name for path in tmp_path.iterdir()} == {"merged"}
    assert (
        harness.evaluate(out)["english"]["average"]
        == harness.evaluate(root / "trained")["english"]["average"]
    )
    with pytest.raises(UserError, match="not a model folder"):
        merge_folders(root / "random", [tmp_path / "none"], 0.5, out)


# --- generations ---


def test_generations_repeat_and_have_their_length(world):
    root, harness = world
    prompts = held_out_prompts(root, "pile", 3, 6)
    first = generate(root / "trained", root / "tokenizer", prompts, 12, seed=0)
    assert first == generate(root / "trained", root / "tokenizer", prompts, 12, seed=0)
    assert first != generate(root / "trained", root / "tokenizer", prompts, 12, seed=1)
    # A prompt's text does not depend on the others.
    assert first[:1] == generate(root / "trained", root / "tokenizer", prompts[:1], 12, seed=0)
    assert all(text.strip() and "endoftext" not in text for text in first)


def test_prompts_are_openings_of_held_out_documents(world):
    root, _ = world
    prompts = held_out_prompts(root, "sp", 5, 8)
    openings = {
        " ".join(json.loads(line)["text"].split()[:8])
        for line in (root / "sp" / "validation.jsonl").read_text().splitlines()
    }
    assert len(set(prompts)) == 5 and set(prompts) <= openings
    with pytest.raises(UserError, match="5 prompts are needed"):
        held_out_prompts(root, "sp", 5, 1000)
    with pytest.raises(UserError, match="empty"):
        generate(root / "random", root / "tokenizer", [""], 2, seed=0)
