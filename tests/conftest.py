"""Shared by the tests: one thread, no network, and the smoke corpora built once."""

import os

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import pytest

from cpt_repro.config import load_scale


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory):
    """Folder of the built smoke corpora."""
    from cpt_repro.data.build import build_corpus, build_tokenizer

    scale, root = load_scale("smoke"), tmp_path_factory.mktemp("data") / "smoke"
    build_tokenizer(scale, root)
    for corpus in scale.corpora:
        build_corpus(scale, corpus, root, progress=False)
    return root
