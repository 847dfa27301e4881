"""How big: a scale (`configs/scales/<name>.yaml`), all that turns declarations into runs on a machine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cpt_repro.declarations.strict import Billions, Count, Name, Seed, Strict, load, nearest
from cpt_repro.errors import UserError
from cpt_repro.project import Project


class Size(Strict):
    """What decides a model's function and number of weights, apart from its vocabulary."""

    #: A name in the registry of `models.architecture`.
    architecture: Name = "gpt_neox"
    layers: Count
    width: int = Field(ge=4, le=2**31)
    heads: Count
    #: Share of each head's dimensions that is rotated (rotary position embedding).
    rotary_fraction: float = Field(default=0.25, gt=0, le=1)


class ModelSize(Size):
    #: Learning rates of the papers are multiplied by this (small models need larger ones); 1 at paper scale.
    eta_factor: float = Field(gt=0, le=1e9)
    #: Rows of the embedding table; None takes the tokenizer's vocabulary. The papers pad theirs.
    vocab_size: Count | None = None

    @property
    def size(self) -> Size:
        """The same without what is not the model's."""
        return Size(**self.model_dump(include=set(Size.model_fields)))


class Tokenizer(Strict):
    """Byte-level BPE trained on upstream text, or (`pretrained`) a published one."""

    kind: Literal["train", "pretrained"] = "train"
    #: Entries; of a published tokenizer those it has, added ones included. Tokens are stored in 16 bits.
    vocab_size: int = Field(ge=257, le=65536)
    #: Upstream text to train on, in characters.
    train_characters: Count = 5_000_000
    #: `<owner>/<name>` on the hub, and the commit there.
    name: str | None = None
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")

    def model_post_init(self, context: Any) -> None:
        if self.kind == "pretrained" and None in (self.name, self.revision):
            raise ValueError("a pretrained tokenizer needs 'name' and 'revision' (a commit)")
        if self.kind == "train" and (self.name, self.revision) != (None, None):
            raise ValueError("'name' and 'revision' belong to kind: pretrained")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the tokens, beside the text that one is trained on."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Validation(Strict):
    """When and on how much the validation losses are taken; positions in billions of the papers' tokens."""

    #: In what decides: at the start and in the closing evaluations.
    sequences: Count
    #: The first so many of them in the evaluations along the way; None: all.
    along: Count | None = None
    every: Billions
    early: tuple[Annotated[float, Field(ge=0, le=1e9)], ...] = Field(default=(), max_length=1000)
    closing: Billions = Field(description="span before the end over which the final loss is averaged")
    closing_evaluations: int = Field(ge=2, le=10_000)

    def model_post_init(self, context: Any) -> None:
        if self.along and self.along > self.sequences:
            raise ValueError(f"'along' ({self.along}) must be at most 'sequences' ({self.sequences})")


class Task(Strict):
    """One local benchmark task made from held-out text."""

    kind: Literal["continuation", "last_word"]
    documents: int = Field(ge=1, le=1_000_000)
    #: Words of context and, for `continuation`, words of each of the four continuations.
    context_words: int = Field(ge=1, le=100_000)
    continuation_words: int = Field(default=8, ge=1, le=100_000)


class Published(Strict):
    """One published benchmark, declared in `configs/benchmarks/<benchmark>.yaml`."""

    kind: Literal["published"] = "published"
    benchmark: Name
    #: Examples before each question; None: as many as the benchmark's declaration says.
    num_fewshot: int | None = Field(default=None, ge=0, le=100)


class Suite(Strict):
    """A named set of tasks; its average is the plain mean."""

    #: Local tasks are made from their validation text; published ones need none.
    corpora: tuple[str, ...] = ()
    tasks: dict[Name, Annotated[Task | Published, Field(discriminator="kind")]] = Field(min_length=1)

    def model_post_init(self, context: Any) -> None:
        local = [name for name, task in self.tasks.items() if task.kind != "published"]
        if local and not self.corpora:
            raise ValueError(f"'corpora' must name the text that the task '{local[0]}' is made from")
        if self.corpora and not local:
            raise ValueError("'corpora' is given, and no task is made from text")


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)]


class MoreSeeds(Strict):
    """Further seeds of the runs whose noise must be known; what they start from is trained with them."""

    seeds: Seeds
    #: patterns of `<paper>/<run>`
    runs: tuple[str, ...] = Field(min_length=1)


class Execution(Strict):
    """How a model's training is spread over hardware: in receipts, but no part of a training's identity."""

    nodes: Count = 1
    #: Processes on each node; with `device: gpu` each has a GPU of its own.
    ranks_per_node: Count = 1
    #: Jobs that may run on one GPU at the same time, where that is a single rank's (small models).
    jobs_per_gpu: Count = 1
    #: Sequences in one forward pass of a rank; auto: as many as the GPU's memory takes; None: its share.
    microbatch_sequences: Count | Literal["auto"] | None = None
    #: Parameters, gradients and optimizer state sharded over all ranks.
    fsdp: bool = False
    #: Activations of a layer are computed again in the backward pass.
    activation_checkpointing: bool = False
    #: torch.compile.
    compile: bool = False
    #: Only deterministic kernels: the same bits on the same hardware.
    deterministic: bool = True
    #: Longest a job may take on a cluster; one that is cut off is queued again and goes on.
    hours: float = Field(default=24, gt=0, le=1e6)
    #: Main memory of a node that a job asks for, in GB.
    memory_gb: Count = 8

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def model_post_init(self, context: Any) -> None:
        if self.jobs_per_gpu > 1 and self.ranks > 1:
            raise ValueError("'jobs_per_gpu' above 1 needs a single rank")
        if self.fsdp and self.ranks == 1:
            raise ValueError("'fsdp' shards over ranks, and there is one")


