"""The command line: every step of the pipeline, and questions about it. Heavy imports stay inside the commands."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cpt_repro import __version__
from cpt_repro.errors import UserError
from cpt_repro.files import write_text, writing

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Replicates Gupta et al. 2023 and Ibrahim et al. 2024 on continual pre-training. The whole job is "
    "`snakemake --cores all figures/`; these are its steps, and questions about it.",
)
bench = typer.Typer(no_args_is_help=True, help="Measures speed as a ratio against something plain, in one run.")
corpora = typer.Typer(no_args_is_help=True, help="The real corpora: fetch their sources, extract their text.")
app.add_typer(bench, name="bench")
app.add_typer(corpora, name="corpora")

Scale = Annotated[str, typer.Option("--scale", "-s", help="smoke, pocket, desk or paper (configs/scales/).")]
Results = Annotated[Path, typer.Option(help="Folder of receipts.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _say(text: str) -> None:
    print(text, flush=True)


def _workflow(scale: str, results: Path = Path("results")):
    from cpt_repro.workflow import Workflow

    return Workflow(scale, results=str(results))


@app.command()
def corpus(
    name: Annotated[str, typer.Argument(help="pile, sp or german; or `tokenizer`.")],
    scale: Scale = "smoke",
    processes: Annotated[int, typer.Option(min=1, help="Worker processes; the shards do not depend on it.")] = 1,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Check all that is there; build anew what is damaged.")
    ] = False,
) -> None:
    """Builds the tokenizer, or one corpus: text to tokens to MDS shards with hashes."""
    from cpt_repro.config import load_scale
    from cpt_repro.data.build import build_corpus, build_tokenizer

    loaded = load_scale(scale)
    root = Path("data") / scale
    if name == "tokenizer":
        path = build_tokenizer(loaded, root, rebuild)
    else:
        path = build_corpus(loaded, name, root, processes, rebuild=rebuild)
    _say(str(path))


@app.command()
def suites(scale: Scale = "smoke") -> None:
    """Makes the scale's benchmark tasks from held-out text."""
    from cpt_repro.config import load_scale
    from cpt_repro.evaluation.suites import build_suites

    _say(str(build_suites(load_scale(scale), Path("data") / scale)))


@app.command()
def train(
    bundle: Annotated[str | None, typer.Argument(help="A bundle of segments, or a run id or its beginning.")] = None,
    scale: Scale = "smoke",
    results: Results = Path("results"),
) -> None:
    """Trains a bundle of segments (see `plan`), or the runs whose id begins so, ancestors first."""
    from cpt_repro.training.run import train_segments

    workflow = _workflow(scale, results)
    plan = workflow.plan
    wanted = {s.id for s in plan.bundles.get(bundle, ())}
    if not wanted:
        named = [s for s in plan.segments.values() if bundle is None or s.id.startswith(bundle)]
        if not named:
            raise UserError(f"no bundle or run begins with '{bundle}'.", do="See `cpt-repro plan`.")
        wanted = {ancestor.id for segment in named for ancestor in plan.lineage(segment.id)}
    segments = [plan.segments[segment] for segment in workflow.outstanding[0] if segment in wanted]
    train_segments(plan, segments, workflow.data, results, workflow.store, _say)


@app.command()
def evaluate(
    group: Annotated[str, typer.Argument(help="A group of models (see the Snakefile), or `all`.")] = "all",
    scale: Scale = "smoke",
    results: Results = Path("results"),
) -> None:
    """Runs the benchmark suites on trained models and merges."""
    from cpt_repro.evaluation.run import evaluate_models

    workflow = _workflow(scale, results)
    models = workflow.evaluations if group == "all" else workflow.group(group)
    evaluate_models(workflow.plan, models, workflow.generating, workflow.data, results, workflow.store, _say)


