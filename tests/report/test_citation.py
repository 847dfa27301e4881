"""Citations of one exhibit, or of all."""

import json
import re

import pytest
from typer.testing import CliRunner

from cpt_repro import __version__, cli
from cpt_repro.declarations.strict import read_yaml
from cpt_repro.errors import UserError
from cpt_repro.exhibits.draw import draw
from cpt_repro.files import digest, read_json, write_json
from cpt_repro.report.citation import citation

from .conftest import DRAWN, opened, planned


def test_cite_an_exhibit(made):
    told = citation(made.catalogue, "ibrahim2024/table_02", "abc123")
    about = read_json(made.project.figures / "pocket" / "ibrahim2024" / "table_02.json")
    assert told.receipts == digest(about["sha256"]) and told.seeds == (0, 1, 2)
    parts = [__version__, "abc123", "Table 2", "scale pocket", "seeds 0, 1, 2", told.receipts, "2403.08763"]
    assert [part for part in parts if part not in told.text] == []
    own, paper = told.bibtex.split("\n\n")
    assert own.startswith("@misc{cpt_repro_pocket_ibrahim2024_table_02,") and told.receipts in own
    assert paper.startswith("@article{ibrahim2024,") and "Thérien, Benjamin" in paper
    assert all(entry.count("{") == entry.count("}") for entry in (own, paper))


def test_cite_agrees_with_the_image(made):
    told = citation(made.catalogue, "ibrahim2024/figure_02")
    png = made.project.figures / "pocket" / "ibrahim2024" / "figure_02.png"
    assert told.receipts.encode() in png.read_bytes()
    assert told.receipts in png.with_suffix(".svg").read_text(encoding="utf-8")
    assert "no records behind it" in told.text and told.seeds == ()


def test_cite_the_whole(made, spoilt):
    told = citation(made.catalogue)
    assert told.exhibit is None and told.bibtex.count("@article{") == 2
    assert (
        f"{len(DRAWN)} of {len(made.catalogue.exhibits)} exhibits" in told.text and "commit" not in told.text
    )
    sidecar = spoilt.figures / "ibrahim2024" / "table_02.json"
    about = read_json(sidecar)
    write_json(sidecar, about | {"sha256": about["sha256"] | {"receipt x/seed-9": "0" * 64}})
    other = citation(spoilt().catalogue)
    assert other.receipts != told.receipts and other.seeds == (0, 1, 2, 9)


@pytest.mark.parametrize(
    ("exhibit", "parts"),
    [
        ("figure_02", ["the paper 'figure_02' is unknown. Known: gupta2023, ibrahim2024"]),
        ("ibrahim2024/figur_05", ["unknown", "Did you mean 'figure_05'"]),
        ("gupta2023/table_02", ["unknown", "Did you mean"]),
        ("ibrahim2024/table_03", ["not drawn", "cpt-repro draw ibrahim2024/table_03 --scale pocket"]),
    ],
)
def test_cite_refuses(made, exhibit, parts):
    with pytest.raises(UserError) as error:
        citation(made.catalogue, exhibit)
    assert all(part in str(error.value) for part in parts)


def test_cite_of_nothing_says_what_draws(repository, tmp_path):
    with pytest.raises(UserError, match="cpt-repro draw all --scale pocket"):
        citation(opened(repository, tmp_path).catalogue)


def test_a_paper_without_an_entry_is_cited_by_its_reference(third_project):
    one = planned(third_project, "third2026", scale="smoke")
    draw(one.catalogue, one.records, "third2026", "table_01")
    told = citation(one.catalogue, "third2026/table_01")
    assert "@misc{third2026,\n  note = {A made-up third paper (arXiv 2601.00001)}" in told.bibtex


def test_the_citation_file_has_the_version_and_the_template_is_packaged(repository):
    assert read_yaml(repository.citation)["version"] == __version__
    (patterns,) = re.findall(
        r"^cpt_repro = \[(.*)\]$", (repository.root / "pyproject.toml").read_text(), re.M
    )
    package = repository.root / "cpt_repro"
    packaged = [path for pattern in re.findall(r'"([^"]+)"', patterns) for path in package.glob(pattern)]
    assert package / "report" / "page.html.j2" in packaged


def test_cite_as_a_command(made, repository, monkeypatch):
    monkeypatch.chdir(repository.root)
    where = ["--scale", "pocket", "--figures", str(made.project.figures)]
    text = CliRunner().invoke(cli.app, ["cite", "ibrahim2024/table_02", *where])
    assert text.exit_code == 0 and "Table 2" in text.output and "@misc{" in text.output
    told = json.loads(CliRunner().invoke(cli.app, ["cite", "--json", *where]).output)
    assert told["scale"] == "pocket" and told["version"] == __version__