class Scale(Strict):
    name: Name
    about: str
    #: Tokens that stand for one billion of the papers' tokens.
    tokens_per_billion: float = Field(ge=1, le=1e9)
    sequence_length: int = Field(ge=8, le=2**31)
    #: Sequences of a training batch; published: each run's own, as its paper has it.
    batch_sequences: Count | Literal["published"]
    precision: Literal["fp32", "amp_bf16", "amp_fp16"] = "fp32"
    device: Literal["cpu", "gpu"] = "cpu"
    threads: Count = 1
    #: Processes that read training data for each rank; 0: the training itself. The order stays the same.
    loader_workers: int = Field(default=0, ge=0, le=10_000)
    #: Model -> how its training is spread over hardware.
    execution: dict[Name, Execution] = {}
    tokenizer: Tokenizer
    #: Papers that are replicated where a call names none; (): all that are declared.
    papers: tuple[Name, ...] = ()
    #: The papers' models -> sizes here; null: the scale has no counterpart.
    models: dict[Name, ModelSize | None]
    #: The papers' corpora -> manifest names. A tokenizer is trained on the first of them. A key is part of
    #: what decides the order of samples, so papers share keys where they mean the same text.
    corpora: dict[Name, Name] = Field(min_length=1)
    #: A seed is an initialisation and an order of samples; every run has these, some have more.
    seeds: Seeds = (0,)
    more_seeds: MoreSeeds | None = None
    #: Readings other than the default, `<paper>/<discrepancy>/<variant>` (the papers' discrepancies.yaml).
    #: Runs keep their names, so a scale with variants should have a name, and with it folders, of its own.
    variants: tuple[str, ...] = ()
    validation: Validation
    suites: dict[Name, Suite] = {}
    #: Billions of the papers' tokens between checkpoints taken against interruption; 0: none.
    save_every: float = Field(default=0, ge=0, le=1e9)

    def model_post_init(self, context: Any) -> None:
        for name, suite in self.suites.items():
            if unknown := sorted(set(suite.corpora) - set(self.corpora)):
                raise ValueError(f"suites.{name} names the corpus {unknown[0]}, which 'corpora' lacks")
        for model, execution in self.execution.items():
            if model not in self.models:
                raise ValueError(f"'execution' names the model {model}, which 'models' lacks")
            batch, ranks = self.batch_sequences, execution.ranks
            if batch != "published" and batch % ranks:
                raise ValueError(f"execution.{model}: {ranks} ranks do not divide the batch of {batch}")

    def run_as(self, model: str) -> Execution:
        """How the training of `model` is spread over hardware; one process where nothing is said."""
        return self.execution.get(model, Execution())

    @property
    def full_size(self) -> bool:
        """Whether it is the papers' own, whose values compare with published ones as they are."""
        return self.name == "paper"

    @property
    def upstream(self) -> str:
        """The role of the corpus that a tokenizer is trained on."""
        return next(iter(self.corpora))

    def iterations(self, billions: float, batch_sequences: int | None = None) -> int:
        """Iterations (rounded) that stand for `billions` of the papers' tokens.

        `batch_sequences`: of the run in question, where the scale leaves that to the papers.
        """
        batch = self.batch_sequences if self.batch_sequences != "published" else batch_sequences
        return round(billions * self.tokens_per_billion / (batch * self.sequence_length))


def load_scale(project: Project, name: str) -> Scale:
    """Reads `configs/scales/<name>.yaml`; an unknown name or benchmark is a `UserError` with the known."""
    known = sorted(path.stem for path in project.scales.glob("*.yaml"))
    if name not in known:
        raise UserError(f"the scale '{name}' is unknown.", where=str(project.scales), do=nearest(name, known))
    path = project.scales / f"{name}.yaml"
    scale, where = load(Scale, path), str(path)
    if scale.name != name:
        raise UserError(f"the key 'name' says '{scale.name}'.", where=where, do="Make it the file's name.")
    benchmarks = sorted(file.stem for file in project.benchmarks.glob("*.yaml"))
    for suite_name, suite in scale.suites.items():
        for task_name, task in suite.tasks.items():
            if isinstance(task, Published) and task.benchmark not in benchmarks:
                what = f"suites.{suite_name}.tasks.{task_name}: the benchmark '{task.benchmark}' is unknown."
                raise UserError(what, where=where, do=nearest(task.benchmark, benchmarks))
    return scale
