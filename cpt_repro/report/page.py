"""The report: one self-contained page from what lies in `figures/<scale>/`, the plan and the records."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from cpt_repro.declarations.study import Study
from cpt_repro.errors import UserError, plain
from cpt_repro.exhibits.catalogue import Catalogue, Exhibit
from cpt_repro.exhibits.draw import Drawn
from cpt_repro.exhibits.style import tokens_label
from cpt_repro.exhibits.typeset import Part
from cpt_repro.files import digest, file_digest, read_bytes, read_json, write_json, write_text
from cpt_repro.planning.plan import PlannedRun
from cpt_repro.processes import cores
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
#: The longest side and most bytes of a PNG that is drawn here.
MOST_PIXELS, MOST_BYTES = 10_000, 10**8
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
    def _places(self) -> list[float] | None:
        """Ours with its interval (low, value, high), in percent of the axis; None where one of both lacks."""
        one = self.finding
        if one.value is None or not one.published or abs(one.published) < SMALL:
            return None
        noise = one.noise or 0
        return sorted(self.place((one.value + sign * noise) / one.published) for sign in (-1, 0, 1))

    @property
    def ends(self) -> list[float] | None:
        """The same, of what is on the axis."""
        return self._places and [min(max(place, 0), 100) for place in self._places]

    @property
    def beyond(self) -> tuple[bool, bool]:
        """Whether the interval goes on beyond the axis, on the left and on the right."""
        low, _, high = self._places or (0, 0, 0)
        return low < 0, high > 100

    @property
    def why_not(self) -> str:
        """Why nothing is drawn."""
        if self.finding.value is None:
            return "not measured"
        missing = self.finding.published is None
        return "no value published" if missing else "nothing in print: no multiple of it"

    @staticmethod
    def place(multiple: float) -> float:
        """Where a multiple lies, in percent of the axis."""
        return 100 * (multiple - AXIS[0]) / (AXIS[1] - AXIS[0])


class Image(NamedTuple):
    """A figure's PNG as a data URI of a smaller format, with its size on the page in CSS pixels."""

    uri: str
    width: int
    height: int

    @classmethod
    def of(cls, path: Path) -> Image:
        """A warning that its size is a trick has to be an error (`images`)."""
        from PIL import Image as Picture

        raw, small = read_bytes(path, MOST_BYTES), io.BytesIO()
        large = Picture.DecompressionBombError, Picture.DecompressionBombWarning
        try:
            with Picture.open(io.BytesIO(raw), formats=("PNG",)) as picture:
                if max(picture.size) > MOST_PIXELS:
                    raise ValueError("it is too large")
                # A plot has few colours; that many keep its bands and the edges of its letters.
                how = {"method": Picture.Quantize.FASTOCTREE, "dither": Picture.Dither.NONE}
                few = picture.convert("RGB").quantize(COLOURS, **how)
            few.convert("RGB").save(small, "WEBP", lossless=True, quality=60, method=4)
        except (OSError, SyntaxError, ValueError, *large):
            raise UserError("it is no picture of an exhibit.", where=str(path), do=REDRAW) from None
        uri = "data:image/webp;base64," + base64.b64encode(small.getvalue()).decode("ascii")
        return cls(uri, *(round(side / DENSITY) for side in picture.size))


def images(paths: Iterable[Path]) -> dict[Path, Image]:
    """Those of PNGs, made by as many threads as there are cores: to make them is half the work of a page."""
    from PIL.Image import DecompressionBombWarning

    paths = list(paths)
    errors = warnings.catch_warnings(action="error", category=DecompressionBombWarning)  # in all threads
    with errors, ThreadPoolExecutor(cores()) as pool:
        return dict(zip(paths, pool.map(Image.of, paths), strict=True))


