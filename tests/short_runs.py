"""Plans over the built smoke corpora, each with a store and results of its own."""

from dataclasses import replace

from cpt_repro.declarations.scale import Validation, load_scale
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Records
from cpt_repro.training.store import Store
from cpt_repro.training.train import train_runs

#: A tenth of smoke: some 30 iterations a run; a state against interruption every 6.
SHORT = {
    "tokens_per_billion": 100,
    "save_every": 60,
    "papers": ("ibrahim2024", "third2026"),
    "validation": Validation(sequences=13, every=60, closing=40, closing_evaluations=3),
}


class World:
    """A plan of smoke with changes, and what was trained of it; runs are named as in `ibrahim2024/405m`, or
    whole.
    """

    def __init__(self, built, folder, **changes):
        self.project = built.with_(results=folder / "results", store=folder / "store")
        scale = load_scale(self.project, "smoke").model_copy(update=changes)
        self.plan = Plan(self.project, scale)
        self.changes = changes
        self.store, self.said = Store(self.project, "smoke"), []

    @property
    def corpora(self):
        from cpt_repro.training.corpora import Corpora

        return Corpora(self.plan)

    @property
    def records(self):
        return Records(self.plan)

    def run(self, name):
        whole = name.startswith(("ibrahim2024/", "gupta2023/", "third2026/"))
        return self.plan.runs[f"{name}/seed-0" if whole else f"ibrahim2024/405m/{name}/seed-0"]

    def train(self, *names, again=False):
        """Trains runs as a command would; their receipts."""
        runs = [self.run(name) for name in names]
        train_runs(self.plan, self.records, runs, self.store, self.said.append, again)
        return [self.records.receipt(run) for run in runs]

    def fit(self, name, corpora=None, **changes):
        """Trains one run; `changes` are of the job."""
        from cpt_repro.training.composer import Job, train

        return train(
            replace(Job.of(self.plan, self.run(name)), **changes), corpora or self.corpora, self.store
        )

    def place(self, name):
        """The folder of its receipt."""
        return self.records.place_of(self.run(name).id)

    def folder(self, name):
        return self.store.folder(self.run(name).identity)

    def model(self, name):
        """The folder of its final weights."""
        run = self.run(name)
        return self.store.weights(run.identity, run.training.iterations)

    def borrow(self, other, *names):
        """Puts trainings of another world into the store, as links."""
        for name in names:
            folder = self.folder(name)
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(other.folder(name), target_is_directory=True)


def numbers(receipt):
    """All of a receipt that must be the same, to the last bit, whenever the training is done again."""
    return receipt.model_dump(exclude={"measured"})
