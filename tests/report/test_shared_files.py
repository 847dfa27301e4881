"""What others may have written is refused in one sentence, or shown as the text that it is."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import yaml
from markdown_it import MarkdownIt
from third_study import put_third_study

from cpt_repro import cli
from cpt_repro.files import digest

from .test_page import Parsed

RUNS = [f"ibrahim2024/405m/{name}" for name in ("pile", "german", "pile--german/replay-0")]
RUNS += ["ibrahim2024/405m/pile--german/replay-0.25"]
RECEIPT = "results/pocket/runs/ibrahim2024/405m/pile--german/replay-0/seed-0/receipt.json"
EVALUATION = "results/pocket/runs/ibrahim2024/405m/german/seed-0/evaluation.json"
LATER = "results/pocket/runs/ibrahim2024/405m/german/seed-0/losses.json"
CORPUS, ANALYSIS = "results/pocket/corpora/sp.json", "results/pocket/analysis.yaml"
FIGURE, TABLE = "figures/pocket/third2026/figure_01.json", "figures/pocket/third2026/table_01.json"
FAILURE = "results/pocket/runs/third2026/continued/replay-0.02/seed-0/failure.json"
PNG, LEDGER, PAGE = FIGURE.replace("json", "png"), "figures/pocket/claims.json", "figures/pocket/index.json"
#: What a model writes.
EXHIBIT = {
    "kind": "generations",
    "layout": "generations",
    "title": "Texts",
    "see": "All.",
    "corpus": "german",
}


def put(root, repository):
    """A project with the third study, pocket's records of its runs, and nothing drawn."""
    project = put_third_study(root)
    path = project.papers / "third2026" / "exhibits.yaml"
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    declared["exhibits"]["table_02"] = EXHIBIT | {"rows": ["german-alone"]}
    path.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    for name in (*(f"runs/{run}" for run in RUNS), "corpora"):
        shutil.copytree(repository.results / "pocket" / name, project.results / "pocket" / name)
    return project


@pytest.fixture
def cpt(monkeypatch, capfd):
    """`cpt(root, line)`: (status, output, errors) of `cpt-repro` on the third study at scale pocket."""

    def call(root, line):
        monkeypatch.chdir(root)
        papers = [] if "--papers" in line else ["--papers", "third2026"]
        monkeypatch.setattr(sys, "argv", ["cpt-repro", *line.split(), "--scale", "pocket", *papers])
        capfd.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def complete(repository, tmp_path_factory):
    """A project with everything drawn and judged; what a test changes there it puts back."""
    root = tmp_path_factory.mktemp("shared") / "project"
    put(root, repository)
    environment = os.environ | {"PYTHONPATH": str(repository.root.resolve())}
    for command in ("draw all", "claims --write", "report"):
        line = [sys.executable, "-m", "cpt_repro.cli", *command.split(), "--scale", "pocket"]
        line += ["--papers", "third2026"]
        subprocess.run(line, cwd=root, env=environment, check=True, capture_output=True)
    return root


@contextmanager
def changed(path, change):
    """The file with other bytes, or another value; as before afterwards."""
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(change if isinstance(change, bytes) else json.dumps(change(json.loads(before))).encode())
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def put_at(where, value):
    """A change: `value` at a place such as `measured.seconds`; * is every key."""

    def go(node, keys):
        key, *rest = keys
        every = range(len(node)) if isinstance(node, list) else list(node)
        for one in every if key == "*" else [int(key) if isinstance(node, list) else key]:
            if rest:
                go(node[one], rest)
            else:
                node[one] = value
        return node

    return lambda content: go(content, where.split("."))


def without(key):
    return lambda content: {name: value for name, value in content.items() if name != key}


def fingerprint(where, value):
    """A change of a corpus' record, with the hash that is then right."""

    def change(content):
        content = without("fingerprint")(put_at(where, value)(content))
        return content | {"fingerprint": digest(content)}

    return change


