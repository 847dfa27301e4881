"""The command line: every step of the pipeline, and questions about it. Commands import what they need."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shlex
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_repro import __version__
from cpt_repro.errors import UserError, plain, redacted
from cpt_repro.files import DECLARATION_BYTES, between, read_bytes, write_text, writing
from cpt_repro.project import Project

if TYPE_CHECKING:
    from cpt_repro.workflow.jobs import Workflow

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Replicates papers on continual pre-training. The whole job is `snakemake --cores all figures/`; "
    "these are its steps, and questions about it.",
)
bench = typer.Typer(
    no_args_is_help=True, help="Measures speed as a ratio against something plain, in one run."
)
corpora = typer.Typer(no_args_is_help=True, help="The real corpora: fetch their sources, extract their text.")
app.add_typer(bench, name="bench")
app.add_typer(corpora, name="corpora")


def _option(kind: Any, text: str, *names: str, **how: Any) -> Any:
    return Annotated[kind, typer.Option(*names, help=text, **how)]


Scale = _option(str, "One of configs/scales/.", "--scale", "-s")
Papers = _option(str, "Those that are made, separated by commas; else those of the scale.", "--papers")
Results = _option(Path | None, "Folder of receipts, instead of the project's.")
Figures = _option(Path | None, "Folder of figures, instead of the project's.", "--out", "--figures")
AsJson = _option(bool, "Print JSON for programs.", "--json")
Runs = Annotated[str, typer.Argument(help="An id as `plan` and `status` have it, or how several begin.")]
Exhibit = Annotated[str, typer.Argument(help="<paper>/<exhibit>; all without it.")]
Model = _option(str | None, "As the scale names it; the first without it.")
Steps = _option(int, "Steps timed in each arm, after those that warm up.", min=1)
Device = _option(str | None, "gpu, or cpu (a dry run where the scale is for GPUs).")
Rounds = _option(int, "Turns of all arms.", min=1)
Append = _option(Path | None, "Append the rows to this file too, such as benchmarks/<date>.jsonl.")


def _say(text: str) -> None:
    print(plain(text), flush=True)


def _say_rows(rows: list[dict[str, Any]], append: Path | None) -> None:
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    _say("\n".join(lines))
    if append:
        there = read_bytes(append, DECLARATION_BYTES).decode() if append.exists() else ""
        write_text(append, there + "".join(f"{line}\n" for line in lines))


def _renew(page: Path, parts: dict[str, str]) -> None:
    """Puts parts between their marks in a text."""
    try:
        text = read_bytes(page, DECLARATION_BYTES).decode("utf-8")
    except UnicodeError:
        raise UserError("it is no text in UTF-8.", where=str(page), do="Convert it.") from None
    write_text(page, between(text, parts, str(page)))
    _say(str(page))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _workflow(
    scale: str, papers: str = "", results: Path | None = None, figures: Path | None = None
) -> Workflow:
    from cpt_repro.workflow.jobs import Workflow

    project = Project.at().with_(results=results, figures=figures)
    return Workflow(project, scale, tuple(filter(None, papers.split(","))))


def _named(begin: str, known: list[str], what: str) -> list[str]:
    """The one of that name, else all that begin so."""
    fitting = [begin] if begin in known else [name for name in known if name.startswith(begin)]
    if not fitting:
        raise UserError(f"no {what} begins with '{begin}'.", do="See `cpt-repro status --json`.")
    return fitting


@app.command()
def corpus(
    name: Annotated[str, typer.Argument(help="A corpus of the scale; or `tokenizer`.")],
    scale: Scale = "smoke",
    papers: Papers = "",
    processes: _option(int, "Worker processes; the shards do not depend on it.", min=1) = 1,
    rebuild: _option(bool, "Check all that is there; build anew what is damaged.", "--rebuild") = False,
    upload: _option(str | None, "Copy it there too: s3://... ($CPT_REPRO_SHARDS_REMOTE).") = None,
) -> None:
    """Builds the tokenizer, or one corpus: text to tokens to MDS shards with hashes."""
    from cpt_repro.data.build import build_corpus, build_tokenizer
    from cpt_repro.data.corpus import upload_corpus
    from cpt_repro.declarations.scale import load_scale

    project = Project.at()
    loaded = load_scale(project, scale)
    if name == "tokenizer":
        return _say(str(build_tokenizer(project, loaded, rebuild)))
    _say(str(build_corpus(project, loaded, name, processes, rebuild=rebuild)))
    if upload:
        upload_corpus(project, scale, name, upload)


@app.command()
def suites(scale: Scale = "smoke", papers: Papers = "") -> None:
    """Makes the scale's benchmark tasks, from held-out text or from published data, which it fetches."""
    from cpt_repro.evaluation.suites import build_suites

    plan = _workflow(scale, papers).plan
    _say(str(build_suites(plan.project, plan.scale, plan.data)))


