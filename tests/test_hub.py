"""The hub: copies, the lock, and what its refusals become. No network: its client is replaced where it is asked."""

import json

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from cpt_repro import hub
from cpt_repro.errors import UserError
from cpt_repro.models.hub import Repository


@pytest.fixture
def lock(tmp_path, monkeypatch):
    path = tmp_path / "hub.lock.json"
    monkeypatch.setattr(hub, "LOCK", path)
    monkeypatch.delenv("CPT_REPRO_HUB", raising=False)
    return path


@pytest.fixture
def copy(tmp_path, monkeypatch, lock):
    folder = tmp_path / "hub" / "datasets" / "someone" / "texts"
    (folder / "train").mkdir(parents=True)
    for name in ("train/b.jsonl", "train/a.jsonl", "val.jsonl"):
        (folder / name).write_text(name)
    monkeypatch.setenv("CPT_REPRO_HUB", str(tmp_path / "hub"))
    return folder


def refused(action):
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


def test_a_copy_is_listed_read_and_locked(copy, lock):
    source = Repository("dataset", "someone/texts")
    assert source.files("train/*") == ["train/a.jsonl", "train/b.jsonl"]
    paths = source.fetch_all(["train/b.jsonl", "val.jsonl"])
    assert [path.read_text() for path in paths] == ["train/b.jsonl", "val.jsonl"]
    assert set(json.loads(lock.read_text())["dataset:someone/texts@default"]["files"]) == {
        "train/b.jsonl",
        "val.jsonl",
    }
    before = lock.stat().st_mtime_ns
    source.fetch("val.jsonl")
    assert lock.stat().st_mtime_ns == before  # nothing new, nothing written


def test_changed_content_is_refused_until_the_lock_says_otherwise(copy, lock):
    Repository("dataset", "someone/texts").fetch("val.jsonl")
    (copy / "val.jsonl").write_text("other text")
    told = refused(lambda: Repository("dataset", "someone/texts").fetch("val.jsonl"))
    assert "val.jsonl: it changed since it was first used" in told and "dataset:someone/texts@default" in told
    lock.unlink()
    assert Repository("dataset", "someone/texts").fetch("val.jsonl").read_text() == "other text"


def test_files_that_are_missing_or_lost(copy):
    source = Repository("dataset", "someone/texts")
    assert "no file fits 'test/*'" in refused(lambda: source.files("test/*"))
    assert "the file is missing in the copy" in refused(lambda: source.fetch("train/c.jsonl"))
    source.fetch("train/a.jsonl")
    (copy / "train" / "a.jsonl").unlink()
    told = refused(lambda: source.files("train/*"))
    assert "1 files that were used before are missing, train/a.jsonl among them" in told
    assert source.files("val*") == ["val.jsonl"]


@pytest.mark.parametrize("name", ["../../../secret.txt", "link.txt"])
def test_nothing_is_read_outside_the_copy(copy, tmp_path, name):
    (tmp_path / "hub" / "secret.txt").write_text("secret")
    (copy / "link.txt").symlink_to(tmp_path / "hub" / "secret.txt")
    assert "it leads out of the copy" in refused(lambda: Repository("dataset", "someone/texts").fetch(name))


def answer(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://example.org"))


def hub_error(kind, status):
    """An error as the client raises it; it takes its response by another name in later versions."""
    return kind("it says no", response=answer(status))


REFUSALS = {
    errors.GatedRepoError: (403, r"access to it is restricted \(ask first\).*hf auth login"),
    errors.RepositoryNotFoundError: (404, r"does not exist, or is private \(ask first\)"),
    errors.RevisionNotFoundError: (404, r"this revision does not exist \(any more\).*Pin another"),
}


@pytest.mark.parametrize("kind", REFUSALS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("step", ["commit", "list", "download"])
def test_refusals_of_the_hub_are_one_sentence(lock, monkeypatch, kind, step):
    status, message = REFUSALS[kind]

    def refuse(*_, **__):
        raise hub_error(kind, status)

    class Info:
        sha = "c" * 40

    monkeypatch.setattr(
        huggingface_hub.HfApi, "repo_info", refuse if step == "commit" else lambda *_, **__: Info
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    source = Repository("dataset", "someone/gone", gating="ask first")
    with pytest.raises(UserError, match=message) as caught:
        source.fetch("x.jsonl") if step == "download" else source.files("*")
    assert "dataset someone/gone, revision default" in str(caught.value)
    assert "$CPT_REPRO_HUB/datasets/someone/gone" in str(caught.value)


def test_a_file_that_is_not_there_and_no_network(lock, monkeypatch):
    class Info:
        sha = "c" * 40

    def missing(*_, **__):
        raise hub_error(errors.EntryNotFoundError, 404)

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: Info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    source = Repository("dataset", "someone/texts")
    assert "texts, revision default, x.jsonl: the file does not exist there" in refused(
        lambda: source.fetch("x.jsonl")
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    assert "the hub cannot be reached (no route to host)" in refused(lambda: source.fetch("x.jsonl"))


def test_a_branch_is_pinned_to_the_commit_of_its_first_use(lock, monkeypatch, tmp_path):
    commits, asked = iter(["a" * 40, "b" * 40]), []

    class Info:
        def __init__(self):
            self.sha = next(commits)

    def download(name, file, revision, repo_type):
        asked.append(revision)
        (tmp_path / file).write_text("text")
        return tmp_path / file

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: Info())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        Repository("dataset", "someone/texts", "main").fetch("x.jsonl")
    assert asked == ["a" * 40] * 2
