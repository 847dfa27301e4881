"""Tasks made from held-out text, and the files of suites."""

import json
import os
import subprocess
import sys

import pytest
from tiny_evaluation import DATA, local_suites, scale_of

from cpt_repro.errors import UserError
from cpt_repro.evaluation.suites import build_suites, held_out, read_suites

SCALE = scale_of(local_suites())


def lines(project, name: str) -> list[dict]:
    """The items of a built task."""
    path = project.data / "tiny" / "suites" / "english" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def all_bytes(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_suites_are_the_same_bytes_in_two_builds(project):
    record = build_suites(project, SCALE, DATA)
    assert record == project.data / "tiny" / "suites" / "fingerprint.json"
    first = all_bytes(record.parent)
    assert set(first) == {"english/continuation.jsonl", "english/last_word.jsonl", "fingerprint.json"}
    (record.parent / "english" / "left_over.jsonl").write_text("x")
    build_suites(project, SCALE, DATA)
    assert all_bytes(record.parent) == first
    assert str(project.root).encode() not in b"".join(first.values())


@pytest.mark.slow
def test_suites_do_not_depend_on_the_hash_seed(project):
    code = (
        "import json, sys; from pathlib import Path; from cpt_repro.declarations.scale import Scale;"
        "from cpt_repro.evaluation.suites import build_suites; from cpt_repro.project import Project;"
        "scale = Scale.model_validate_json(sys.argv[2]); data = json.loads(sys.argv[3]);"
        "print(build_suites(Project.at(Path(sys.argv[1])), scale, data).read_text())"
    )
    arguments = [sys.executable, "-c", code, str(project.root), SCALE.model_dump_json(), json.dumps(DATA)]
    texts = {
        subprocess.run(
            arguments, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_items_are_what_they_say(project):
    build_suites(project, SCALE, DATA)
    documents = [document for corpus in DATA for document in held_out(project.data / "tiny" / corpus)]
    texts = {document.id: " ".join(document.words) for document in documents}
    for name, length in (("continuation", 6), ("last_word", 1)):
        items = lines(project, name)
        assert [item["corpus"] for item in items[:4]] == ["old", "new", "old", "new"]
        # 20 documents a corpus, 20 items from each: one from every document.
        assert len(items) == len({item["id"].split("#")[0] for item in items}) == 40
        assert {item["answer"] for item in items} == {0, 1, 2, 3}
        for item in items:
            assert len(set(item["choices"])) == 4
            assert {len(choice.split()) for choice in item["choices"]} == {length}
            true = item["context"] + " " + item["choices"][item["answer"]]
            assert true in texts[item["id"].split("#")[0]]


def test_windows_of_one_document_do_not_overlap(project):
    build_suites(project, scale_of(local_suites(documents=70, corpora=("old",))), DATA)
    places = [item["id"].split("#") for item in lines(project, "last_word")]
    assert len(set(map(tuple, places))) == 70 and all(int(start) % 13 == 0 for _, start in places)


def test_too_little_text_says_how_many_and_which_key(project):
    with pytest.raises(UserError) as error:
        build_suites(project, scale_of(local_suites(documents=5000)), DATA)
    message = str(error.value)
    assert "2500 items are needed" in message and "suites.english.tasks.continuation" in message
    there = int(message.split("gives ")[1].split()[0])
    assert f"at most {2 * there}" in message
    assert not (project.data / "tiny" / "suites" / "fingerprint.json").exists()
    build_suites(project, scale_of(local_suites(documents=2 * there)), DATA)


def test_missing_and_broken_text_is_named(project):
    path = project.data / "tiny" / "new" / "validation.jsonl"
    # A key that lacks, bytes that are no UTF-8, half a pair of surrogates, a line without end.
    for broken in (b'{"id": "a"}', b"\xff", b'{"id": "a", "text": "\\ud800 b"}', b'"' + b"x" * (65 << 20)):
        path.write_bytes(b'{"id": "a", "text": "b c"}\n' + broken + b"\n")
        with pytest.raises(UserError, match="line 2"):
            build_suites(project, SCALE, DATA)
    path.unlink()
    with pytest.raises(UserError, match="held-out text does not exist"):
        build_suites(project, SCALE, DATA)
    (project.data / "tiny" / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        build_suites(project, SCALE, DATA)


def test_one_document_gives_no_false_continuations(project):
    for corpus in DATA:
        path = project.data / "tiny" / corpus / "validation.jsonl"
        path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="false choices"):
        build_suites(project, scale_of(local_suites(documents=2)), DATA)


def test_choices_too_long_for_the_sequences_are_left_out(project):
    path = project.data / "tiny" / "old" / "validation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:10]:
        row["text"] = " ".join(["Q" * 40] * 60)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_suites(project, SCALE, DATA)
    assert not [
        item for name in ("continuation", "last_word") for item in lines(project, name) if "Q" in str(item)
    ]


# --- reading ---


def test_items_come_back_as_they_were_written(project):
    build_suites(project, SCALE, DATA)
    tasks = read_suites(project, SCALE, DATA)["english"]
    assert {name: task.scoring.metric for name, task in tasks.items()} == {
        "continuation": "acc_norm",
        "last_word": "acc",
    }
    for name, task in tasks.items():
        assert [item.model_dump(mode="json", exclude_unset=True) for item in task.items] == lines(
            project, name
        )


def test_altered_missing_and_outdated_items_are_found(project):
    record = build_suites(project, SCALE, DATA)
    path = record.parent / "english" / "last_word.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"answer": 0', b'"answer": 1', 1))
    with pytest.raises(UserError, match=r"(?s)last_word.jsonl.*the task is altered.*cpt-repro suites"):
        read_suites(project, SCALE, DATA)
    path.unlink()
    with pytest.raises(UserError, match=r"(?s)last_word.jsonl.*altered"):
        read_suites(project, SCALE, DATA)
    path.write_bytes(whole)
    # The text has changed since, and a task was added.
    with pytest.raises(UserError, match="english/continuation as it is declared now are not there"):
        read_suites(project, SCALE, DATA | {"new": "rebuilt"})
    more = local_suites()
    more["english"]["tasks"]["more"] = more["english"]["tasks"]["last_word"]
    with pytest.raises(UserError, match="english/more as it is declared now"):
        read_suites(project, scale_of(more), DATA)
    for wrong in (
        "[]",
        '{"tasks": 3}',
        '{"tasks": {}, "files": {}}',
        "{",
        '{"tasks": {"a/b": {"items": 1}}}',
    ):
        record.write_text(wrong)
        with pytest.raises(UserError, match="fingerprint.json"):
            read_suites(project, SCALE, DATA)


def claimed(project, name: str, content: bytes) -> None:
    """Replaces a task's file and its hash in the record, as who shares a folder can."""
    import hashlib

    record = project.data / "tiny" / "suites" / "fingerprint.json"
    (record.parent / "english" / f"{name}.jsonl").write_bytes(content)
    told = json.loads(record.read_text())
    told["tasks"][f"english/{name}"]["items"] = hashlib.sha256(content).hexdigest()
    record.write_text(json.dumps(told))


ITEM = {"id": "a", "context": "b", "choices": ["c", "d"], "answer": 0}


@pytest.mark.parametrize(
    "item",
    [
        {**ITEM, "answer": 2},
        {**ITEM, "answer": "0"},
        {**ITEM, "choices": []},
        {**ITEM, "choices": "cd"},
        {**ITEM, "doc_to_text": "{{ 7 * 7 }}"},
        {"id": "a", "context": "b", "answers": ["c"]},
        [],
        None,
    ],
)
def test_items_that_are_none_are_refused_by_line(item, project):
    build_suites(project, SCALE, DATA)
    claimed(project, "last_word", f"{json.dumps(ITEM)}\n{json.dumps(item)}\n".encode())
    with pytest.raises(UserError, match="last_word.jsonl, line 2"):
        read_suites(project, SCALE, DATA)


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"{\n", b"[" * 100_000])
def test_files_that_hold_no_items_are_refused(content, project):
    build_suites(project, SCALE, DATA)
    claimed(project, "last_word", content)
    with pytest.raises(UserError, match="last_word.jsonl"):
        read_suites(project, SCALE, DATA)