@app.command()
def train(
    runs: Runs = "",
    scale: Scale = "smoke",
    papers: Papers = "",
    again: _option(bool, "Train what has a receipt too, for all points of its curves.", "--again") = False,
    dry_run: _option(bool, "Print the command that starts the ranks.", "--dry-run") = False,
    attempt: _option(int, "Above 1, what failed by itself is not tried again.", min=1) = 1,
) -> None:
    """Trains a run, or those whose ids begin so, and what they start from where that is missing.

    Where the scale's `execution` asks for several ranks, it starts them; in a launch (RANK is set) it is one.
    """
    from cpt_repro.workflow import launch

    work = _workflow(scale, papers)
    ids = _named(runs, list(work.plan.runs), "run")
    todo = work.outstanding(ids, (), again)[0]
    arguments = (work.plan, work.records, todo, work.store)
    # A rank of a launch; its failure is told by the launcher: of many the first.
    if "RANK" in os.environ:
        launch.join()
        from torch.distributed.elastic.multiprocessing.errors import record

        from cpt_repro.training.train import train_runs

        say = _say if os.environ["RANK"] == "0" else lambda line: None
        record(train_runs)(*arguments, say, again)
        return
    if not (todo or dry_run):
        return
    model, execution = work.execution_of(todo or [work.plan.runs[run_id] for run_id in ids])
    options = [*(["--papers", papers] if papers else []), *(["--again"] if again else [])]
    command = launch.command(execution, work.cores(execution), ["train", runs, "--scale", scale, *options])
    if dry_run:
        return _say(shlex.join(command))
    where = f"configs/scales/{scale}.yaml, execution.{model}"
    launch.check(execution, where)
    work.heed_failures(todo, attempt)
    # Over several nodes Slurm has assigned the GPUs.
    count = execution.ranks_per_node if execution.nodes == 1 else 0
    with _gpus(work, count, execution.jobs_per_gpu, where) as held:
        if execution.ranks == 1:
            from cpt_repro.training.train import train_runs

            return train_runs(*arguments, _say, again)
        if held:
            held.hand_on()
        # This process becomes the launcher, so that signals and the exit status need no passing on.
        sys.stdout.flush()
        os.execvp(command[0], command)  # noqa: S606  no shell is wanted


def _gpus(work: Workflow, count: int, jobs_per_gpu: int, where: str) -> AbstractContextManager[Any]:
    """A lease of GPUs, where the scale is for them."""
    if work.scale.device != "gpu" or not count:
        return nullcontext()
    from cpt_repro.workflow.gpus import lease

    return lease(count, jobs_per_gpu, where, _say)


@app.command()
def measure(runs: Runs = "", scale: Scale = "smoke", papers: Papers = "") -> None:
    """Measures losses that are wanted by now, on the weights that trained runs kept."""
    work = _workflow(scale, papers)
    todo = [work.plan.runs[run] for run in _named(runs, list(work.plan.runs), "run")]
    todo = list({run.identity: run for run in todo if work.can_measure(run)}.values())
    if not todo:
        return
    from cpt_repro.training.corpora import Corpora
    from cpt_repro.training.measure import measure_kept

    with _gpus(work, 1, 1, f"configs/scales/{scale}.yaml, device"):
        built = Corpora(work.plan)
        for run in todo:
            measure_kept(work.plan, work.records, run, work.store, built, _say)


