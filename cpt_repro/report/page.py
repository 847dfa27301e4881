"""The report: one self-contained page from what lies in `figures/<scale>/`, the plan and the records."""

from __future__ import annotations

import base64
import io
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_repro.claims.grammar import FAILED, HELD, INCONCLUSIVE, UNDECIDABLE
from cpt_repro.claims.ledger import (
    VERDICTS,
    ClaimRecord,
    FindingRecord,
    Ledger,
    exhibits_of,
    percent,
    seeds_text,
)
from cpt_repro.claims.words import quantity_in_words, run_in_words
from cpt_repro.declarations.strict import Strict, parse
from cpt_repro.errors import UserError, plain
from cpt_repro.exhibits.catalogue import Catalogue, Exhibit
from cpt_repro.exhibits.draw import Drawn
from cpt_repro.exhibits.style import tokens_label
from cpt_repro.exhibits.typeset import Part
from cpt_repro.files import digest, file_digest, read_bytes, read_json, write_json, write_text
from cpt_repro.planning.plan import PlannedRun
from cpt_repro.records.lookup import NOT_RUN, Records
from cpt_repro.report.charts import Charts, library, packed
from cpt_repro.report.citation import REDRAW, citation, read_drawn
from cpt_repro.report.receipts import Readable, Reader, anchor

if TYPE_CHECKING:
    import jinja2

#: Pixels of a drawn PNG per CSS pixel: at 200 dots per inch its letters then have the size of text.
DENSITY = 1.45
#: Colours that a figure has on the page.
COLOURS = 32
#: How a PNG begins, and the longest side and most bytes of one that is drawn here.
PNG, MOST_PIXELS, MOST_BYTES = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 10_000, 10**8
#: Ends of the axis of effects, as multiples of the published one.
AXIS = (-0.5, 2.5)
#: A published share below this is nothing in print: no multiple is taken of it.
SMALL = 0.002


@dataclass(frozen=True)
class Compared:
    """A main effect beside the published one, on an axis where nothing is at 0 and that at 1."""

    finding: FindingRecord
    #: places on the page of exhibits that its claims name -> what they are called
    exhibits: dict[str, str]
    #: where the page has its runs
    runs: tuple[str, ...]

    @property
    def beyond(self) -> tuple[bool, bool]:
        """Whether the interval goes on beyond the axis, on the left and on the right."""
        one, noise = self.finding, self.finding.noise or 0
        if self.ends is None:
            return False, False
        places = [self.place((one.value + sign * noise) / one.published) for sign in (-1, 1)]
        return min(places) < 0, max(places) > 100

    @property
    def why_not(self) -> str:
        """Why nothing is drawn."""
        one = self.finding
        if one.value is None:
            return "not measured"
        return "no value published" if one.published is None else "nothing in print: no multiple of it"

    @property
    def ends(self) -> tuple[float, float, float] | None:
        """Ours with its interval (low, value, high), in percent of the axis; None where one of both lacks."""
        one = self.finding
        if one.value is None or not one.published or abs(one.published) < SMALL:
            return None
        noise = one.noise or 0
        places = (
            self.place(value / one.published) for value in (one.value - noise, one.value, one.value + noise)
        )
        first, middle, last = sorted(min(max(place, 0), 100) for place in places)
        return first, middle, last

    @staticmethod
    def place(multiple: float) -> float:
        """Where a multiple lies, in percent of the axis."""
        return 100 * (multiple - AXIS[0]) / (AXIS[1] - AXIS[0])


@dataclass(frozen=True)
class Image:
    """A figure's PNG as a data URI of a smaller format, with its size on the page in CSS pixels."""

    uri: str
    width: int
    height: int

    @classmethod
    def of(cls, path: Path) -> Image:
        raw = read_bytes(path, MOST_BYTES)
        pixels = struct.unpack(">II", raw[16:24]) if raw.startswith(PNG) and len(raw) >= 24 else (0, 0)
        if not 0 < min(pixels) <= max(pixels) <= MOST_PIXELS:
            raise UserError("it is no picture of an exhibit.", where=str(path), do=REDRAW)
        from PIL import Image as Picture

        width, height = (round(side / DENSITY) for side in pixels)
        small = io.BytesIO()
        try:
            with Picture.open(io.BytesIO(raw), formats=("PNG",)) as picture:
                # A plot has few colours; that many keep its bands and the edges of its letters.
                how = {"method": Picture.Quantize.FASTOCTREE, "dither": Picture.Dither.NONE}
                few = picture.convert("RGB").quantize(COLOURS, **how)
            few.convert("RGB").save(small, "WEBP", lossless=True, quality=60, method=4)
        except (OSError, SyntaxError, ValueError):
            raise UserError("it is no picture of an exhibit.", where=str(path), do=REDRAW) from None
        uri = "data:image/webp;base64," + base64.b64encode(small.getvalue()).decode("ascii")
        return cls(uri, width, height)


