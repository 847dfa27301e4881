"""The command line: every step of the pipeline, and questions about it. Heavy imports stay inside the commands."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import nullcontext
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
bench = typer.Typer(
    no_args_is_help=True, help="Measures speed as a ratio against something plain, in one run."
)
corpora = typer.Typer(no_args_is_help=True, help="The real corpora: fetch their sources, extract their text.")
app.add_typer(bench, name="bench")
app.add_typer(corpora, name="corpora")

Scale = Annotated[str, typer.Option("--scale", "-s", help="smoke, pocket, desk or paper (configs/scales/).")]
Results = Annotated[Path, typer.Option(help="Folder of receipts.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _say(text: str) -> None:
    print(text, flush=True)


def _workflow(scale: str, results: Path = Path("results")):
    from cpt_repro.workflow.jobs import Workflow

    return Workflow(scale, results=str(results))


@app.command()
def corpus(
    name: Annotated[str, typer.Argument(help="pile, sp or german; or `tokenizer`.")],
    scale: Scale = "smoke",
    processes: Annotated[
        int, typer.Option(min=1, help="Worker processes; the shards do not depend on it.")
    ] = 1,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Check all that is there; build anew what is damaged.")
    ] = False,
    upload: Annotated[
        str | None,
        typer.Option(help="Copy the corpus there too, for $CPT_REPRO_SHARDS_REMOTE: s3://... or a folder."),
    ] = None,
) -> None:
    """Builds the tokenizer, or one corpus: text to tokens to MDS shards with hashes."""
    from cpt_repro.data.build import build_corpus, build_tokenizer, upload_corpus
    from cpt_repro.declarations.scale import load_scale

    loaded = load_scale(scale)
    root = Path("data") / scale
    if name == "tokenizer":
        path = build_tokenizer(loaded, root, rebuild)
    else:
        path = build_corpus(loaded, name, root, processes, rebuild=rebuild)
        if upload:
            upload_corpus(root, name, upload)
    _say(str(path))


@app.command()
def suites(scale: Scale = "smoke") -> None:
    """Makes the scale's benchmark tasks, from held-out text or from published data, which it fetches."""
    from cpt_repro.declarations.scale import load_scale
    from cpt_repro.evaluation.suites import build_suites

    _say(str(build_suites(load_scale(scale), Path("data") / scale)))


@app.command()
def train(
    bundle: Annotated[
        str | None, typer.Argument(help="A bundle of segments, or a run id or its beginning.")
    ] = None,
    scale: Scale = "smoke",
    results: Results = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command that starts the ranks.")
    ] = False,
    attempt: Annotated[
        int, typer.Option(min=1, help="Above 1, what failed by itself is not tried again.")
    ] = 1,
) -> None:
    """Trains a bundle of segments (see `plan`), or the runs whose id begins so, ancestors first.

    Where the scale's `execution` asks for several ranks, this starts them; inside a launch (RANK is set) it is one.
    """
    from cpt_repro.training.train import train_segments
    from cpt_repro.workflow import launch

    workflow = _workflow(scale, results)
    plan = workflow.plan
    wanted = {s.id for s in plan.bundles.get(bundle, ())}
    if not wanted:
        named = [s for s in plan.segments.values() if bundle is None or s.id.startswith(bundle)]
        if not named:
            raise UserError(f"no bundle or run begins with '{bundle}'.", do="See `cpt-repro plan`.")
        wanted = {ancestor.id for segment in named for ancestor in plan.lineage(segment.id)}
    segments = [plan.segments[segment] for segment in workflow.outstanding[0] if segment in wanted]
    # A rank of a launch; its failure is told by the launcher, so that the first of many is the one that is read.
    if launch.launched():
        launch.join()
        from torch.distributed.elastic.multiprocessing.errors import record

        say = _say if os.environ["RANK"] == "0" else lambda line: None
        record(train_segments)(plan, segments, workflow.data, results, workflow.store, say)
        return
    if not (segments or dry_run):
        return
    model, execution = workflow.execution_of({plan.segments[segment].model_name for segment in wanted})
    arguments = ["train", *([bundle] if bundle else []), "--scale", scale, "--results", str(results)]
    command = launch.command(execution, workflow.cores(execution), arguments)
    if dry_run:
        _say(shlex.join(command))
        return
    where = f"configs/scales/{scale}.yaml, execution.{model}"
    launch.check(execution, where)
    workflow.forget_failures(segments) if attempt == 1 else workflow.refuse_failed(segments)
    # Over several nodes Slurm has assigned the GPUs.
    alone = plan.scale.device == "gpu" and execution.nodes == 1
    with _gpus(execution.ranks_per_node, execution.jobs_per_gpu, where) if alone else nullcontext() as held:
        if execution.ranks == 1:
            train_segments(plan, segments, workflow.data, results, workflow.store, _say)
        else:
            if held:
                held.hand_on()
            launch.become(command)


