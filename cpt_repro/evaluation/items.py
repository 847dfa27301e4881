"""Items of tasks: what a model is asked, with its whole prompt. They are data; nothing is a template."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cpt_repro.declarations.benchmarks import Scoring
from cpt_repro.declarations.strict import Strict

Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)]


class Item(Strict):
    """One item of a task."""

    #: lm-eval's key -> the field that it names.
    KEYS: ClassVar[dict[str, str]]

    #: Of the row, or document and word, that it is from; and of the rows that stand before it, solved.
    id: str
    examples: tuple[str, ...] = ()

    def after(self, before: str, examples: tuple[str, ...]) -> Self:
        """The same with a text, made from these examples, before the question."""
        return self.model_copy(update={"context": before + self.context, "examples": examples})


class _OfChoices(Item):
    answer: int = Field(ge=0, strict=True)

    @model_validator(mode="after")
    def _right_choice(self) -> Item:
        if self.answer >= (count := len(getattr(self, self.KEYS["doc_to_choice"]))):
            raise ValueError(f"the answer {self.answer} is none of the {count} choices")
        return self


class Choices(_OfChoices):
    """Which of `choices` goes on from `context`?"""

    KEYS = {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "answer"}

    #: That its text is from.
    corpus: str | None = None
    context: str
    choices: Texts
    #: 1 for every choice that is true.
    labels: tuple[Literal[0, 1], ...] | None = None

    @model_validator(mode="after")
    def _labelled(self) -> Choices:
        if self.labels is not None and (len(self.labels) != len(self.choices) or 1 not in self.labels):
            raise ValueError(f"the labels {self.labels} are not a 0 or 1 for each choice, with a 1")
        return self

    @property
    def solved(self) -> str:
        return f"{self.context} {self.choices[self.answer]}"


class Openings(_OfChoices):
    """After which of `contexts` is the continuation likeliest?"""

    KEYS = {"doc_to_text": "answer", "doc_to_choice": "contexts", "doc_to_target": "continuation"}

    contexts: Texts
    continuation: str

    def after(self, before: str, examples: tuple[str, ...]) -> Openings:
        contexts = tuple(before + one for one in self.contexts)
        return self.model_copy(update={"contexts": contexts, "examples": examples})

    @property
    def solved(self) -> str:
        return f"{self.contexts[self.answer]} {self.continuation}"


class Question(Item):
    """A text to be answered; any of `answers` is right."""

    KEYS = {"doc_to_text": "context", "doc_to_target": "answers"}

    context: str
    answers: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def solved(self) -> str:
        return f"{self.context} {self.answers[0]}"


def kind_of(scoring: Scoring) -> type[Item]:
    """The kind of items that a task so scored has."""
    if scoring.output_type == "generate_until":
        return Question
    return Openings if scoring.choices_in_context else Choices
