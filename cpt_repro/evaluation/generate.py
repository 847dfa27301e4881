"""Continuations of held-out text, as Ibrahim 2024, Tables 8 and 9 show them (five prompts, no numbers)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from cpt_repro.errors import UserError
from cpt_repro.evaluation.harness import load_model, load_tokenizer
from cpt_repro.evaluation.suites import held_out

#: The paper does not say how its text was drawn. Small models loop when greedy, and babble without a cut.
TEMPERATURE = 0.8
TOP_K = 40


def held_out_prompts(root: Path, corpus: str, count: int, words: int) -> list[str]:
    """The first `words` words of `count` held-out documents of a corpus, chosen by a hash of their ids.

    Only documents longer than that count; fewer than `count` of them is a `UserError`.
    """
    documents = [document for document in held_out(root, corpus) if len(document.words) > words]
    if len(documents) < count:
        raise UserError(
            f"{count} prompts are needed, and the corpus '{corpus}' has {len(documents)} held-out documents "
            f"of more than {words} words.",
            where=str(Path(root) / corpus),
            do="Ask for fewer or shorter prompts.",
        )
    # Neighbours in the file are often parts of one book.
    documents.sort(key=lambda document: hashlib.sha256(document.id.encode()).digest())
    return [" ".join(document.words[:words]) for document in documents[:count]]


@torch.inference_mode()
def generate(
    model_dir: Path, tokenizer_dir: Path, prompts: Sequence[str], tokens: int, seed: int
) -> list[str]:
    """Continues each prompt by exactly `tokens` tokens; returns the continuations without the prompts.

    Sampled from the `TOP_K` likeliest tokens at `TEMPERATURE`, never the end of text. The draws depend on `seed` and
    the prompt's place in the list only. Tokens beyond the model's context drop out at the left.
    """
    model, tokenizer = load_model(model_dir), load_tokenizer(tokenizer_dir)
    context, forbidden = model.config.max_position_embeddings, tokenizer.all_special_ids
    texts = []
    for place, prompt in enumerate(prompts):
        draw = torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:7])
        )
        ids = tokenizer(prompt).input_ids
        if not ids:
            raise UserError(f"the prompt {place + 1} is empty.", do="Give it a word.")
        start = len(ids)
        for _ in range(tokens):
            logits = model(torch.tensor([ids[-context:]])).logits[0, -1, : len(tokenizer)].float()
            logits[forbidden] = -torch.inf
            top = torch.topk(logits, min(TOP_K, len(logits)))
            choice = torch.multinomial(torch.softmax(top.values / TEMPERATURE, dim=-1), 1, generator=draw)
            ids.append(int(top.indices[choice]))
        texts.append(tokenizer.decode(ids[start:]))
    return texts
