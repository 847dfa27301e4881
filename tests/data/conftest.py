"""Tiny corpora, each test with its own."""

import shutil

import pytest
from tiny_corpora import Local, OfHub, neox_like

from cpt_repro.data import parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_DOCUMENTS", 5)


@pytest.fixture
def local(tmp_path):
    return Local(tmp_path)


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The folder of a published tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    neox_like(folder)
    return folder


@pytest.fixture
def hub(tmp_path, published):
    tiny = OfHub(tmp_path)
    shutil.copytree(published, tiny.model)
    return tiny