@dataclass(frozen=True)
class Shown:
    """An exhibit on the page; `drawn` is None where it was not drawn."""

    paper: str
    key: str
    exhibit: Exhibit
    drawn: Drawn | None
    image: Image | None
    #: run, merge or corpus -> its records: kind and seed, where it lies, SHA-256 (None: not run)
    groups: dict[str, list[tuple[str, str, str | None]]]

    @property
    def id(self) -> str:
        return f"{self.paper}-{self.key}"

    @property
    def name(self) -> str:
        return f"{self.paper}/{self.key}"

    @property
    def number(self) -> str:
        return called(self.key)


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

    @cached_property
    def images(self) -> dict[Path, Image]:
        """The pictures of all figures that are drawn, by their files."""
        exhibits = self.catalogue.exhibits.items()
        places = [self.folder / of / f"{key}.png" for (of, key), one in exhibits if one.makes == "figure"]
        return images(path for path in places if path.exists() and path.with_suffix(".json").exists())

    def shown(self, paper: str, key: str) -> Shown:
        """One exhibit."""
        path, image = self.folder / paper / f"{key}.json", None
        drawn, exhibit = read_drawn(path), self.catalogue.find(paper, key)
        if drawn and exhibit.makes == "figure":
            image = self.images.get(path.with_suffix(".png"))
            drawn = drawn if image else None
        groups: dict[str, list[tuple[str, str, str | None]]] = {}
        for record, sha256 in sorted((drawn.sha256 | dict.fromkeys(drawn.missing)).items()) if drawn else ():
            kind, _, what = record.partition(" ")
            name, _, seed = what.partition("/seed-")
            place = self.place(self._record(record))
            groups.setdefault(name, []).append((f"{kind} {seed}".rstrip(), place, sha256))
        return Shown(paper, key, exhibit, drawn, image, groups)

    def tree(self, paper: str) -> list[Node]:
        """A paper's runs under those they start from; one that starts from another paper's run is a root."""
        roots, nodes = [], {}
        for run in self.plan.runs.values():  # parents first
            if run.paper == paper and run.name not in nodes:
                nodes[run.name] = Node(run, self.reader.of_run(self.plan.find(paper, run.name)), [])
                parent = self.plan.runs[run.parent] if run.parent else None
                above = nodes[parent.name].children if parent and parent.paper == paper else roots
                above.append(nodes[run.name])
        return roots

    def environment(self) -> dict[str, Any]:
        """Versions, hardware, time and size, over all trainings and evaluations, each counted once."""
        runs = [of[0] for of in self.plan.trainings.values() if self.records.has_receipt(of[0])]
        receipts = [self.records.receipt(run) for run in runs]
        evaluations = [e for model in self.catalogue.models if (e := self.records.evaluation(model))]
        seen: dict[str, Counter[str]] = {}
        for record in (*receipts, *evaluations):
            for name, version in {**record.environment, **getattr(record, "code", {})}.items():
                seen.setdefault(name, Counter())[version] += 1
        return {
            "rows": [(name, sorted(counts.items())) for name, counts in sorted(seen.items())],
            "hours": sum(one.measured.seconds for one in receipts) / 3600,
            "tokens": sum(run.training.tokens for run in runs),
            "commits": sorted({one.measured.commit for one in receipts if one.measured.commit}),
            "parameters": dict(
                sorted((run.model_name, self.records.receipt(run).parameters) for run in runs)
            ),
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

    def in_words(self, paper: str, text: str, how: Callable[[Study, str], str] = quantity_in_words) -> str:
        """A quantity of a claim, or by `run_in_words` a run or merge; as it is for an unknown paper."""
        return how(self.plan.studies[paper], text) if paper in self.plan.studies.names else text

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
        out = defaultdict(list)
        for claim in ledger.claims:
            for key in self.seen(claim):
                out[f"{claim.paper}/{key}"].append(claim)
        return out

    def effects(self, ledger: Ledger) -> list[Compared]:
        """The papers' main effects, those first whose claims did not hold."""
        order = [FAILED, INCONCLUSIVE, UNDECIDABLE, NOT_RUN, HELD]
        worst = lambda one: min(map(order.index, one.claims.values()))  # noqa: E731
        exhibits = {(claim.paper, claim.id): self.seen(claim) for claim in ledger.claims}
        out = []
        for one in sorted(ledger.findings, key=worst):
            keys = [key for claim in one.claims for key in exhibits.get((one.paper, claim), ())]
            runs = tuple(self.of_run(one.paper, name) for name in one.runs)
            out.append(Compared(one, {f"{one.paper}-{key}": called(key) for key in keys}, runs))
        return out

    def render(self) -> str:
        """The page as text: the same files and records give the same text."""
        plan, ledger, charts = self.plan, self.ledger(), Charts(self.catalogue, self.records)
        papers = {name: plan.studies[name] for name in plan.papers}
        exhibits = {
            name: [self.shown(*key) for key in self.catalogue.exhibits if key[0] == name] for name in papers
        }
        drawn = [one for of in exhibits.values() for one in of if one.drawn]
        trees = {name: self.tree(name) for name in papers}
        merges = {name: self.reader.merges(name) for name in papers}
        nodes = [node for roots in trees.values() for root in roots for node in root.every()]
        readable = [*(node.readable for node in nodes), *(one for of in merges.values() for one in of)]
        for one in drawn:
            charts.add_figure(one.id, one.paper, one.key)
        for node in nodes:
            charts.add_run(node.readable.anchor, plan.find(node.run.paper, node.run.name))
        page = templates().get_template("page.html.j2")
        return page.render(
            page=self,
            charts=charts.charts,
            library=packed(library()) if charts.charts else "",
            curves=packed(charts.text()) if charts.charts else "",
            anchors={one.anchor for one in readable},
            merges=merges,
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
            about=self.about(ledger) if ledger else {},
            trees=trees,
            states=Counter(seed.state for node in nodes for seed in node.readable.seeds),
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
    environment.globals |= {"anchor": anchor, "axis": Compared.place, "called": called, "digest": digest}
    environment.globals |= {"cell_anchors": cell_anchors, "percent": percent, "run_in_words": run_in_words}
    environment.globals |= {"seeds": seeds_text, "verdicts": VERDICTS}
    environment.filters |= {"number": _number, "measured": _measured, "interval": _interval}
    environment.filters["capitalised"] = lambda text: text[:1].upper() + text[1:].rstrip(".")
    environment.filters["first_sentence"] = lambda text: re.split(r"(?<=[.!?]) ", text)[0]
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


def write_report(catalogue: Catalogue, records: Records, out: Path | None = None) -> Path:
    """Writes `<out>/<scale>/index.html` and returns its path; what is not drawn, run or judged is named so.

    `out` is the project's folder of figures where it is not given. `index.json` beside the page records its
    hash, so that the page can be verified where it is too large to be kept.
    """
    page = Page(catalogue, records, Path(out or catalogue.plan.project.figures))
    path = page.folder / "index.html"
    write_text(path, page.render())
    write_json(path.with_suffix(".json"), {"files": {path.name: file_digest(path)}})
    return path