@app.command()
def evaluate(
    models: Runs = "",
    scale: Scale = "smoke",
    papers: Papers = "",
    released: _option(
        bool, "The authors' published weights; name them <paper>/<run>, or a pattern.", "--released"
    ) = False,
) -> None:
    """Runs the benchmark suites on trained models and merges."""
    work = _workflow(scale, papers)
    named = [] if released else _named(models, work.models, "model")
    if not released and not work.outstanding((), named)[1]:
        return
    with _gpus(work, 1, 1, f"configs/scales/{scale}.yaml, device"):
        if released:
            from cpt_repro.evaluation.released import evaluate_released

            return evaluate_released(work.plan, models or "*", _say)
        from cpt_repro.evaluation.evaluate import evaluate_models

        evaluate_models(work.plan, work.records, named, work.store, _say, work.catalogue.generating)


@app.command("released")
def released_weights(scale: Scale = "paper", papers: Papers = "", as_json: AsJson = False) -> None:
    """Compares published scores with those measured on the weights that the authors published."""
    from cpt_repro.report import released

    compared = released.compare(_workflow(scale, papers).catalogue)
    if not as_json:
        return released.print_comparison(compared)
    _say(_json({"scale": scale, **compared.model_dump(mode="json")}))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run's id, or <paper>/<run> for its first seed.")],
    out: _option(Path, "Folder to write, new or empty."),
    scale: Scale = "smoke",
    papers: Papers = "",
    iteration: _option(int | None, "Of the weights that were kept; the last without it.") = None,
) -> None:
    """Writes a trained model as a Hugging Face folder: weights, tokenizer, receipt, model card."""
    from cpt_repro.training.export import export_run

    work = _workflow(scale, papers)
    _say(str(export_run(work.plan, work.store, run, out, iteration)))


@app.command()
def draw(
    exhibit: Exhibit = "all",
    scale: Scale = "smoke",
    papers: Papers = "",
    results: Results = None,
    out: Figures = None,
) -> None:
    """Draws one exhibit, or all, from the receipts at hand; what was not run is marked so."""
    from cpt_repro.exhibits.draw import draw as draw_exhibit

    work = _workflow(scale, papers, results, out)
    for paper, key in list(work.catalogue.exhibits) if exhibit == "all" else [work.exhibit_named(exhibit)]:
        for path in draw_exhibit(work.catalogue, work.records, paper, key):
            _say(str(path))


