"""A small project to evaluate in."""

import random

import pytest
from tiny_evaluation import chain, new_project, write_corpora, write_tokenizer

from cpt_repro.project import Project


@pytest.fixture
def project(tmp_path) -> Project:
    """A project with everything that suites are made from."""
    made = new_project(tmp_path)
    write_corpora(made.data / "tiny")
    write_tokenizer(made.data / "tiny" / "tokenizer", chain(random.Random(0), 2000))
    return made
