"""What `test_ranks` runs in two processes: `two_ranks.py <project> <data> <folder>`.

Trainings over two ranks, with whole parameters and with sharded ones, one of them interrupted; at the end one
fails in one rank.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from composer.utils import dist
from short_runs import SHORT, World
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from cpt_repro.declarations.scale import Execution
from cpt_repro.project import Project
from cpt_repro.training import composer

ROOT, BRANCH = "pile", "pile--sp/keep-optimizer"
TWO = Execution(ranks_per_node=2, microbatch_sequences=2, activation_checkpointing=True)
FOUR = TWO.model_copy(update={"fsdp": True, "microbatch_sequences": 4})


def sharded(built, folder):
    """A root and a branch that keeps its optimizer; how the root's model was wrapped."""
    own, made, prepare = World(built, folder, **SHORT), [], composer.spread.prepare_model
    composer.spread.prepare_model = lambda model, *how: (made.append(model), prepare(model, *how))
    own.fit(ROOT, execution=FOUR)
    own.fit(BRANCH, execution=FOUR)
    composer.spread.prepare_model = prepare
    layers = [module for module in made[0].modules() if made[0].fsdp_wrap_fn(module)]
    return {
        "wrapped": [isinstance(module, FSDPModule) for module in (made[0], *layers)],
        "sharded": all(isinstance(p, DTensor) for p in made[0].parameters()),
    }


def interrupted(built, folder):
    """Stopped after the state of iteration 12, with room for 4 sequences; goes on with room for all."""
    own, auto = World(built, folder, **SHORT), FOUR.model_copy(update={"microbatch_sequences": "auto"})
    forward = composer.CausalLM.forward

    def little_room(self, batch):
        if self.training and len(batch) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, batch)

    def stop(done):
        if done == 15:
            dist.barrier()  # no rank leaves while another still needs it
            raise KeyboardInterrupt

    composer.CausalLM.forward, composer.Report.every = little_room, 1
    with suppress(KeyboardInterrupt):
        own.fit(ROOT, execution=auto, progress=stop)
    composer.CausalLM.forward = forward
    files = sorted(str(path.relative_to(own.folder(ROOT))) for path in own.folder(ROOT).rglob("*"))
    dist.barrier()
    own.fit(ROOT, execution=auto)
    return {"files": files}


def alone(built, folder):
    """One rank fails by itself: it says so at once, though the other is still in a step."""
    own = World(built, folder, **SHORT)

    def fail(done):
        if done == 3 and dist.get_global_rank() == 1:
            raise ValueError("this rank alone")

    composer.Report.every = 1
    own.fit(ROOT, execution=TWO, progress=fail)


def look_late():
    """The second rank is slow to look for a state that was saved, as on a busy machine; without it, a race
    is rare.
    """
    exists = os.path.exists

    def late(path):
        if ".aside" in str(path):
            time.sleep(0.5)
        return exists(path)

    if os.environ["RANK"] == "1":
        os.path.exists = late


if __name__ == "__main__":
    root, data, folder = map(Path, sys.argv[1:])
    built = Project.at(root).with_(data=data)
    look_late()
    World(built, folder / "whole", **SHORT).train("pile", "pile--sp/replay-0.05")
    seen = sharded(built, folder / "sharded") | interrupted(built, folder / "stopped")
    if dist.get_global_rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    alone(built, folder / "alone")
