"""The command line: bad input is one sentence and status 2; answers for programs are JSON."""

import json
import subprocess
import sys

import pytest

from cpt_repro import cli


@pytest.fixture
def cpt(third_project, monkeypatch, capsys):
    """`cpt(line)`: (status, output, errors) of `cpt-repro` in a project of its own without results."""
    monkeypatch.chdir(third_project.root)

    def call(line):
        monkeypatch.setattr(sys, "argv", ["cpt-repro", *(line.split() if isinstance(line, str) else line)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


def sentence(answer):
    status, out, errors = answer
    assert status == 2 and out == ""
    assert errors.startswith("cpt-repro: ") and errors.count("\n") == 1 and len(errors) < 1000
    return errors


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("status --scale smoky", "the scale 'smoky' is unknown. Did you mean 'smoke'?"),
        ("status --scale ../../x", "is unknown"),
        ("status --papers third2062", "the paper 'third2062' is unknown. Did you mean 'third2026'?"),
        ("draw ibrahim2024", "'ibrahim2024' is no exhibit. Write <paper>/<exhibit>, such as "),
        ("draw ibrahim2024/figure_99", "the exhibit 'figure_99' is unknown. Did you mean 'figure_09'?"),
        ("draw ../../x/figure_01", "is unknown"),
        ("draw ibrahim2062/figure_01", "the paper 'ibrahim2062' is unknown"),
        ("train 405m/pile", "no run begins with '405m/pile'"),
        ("measure nothing", "no run begins with 'nothing'"),
        ("evaluate nothing", "no model begins with 'nothing'"),
        ("evaluate nothing --released", "nothing"),
        ("corpus sq", "has no corpus 'sq'. Known: pile, sp, german."),
        ("export ibrahim2024/405m/nothing --out x", "nothing"),
        ("claims --claim 99", "the claim '99' is unknown"),
        ("cite ibrahim2024/figure_99", "figure_99"),
        ("plan --scale paper --gpus 0", "the key 'gpus' is wrong"),
        ("plan --scale paper --exhibit figure_05", "Write <paper>/<exhibit>"),
        ("bench gpu --device tpu", "--device tpu is unknown"),
        pytest.param("bench gpu", "there is no GPU to measure", marks=pytest.mark.slow),
        ("corpora extract nowhere", "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(cpt, line, told):
    assert told in sentence(cpt(line))


HOSTILE = ["../../x", "/etc/passwd", "x;touch ATTACKED", "$(touch ATTACKED)", "x\ny", 'it\'s "x"', "{x}"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "line",
    ["status --scale", "status --papers", "train", "train --dry-run", "evaluate", "corpus", "draw", "cite"],
)
def test_no_name_leads_elsewhere_or_reaches_a_shell(cpt, third_project, line, name):
    before = sorted(third_project.root.parent.rglob("*"))
    sentence(cpt([*line.split(), name]))
    assert sorted(third_project.root.parent.rglob("*")) == before


@pytest.mark.parametrize("name", HOSTILE[2:])
def test_a_scale_that_is_called_so_is_refused_by_its_name(cpt, third_project, name):
    text = (third_project.scales / "smoke.yaml").read_text()
    (third_project.scales / f"{name}.yaml").write_text(
        text.replace("name: smoke", f"name: {json.dumps(name)}")
    )
    run = "ibrahim2024/405m/pile/seed-0"
    assert "the key 'name' is wrong" in sentence(cpt(["train", run, "--dry-run", "--scale", name]))


def test_outside_of_a_project(cpt, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "there is no project here" in sentence(cpt("status"))


@pytest.mark.parametrize("name", ["CPT_REPRO_STORE", "CPT_REPRO_HUB"])
def test_a_variable_that_is_set_and_empty(cpt, monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert f"${name}: the variable is set and empty" in sentence(cpt("status"))


@pytest.mark.parametrize("value", ["~/store", "a\nb", "a\x1b[2J"])
def test_a_variable_that_is_no_usable_name(cpt, monkeypatch, value):
    monkeypatch.setenv("CPT_REPRO_STORE", value)
    assert "$CPT_REPRO_STORE: it begins with ~" in sentence(cpt("status"))


@pytest.mark.parametrize("value", ["{x}/$HOME", "/dev/null", "a" * 5000])
def test_a_store_that_is_hardly_one(cpt, monkeypatch, value):
    """What is only looked for is not there; a name that cannot be one is told."""
    monkeypatch.setenv("CPT_REPRO_STORE", value)
    answer = cpt("status")
    assert answer[0] == 0 if len(value) < 5000 else "the name is too long" in answer[2]


@pytest.mark.parametrize(("content", "told"), [(None, "does not exist"), (b"\xff", "no text in UTF-8")])
def test_a_readme_that_is_none(cpt, third_project, content, told):
    if content:
        (third_project.root / "x.md").write_bytes(content)
    errors = sentence(cpt("claims --into x.md"))
    assert "x.md: " in errors and told in errors


def test_no_name_and_no_key_moves_the_cursor(cpt, third_project):
    declared = (third_project.scales / "smoke.yaml").read_text() + '"\\e]0;title\\a": 1'
    (third_project.scales / "\x1b[2Jx.yaml").write_text(declared)
    errors = sentence(cpt("status --scale \x1b[2Jx"))
    assert r"\x1b[2Jx.yaml: the key '\x1b]0;title\x07' is unknown" in errors and errors[:-1].isprintable()


def test_a_fault_of_this_program_tells_no_secret(cpt, monkeypatch):
    def fail(*_):
        try:
            raise ConnectionError("foo://KEY:SECRET@bucket/x cannot be reached")
        except ConnectionError as error:
            raise RuntimeError("GET https://bucket/x?signature=SECRET") from error

    monkeypatch.setattr(cli, "_workflow", fail)
    status, out, errors = cpt("status")
    assert status == 1 and "SECRET" not in out + errors
    assert "Traceback" in errors and "ConnectionError: foo://***@bucket/x cannot be reached" in errors


@pytest.mark.slow
def test_a_receipt_that_is_none(cpt, third_project):
    """It is read where it says that it is of a training that is wanted."""
    name = "ibrahim2024/405m/pile--sp/replay-0.05/seed-0"
    path = third_project.results / "smoke" / "runs" / name / "receipt.json"
    path.parent.mkdir(parents=True)
    (identity,) = (run["identity"] for run in json.loads(cpt("plan --json")[1])["runs"] if run["id"] == name)
    for told, draws in (("0" * 64, True), (identity, False)):
        path.write_text(json.dumps({"schema_version": 2, "identity": told}))
        answer = cpt("draw ibrahim2024/figure_05")
        assert answer[0] == 0 if draws else "receipt.json: the key 'run' is wrong" in sentence(answer)


def test_interrupted(cpt, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_workflow", interrupt)
    status, _, errors = cpt("status")
    assert (status, errors) == (130, "cpt-repro: interrupted; run the same command again to go on.\n")


def test_what_is_left(cpt):
    """Of the papers that are asked for and of what they show; a training with several names once."""
    status, out, _ = cpt("status --papers ibrahim2024,third2026")
    assert status == 0 and "trainings: 0 of " in out and "curves" not in out
    third, ibrahim, both = (
        json.loads(cpt(f"status --json --papers {papers}")[1])
        for papers in ("third2026", "ibrahim2024", "ibrahim2024,third2026")
    )
    assert len(third["to_train"]) == third["trainings"] and third["to_be_measured"] == []
    assert set(third["to_draw"]) == {"third2026/figure_01", "third2026/table_01"}
    assert "ibrahim2024/405m/pile--german/replay-0/seed-0" in third["to_train"]
    new = set(both["to_train"]) - set(ibrahim["to_train"])
    assert new == {"third2026/continued/replay-0.02/seed-0"}


@pytest.mark.slow
def test_exhibits_are_drawn_elsewhere_from_receipts_elsewhere(cpt, tmp_path, repository):
    line = (
        f"draw ibrahim2024/figure_05 --scale pocket --results {repository.results.resolve()} --out {tmp_path}"
    )
    status, out, _ = cpt(line)
    assert status == 0
    drawn = tmp_path / "pocket" / "ibrahim2024"
    assert out.splitlines() == [
        str(drawn / f"figure_05.{suffix}") for suffix in ("png", "svg", "pdf", "json")
    ]
    assert json.loads((drawn / "figure_05.json").read_text())["missing"] == []


def test_a_version_and_no_corpus_in_the_help(cpt):
    assert cpt("--version")[1] == f"{cli.__version__}\n"
    status, out, _ = cpt("corpus --help")
    assert status == 0 and "slimpajama" not in out.lower() and "german" not in out


#: Takes long to import: training, evaluation, statistics, plots, tables.
HEAVY = [
    "torch",
    "transformers",
    "composer",
    "streaming",
    "lm_eval",
    "datasets",
    "scipy",
    "matplotlib",
    "pandas",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "used"),
    [
        ("status", []),
        ("plan", []),
        ("train third2026/continued --dry-run", []),
        ("cite third2026/table_01", []),
        ("report", []),
        ("claims", []),
        ("draw third2026/table_01", ["pandas"]),
        ("draw third2026/figure_01", ["scipy", "matplotlib", "pandas"]),
        ("verify --papers third2026", ["scipy", "matplotlib", "pandas"]),
    ],
)
def test_no_command_imports_what_it_does_not_use(third_project, line, used):
    code = "import sys; from cpt_repro import cli\ntry: cli.app(sys.argv[1:], standalone_mode=False)\n"
    code += "except (cli.typer.Exit, cli.UserError): pass  # of what is not there\n"
    code += f"print([m for m in {HEAVY} if m in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", code, *line.split()], capture_output=True, text=True, cwd=third_project.root
    )
    assert told.stdout.splitlines()[-1:] == [str([m for m in HEAVY if m in used])], told.stderr