def _gpus(count: int, jobs_per_gpu: int, where: str):
    from cpt_repro.workflow.gpus import lease

    return lease(count, jobs_per_gpu, where, _say)


@app.command()
def evaluate(
    group: Annotated[str, typer.Argument(help="A group of models (see the Snakefile), or `all`.")] = "all",
    scale: Scale = "smoke",
    results: Results = Path("results"),
    released: Annotated[
        bool,
        typer.Option(
            "--released", help="The authors' published weights; name them <paper>/<run>, or a pattern."
        ),
    ] = False,
) -> None:
    """Runs the benchmark suites on trained models and merges."""
    from cpt_repro.evaluation.evaluate import evaluate_models

    workflow = _workflow(scale, results)
    models = workflow.evaluations if group == "all" or released else workflow.group(group)
    todo = released or not set(models).isdisjoint(workflow.outstanding[1])
    gpu = todo and workflow.plan.scale.device == "gpu"
    with _gpus(1, 1, f"configs/scales/{scale}.yaml, device") if gpu else nullcontext():
        if released:
            from cpt_repro.evaluation.released import evaluate_released

            return evaluate_released(workflow.plan, group, workflow.data, results, _say)
        evaluate_models(
            workflow.plan, models, workflow.generating, workflow.data, results, workflow.store, _say
        )


