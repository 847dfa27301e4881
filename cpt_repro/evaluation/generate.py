"""Continuations of held-out text, as Ibrahim 2024, Tables 8 and 9 show them (five prompts, no numbers)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from cpt_repro.errors import UserError
from cpt_repro.evaluation.suites import held_out
from cpt_repro.models.weights import load_model_folder

#: Five prompts, continuations of one length.
PROMPTS, PROMPT_WORDS, TOKENS, SEED = 5, 8, 48, 0
#: The paper does not say how its text was drawn. Small models loop when greedy, and babble without a cut.
TEMPERATURE, TOP_K = 0.8, 40


def held_out_prompts(corpus: Path, count: int = PROMPTS, words: int = PROMPT_WORDS) -> list[str]:
    """The first `words` words of `count` held-out documents of a built corpus, chosen by a hash of their ids.

    Only documents longer than that count; fewer than `count` of them is a `UserError`.
    """
    documents = [document for document in held_out(corpus) if len(document.words) > words]
    if len(documents) < count:
        there = f"{len(documents)} held-out documents of more than {words} words"
        what = f"{count} prompts are needed, and there are {there}."
        raise UserError(what, where=str(corpus), do="Give the corpus more held-out text.")
    # Neighbours in the file are often parts of one book.
    documents.sort(key=lambda document: hashlib.sha256(document.id.encode()).digest())
    return [" ".join(document.words[:words]) for document in documents[:count]]


@torch.inference_mode()
def generate(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    tokens: int = TOKENS,
    seed: int = SEED,
) -> list[str]:
    """Continues each prompt by exactly `tokens` tokens of a model folder; returns them without the prompts.

    Sampled from the `TOP_K` likeliest tokens at `TEMPERATURE`, never the end of text. The draws depend on
    `seed` and the prompt's place in the list only. Tokens beyond the model's context drop out at the left.
    """
    model, texts = load_model_folder(folder), []
    context, forbidden = model.config.max_position_embeddings, tokenizer.all_special_ids
    for place, prompt in enumerate(prompts):
        key = hashlib.sha256(f"{seed}/{place}".encode()).digest()[:7]
        draw = torch.Generator().manual_seed(int.from_bytes(key))
        ids = tokenizer(prompt).input_ids
        start = len(ids)
        for _ in range(tokens):
            logits = model(torch.tensor([ids[-context:]])).logits[0, -1, : len(tokenizer)].float()
            logits[forbidden] = -torch.inf
            top = torch.topk(logits, min(TOP_K, len(logits)))
            choice = torch.multinomial(torch.softmax(top.values / TEMPERATURE, dim=-1), 1, generator=draw)
            ids.append(int(top.indices[choice]))
        texts.append(tokenizer.decode(ids[start:]))
    return texts
