"""Continuations: repeatable, of their length, from openings of held-out documents."""

import pytest
from tiny_evaluation import write_model

from cpt_repro.errors import UserError
from cpt_repro.evaluation.generate import generate, held_out_prompts
from cpt_repro.evaluation.harness import load_tokenizer
from cpt_repro.evaluation.suites import held_out


def test_generations_repeat_and_have_their_length(project):
    tokenizer = load_tokenizer(project.data / "tiny" / "tokenizer")
    folder = write_model(project.root / "model", len(tokenizer), seed=1)
    prompts = held_out_prompts(project.data / "tiny" / "old", 3, 6)
    first = generate(folder, tokenizer, prompts, 12)
    assert (
        first == generate(folder, tokenizer, prompts, 12) != generate(folder, tokenizer, prompts, 12, seed=1)
    )
    # A prompt's text does not depend on those after it, and goes on from a shorter one.
    assert first[:1] == generate(folder, tokenizer, prompts[:1], 12)
    longer = generate(folder, tokenizer, prompts, 100)  # beyond the context
    assert all(long.startswith(text) for long, text in zip(longer, first, strict=True))
    assert all(text.strip() and "endoftext" not in text for text in longer)
    assert generate(folder, tokenizer, prompts, 0) == [""] * 3


def test_prompts_are_openings_of_held_out_documents(project):
    corpus = project.data / "tiny" / "new"
    prompts = held_out_prompts(corpus)
    openings = [" ".join(document.words[:8]) for document in held_out(corpus)]
    assert len(set(prompts)) == 5 and set(prompts) <= set(openings)
    assert prompts != openings[:5]
    with pytest.raises(UserError, match="5 prompts are needed, and there are 0 held-out documents"):
        held_out_prompts(corpus, words=1000)
