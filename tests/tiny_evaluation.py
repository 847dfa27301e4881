"""Small projects to evaluate in: the committed benchmarks, corpora of a word chain, a copy of the hub."""

import json
import random
import shutil

import torch
import transformers
from small_hub import write_hub
from third_study import REPOSITORY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cpt_repro.declarations.scale import Scale
from cpt_repro.project import Project

END = "<|endoftext|>"
#: Of local tasks, as `Plan.data` would have it.
DATA = {"old": "digest of old", "new": "digest of new"}


def new_project(root) -> Project:
    """A project with the committed benchmarks, no hub lock, and a copy of the hub in `hub/`."""
    (root / "configs" / "scales").mkdir(parents=True)
    (root / "data_manifests").mkdir()
    shutil.copytree(REPOSITORY / "configs" / "benchmarks", root / "configs" / "benchmarks")
    write_hub(root / "hub")
    return Project.at(root).with_(hub_copies=root / "hub")


def scale_of(suites: dict, sequence_length: int = 64) -> Scale:
    """A scale without models, with these suites."""
    content = {
        "name": "tiny",
        "about": "a test",
        "tokens_per_billion": 1000,
        "sequence_length": sequence_length,
        "batch_sequences": 16,
        "tokenizer": {"vocab_size": 300},
        "models": {},
        "corpora": {"old": "a", "new": "b"},
        "validation": {"sequences": 1, "every": 1, "closing": 1, "closing_evaluations": 2},
        "suites": suites,
    }
    return Scale.model_validate(content)


def local_suites(documents: int = 40, corpora: tuple = ("old", "new"), context_words: int = 12) -> dict:
    """A suite with both kinds of tasks made from text."""
    size = {"documents": documents, "context_words": context_words}
    tasks = {
        "continuation": {"kind": "continuation", "continuation_words": 6, **size},
        "last_word": {"kind": "last_word", **size},
    }
    return {"english": {"corpora": corpora, "tasks": tasks}}


def published_suites(**tasks) -> dict:
    """A suite of published tasks: name=benchmark."""
    return {
        "english": {"tasks": {name: {"kind": "published", "benchmark": of} for name, of in tasks.items()}}
    }


def chain(rng: random.Random, words: int) -> str:
    """A bigram chain over 24 words, two successors each, which is easy to learn."""
    vocabulary = [a + b for a in ("ba", "do", "ki", "lu") for b in ("ra", "se", "ti", "mo", "nu", "ve")]
    word, text = rng.randrange(len(vocabulary)), []
    for _ in range(words):
        text.append(vocabulary[word])
        word = (word * 5 + rng.choice((1, 8))) % len(vocabulary)
    return " ".join(text)


def write_corpora(data, documents: int = 20) -> None:
    """`data/{old,new}/validation.jsonl`, documents of 60 to 100 words."""
    for corpus in ("old", "new"):
        rng = random.Random(corpus)
        (data / corpus).mkdir(parents=True)
        rows = [
            {"id": f"{corpus}-{i}", "domain": "x", "text": chain(rng, rng.randint(60, 100))}
            for i in range(documents)
        ]
        (data / corpus / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tokenizer(folder, text: str, entries: int = 320) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, the end of text the first entry."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=entries, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([text], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=END)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_model(folder, vocabulary: int, seed: int, ids: list[int] | None = None, context: int = 64, **more):
    """A tiny GPT-NeoX, random or trained on `ids` for a few seconds; its folder."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.GPTNeoXConfig(
        vocab_size=vocabulary,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=0,
        **sizes,
        **more,
    )
    model = transformers.GPTNeoXForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120 if ids else 0):
        starts = torch.randint(len(ids) - 64, (16, 1))
        batch = torch.tensor(ids)[starts + torch.arange(64)]
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder
