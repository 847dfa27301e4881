"""A project of nothing but folders."""

import pytest

from cpt_repro.project import Project


@pytest.fixture
def project(tmp_path):
    """A project without declarations, whose copies of the hub lie in `hub/`."""
    (tmp_path / "configs" / "scales").mkdir(parents=True)
    return Project.at(tmp_path).with_(hub_copies=tmp_path / "hub")
