"""Drawing: whole files that say what they were made from, and the same bytes whatever the surroundings."""

import os
import subprocess
import sys

import pytest

from cpt_repro.exhibits.draw import Drawn, draw, notes
from cpt_repro.files import digest, file_digest, read_json

START = (
    "import sys, pathlib\n"
    "from cpt_repro.declarations.scale import load_scale\n"
    "from cpt_repro.exhibits.catalogue import Catalogue\n"
    "from cpt_repro.exhibits.draw import draw\n"
    "from cpt_repro.planning.plan import Plan\n"
    "from cpt_repro.project import Project\n"
    "from cpt_repro.records.lookup import Records\n"
    "project = Project.at(pathlib.Path(sys.argv[1]))\n"
    "catalogue = Catalogue(Plan(project, load_scale(project, 'pocket')))\n"
    "records = Records(catalogue.plan)\n"
    "make = lambda paper, key: draw(catalogue, records, paper, key, out=pathlib.Path(sys.argv[2]))\n"
)


@pytest.mark.parametrize("exhibit", ["gupta2023/figure_06", "ibrahim2024/figure_02", "ibrahim2024/figure_11"])
def test_a_figure_says_what_it_was_drawn_from(pocket, tmp_path, exhibit):
    made = pocket()
    png, svg, pdf, sidecar = draw(made.catalogue, made.records, *exhibit.split("/"), out=tmp_path)
    suffixes = [path.suffix for path in (png, svg, pdf)]
    assert suffixes == [".png", ".svg", ".pdf"] and min(p.stat().st_size for p in (png, svg, pdf)) > 1000
    assert pdf.read_bytes().startswith(b"%PDF") and b"CreationDate" not in pdf.read_bytes()
    metadata = svg.read_text(encoding="utf-8").split("</metadata>")[0]
    assert "<dc:title>" in metadata and "dc:date" not in metadata and "Matplotlib" not in metadata
    about = Drawn.model_validate(read_json(sidecar))
    assert digest(about.sha256) in metadata and digest(about.sha256).encode() in png.read_bytes()
    assert about.files == {path.name: file_digest(path) for path in (png, svg, pdf)}
    needs = made.catalogue.needs(*exhibit.split("/"))
    assert set(about.sha256) == {f"receipt {run}" for run in needs.runs} and about.missing == ()
    assert about.caption == made.catalogue.find(*exhibit.split("/")).see and about.tables == ()
    scaled = any(note.startswith("Scale pocket: ") for note in about.notes)
    assert scaled == made.catalogue.find(*exhibit.split("/")).scaled


@pytest.mark.parametrize(
    "exhibit", ["gupta2023/figure_04", *(f"ibrahim2024/figure_{n:02d}" for n in (1, 3, 11))]
)
def test_nothing_was_run_at_all(pocket, tmp_path, exhibit):
    made = pocket(("",))
    paths = draw(made.catalogue, made.records, *exhibit.split("/"), out=tmp_path)
    assert all(path.stat().st_size for path in paths)
    assert read_json(paths[-1])["sha256"] == {} and "Not run: " in " ".join(read_json(paths[-1])["notes"])


def test_what_the_scale_lacks_is_told(pocket, repository):
    scale = pocket().catalogue.plan.scale
    view = pocket(models=scale.models | {"10b": None}).view("ibrahim2024/figure_07")
    for name in view.exhibit.runs:
        view.runs(name)
    text = " ".join(notes(view))
    assert (
        "No counterpart at this scale (scale pocket has no counterpart of the model 10b): 10b/pile, " in text
    )
    assert len(view.without) == 5 and len(view.digests) == 15 and "Not run" not in text


def test_variants_are_named(pocket):
    text = " ".join(notes(pocket(variants=("ibrahim2024/eta-max-10b/3e-4",)).view("ibrahim2024/figure_02")))
    assert text.endswith("Variants of the papers' declarations: ibrahim2024/eta-max-10b/3e-4.")


def test_curves_that_lack_points_are_told(pocket, repository, tmp_path):
    """One more evaluation is wanted than was taken: the curve is drawn, and its caption says so."""
    made = pocket()
    validation = made.catalogue.plan.scale.validation.model_copy(update={"every": 5.0})
    view = pocket(validation=validation).view("ibrahim2024/figure_13")
    for name in view.exhibit.runs:
        view.runs(name)
    assert "To be measured: wanted points of 6 runs, which a new training would give." in " ".join(
        notes(view)
    )
    assert view.missing == set() and len(view.to_be_measured) == 6


@pytest.mark.slow
def test_the_same_receipts_give_the_same_bytes(repository, tmp_path):
    code = START + (
        "for key in ('figure_05', 'figure_01', 'table_12', 'table_09'):\n"
        "    make('ibrahim2024', key)\n"
        "make('gupta2023', 'figure_04')\n"
    )
    for k, (zone, language) in enumerate((("UTC", "C"), ("Asia/Kathmandu", "de_DE.UTF-8"))):
        settings = {"PYTHONHASHSEED": str(k), "TZ": zone, "LC_ALL": language, "SOURCE_DATE_EPOCH": str(k)}
        command = [sys.executable, "-c", code, str(repository.root), str(tmp_path / str(k))]
        subprocess.run(command, check=True, env=os.environ | settings, cwd=tmp_path)
    files = sorted(path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*.*"))
    assert len(files) == 3 * 4 + 2 * 4
    for path in files:
        assert (tmp_path / "0" / path).read_bytes() == (tmp_path / "1" / path).read_bytes(), path


@pytest.mark.slow
def test_a_table_does_not_wait_for_matplotlib(repository, tmp_path):
    code = START + (
        "make('ibrahim2024', 'table_02')\n"
        "assert not {'matplotlib', 'torch', 'streaming', 'transformers'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(repository.root), str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path)