@app.command("released")
def released_weights(
    scale: Scale = "paper", results: Results = Path("results"), as_json: AsJson = False
) -> None:
    """Compares published scores with those measured on the weights that the authors published."""
    from cpt_repro.evaluation import released

    found = released.compare(_workflow(scale, results).plan, results)
    if as_json:
        _say(
            json.dumps({"scale": scale, "note": released.MARK, "models": found}, indent=1, ensure_ascii=False)
        )
    else:
        released.print_comparison(found)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run's id, or <paper>/<run> for its first seed.")],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    scale: Scale = "smoke",
    iteration: Annotated[
        int | None, typer.Option(help="Of the weights that were kept; the last without it.")
    ] = None,
) -> None:
    """Writes a trained model as a Hugging Face folder: weights, tokenizer, receipt, model card."""
    from cpt_repro.training.export import export_run

    workflow = _workflow(scale)
    _say(str(export_run(workflow.plan, workflow.store, workflow.data, run, out, iteration)))


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
def plan(
    scale: Scale = "smoke",
    exhibit: Annotated[
        list[str] | None,
        typer.Option(help="What this exhibit needs, such as ibrahim2024/figure_05; may be repeated."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs at hand, for the wall time.")] = None,
    cores: Annotated[int | None, typer.Option(help="CPU cores at hand, at scales for CPUs.")] = None,
    tokens_per_second: Annotated[
        list[str] | None,
        typer.Option(help="Tokens/s of one GPU (core): X, or MODEL=X for each of several models."),
    ] = None,
    mfu: Annotated[float | None, typer.Option(help="Share of the peak that training reaches (0.45).")] = None,
    peak_tflops: Annotated[
        float | None, typer.Option(help="Peak of a GPU (989: H100, H200, dense bf16).")
    ] = None,
    price: Annotated[float | None, typer.Option(help="USD per GPU-hour.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="GB of a GPU (80).")] = None,
    attention: Annotated[str, typer.Option(help="FLOPs per token with full or causal attention.")] = "full",
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Lists what would be trained, and what it costs before it runs: work, time, money, disk, memory."""
    from cpt_repro.planning.cost import Options, estimate
    from cpt_repro.report.cost_table import print_estimate

    many = tuple(exhibit or ()), gpus, cores, tuple(tokens_per_second or ())
    options = Options(*many, mfu, peak_tflops, price, gpu_memory, attention)
    told = estimate(_workflow(scale, results), options)
    if as_json:
        _say(json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_estimate(told)


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
                {"scale": scale, **counts, "to_train": sorted(segments), "to_evaluate": sorted(models)},
                indent=1,
            )
        )
        return
    for name, (done, total) in counts.items():
        _say(f"{name}: {done} of {total} done")


@app.command()
def claims(
    scale: Scale = "smoke",
    paper: Annotated[str | None, typer.Option(help="One paper's claims alone.")] = None,
    claim: Annotated[
        str | None, typer.Option(help="One claim with its tests, such as C1 or ibrahim2024/12.")
    ] = None,
    results: Results = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder of figures.")] = Path("figures"),
    write: Annotated[
        bool, typer.Option("--write", help="Write claims.json and claims.md of all claims.")
    ] = False,
    readme: Annotated[
        Path | None, typer.Option(help="Renew the table between the marks in this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Says of every claim of the papers whether it held, with what was measured, published, and what decided."""
    from cpt_repro.claims import ledger as claims

    plan = _workflow(scale, results).plan
    if write:
        for path in claims.write_ledger(claims.build_ledger(plan, results), out):
            _say(str(path))
    if readme:
        text = claims.in_readme(
            claims.build_ledger(plan, results), readme.read_text(encoding="utf-8"), str(readme)
        )
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
    from cpt_repro.report import verify as verifying

    quiet = (lambda line: None) if as_json else _say
    found = verifying.verify(_workflow(scale, results).plan, results, figures, say=quiet)
    _say(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(verifying.summary(found)))
    if not found["ok"]:
        raise typer.Exit(1)


@app.command()
def cite(
    exhibit: Annotated[
        str | None, typer.Argument(help="Such as ibrahim2024/figure_05; the whole without it.")
    ] = None,
    scale: Scale = "smoke",
    figures: Annotated[Path, typer.Option(help="Folder of figures.")] = Path("figures"),
    as_json: AsJson = False,
) -> None:
    """Prints what to cite for an exhibit or a scale: version, commit, seeds, digest of the receipts, the paper."""
    from cpt_repro.files import code_commit
    from cpt_repro.project import ROOT
    from cpt_repro.report.citation import citation

    told = citation(_workflow(scale).plan, figures, exhibit, code_commit(ROOT))
    _say(json.dumps(told, indent=1, ensure_ascii=False) if as_json else f"{told['text']}\n\n{told['bibtex']}")


@bench.command("train")
def bench_train(scale: Scale = "pocket", rounds: int = 5, iterations: int = 200) -> None:
    """Tokens/s of our training against a plain PyTorch loop, in turns; needs the scale's corpora."""
    from cpt_repro.bench import bench_train as run

    _say(json.dumps(run(scale, Path("data") / scale, rounds, iterations)))


@bench.command("data")
def bench_data(scale: Scale = "pocket", rounds: int = 3) -> None:
    """Tokens/s of building a corpus against the tokenizer alone; and of files of the hub, with 1 and 2 processes."""
    from cpt_repro.bench import bench_data as run

    _say(json.dumps(run(scale, rounds)))


@bench.command("gpu")
def bench_gpu(
    scale: Scale = "paper",
    model: Annotated[str, typer.Option(help="405m or 10b, as the scale names it.")] = "405m",
    steps: Annotated[
        int, typer.Option(min=1, help="Steps timed in each arm, after those that warm up.")
    ] = 20,
    microbatch: Annotated[
        str, typer.Option(help="Sequences of a forward pass; auto: as many as fit.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="gpu; cpu for a dry run at a small scale.")] = "gpu",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of all arms.")] = 1,
) -> None:
    """Speed of training on one GPU, a JSON row an arm: plain loop and ours, fast and deterministic, compiled or not."""
    from cpt_repro.bench import bench_gpu as run

    if not (microbatch == "auto" or (microbatch.isdecimal() and int(microbatch))):
        raise UserError(
            f"--microbatch {microbatch} is no number of sequences.", do="Give one from 1 up, or auto."
        )
    if device not in ("gpu", "cpu"):
        raise UserError(f"--device {device} is unknown.", do="Known: gpu, cpu.")
    size = microbatch if microbatch == "auto" else int(microbatch)
    for row in run(scale, model, Path("data") / scale, steps, size, device, rounds):
        _say(json.dumps(row))


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


if __name__ == "__main__":
    main()
