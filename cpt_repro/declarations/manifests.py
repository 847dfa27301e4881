"""Corpus manifests (`data_manifests/<name>.yaml`): a corpus' source, licence, domains and their shares."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cpt_repro.declarations.strict import Count, Name, Share, Strict, nearest, parse, read_yaml
from cpt_repro.errors import UserError
from cpt_repro.files import digest
from cpt_repro.project import Project

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
Length = Annotated[int, Field(ge=1, le=1_000_000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

#: Keys that do not determine the text; nor do a split's bytes by domain, beside its hash.
_PROSE = dict.fromkeys(("title", "about", "licence", "sources", "extraction", "gating", "note"), True)
_PROSE |= {"tokens_billions": True, "line_bytes": True, "splits": {"__all__": {"domain_bytes"}}}


class Manifest(Strict):
    name: str
    #: what it is called in figures and tables
    title: str
    about: str
    licence: str
    #: Domain -> share of the tokens that are read of the corpus: in training, in validation, and (about) of
    #: the text a tokenizer learns from, whatever there is of each. All null: the shares of the tokens built.
    domains: dict[Name, Share | None] = Field(min_length=1, max_length=1000)
    #: Bytes that a line of its files, or the text of a document, has at most; a longer one is an error.
    line_bytes: int = Field(default=1 << 27, ge=1 << 10, le=1 << 31)

    @field_validator("domains")
    @classmethod
    def _shares_sum_to_one(cls, domains: dict[str, float | None]) -> dict[str, float | None]:
        shares = [share for share in domains.values() if share is not None]
        if shares and len(shares) < len(domains):
            raise ValueError("give every domain a share, or none of them")
        if shares and abs(sum(shares) - 1) > 1e-3:
            raise ValueError(f"the shares sum to {sum(shares):.6g}, not to 1")
        return domains

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the text; prose, licences and addresses do not."""
        return digest(self.model_dump(mode="json", exclude=_PROSE))


class Vocabulary(Strict):
    """Made-up words. Equal parameters give equal words in equal order."""

    seed: int
    words: int = Field(ge=1, le=100_000)
    #: Shapes of words, one letter for each letter: c a consonant, v a vowel.
    shapes: tuple[Annotated[str, Field(pattern="^[cv]{2,20}$")], ...] = Field(min_length=1)


class Borrowed(Vocabulary):
    """Words taken over from another vocabulary: the first `take` of it."""

    take: int = Field(ge=0)


class Generated(Manifest):
    """A synthetic language: one Markov chain over words for each topic (see `languages`)."""

    kind: Literal["generated"]
    vocabulary: Vocabulary
    borrowed: Borrowed | None = None
    topics: int = Field(ge=1, le=1000)
    #: Words that a topic uses, drawn from all. Fewer make topics easier to learn and to keep apart.
    topic_words: int = Field(ge=2, le=100_000)
    #: Seed of the topics' words and transitions.
    topic_seed: int
    #: Words that may follow a word in a topic, with weights 1, 1/2, 1/3, ...
    successors: int = Field(ge=2, le=1000)
    #: Domain -> probability of each topic for a document.
    mixes: dict[str, tuple[Share, ...]]
    #: Shortest and longest document, in words.
    document_words: tuple[Length, Length]
    #: Words of each split; a domain gets its share and finishes its last document.
    words: dict[Split, Annotated[int, Field(ge=1, le=10**9)]]
    seed: int

    def model_post_init(self, context: Any) -> None:
        known = self.vocabulary.words + (self.borrowed.take if self.borrowed else 0)
        if not self.successors <= self.topic_words <= known:
            raise ValueError(f"successors <= topic_words <= {known} (all words) must hold")
        if self.topics * self.topic_words**2 > 10**9:
            raise ValueError("topics * topic_words^2 must be at most 10^9, or making the topics takes hours")
        if self.borrowed and self.borrowed.take > self.borrowed.words:
            raise ValueError("borrowed.take exceeds borrowed.words")
        if set(self.mixes) != set(self.domains) or None in self.domains.values():
            raise ValueError("'mixes' and 'domains' must name the same domains, and each must have a share")
        for domain, mix in self.mixes.items():
            if len(mix) != self.topics or abs(sum(mix) - 1) > 1e-3:
                raise ValueError(f"mixes.{domain} must be {self.topics} shares that sum to 1")
        if not 1 <= self.document_words[0] <= self.document_words[1]:
            raise ValueError("document_words must be (shortest, longest)")
        if set(self.words) != set(SPLITS):
            raise ValueError("'words' must name both splits")