RECORDS, SCORES = ("draw all --out o", "claims", "report", "status"), ("draw all --out o", "report", "status")
DOMAINS = ("draw gupta2023/table_01 --papers gupta2023",)
HUGE, SIGNATURE = 10**400, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
REFUSED = [
    *((RECEIPT, put_at(*change), RECORDS) for change in [
        ("losses.pile.curve.1.0", HUGE), ("losses.*.curve.1.1", 1e308), ("losses.*.curve.1.1", -1e308),
        ("losses.*.final.loss", 1e308), ("losses.*.final.stderr", 1e308), ("losses.*.final.noise", -1),
        ("losses.*.final.evaluations", HUGE), ("losses.*.of_sequences", [1e308, -1e308]),
        ("losses.*.sequences", HUGE), ("losses.*.entropy_floor", -1e308), ("losses.*.curve", []),
        ("learning_rate.0.1", 1e308), ("learning_rate.0.0", HUGE), ("parameters", HUGE), ("environment", [1]),
        ("measured.seconds", "nan"), ("measured.seconds", "inf"), ("measured.seconds", 1e308),
        ("measured.seconds", "fast"), ("surprise", 1), ("\x1b[31m\nx", 1),
    ]),
    *((RECEIPT, change, RECORDS) for change in [
        without("parameters"), without("run"), without("identity"), put_at("schema_version", 1),
        put_at("identity", 5), b"[1]", b"{}", b"", b"{", b"\xff", b'{"a": "\\ud800"}',
    ]),
    *((EVALUATION, change, SCORES) for change in (b"[1]", b"{", put_at("schema_version", 1))),
    *((EVALUATION, put_at(*change), SCORES) for change in [
        ("suites.german.tasks", {}), ("suites.[/b]", {}), ("suites.german.tasks.\x1b", {}),
        ("suites.german.tasks.*.stderr", 1e308), ("suites", [1]),
        ("suites.german.tasks.*.documents", HUGE), ("suites.german.tasks.*.value", "NaN"),
    ]),
    *((LATER, content, ("draw all --out o", "status")) for content in [b"[]", b'{"schema_version": 2}']),
    *((CORPUS, fingerprint(f"splits.train.*.{key}", value), DOMAINS) for key, value in [
        ("tokens", HUGE), ("tokens", -1), ("sequences", "many"), ("documents", 1e308),
    ]),
    *((FIGURE, change, ("report", "cite")) for change in [
        b"[]", b"", b"\xff", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", without("caption"),
        put_at("agreement", "x"), put_at("sha256", {"receipt /etc/x": "0"}), put_at("sha256", {"x": "0"}),
        put_at("missing", ["corpus /x"]), put_at("caption", "\ud800"),
    ]),
    *((TABLE, put_at("tables", value), ("report", "cite")) for value in (["|"], [{"rows": [["|"]]}], "|")),
    *((PNG, content, ("report",)) for content in [
        b"", b"x", SIGNATURE, SIGNATURE + b"\xff" * 8, SIGNATURE + b"\0" * 8,
    ]),
    *((LEDGER, change, ("report",)) for change in [
        b"[]", without("counts"), put_at("claims.0.statement", "\ud800"), put_at("claims.0.tests", ["x"]),
        put_at("counts", {"won": 1}),
    ]),
    *((ANALYSIS, content, ("claims", "claims --write")) for content in [
        b"[]", b"third2026/1: 1", b"third2026/1: !!python/object/apply:os.system [id]", b"a: &a [*a]",
        b"third2026/1: " + b"1" * 5000, b'"\\u001b[31m\\nx": y', b"third2026/1: " + b"[" * 100_000,
    ]),
    *((FAILURE, content, ("train third2026/continued/replay-0.02 --attempt 2",)) for content in [
        b"[]", b"{}", b'{"identity": 1, "why": 2}',
    ]),
    *(("CITATION.cff", content, ("cite", "report")) for content in [
        b"[]", b"title: x", b"title: x\nversion: 1\nauthors: [1]",
    ]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_broken_is_refused_in_one_sentence(cpt, complete, number):
    file, change, commands = REFUSED[number]
    with changed(complete / file, change):
        for command in commands:
            status, out, errors = cpt(complete, command)
            assert (status, errors.count("\n"), len(errors) < 1500) == (2, 1, True), (command, errors)
            assert errors.startswith("cpt-repro: ") and file in errors and errors[:-1].isprintable()
            assert "Traceback" not in out


def test_what_is_whole_is_taken(cpt, complete):
    """Nothing of the above is refused for another reason."""
    for command in ("draw all", "claims --write", "claims", "report", "verify", "status", "cite", *DOMAINS):
        status, _, errors = cpt(complete, command)
        assert (status, errors) == (0, ""), command


TAKEN = [
    *((RECEIPT, put_at(*change)) for change in [
        ("losses.*.curve.*.1", 0), ("losses.*.curve.*.1", 300), ("losses.*.curve.*.1", 1e-320),
        ("losses.*.of_sequences", [1.0]), ("losses.*.of_sequences", []), ("losses.*.entropy_floor", 300),
        ("learning_rate", []), ("learning_rate.*.1", 1), ("measured.seconds", "1"), ("parameters", 2**53),
        ("losses.*.final.loss", 0), ("losses.*.final.noise", 1e-320), ("measured.execution", {"a": [HUGE]}),
    ]),
    (EVALUATION, put_at("suites.german.tasks.*.stderr", 0)),
    *((FIGURE, put_at(*change)) for change in [
        ("caption", ""), ("caption", "\x1b[31m\u202e"), ("missing", ["evaluation nothing", "corpus \0"]),
        ("seeds", {"x": HUGE}), ("number", "Table \x1b[31m\u202e"),
    ]),
    (TABLE, put_at("tables", [{"title": "", "heads": ["|"], "rows": [["|"], [], ["", ""]]}])),
    (LEDGER, put_at("claims.0.tests.0.measured", [])),
    (LEDGER, put_at("claims.0.runs", ["nothing", "", "no/such/run", "\x1b[31m"])),
    (LEDGER, put_at("claims.0.paper", "nobody2026")),
    (LEDGER, put_at("claims.0.id", "nothing")),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TAKEN)))
