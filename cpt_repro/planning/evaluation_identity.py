"""What decides a model's scores: its weights' identity and the tasks."""

from __future__ import annotations

from cpt_repro.evaluation.benchmarks import declared_suites
from cpt_repro.files import digest
from cpt_repro.planning.plan import Plan, Segment


def evaluation_identity(plan: Plan, model_id: str) -> tuple[str, list[tuple[Segment, int]]]:
    """Identity of a model to be evaluated, and the (segment, iteration) weights it is made of."""
    suites = declared_suites(plan.scale)
    if model_id in plan.segments:
        segment = plan.segments[model_id]
        return digest(["run", segment.identity, suites]), [(segment, segment.iterations)]
    merge, seed = plan.merge_of(model_id), int(model_id.rpartition("-")[2])
    paper = model_id.partition("/")[0]
    sources = [plan.segments[plan.id_of(paper, run, seed)] for run in (merge.base, merge.task)]
    identity = digest(["merge", merge.density, [s.identity for s in sources], suites])
    return identity, [(s, s.iterations) for s in sources]