class SourceFile(Strict):
    """One split of a `files` corpus: zstd-compressed JSON lines with `id`, `domain` and `text`."""

    #: Lies in the folder of the corpora.
    file: Name
    sha256: Sha256
    #: Of the decompressed lines: what remains the same when another zstd packs them.
    sha256_jsonl: Sha256
    documents: int = Field(ge=0)
    #: UTF-8 bytes of all texts.
    text_bytes: int = Field(ge=0)
    #: Documents of each domain.
    domains: dict[str, int]
    #: UTF-8 bytes of each domain's texts, compared while the file is read; empty: not declared.
    domain_bytes: dict[str, int] = {}

    def model_post_init(self, context: Any) -> None:
        if self.domain_bytes and self.domain_bytes.keys() != self.domains.keys():
            raise ValueError("'domains' and 'domain_bytes' must name the same domains")
        if self.domain_bytes and (total := sum(self.domain_bytes.values())) != self.text_bytes:
            raise ValueError(f"domain_bytes sum to {total}, not to the {self.text_bytes} of text_bytes")


class Source(Strict):
    url: str
    commit: str
    licence: str


class Files(Manifest):
    """Text already extracted, in local files."""

    kind: Literal["files"]
    extraction: str
    sources: tuple[Source, ...] = Field(min_length=1)
    splits: dict[Split, SourceFile]

    def model_post_init(self, context: Any) -> None:
        if set(self.splits) != set(SPLITS):
            raise ValueError("'splits' must name both splits")
        for split, source in self.splits.items():
            if unknown := ", ".join(sorted(set(source.domains) - set(self.domains))):
                raise ValueError(f"splits.{split}.domains names {unknown}, unknown in 'domains'")


class HubSplit(Strict):
    """The files of a split: all of the repository that fit one of the patterns, in the order of paths."""

    #: Patterns of paths inside the repository; * also stands for /.
    files: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(min_length=1)
    #: How many files these are, where that is known; another number is an error.
    count: Count | None = None


class DomainColumn(Strict):
    #: Path of the column that tells a row's domain, nested ones with dots: meta.redpajama_set_name.
    column: str = Field(min_length=1)
    #: Value in that column -> domain.
    names: dict[str, Name] = Field(min_length=1)


class Hub(Manifest):
    """A published data set of the paper scale: files of a repository of the hub, or of a copy."""

    kind: Literal["hub"]
    #: `<owner>/<name>`
    dataset: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
    #: Commit, tag or branch; null: the default branch. The lock file pins its commit at the first use.
    revision: str | None
    gating: str
    format: Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
    #: Column of the text.
    text: str = Field(default="text", min_length=1)
    #: Null: all rows are of the one domain that is declared.
    domain: DomainColumn | None = None
    splits: dict[Split, HubSplit]
    #: Share of the training files' documents that are validation text, for data sets that have no such split.
    validation_share: float = Field(default=0, ge=0, lt=1)
    #: Share of the (other) training documents that is taken. A hash of seed, file and row decides about each.
    fraction: float = Field(default=1, gt=0, le=1)
    seed: int = 0
    #: Unit of work: this many consecutive files become one part of every domain.
    files_per_part: Count = 1
    #: For large files: parts that a file is cut into, row by row in turn. Each of them reads the whole file.
    parts_per_file: int = Field(default=1, ge=1, le=1000)
    #: Training tokens that the papers took from it, in billions.
    tokens_billions: float = Field(gt=0)
    #: What of this was verified, and what is from memory.
    note: str

    def model_post_init(self, context: Any) -> None:
        if "train" not in self.splits:
            raise ValueError("'splits' must name train")
        if ("validation" in self.splits) == bool(self.validation_share):
            raise ValueError("give either 'splits.validation' or a 'validation_share'")
        if self.domain is None and len(self.domains) > 1:
            raise ValueError("with several domains, 'domain' must say which column tells them")
        if self.domain and set(self.domain.names.values()) != set(self.domains):
            raise ValueError("'domain.names' and 'domains' must name the same domains")
        if self.files_per_part > 1 and self.parts_per_file > 1:
            raise ValueError("'files_per_part' and 'parts_per_file' cannot both be above 1")

    def files_of(self, split: Split) -> HubSplit:
        """The files that a split's documents lie in."""
        return self.splits.get(split) or self.splits["train"]


KINDS: dict[str, type[Manifest]] = {"generated": Generated, "files": Files, "hub": Hub}


def load_manifest(project: Project, name: str) -> Generated | Files | Hub:
    """Reads `data_manifests/<name>.yaml`; any fault is a `UserError` naming file and key."""
    path = project.manifests / f"{name}.yaml"
    value, where = read_yaml(path), str(path)
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        what = f"the key 'kind' is wrong (given: {kind!r})."
        raise UserError(what, where=where, do=nearest(str(kind), KINDS))
    manifest = parse(KINDS[kind], value, where)
    if manifest.name != name:
        raise UserError(f"the key 'name' says '{manifest.name}'.", where=where, do="Make it the file's name.")
    return manifest
