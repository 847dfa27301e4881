"""Continuations: repeatable, of their length, from openings of held-out documents."""

import pytest
from tiny_evaluation import write_model

from cpt_repro.errors import UserError
from cpt_repro.evaluation.generate import generate, held_out_prompts
from cpt_repro.evaluation.harness import load_tokenizer
from cpt_repro.evaluation.suites import held_out
from cpt_repro.models.weights import load_model_folder


def test_generations_repeat_and_have_their_length(project):
    tokenizer = load_tokenizer(project.data / "tiny" / "tokenizer")
    model = load_model_folder(write_model(project.root / "model", len(tokenizer), seed=1))
    prompts = held_out_prompts(project.data / "tiny" / "old")
    first = generate(model, tokenizer, prompts, 12)
    assert first == generate(model, tokenizer, prompts, 12)
    # A prompt's text does not depend on those after it, but on its place; it goes on from a shorter one.
    assert generate(model, tokenizer, prompts[:1] * 2, 12)[0] == first[0]
    assert generate(model, tokenizer, prompts[:1] * 2, 12)[1] != first[0]
    longer = generate(model, tokenizer, prompts, 100)  # beyond the context
    assert all(long.startswith(text) for long, text in zip(longer, first, strict=True))
    assert all(text.strip() and "endoftext" not in text for text in longer)


def test_prompts_are_openings_of_held_out_documents(project):
    corpus = project.data / "tiny" / "new"
    prompts = held_out_prompts(corpus)
    openings = [" ".join(document.words[:8]) for document in held_out(corpus)]
    assert len(set(prompts)) == 5 and set(prompts) <= set(openings)
    assert prompts != openings[:5]
    path = corpus / "validation.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:3]))
    with pytest.raises(UserError, match="5 prompts are needed, and there are 3 held-out documents"):
        held_out_prompts(corpus)