@dataclass(frozen=True)
class Group:
    """The records of a run, a merge or a corpus that an exhibit is drawn from."""

    name: str
    #: kind, seed, where it lies, SHA-256 (None: not run)
    records: list[tuple[str, str, str, str | None]]

    @property
    def anchor(self) -> str:
        return anchor(self.name)


@dataclass(frozen=True)
class Shown:
    """An exhibit on the page; `drawn` is None where it was not drawn."""

    id: str
    name: str
    number: str
    exhibit: Exhibit
    commands: tuple[str, str]
    drawn: Drawn | None
    image: Image | None
    #: record, where it lies, SHA-256 (None: not run)
    records: tuple[tuple[str, str, str | None], ...]

    @property
    def groups(self) -> list[Group]:
        """The records by what they are of, the seeds of a run or merge together."""
        groups: dict[str, Group] = {}
        for record, to, sha256 in sorted(self.records):
            kind, _, what = record.partition(" ")
            name, seed = what.rsplit("/seed-", 1) if "/seed-" in what else (what, "")
            group = groups.setdefault(name, Group(name, []))
            group.records.append((kind, f" {seed}" if seed else "", to, sha256))
        return list(groups.values())

    @property
    def digest(self) -> str:
        """That of its records, which an image carries too."""
        return digest(self.drawn.sha256)

    @property
    def alt(self) -> str:
        """The image in words."""
        return f"{self.number}, {self.exhibit.title}: {re.split(r'(?<=[.!?]) ', self.drawn.caption)[0]}"


@dataclass(frozen=True)
class Node:
    """A run in the tree of what starts from what."""

    run: PlannedRun
    readable: Readable
    children: list[Node]

    def every(self) -> Iterator[Node]:
        """It and all below it."""
        yield self
        for child in self.children:
            yield from child.every()


class Recorded(Strict):
    """`index.json`, which stands for a page that is too large to be kept."""

    #: name -> SHA-256
    files: dict[str, str]

    @classmethod
    def of(cls, path: Path) -> dict[str, str]:
        """What one says; {} where there is none."""
        return parse(cls, read_json(path), str(path)).files if path.exists() else {}