def test_what_is_odd_is_shown(cpt, complete, number):
    file, change = TAKEN[number]
    anew = ("draw all --out o", "report --out o", "claims")
    with changed(complete / file, change):
        for command in (
            "report",
            "cite",
            "cite third2026/figure_01",
            "status",
            *([] if file.startswith("figures") else anew),
        ):
            status, out, errors = cpt(complete, command)
            assert (status, errors) == (0, ""), command
            assert "\x1b" not in out and "\u202e" not in out


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (RECEIPT, put_at("losses.*.curve.1.1", 1e308)), (RECEIPT, put_at("run.id", "\ud800")),
        (EVALUATION, put_at("suites", 1)), (FIGURE, b"[]"), (PAGE, b"[]"), (PAGE, b'{"files": []}'),
    ],
)  # fmt: skip
def test_verify_names_what_is_broken(cpt, complete, file, change):
    assert cpt(complete, "report")[0] == 0
    with changed(complete / file, change):
        status, out, errors = cpt(complete, "verify")
    named = re.sub("results/pocket/runs/|figures/pocket/|/(receipt|evaluation).json", "", file)
    assert (status, errors) == (1, "") and named in out


# -- text

HOSTILE = "=1 <script>x</script> ![i](http://x/y.png) [a](javascript:x) | `c` **b** \\input{/x} "
HOSTILE += "\\write18{id} $\\frac{ \x1b[31m\u202e"
#: Found by, or compared.
KEPT = ("identity", "training", "data", "checkpoints", "declaration", "right")


def spoilt(node):
    """A record with hostile text wherever a text is not compared, in keys of free names too."""
    if isinstance(node, dict):
        if node and all(isinstance(value, str) for value in node.values()):
            return {HOSTILE + key: HOSTILE + value for key, value in node.items()}
        return {key: value if key in KEPT else spoilt(value) for key, value in node.items()}
    if isinstance(node, list):
        return [spoilt(value) for value in node]
    return HOSTILE + node if isinstance(node, str) else node


