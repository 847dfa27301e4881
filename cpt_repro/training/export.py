"""A trained run as a model folder for others: ready for upload, or for an `init_from` elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from cpt_repro.data.tokenizer import hashes, verify_tokenizer
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, whole_folder, write_text
from cpt_repro.models.architecture import architecture
from cpt_repro.models.outside import is_folder
from cpt_repro.models.weights import CONFIG, WEIGHTS, check_weights
from cpt_repro.planning.plan import Plan, PlannedRun
from cpt_repro.records.receipts import Receipt
from cpt_repro.training.store import Store

CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: other
{base}tags: [{size.architecture}, continual-pre-training]
---
# {run.paper} {run.name}

A {called} language model of {receipt.parameters:,} parameters ({size.layers} layers, width {size.width}, \
{size.heads} heads),
trained by cpt_repro at the scale {scale}. It replicates a run of {reference}.

- Run: `{run.id}`, iteration {iteration} of {training.iterations}, \
batches of {training.batch_sequences} x {training.sequence_length} tokens
- Receipt: identity `{receipt.identity}` (`receipt.json`)
- Weights of the run: SHA-256 `{recorded}`; of `model.safetensors` here: `{sha256}`
- Lineage: {lineage}

## Validation losses

Nats per token, at the end of the run.

{losses}

## Data

Corpora that the lineage was trained or validated on.

{data}

## Licence

None is granted here. Whoever publishes these weights states one that agrees with the terms of {terms}.
"""


def export_run(plan: Plan, store: Store, run: str, out: Path, iteration: int | None = None) -> Path:
    """Writes a trained run's model as the folder `out` and returns it.

    It holds `config.json`, `model.safetensors`, the scale's tokenizer, the run's receipt and a model card,
    `README.md`. `run`: a run's id, or `<paper>/<run>` for its first seed. `iteration`: one whose weights were
    kept, None for the last. What is missing or altered, and an `out` that is not empty, are a `UserError`.
    """
    planned, scale = plan.runs.get(run) or plan.runs.get(f"{run}/seed-{plan.scale.seeds[0]}"), plan.scale.name
    if planned is None:
        raise UserError(f"the run '{run}' is unknown.", do=f"See `cpt-repro plan --scale {scale}`.")
    receipt, folder = store.receipt(planned.identity), store.folder(planned.identity)
    if receipt is None:
        do = f"Train it: `cpt-repro train {planned.id} --scale {scale}`."
        raise UserError("the run is not trained.", where=str(folder), do=do)
    iteration = planned.training.iterations if iteration is None else iteration
    if iteration not in receipt.checkpoints:
        do = f"Kept are: {', '.join(map(str, sorted(receipt.checkpoints)))}."
        raise UserError(f"no weights of iteration {iteration} were kept.", where=planned.id, do=do)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        do = "Name another, or empty it."
        raise UserError("it exists and is not an empty folder.", where=str(out), do=do)
    tokenizer, weights = plan.project.data / scale / "tokenizer", store.weights(planned.identity, iteration)
    if "none" in hashes(tokenizer).values():
        do = f"Make it: `cpt-repro corpus tokenizer --scale {scale}`."
        raise UserError("the tokenizer is missing.", where=str(tokenizer), do=do)
    verify_tokenizer(tokenizer)
    check_weights(weights, receipt.checkpoints[iteration])
    from safetensors.torch import load_file, save_file

    files = [weights / CONFIG, *(tokenizer / name for name in hashes(tokenizer)), folder / "receipt.json"]
    with whole_folder(out) as aside:
        # Older programs refuse weights that do not say which library wrote them.
        save_file(load_file(weights / WEIGHTS), aside / WEIGHTS, metadata={"format": "pt"})
        for source in files:
            shutil.copyfile(source, aside / source.name)
        card = _card(plan, planned, receipt, iteration, file_digest(aside / WEIGHTS))
        write_text(aside / "README.md", card)
    return out


def _card(plan: Plan, planned: PlannedRun, receipt: Receipt, iteration: int, sha256: str) -> str:
    size, lineage = planned.training.model, plan.lineage(planned.id)
    roots = [run.training.external.model for run in lineage if run.training.external]
    corpora = dict.fromkeys(c for run in lineage for c in (*run.training.data, *run.validation.corpora))
    manifests = [plan.manifest(corpus) for corpus in corpora]
    hub = [root.partition("@")[0] for root in roots if not is_folder(root)]
    return CARD.format(
        run=planned,
        training=planned.training,
        size=size,
        receipt=receipt,
        iteration=iteration,
        sha256=sha256,
        scale=plan.scale.name,
        base="".join(f"base_model: {name}\n" for name in hub),
        called=architecture(size.architecture).called,
        reference=plan.studies[planned.paper].paper.reference,
        recorded=receipt.checkpoints[iteration],
        lineage=", then ".join([*roots, *(f"`{run.id}`" for run in lineage)]),
        losses="\n".join(f"- {corpus}: {losses.final.loss:.4f}" for corpus, losses in receipt.losses.items()),
        data="\n".join(f"- {one.name}: {one.about} Licence: {one.licence}" for one in manifests),
        terms=" and ".join(["the corpora above", *roots]),
    )