class Page:
    """The page of a scale."""

    def __init__(self, catalogue: Catalogue, records: Records, figures: Path):
        self.catalogue, self.records, self.plan = catalogue, records, records.plan
        self.figures, self.folder = figures, figures / self.plan.scale.name
        self.reader = Reader(records, catalogue.models)

    def place(self, path: Path) -> str:
        """Where a record lies, in words: the page may be sent by mail, away from the records."""
        return f"results/{self.plan.scale.name}/{path.relative_to(self.records.folder).as_posix()}"

    def _record(self, record: str) -> Path:
        """The file of a record's name (`receipt <id>`, as exhibits list them)."""
        kind, _, what = record.partition(" ")
        if kind == "corpus":
            return self.records.corpus_path(what)
        try:
            if kind == "evaluation":
                return self.records.evaluation_path(what)
            of = {"receipt": self.records.receipt_path, "losses": self.records.later_path}[kind]
            return of(self.plan.runs[what])
        except (KeyError, UserError):  # of a run or merge that is no longer declared
            return self.records.place_of(what) / f"{kind}.json"

    def shown(self, paper: str, key: str) -> Shown:
        """One exhibit."""
        scale, name, exhibit = self.plan.scale.name, f"{paper}/{key}", self.catalogue.find(paper, key)
        word = key.partition("_")[0]
        drawn, image = read_drawn(self.folder / paper / f"{key}.json"), None
        if drawn and word == "figure":
            picture = self.folder / paper / f"{key}.png"
            image, drawn = (Image.of(picture), drawn) if picture.exists() else (None, None)
        hashes = drawn.sha256 | dict.fromkeys(drawn.missing) if drawn else {}
        target = f"figures/{scale}/{name}.{'png' if word == 'figure' else 'md'}"
        return Shown(
            id=f"{paper}-{key}",
            name=name,
            number=called(key),
            exhibit=exhibit,
            commands=(
                f"snakemake --cores all {target} --config scale={scale}",
                f"cpt-repro draw {name} --scale {scale}",
            ),
            drawn=drawn,
            image=image,
            records=tuple((record, self.place(self._record(record)), sha) for record, sha in hashes.items()),
        )

    def tree(self, paper: str) -> list[Node]:
        """A paper's runs under those they start from; one that starts from another paper's run is a root."""
        children: dict[str | None, dict[str, list[PlannedRun]]] = {}
        for run in self.plan.runs.values():
            if run.paper == paper:
                parent = self.plan.runs[run.parent] if run.parent else None
                above = parent.name if parent and parent.paper == paper else None
                children.setdefault(above, {}).setdefault(run.name, []).append(run)

        def nodes(above: str | None) -> list[Node]:
            below = children.get(above, {}).items()
            return [Node(runs[0], self.reader.of_run(runs), nodes(name)) for name, runs in below]

        return nodes(None)

    def environment(self) -> dict[str, Any]:
        """Versions, hardware, time and size, over all trainings and evaluations, each counted once."""
        trained = [(runs[0], self.records.receipt(runs[0])) for runs in self.plan.trainings.values()]
        trained = [(run, receipt) for run, receipt in trained if receipt]
        evaluations = [e for model in self.catalogue.models if (e := self.records.evaluation(model))]
        seen: dict[str, Counter[str]] = {}
        for record in [*(receipt for _, receipt in trained), *evaluations]:
            for name, version in {**record.environment, **getattr(record, "code", {})}.items():
                seen.setdefault(name, Counter())[version] += 1
        measured = [receipt.measured for _, receipt in trained]
        return {
            "rows": [(name, sorted(counts.items())) for name, counts in sorted(seen.items())],
            "hours": sum(one.seconds for one in measured) / 3600,
            "tokens": sum(run.training.tokens for run, _ in trained),
            "commits": sorted({one.commit for one in measured if one.commit}),
            "parameters": dict(sorted((run.model_name, receipt.parameters) for run, receipt in trained)),
            "evaluations": len(evaluations),
        }

    def ledger(self) -> Ledger | None:
        """The verdicts, if they were written."""
        path = self.folder / "claims.json"
        return parse(Ledger, read_json(path), str(path)) if path.exists() else None

    def of_run(self, paper: str, name: str) -> str:
        """Where the page has a run that a paper names; "" where a ledger names one that is not declared."""
        try:
            return anchor("/".join(self.plan.studies[paper].resolve(name)))
        except (KeyError, UserError):
            return ""

    def in_words(self, paper: str, text: str) -> str:
        """A quantity of a claim."""
        known = paper in self.plan.studies.names
        return quantity_in_words(self.plan.studies[paper], text) if known else text

    def run_in_words(self, paper: str, name: str) -> str:
        """A run or merge of a claim."""
        return run_in_words(self.plan.studies[paper], name) if paper in self.plan.studies.names else name

    def reason(self, claim: ClaimRecord) -> str:
        """What decided a claim, its quantities in words."""
        quantities = {effect.says for test in claim.tests for effect in test.effects}
        text = claim.reason
        for quantity in sorted(filter(None, quantities), key=len, reverse=True):
            text = text.replace(quantity, self.in_words(claim.paper, quantity))
        return text

    def seen(self, claim: ClaimRecord) -> list[str]:
        """The exhibits on the page that a claim's source names."""
        return [key for key in exhibits_of(claim) if (claim.paper, key) in self.catalogue.exhibits]

    def about(self, ledger: Ledger) -> dict[str, list[ClaimRecord]]:
        """Exhibits -> the claims whose sources name them."""
        out: dict[str, list[ClaimRecord]] = {}
        for claim in ledger.claims:
            for key in self.seen(claim):
                out.setdefault(f"{claim.paper}/{key}", []).append(claim)
        return out

    def effects(self, ledger: Ledger) -> list[Compared]:
        """The papers' main effects, those first whose claims did not hold."""
        order = [FAILED, INCONCLUSIVE, UNDECIDABLE, NOT_RUN, HELD]
        worst = lambda one: min(map(order.index, one.claims.values()))  # noqa: E731
        claims = {(claim.paper, claim.id): claim for claim in ledger.claims}
        return [
            Compared(
                finding=one,
                exhibits={
                    f"{one.paper}-{key}": called(key)
                    for claim in one.claims
                    if (one.paper, claim) in claims
                    for key in self.seen(claims[one.paper, claim])
                },
                runs=tuple(self.of_run(one.paper, name) for name in one.runs),
            )
            for one in sorted(ledger.findings, key=worst)
        ]

    def charts(self, drawn: list[Shown], nodes: list[Node]) -> Charts:
        """The curves that can be explored: of the figures that show losses, and of every run."""
        charts = Charts(self.catalogue, self.records)
        for one in drawn:
            paper, key = one.name.split("/")
            charts.add_figure(one.id, paper, key)
        for node in nodes:
            charts.add_run(node.readable.anchor, self.plan.find(node.run.paper, node.run.name))
        return charts

    def render(self) -> str:
        """The page as text: the same files and records give the same text."""
        plan = self.plan
        papers = {name: plan.studies[name] for name in plan.papers}
        exhibits: dict[str, list[Shown]] = {
            name: [self.shown(*key) for key in self.catalogue.exhibits if key[0] == name] for name in papers
        }
        drawn = [one for of in exhibits.values() for one in of if one.drawn]
        page, ledger = templates().get_template("page.html.j2"), self.ledger()
        trees = {name: self.tree(name) for name in papers}
        merges = {name: self.reader.merges(name) for name in papers}
        nodes = [node for roots in trees.values() for root in roots for node in root.every()]
        readable = [*(node.readable for node in nodes), *(one for of in merges.values() for one in of)]
        charts = self.charts(drawn, nodes)
        return page.render(
            charts=charts.charts,
            library=packed(library()) if charts.charts else "",
            curves=packed(charts.text()) if charts.charts else "",
            script=own_script(),
            anchors={one.anchor for one in readable},
            merges=merges,
            place=self.place,
            of_run=self.of_run,
            anchor=anchor,
            cell_anchors=cell_anchors,
            called=called,
            in_words=self.in_words,
            reason=self.reason,
            run_in_words=self.run_in_words,
            unit=tokens_label(plan.scale),
            runs_of=Counter(run.paper for run in plan.runs.values()),
            plan=plan,
            scale=plan.scale,
            papers=papers,
            short={name: study.paper.reference.split(",")[0] for name, study in papers.items()},
            exhibits=exhibits,
            drawn=drawn,
            ledger=ledger,
            effects=self.effects(ledger) if ledger else [],
            sizes={m: size for study in papers.values() for m, size in study.paper.models.items()},
            axis=Compared.place,
            percent=percent,
            about=self.about(ledger) if ledger else {},
            seen=self.seen,
            verdicts=VERDICTS,
            seeds=seeds_text,
            trees=trees,
            states=Counter(seed.state for node in nodes for seed in node.readable.seeds),
            models=self.catalogue.models,
            environment=self.environment(),
            citation=citation(self.catalogue, figures=self.figures) if drawn else None,
        )


