"""Claims that a test declares, values that it makes up, and receipts of pocket that it changes."""

import shutil
from types import SimpleNamespace

import pytest
import yaml
from third_study import put_third_study

from cpt_repro.claims.grammar import Reading, load_claims
from cpt_repro.claims.quantities import Measured, Missing
from cpt_repro.declarations.scale import load_scale
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Evidence, Records
from cpt_repro.records.receipts import Receipt, read_record, write_record
from cpt_repro.records.uncertainty import Sample


class Declared:
    """A project whose claims are those of the test."""

    def __init__(self, folder):
        self.project = put_third_study(folder)
        self.catalogue = Catalogue(Plan(self.project, load_scale(self.project, "pocket")))

    def file(self, content, paper="ibrahim2024"):
        """The claims of a whole file."""
        path = self.project.papers / paper / "claims.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return load_claims(self.catalogue, paper)

    def tests(self, *tests, paper="ibrahim2024", **more):
        """The tests of one claim."""
        claim = {"id": "x", "statement": "s", "source": "p"}
        claim["tests"] = [{"says": "it", **test} for test in tests]
        return self.file({"paper": paper, "claims": [claim], **more}, paper)[0].tests

    def quantity(self, text, paper="ibrahim2024"):
        return self.tests({"kind": "ratio", "of": text, "at_most": 1}, paper=paper)[0].of


@pytest.fixture(scope="package")
def declared(tmp_path_factory):
    return Declared(tmp_path_factory.mktemp("declared") / "project")


class MadeUp(Measured):
    """Values by seed of `<run> <what> [<when>]`, none else."""

    def __init__(self, values, scale="pocket"):
        self.scale, self.made_up = scale, {Reading.of_text(text): seeds for text, seeds in values.items()}

    def samples(self, reading, pool=(), along=False):
        if reading not in self.made_up:
            raise Missing("was not run", reading.runs[0])
        return {seed: Sample(value) for seed, value in enumerate(self.made_up[reading])}


@pytest.fixture
def made_up():
    return MadeUp


@pytest.fixture
def pocket(third_project, repository):
    """Committed records of pocket in a project of its own: those that `bring` copies, changed by `change`."""
    folder = "pocket/runs/ibrahim2024"

    def bring(*names):
        """Copies what runs left: of all seeds, or of one (`<run>/seed-0`)."""
        for name in names:
            shutil.copytree(repository.results / folder / name, third_project.results / folder / name)

    def change(name, seed=0, corpus="pile", **losses):
        """Changes a run's losses on one corpus: what they hold themselves, or keys of `final`."""
        path = third_project.results / folder / name / f"seed-{seed}" / "receipt.json"
        receipt = read_record(Receipt, path)
        old = receipt.losses[corpus]
        own = {key: losses.pop(key) for key in ("of_sequences", "curve", "along", "start") if key in losses}
        new = old.model_copy(update={"final": old.final.model_copy(update=losses), **own})
        write_record(path, receipt.model_copy(update={"losses": receipt.losses | {corpus: new}}))

    def read(*papers):
        """(catalogue, records) anew."""
        plan = Plan(third_project, load_scale(third_project, "pocket"), papers)
        return Catalogue(plan), Records(plan)

    def measured(paper="ibrahim2024"):
        return Measured(Evidence(read("ibrahim2024", paper)[1], paper))

    return SimpleNamespace(project=third_project, bring=bring, change=change, read=read, measured=measured)