@app.command()
def draw(
    exhibit: Annotated[str, typer.Argument(help="Such as ibrahim2024/figure_05; or `all`.")] = "all",
    scale: Scale = "smoke",
    results: Results = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder of figures.")] = Path("figures"),
) -> None:
    """Draws one exhibit, or all, from the receipts at hand; what was not run is marked so."""
    from cpt_repro.exhibits.draw import draw as draw_exhibit

    workflow = _workflow(scale, results)
    keys = list(workflow.exhibits) if exhibit == "all" else [tuple(exhibit.split("/", 1))]
    for paper, key in keys:
        for path in draw_exhibit(workflow.plan, paper, key, results, out):
            _say(str(path))


@app.command()
def plan(scale: Scale = "smoke", as_json: AsJson = False) -> None:
    """Lists what would be trained: segments, their parents and lengths, and the totals."""
    workflow = _workflow(scale)
    segments = list(workflow.plan.segments.values())
    first = workflow.plan.scale.seeds[0]
    units = sum(segment.billions for segment in segments) / 300
    alone = sum(ancestor.tokens for s in segments for ancestor in workflow.plan.lineage(s.id))
    tokens = sum(segment.tokens for segment in segments)
    if as_json:
        rows = [
            {"id": s.id, "parent": s.parent, "iterations": s.iterations, "tokens": s.tokens, "identity": s.identity}
            for s in segments
        ]
        _say(json.dumps({"scale": scale, "tokens": tokens, "units_of_300B": units, "segments": rows}, indent=1))
        return
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree(f"[bold]{scale}[/]: {len(segments)} segments")
    nodes = {}
    for s in (s for s in segments if s.seed == first):
        seeds = len(workflow.plan.ids(s.paper, s.name))
        times = f", {seeds} seeds" if seeds > 1 else ""
        text = f"{s.paper}/{s.name}  [dim]{s.iterations:,} it, {s.tokens:,} tokens ({s.billions:.0f}B){times}[/]"
        nodes[s.id] = (nodes[s.parent] if s.parent else tree).add(text)
    console = Console()
    console.print(tree)
    console.print(
        f"{len(segments)} segments in {len(workflow.plan.bundles)} processes, {tokens:,} tokens = "
        f"{units:.1f} times 300B; "
        f"training each row by itself would take {alone / tokens:.1f} times as much. "
        f"{len(workflow.evaluations)} models to evaluate, {len(workflow.exhibits)} exhibits."
    )
    for (paper, name), why in workflow.plan.absent.items():
        console.print(f"[dim]no counterpart: {paper}/{name} ({why})[/]")


@app.command()
def status(scale: Scale = "smoke", results: Results = Path("results"), as_json: AsJson = False) -> None:
    """Tells what is done and what is left at a scale."""
    workflow = _workflow(scale, results)
    segments, models = workflow.outstanding
    files = workflow.all_files()
    counts = {
        "segments": [len(workflow.plan.segments) - len(segments), len(workflow.plan.segments)],
        "evaluations": [len(workflow.evaluations) - len(models), len(workflow.evaluations)],
        "exhibit files": [sum(Path(path).exists() for path in files), len(files)],
    }
    if as_json:
        _say(
            json.dumps(
                {"scale": scale, **counts, "to_train": sorted(segments), "to_evaluate": sorted(models)}, indent=1
            )
        )
        return
    for name, (done, total) in counts.items():
        _say(f"{name}: {done} of {total} done")