@app.command()
def plan(
    scale: Scale = "smoke",
    papers: Papers = "",
    exhibits: _option(list[str] | None, "What <paper>/<exhibit> needs; may be repeated.", "--exhibit") = None,
    gpus: _option(int | None, "GPUs at hand, for the wall time.") = None,
    tokens_per_second: _option(list[str] | None, "MODEL=X: on a GPU (core); may be repeated.") = None,
    mfu: _option(float | None, "Share of the peak that training reaches (0.45).") = None,
    peak_tflops: _option(float | None, "Peak of a GPU (989: H100, H200, dense bf16).") = None,
    price: _option(float | None, "USD per GPU-hour.") = None,
    gpu_memory: _option(float | None, "GB of a GPU (80).") = None,
    as_json: AsJson = False,
) -> None:
    """Lists what would be trained, and what it costs before it runs: work, time, money, disk, memory.

    Wall times are lower bounds: the longest chain of runs, or all work shared out evenly, whichever is more.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from cpt_repro.declarations.strict import parse
    from cpt_repro.workflow.cost import Options, estimate, print_estimate

    options = {name: given[name] for name in Options.model_fields.keys() & given}
    cost = estimate(_workflow(scale, papers), parse(Options, options, "the command line"))
    if not as_json:
        return print_estimate(cost)
    _say(_json(dataclasses.asdict(cost)))


@app.command()
def status(scale: Scale = "smoke", papers: Papers = "", as_json: AsJson = False) -> None:
    """Tells what is done and what is left at a scale, also while a job runs, and what there is to look at."""
    from cpt_repro.workflow.summary import made, progress

    work = _workflow(scale, papers)
    state = work.status()
    if as_json:
        return _say(_json({"scale": scale, **dataclasses.asdict(state)}))
    for line in (*state.lines(), progress(work), *made(work)):
        _say(line)


@app.command()
def claims(
    scale: Scale = "smoke",
    papers: Papers = "",
    claim: _option(str | None, "One claim with its tests, such as C1 or <paper>/12.") = None,
    results: Results = None,
    out: Figures = None,
    write: _option(bool, "Write claims.json and claims.md of all claims, and values.csv.", "--write") = False,
    into: _option(
        list[Path], "Renew the tables between the marks in this file; may stand several times."
    ) = (),
    published: _option(
        bool, "Test the papers' own published values instead; status 1 where undeclared."
    ) = False,
    as_json: AsJson = False,
) -> None:
    """Says of every claim of the papers whether it held, what was measured, published, and what decided."""
    from cpt_repro.claims import ledger as claims

    work = _workflow(scale, papers, results, out)
    if published:
        from cpt_repro.claims.verdicts import check_published, told

        checks = check_published(work.catalogue)
        data = [check.model_dump(mode="json") for check in checks]
        _say(_json(data) if as_json else "\n".join(told(checks)))
        raise typer.Exit(int(not all(check.right for check in checks)))
    ledger = claims.build_ledger(work.catalogue, work.records)
    if write:
        from cpt_repro.report.values import write_values

        written = claims.write_ledger(ledger, work.figures)
        for path in (*written, write_values(work.catalogue, work.records, work.figures)):
            _say(str(path))
    for page in into:
        _renew(page, claims.tables(ledger))
    if write or into:
        return
    ledger = claims.selected(ledger, claim) if claim else ledger
    if not as_json:
        return claims.print_ledger(ledger, details=claim is not None)
    _say(_json(ledger.model_dump(mode="json")))


@app.command()
def report(scale: Scale = "smoke", papers: Papers = "", results: Results = None, out: Figures = None) -> None:
    """Writes the page figures/<scale>/index.html from the exhibits, the ledger and the receipts at hand."""
    from cpt_repro.report.page import write_report

    work = _workflow(scale, papers, results, out)
    _say(str(write_report(work.catalogue, work.records)))


@app.command()
def verify(
    scale: Scale = "smoke",
    papers: Papers = "",
    results: Results = None,
    figures: Figures = None,
    as_json: AsJson = False,
) -> None:
    """Makes exhibits, claims and report again from the receipts; status 1 where a byte differs."""
    from cpt_repro.report import verify as verifying

    work = _workflow(scale, papers, results, figures)
    found = verifying.verify(work.catalogue, work.records, say=(lambda line: None) if as_json else _say)
    _say(_json(found.as_json()) if as_json else "\n".join(found.summary()))
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def cite(
    exhibit: Exhibit = "",
    scale: Scale = "smoke",
    papers: Papers = "",
    figures: Figures = None,
    as_json: AsJson = False,
) -> None:
    """Prints what to cite for an exhibit or a scale: version, commit, seeds, digest of receipts, paper."""
    from cpt_repro.files import code_commit
    from cpt_repro.report.citation import citation

    work = _workflow(scale, papers, figures=figures)
    cited = citation(work.catalogue, exhibit or None, code_commit(work.project.root))
    _say(_json(cited.model_dump(mode="json")) if as_json else f"{cited.text}\n\n{cited.bibtex}")


@bench.command("train")
def bench_train(
    scale: Scale = "pocket",
    model: Model = None,
    steps: Steps = 200,
    rounds: Rounds = 5,
    device: Device = None,
    append: Append = None,
) -> None:
    """Speed of training on one device, a JSON row an arm: a plain loop and ours, fast and deterministic."""
    from cpt_repro.bench.training import bench_training

    if device not in (None, "gpu", "cpu"):
        raise UserError(f"--device {device} is unknown.", do="Known: gpu, cpu.")
    _say_rows(bench_training(_workflow(scale).plan, model, steps, device, rounds), append)


@bench.command("gpu")
def bench_gpu(
    scale: Scale = "paper",
    model: Model = None,
    steps: Steps = 20,
    rounds: Rounds = 1,
    device: Device = "gpu",
    append: Append = None,
) -> None:
    """The same, as on a GPU: fewer steps, and compiled or not."""
    bench_train(scale, model, steps, rounds, device, append)


@bench.command("data")
def bench_data(scale: Scale = "pocket", rounds: Rounds = 3, append: Append = None) -> None:
    """Speed of building a corpus against the tokenizer alone: a JSON row of the scale's, one of hub files."""
    from cpt_repro.bench import data

    _say_rows(data.bench_data(_workflow(scale).plan, rounds), append)


