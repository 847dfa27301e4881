"""What `make docs` shows beside docs/: the README as first page, figures that pages name, the reports."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Links of the README and of pages to files that are not below docs/.
OUTSIDE = re.compile(r"\]\((?:\.\./)?(figures/[^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies outside of docs/ under the path that it has in the repository."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {path for page in pages for path in OUTSIDE.findall(page.read_text(encoding="utf-8"))}
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for path in sorted(named):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for report in sorted((ROOT / "figures").glob("*/index.html")):
        name = f"reports/{report.parent.name}.html"
        files.append(File.generated(config, name, abs_src_path=str(report)))
        config.nav.append({f"Report, {report.parent.name}": name})
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links as they are within the site."""
    markdown = markdown.replace("](../figures/", "](figures/")
    return markdown.replace("](docs/", "](") if page.file.src_uri == "index.md" else markdown
