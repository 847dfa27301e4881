"""A trained run as a model folder for others: ready for upload, or for an `init_from` elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from cpt_repro.data.tokenizer import hashes, verify_tokenizer
from cpt_repro.declarations.manifests import load_manifest
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest, whole_folder, write_text
from cpt_repro.models.neox import WEIGHTS, check_weights
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import Receipt, is_current, read_receipt
from cpt_repro.training.store import Store

CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: other
{base}tags: [gpt_neox, continual-pre-training]
---
# {paper} {name}

A GPT-NeoX language model of {parameters:,} parameters ({layers} layers, width {width}, {heads} heads), trained by
cpt_repro at the scale {scale}. It replicates a run of {reference}.

- Run: `{id}`, iteration {iteration} of {iterations}, batches of {batch} x {length} tokens
- Receipt: identity `{identity}` (`receipt.json`)
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


def export_run(
    plan: Plan, store: Store, data: Path, run: str, out: Path, iteration: int | None = None
) -> Path:
    """Writes a trained run's model as the folder `out` and returns it.

    It holds `config.json`, `model.safetensors`, the tokenizer (from `data`, the scale's folder), the run's receipt and
    a model card, `README.md`. `run`: a segment's id, or `<paper>/<run>` for its first seed. `iteration`: one whose
    weights were kept, None for the last. An unknown run, one that is not trained, altered weights, a missing tokenizer
    and an `out` that is there and not empty are a `UserError`.
    """
    segment = plan.segments.get(run) or plan.segments.get(f"{run}/seed-{plan.scale.seeds[0]}")
    if segment is None:
        raise UserError(f"the run '{run}' is unknown.", do=f"See `cpt-repro plan --scale {plan.scale.name}`.")
    path = store.folder(segment) / "receipt.json"
    if not is_current(path, segment.identity):
        do = f"Train it: `cpt-repro train {segment.id} --scale {plan.scale.name}`."
        raise UserError("the run is not trained.", where=str(path), do=do)
    receipt = read_receipt(path)
    iteration = segment.iterations if iteration is None else iteration
    if iteration not in receipt.checkpoints:
        kept = ", ".join(map(str, sorted(receipt.checkpoints)))
        raise UserError(
            f"no weights of iteration {iteration} were kept.", where=segment.id, do=f"Kept are: {kept}."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            "it exists and is not an empty folder.", where=str(out), do="Name another, or empty it."
        )
    tokenizer, folder = data / "tokenizer", store.weights(segment, iteration)
    if "none" in hashes(tokenizer).values():
        do = f"Make it: `cpt-repro corpus tokenizer --scale {plan.scale.name}`."
        raise UserError("the tokenizer is missing.", where=str(tokenizer), do=do)
    verify_tokenizer(tokenizer)
    check_weights(folder, receipt.checkpoints[iteration])
    with whole_folder(out) as aside:
        # Older programs refuse weights that do not say which library wrote them.
        save_file(load_file(folder / WEIGHTS), aside / WEIGHTS, metadata={"format": "pt"})
        for source in (folder / "config.json", *(tokenizer / name for name in hashes(tokenizer)), path):
            shutil.copyfile(source, aside / source.name)
        write_text(aside / "README.md", _card(plan, receipt, iteration, file_digest(aside / WEIGHTS)))
    return out


def _card(plan: Plan, receipt: Receipt, iteration: int, sha256: str) -> str:
    segment, lineage = receipt.segment, plan.lineage(receipt.segment.id)
    roots = [one.external.model for one in lineage if one.external]
    corpora = dict.fromkeys(corpus for one in lineage for corpus in one.data)
    manifests = [load_manifest(plan.scale.corpora[corpus]) for corpus in corpora]
    hub = [root.partition("@")[0] for root in roots if not root.startswith(("/", "./"))]
    return CARD.format(
        base="".join(f"base_model: {name}\n" for name in hub),
        paper=segment.paper,
        name=segment.name,
        parameters=receipt.parameters,
        layers=segment.model.layers,
        width=segment.model.width,
        heads=segment.model.heads,
        scale=plan.scale.name,
        reference=plan.papers[segment.paper].reference,
        id=segment.id,
        iteration=iteration,
        iterations=segment.iterations,
        batch=segment.batch_sequences,
        length=segment.sequence_length,
        identity=receipt.identity,
        recorded=receipt.checkpoints[iteration],
        sha256=sha256,
        lineage=", then ".join([*roots, *(f"`{one.id}`" for one in lineage)]),
        losses="\n".join(f"- {corpus}: {final.loss:.4f}" for corpus, final in receipt.final.items()),
        data="\n".join(f"- {one.name}: {one.about} Licence: {one.licence}" for one in manifests),
        terms=" and ".join(["the corpora above", *roots]),
    )