@bench.command("imports")
def bench_imports(scale: Scale = "smoke", rounds: Rounds = 5, append: Append = None) -> None:
    """Seconds of the start of each command beside an empty Python: a JSON row."""
    from cpt_repro.bench import commands

    _say_rows([commands.bench_imports(Project.at().root, scale, rounds)], append)


@bench.command("exhibits")
def bench_exhibits(scale: Scale = "pocket", rounds: Rounds = 3, append: Append = None) -> None:
    """Seconds of all exhibits, claims and report from records, and of `verify`: a table, and a JSON row."""
    from cpt_repro.bench import commands

    work = _workflow(scale)
    _say_rows([commands.bench_exhibits(work.catalogue, work.records, rounds, _say)], append)


@bench.command("job")
def bench_job(scale: Scale = "smoke", rounds: Rounds = 1, append: Append = None) -> None:
    """Seconds of the main job from nothing, of a second call, and of one figure drawn again: a JSON row."""
    from cpt_repro.bench import commands

    work = _workflow(scale)
    paper, figure = next(key for key in work.catalogue.exhibits if key[1].startswith("figure"))
    _say_rows([commands.bench_job(work.project, scale, f"{paper}/{figure}", rounds, _say)], append)


@bench.command("grid")
def bench_grid(
    runs: _option(int, "Runs of the study.", min=1) = 10_000, rounds: Rounds = 3, append: Append = None
) -> None:
    """Seconds and memory of `plan` and of the workflow's graph for a study of many runs: a JSON row."""
    from cpt_repro.bench import commands

    _say_rows([commands.bench_grid(Project.at(), runs, rounds, _say)], append)


@bench.command("table")
def bench_table(
    into: _option(
        list[Path], "Renew the table between the marks in this file; may stand several times."
    ) = (),
) -> None:
    """The latest rows of benchmarks/ as a Markdown table."""
    from cpt_repro.bench.rows import rows_of, table

    lines = table(rows_of(Project.at().measurements))
    for page in into:
        _renew(page, {"benchmarks": "\n".join([*lines, ""])})
    if not into:
        _say("\n".join(lines))


@corpora.command("fetch")
def corpora_fetch(checkouts: Path) -> None:
    """Clones the sources of the real corpora at their commits (needs a network)."""
    from cpt_repro.data.extract import fetch_sources, load_sources

    fetch_sources(load_sources(Project.at()), checkouts)


@corpora.command("extract")
def corpora_extract(checkouts: Path, out: Path | None = None) -> None:
    """Makes the real corpora from checkouts of their sources."""
    from cpt_repro.data.extract import extract, load_sources

    project = Project.at()
    extract(load_sources(project), checkouts, out or project.root / "data" / "corpora")


def main() -> None:
    """Entry point: a `UserError` is one paragraph on stderr and status 2."""
    # One thread per job is fastest for small models, and bits depend on the number.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A quarter of a start, and of a large plan, would be spent on looking for garbage among what stays.
    gc.set_threshold(100_000, 20, 100)
    try:
        with writing():
            app(prog_name="cpt-repro")
    except UserError as error:
        print(f"cpt-repro: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # which is what typer makes of an interrupt
            raise
        print("cpt-repro: interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
    except Exception:  # of this program or a library, whose message may hold an address with its keys
        print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        _say(__version__)
        raise typer.Exit


if __name__ == "__main__":
    main()