@pytest.fixture
def hostile(tmp_path, repository):
    """A project whose declarations and records are full of hostile text."""
    project = put(tmp_path / "project", repository)
    folder = project.papers / "third2026"
    names = ("runs", "exhibits", "claims")
    declared = {name: yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in names}
    declared["runs"]["reference"] = HOSTILE
    for corpus in declared["runs"]["corpora"].values():
        corpus["stands_for"] = corpus["called"] = HOSTILE
    for style in declared["exhibits"]["styles"].values():
        style["label"] += HOSTILE
    for exhibit in declared["exhibits"]["exhibits"].values():
        exhibit["title"] = exhibit["see"] = HOSTILE
    table = declared["exhibits"]["exhibits"]["table_01"]
    table["rows"][-1]["name"] = table["columns"][1]["heading"] = HOSTILE
    for claim in declared["claims"]["claims"]:
        claim |= {"statement": HOSTILE, "source": HOSTILE, "note": HOSTILE}
        claim["tests"][0]["says"] = HOSTILE
    for name, content in declared.items():
        # JSON is YAML, with every character escaped.
        (folder / f"{name}.yaml").write_text(json.dumps(content), encoding="utf-8")
    for path in (project.results / "pocket" / "runs").rglob("*.json"):
        path.write_text(json.dumps(spoilt(json.loads(path.read_text()))), encoding="utf-8")
    (project.root / ANALYSIS).write_text(json.dumps({"third2026/1": HOSTILE}), encoding="utf-8")
    return project.root


def test_hostile_text_is_text_at_every_border(cpt, hostile):
    """From declarations, records and analyses into page, Markdown, LaTeX, CSV, pictures, terminal."""
    commands = ["draw all", "claims --write", "claims", "claims --claim 1", "report", "cite", "cite --json"]
    said = [cpt(hostile, command) for command in (*commands, "claims --json", "status", "verify")]
    assert not (wrong := [(status, errors[-400:]) for status, _, errors in said if status]), wrong
    files = {path: path.suffix for path in (hostile / "figures").rglob("*.*")}
    texts = {
        path: path.read_text(encoding="utf-8") for path, kind in files.items() if kind not in (".png", ".pdf")
    }
    shown = [text for path, text in texts.items() if files[path] != ".json"]
    shown += [text for _, *both in said for text in both]
    assert not [text for text in shown if re.search("[\x1b\u202e]", text)]
    reader, counts = MarkdownIt("commonmark", {"html": True}).enable("table"), Counter(files.values())
    for path, text in texts.items():
        if files[path] == ".html":
            page = Parsed(text)
            assert page.text.count("<script>x</script>") > 20 and page.opened == []
            # Those that hold data and the page's own, none from what is shared.
            scripts = [attrs.get("id") for tag, attrs in page.tags if tag == "script"]
            assert scripts in (["library", "curves", None], [None])
            assert all(tag[1]["src"].startswith("data:") for tag in page.tags if tag[0] == "img")
        if files[path] == ".md":
            tokens = [one for token in reader.parse(text) for one in (token, *(token.children or ()))]
            assert "<script>x</script>" in "".join(one.content for one in tokens if one.type != "inline")
            live = {"html_inline", "html_block", "link_open", "image", "code_inline"}
            assert not live & {one.type for one in tokens}
        if files[path] == ".tex":
            assert r"\textbackslash{}input" in text and not re.search(r"\\(input|write|frac)", text)
        if files[path] == ".csv":
            cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
            assert any(cell.startswith("'=1 <") for cell in cells)
            assert not any(cell.startswith("=") for cell in cells)
    assert [counts[kind] for kind in (".html", ".md", ".tex", ".csv", ".png", ".svg")] == [1, 3, 2, 3, 1, 1]
