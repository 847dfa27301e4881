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
    paths = source.fetch_all(["train/b.jsonl", "val.jsonl"])
    assert [path.read_text() for path in paths] == ["train/b.jsonl", "val.jsonl"]
    locked = json.loads(project.hub_lock.read_text())["dataset:someone/texts@default"]
    assert set(locked["files"]) == {"train/b.jsonl", "val.jsonl"} == set(source.known_files)
    before = project.hub_lock.stat().st_mtime_ns
    source.fetch("val.jsonl")
    assert project.hub_lock.stat().st_mtime_ns == before  # nothing new, nothing written


def test_changed_content_is_refused_until_the_lock_says_otherwise(project, source, copy):
    source.fetch("val.jsonl")
    (copy / "val.jsonl").write_text("other text")
    with pytest.raises(UserError, match="changed since it was first used.*dataset:someone/texts@default"):
        source.fetch("val.jsonl")
    project.hub_lock.unlink()
    assert source.fetch("val.jsonl").read_text() == "other text"


def test_files_that_are_missing_or_lost(source, copy):
    with pytest.raises(UserError, match="no file fits 'test/\\*'"):
        source.files("test/*")
    with pytest.raises(UserError, match="the file is missing in the copy"):
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
    with pytest.raises(UserError, match="it leads out of the copy"):
        source.fetch(name)


@pytest.mark.parametrize("name", ["../secret", "someone/..", "/etc", "someone/texts@../../x"])
def test_no_name_leads_out_of_the_copies(project, name):
    name, _, revision = name.partition("@")
    with pytest.raises(UserError, match="it leads elsewhere"):
        Repository(project, "dataset", name, revision or None)


REFUSALS = {
    errors.GatedRepoError: (403, r"access to it is restricted \(ask first\).*hf auth login"),
    errors.RepositoryNotFoundError: (404, r"does not exist, or is private \(ask first\)"),
    errors.RevisionNotFoundError: (404, r"this revision does not exist \(any more\).*Pin another"),
    errors.EntryNotFoundError: (404, r"x.jsonl: the file does not exist there"),
    OSError: (0, r"the hub cannot be reached \(it says no\)"),
}


CASES = [(kind, step) for kind in REFUSALS for step in ("commit", "list", "download")]
CASES = [case for case in CASES if case[0] is not errors.EntryNotFoundError or case[1] == "download"]


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_refusals_of_the_hub_are_one_sentence(online, monkeypatch, kind, step):
    status, message = REFUSALS[kind]

    def refuse(*_, **__):
        raise kind("it says no") if kind is OSError else kind("it says no", response=answer)

    answer = SimpleNamespace(status_code=status, headers={}, request=None)
    info = SimpleNamespace(sha="c" * 40)
    client = huggingface_hub.HfApi
    monkeypatch.setattr(client, "repo_info", refuse if step == "commit" else lambda *_, **__: info)
    monkeypatch.setattr(client, "list_repo_files", refuse)
    monkeypatch.setattr(client, "hf_hub_download", refuse)
    source = Repository(online, "dataset", "someone/gone", gating="ask first")
    with pytest.raises(UserError, match=message) as caught:
        source.fetch("x.jsonl") if step == "download" else source.files("*")
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