def called(key: str) -> str:
    """Figure 5, of figure_05."""
    word, number = key.split("_")
    return f"{word.capitalize()} {int(number)}"


def cell_anchors(part: Part) -> dict[tuple[int, int], str]:
    """(row, column) -> where the page has the run or merge whose records say what stands there."""
    return {cell: anchor(run) for run, cells in part.cells.items() for cell in cells}


def own_script() -> Any:
    """What the page can do beside being read, as no text to be shown."""
    from markupsafe import Markup

    text = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704  a file of this room


def templates() -> jinja2.Environment:
    """What stands in a template's place is text, shown as it is."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: plain(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": _number,
        "measured": _measured,
        "interval": _interval,
        "capitalised": _capitalised,
    }
    return environment


def _number(value: Any, digits: int = 4) -> str:
    """A measured or published value as text, with so many significant digits; None is a dash."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "–" if value is None else f"{value:,}" if type(value) is int else str(value)


def _measured(value: float | None, digits: int = 4) -> str:
    """A measured value with just so many significant digits, zeros too; None is a dash."""
    return "–" if value is None else f"{value:#.{digits}g}".removesuffix(".")


def _interval(agreement: Any, name: str) -> str:
    """A measure of agreement with its interval."""
    value, low, high = (getattr(agreement, f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")


def write_report(catalogue: Catalogue, records: Records, out: Path | None = None) -> Path:
    """Writes `<out>/<scale>/index.html` and returns its path; what is not drawn, run or judged is named so.

    `out` is the project's folder of figures where it is not given. `index.json` beside the page records its
    hash, so that the page can be verified where it is too large to be kept.
    """
    page = Page(catalogue, records, Path(out or catalogue.plan.project.figures))
    path = page.folder / "index.html"
    write_text(path, page.render())
    recorded = Recorded(files={path.name: file_digest(path)})
    write_json(path.with_suffix(".json"), recorded.model_dump())
    return path
