"""Continuations of held-out text, as Ibrahim 2024, Tables 8 and 9 show them (five prompts, no numbers)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cpt_repro.errors import UserError
from cpt_repro.evaluation.suites import held_out

#: Five prompts, continuations of one length.
PROMPTS, PROMPT_WORDS, TOKENS, SEED = 5, 8, 48, 0
#: The paper does not say how its text was drawn. Small models loop when greedy, and babble without a cut.
TEMPERATURE, TOP_K = 0.8, 40


def held_out_prompts(corpus: Path) -> list[str]:
    """The first words of held-out documents of a built corpus, chosen by a hash of their ids.

    Only documents longer than a prompt count; too few of them are a `UserError`.
    """
    documents = [document for document in held_out(corpus) if len(document.words) > PROMPT_WORDS]
    if len(documents) < PROMPTS:
        what = f"{PROMPTS} prompts are needed, and there are {len(documents)} held-out documents of more "
        what += f"than {PROMPT_WORDS} words."
        raise UserError(what, where=str(corpus), do="Give the corpus more held-out text.")
    # Neighbours in the file are often parts of one book.
    documents.sort(key=lambda document: hashlib.sha256(document.id.encode()).digest())
    return [" ".join(document.words[:PROMPT_WORDS]) for document in documents[:PROMPTS]]


@torch.inference_mode()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], tokens: int = TOKENS
) -> list[str]:
    """Continues each prompt by exactly `tokens` tokens; returns them without the prompts.

    Sampled from the `TOP_K` likeliest tokens at `TEMPERATURE`, never the end of text. The draws depend on the
    prompt's place in the list only. Tokens beyond the model's context drop out at the left.
    """
    texts, context, forbidden = [], model.config.max_position_embeddings, tokenizer.all_special_ids
    for place, prompt in enumerate(prompts):
        key = hashlib.sha256(f"{SEED}/{place}".encode()).digest()[:7]
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
