"""Pocket's committed records, whole or with holes, at pocket's size or taken for the papers'."""

from types import SimpleNamespace

import pytest

from cpt_repro.declarations.scale import load_scale
from cpt_repro.exhibits import style
from cpt_repro.exhibits.base import View
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Records


class Some(Records):
    """Pocket's records but those of the runs and merges in `gone` (a name, or an id of one seed)."""

    def __init__(self, plan, gone=(), entropy=None):
        super().__init__(plan)
        self.folder = plan.project.results / "pocket"
        self.gone, self.entropy = gone, entropy

    def _hidden(self, model_id):
        return any(model_id.startswith(name) for name in self.gone)

    def has_receipt(self, run):
        return not self._hidden(run.id) and super().has_receipt(run)

    def evaluation(self, model_id):
        return None if self._hidden(model_id) else super().evaluation(model_id)

    def losses(self, run, corpus):
        losses = super().losses(run, corpus)
        return losses and losses.model_copy(update={"entropy_floor": self.entropy})


@pytest.fixture(scope="session")
def pocket(repository):
    """`pocket(gone, entropy, papers, **changes of the scale)`: catalogue, records, and `view(exhibit)`."""
    made = {}

    def make(gone=(), entropy=None, project=repository, papers=(), **changes):
        key = repr((gone, entropy, project, papers, changes))
        if key not in made:
            scale = load_scale(project, "pocket").model_copy(update=changes)
            catalogue = Catalogue(Plan(project, scale, papers))
            records = Some(catalogue.plan, gone, entropy)

            def view(name):
                return View(catalogue, records, *name.split("/"))

            made[key] = SimpleNamespace(catalogue=catalogue, records=records, view=view)
        return made[key]

    return make


@pytest.fixture
def figure_of():
    """`figure_of(view, exhibit)`: the figure of a view, of its own exhibit or of a changed one."""

    def draw(view, exhibit=None):
        with style.drawing():
            return (exhibit or view.exhibit).draw(view)

    return draw


def legend(figure):
    """Texts of a figure's legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def published(axes):
    """The published lines in axes."""
    return [line for line in axes.get_lines() if str(line.get_gid()).startswith("published-")]