@app.command()
def claims(
    scale: Scale = "smoke",
    paper: Annotated[str | None, typer.Option(help="One paper's claims alone.")] = None,
    claim: Annotated[str | None, typer.Option(help="One claim with its tests, such as C1 or ibrahim2024/12.")] = None,
    results: Results = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder of figures.")] = Path("figures"),
    write: Annotated[bool, typer.Option("--write", help="Write claims.json and claims.md of all claims.")] = False,
    readme: Annotated[Path | None, typer.Option(help="Renew the table between the marks in this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Says of every claim of the papers whether it held, with what was measured, published, and what decided."""
    from cpt_repro.claims import ledger as claims

    plan = _workflow(scale, results).plan
    if write:
        for path in claims.write_ledger(claims.build_ledger(plan, results), out):
            _say(str(path))
    if readme:
        text = claims.in_readme(claims.build_ledger(plan, results), readme.read_text(encoding="utf-8"), str(readme))
        write_text(readme, text)
        _say(str(readme))
    if write or readme:
        return
    told = claims.build_ledger(plan, results, [paper] if paper else None)
    told = claims.selected(told, claim) if claim else told
    if as_json:
        _say(json.dumps(told.model_dump(mode="json"), indent=1, ensure_ascii=False, sort_keys=True))
    else:
        claims.print_ledger(told, details=claim is not None)


@app.command()
def report(
    scale: Scale = "smoke",
    results: Results = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder of figures.")] = Path("figures"),
) -> None:
    """Writes the page figures/<scale>/index.html from the exhibits, the ledger and the receipts at hand."""
    from cpt_repro.report.page import write_report

    _say(str(write_report(_workflow(scale, results).plan, results, out)))


@app.command()
def verify(
    scale: Scale = "smoke",
    results: Results = Path("results"),
    figures: Annotated[Path, typer.Option(help="Folder of figures.")] = Path("figures"),
    as_json: AsJson = False,
) -> None:
    """Makes exhibits, claims and report again from the receipts and compares bytes; status 1 on any difference."""
    from cpt_repro import verify as verifying

    quiet = (lambda line: None) if as_json else _say
    found = verifying.verify(_workflow(scale, results).plan, results, figures, say=quiet)
    _say(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(verifying.summary(found)))
    if not found["ok"]:
        raise typer.Exit(1)


@app.command()
def cite(
    exhibit: Annotated[str | None, typer.Argument(help="Such as ibrahim2024/figure_05; the whole without it.")] = None,
    scale: Scale = "smoke",
    figures: Annotated[Path, typer.Option(help="Folder of figures.")] = Path("figures"),
    as_json: AsJson = False,
) -> None:
    """Prints what to cite for an exhibit or a scale: version, commit, seeds, digest of the receipts, the paper."""
    from cpt_repro.citation import citation
    from cpt_repro.config import ROOT
    from cpt_repro.files import code_commit

    told = citation(_workflow(scale).plan, figures, exhibit, code_commit(ROOT))
    _say(json.dumps(told, indent=1, ensure_ascii=False) if as_json else f"{told['text']}\n\n{told['bibtex']}")


@bench.command("train")
def bench_train(scale: Scale = "pocket", rounds: int = 5, iterations: int = 200) -> None:
    """Tokens/s of our training against a plain PyTorch loop, in turns; needs the scale's corpora."""
    from cpt_repro.bench import bench_train as run

    _say(json.dumps(run(scale, Path("data") / scale, rounds, iterations)))


@bench.command("data")
def bench_data(scale: Scale = "pocket", rounds: int = 3) -> None:
    """Tokens/s of building a corpus with one process, against the tokenizer alone on the same text."""
    from cpt_repro.bench import bench_data as run

    _say(json.dumps(run(scale, rounds)))


@corpora.command("fetch")
def corpora_fetch(checkouts: Path) -> None:
    """Clones the sources of the real corpora at their commits (needs a network)."""
    from cpt_repro.data.extract import fetch_sources

    fetch_sources(checkouts)


@corpora.command("extract")
def corpora_extract(checkouts: Path, out: Path = Path("data/corpora")) -> None:
    """Makes the real corpora from checkouts of their sources."""
    from cpt_repro.data.extract import extract

    extract(checkouts, out)


def main() -> None:
    """Entry point: a `UserError` is one paragraph on stderr and status 2."""
    # One thread per job is fastest for small models, and bits depend on the number.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        with writing():
            app(prog_name="cpt-repro")
    except UserError as error:
        print(f"cpt-repro: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("cpt-repro: interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        _say(__version__)
        raise typer.Exit
