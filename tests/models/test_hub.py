"""The hub: copies, the lock, what refusals become. No network: its client is replaced where it is asked."""

import json
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from cpt_repro.errors import UserError
from cpt_repro.models.hub import Repository


@pytest.fixture
def online(project):
    """The project without copies."""
    return replace(project, hub_copies=None)


@pytest.fixture
def copy(project):
    folder = project.hub_copies / "datasets" / "someone" / "texts"
    (folder / "train").mkdir(parents=True)
    for name in ("train/b.jsonl", "train/a.jsonl", "val.jsonl"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def source(project, copy):
    return Repository(project, "dataset", "someone/texts")


def test_a_copy_is_listed_read_and_locked(project, source):
    assert source.files("train/*") == ["train/a.jsonl", "train/b.jsonl"]
    paths = source.fetch("train/b.jsonl", "val.jsonl")
    assert [path.read_text() for path in paths] == ["train/b.jsonl", "val.jsonl"]
    locked = json.loads(project.hub_lock.read_text())["dataset:someone/texts@default"]
    assert set(locked["files"]) == {"train/b.jsonl", "val.jsonl"}
    before = project.hub_lock.stat().st_mtime_ns
    source.fetch("val.jsonl")
    assert project.hub_lock.stat().st_mtime_ns == before  # nothing new, nothing written


def test_changed_content_is_refused_until_the_lock_says_otherwise(project, source, copy):
    source.fetch("val.jsonl")
    (copy / "val.jsonl").write_text("other text")
    with pytest.raises(UserError, match="changed since it was first used.*dataset:someone/texts@default"):
        source.fetch("val.jsonl")
    project.hub_lock.unlink()
    assert [path.read_text() for path in source.fetch("val.jsonl")] == ["other text"]


def test_files_that_are_missing_or_lost(source, copy):
    with pytest.raises(UserError, match="no file fits 'test/\\*'"):
        source.files("test/*")
    with pytest.raises(UserError, match="missing in the copy"):
        source.fetch("train/c.jsonl")
    source.fetch("train/a.jsonl")
    (copy / "train" / "a.jsonl").unlink()
    with pytest.raises(UserError, match="1 files that were used before are missing, train/a.jsonl among"):
        source.files("train/*")
    assert source.files("val*") == ["val.jsonl"]


@pytest.mark.parametrize("name", ["../../../secret.txt", "link.txt"])
def test_nothing_is_read_outside_the_copy(project, source, copy, name):
    (project.hub_copies / "secret.txt").write_text("secret")
    (copy / "link.txt").symlink_to(project.hub_copies / "secret.txt")
    with pytest.raises(UserError, match="or leads out of it"):
        source.fetch(name)


@pytest.mark.parametrize("name", ["../secret", "someone/..", "/etc", "someone/texts@../../x"])
def test_no_name_leads_out_of_the_copies(project, name):
    name, _, revision = name.partition("@")
    with pytest.raises(UserError, match="it leads elsewhere"):
        Repository(project, "dataset", name, revision or None)


REFUSALS = (errors.GatedRepoError, errors.RevisionNotFoundError, OSError)


@pytest.mark.parametrize("step", ["commit", "list", "download", "snapshot"])
@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_of_the_hub_are_one_sentence(online, monkeypatch, kind, step):
    def refuse(*_, **__):
        answer = SimpleNamespace(headers={}, request=None)
        raise kind("it says no") if kind is OSError else kind("it says no", response=answer)

    info = SimpleNamespace(sha="c" * 40)
    client = huggingface_hub.HfApi
    monkeypatch.setattr(client, "repo_info", refuse if step == "commit" else lambda *_, **__: info)
    for name in ("list_repo_files", "hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(client, name, refuse)
    source = Repository(online, "dataset", "someone/gone", gating="ask first")
    asked = {"download": source.fetch, "snapshot": source.fetch_fitting}.get(step, source.files)
    with pytest.raises(UserError, match=r"\(ask first\): it says no.*`hf auth login`") as caught:
        asked("x.jsonl")
    assert "dataset someone/gone, revision default" in str(caught.value)
    assert "$CPT_REPRO_HUB/datasets/someone/gone" in str(caught.value)


def test_a_branch_is_pinned_to_the_commit_of_its_first_use(online, monkeypatch, tmp_path):
    commits, asked = iter(["a" * 40, "b" * 40]), []

    def download(_, name, file, revision, repo_type):
        asked.append(revision)
        (tmp_path / file).write_text("text")
        return tmp_path / file

    info = lambda *_, **__: SimpleNamespace(sha=next(commits))  # noqa: E731
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", info)
    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", download)
    for _ in range(2):
        Repository(online, "dataset", "someone/texts", "main").fetch("x.jsonl")
    assert asked == ["a" * 40] * 2


@pytest.mark.parametrize("content", ["[]", '{"x": 1}', '{"x": {"files": {"a": 1}}}', "{"])
def test_a_broken_lock_is_told(project, source, content):
    project.hub_lock.parent.mkdir(exist_ok=True)
    project.hub_lock.write_text(content)
    with pytest.raises(UserError, match="hub.lock.json: "):
        source.fetch("val.jsonl")
