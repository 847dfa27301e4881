"""Pages: short where they begin, every link leads somewhere, and `make docs` builds them strictly."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert re.match(r"https?://", link) or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_is_two_pages():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    linked = {f"docs/{page.name}" for page in PAGES[1:]}
    assert linked == {link for link in re.findall(r"\]\((docs/[^)#\s]+)", "\n".join(lines))}


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    for name in ("mkdocs.yml", "README.md", "docs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"], cwd=tmp_path, check=True)
    pages = list((tmp_path / "site").rglob("*.html"))
    own = [page for page in pages if "reports" not in page.parts]
    assert len(own) > len(PAGES) and (tmp_path / "site" / "search" / "search_index.json").exists()
    for page in own:
        fetched = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]+)", page.read_text(encoding="utf-8")
        )
        assert not fetched, (page, fetched)


def test_workflow_and_containers_are_readable():
    pages = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8"))
    assert {"run": "make docs"} in pages["jobs"]["site"]["steps"]
    assert "make env VENV=/opt/cpt_repro" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
