"""The engine knows no paper: no name of a corpus, model or paper stands in its code; docstrings may cite."""

import ast
import re

import pytest
from third_study import REPOSITORY

PACKAGE = REPOSITORY / "cpt_repro"
#: As scales, manifests and papers name them, and as the papers call them.
NAMES = (
    r"pile|sp|german|slimpajama|smoke_\w+|english_\w+|german_\w+|405m|410m|10b|"
    r"gupta2023|ibrahim2024|gupta|ibrahim"
)
WORDS = re.compile(rf"(?<![A-Za-z0-9])(?:{NAMES})(?![A-Za-z0-9])", re.IGNORECASE)
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def code(file: str) -> str:
    """A module without docstrings and comments."""
    text = re.sub(r'""".*?"""', "", (PACKAGE / file).read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"#.*", "", text)


def words_in_code(text: str) -> list[str]:
    """String constants (no docstrings) and identifiers of a module that name a corpus, model or paper."""
    tree, found = ast.parse(text), []
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found += [
                f"line {node.lineno}: {match[0]!r} in {node.value!r}"[:120]
                for match in WORDS.finditer(node.value)
            ]
        for name in (getattr(node, key, None) for key in ("id", "attr", "arg", "name")):
            if isinstance(name, str) and any(WORDS.fullmatch(part) for part in name.split("_")):
                found.append(f"line {node.lineno}: identifier {name}")
    return found


@pytest.mark.parametrize("file", FILES)
def test_no_name_of_a_paper_stands_in_the_code(file):
    assert words_in_code((PACKAGE / file).read_text(encoding="utf-8")) == []


def test_the_search_finds_names():
    assert words_in_code('corpus = "pile"') and words_in_code("sp = 1") and words_in_code("f(german_text=2)")
    assert words_in_code('x = f"{a}/405m/x"') and not words_in_code(
        '"""of the Pile"""\npilot = "compile, split, sparse"'
    )


def test_one_file_knows_each_library():
    """Composer, Streaming, lm-eval and the hub are each imported by one module, and one knows GPT-NeoX."""
    importing = {}
    for file in FILES:
        for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                importing.setdefault(module.partition(".")[0], set()).add(file)
    assert importing["composer"] == {"training/composer.py"}
    assert importing["streaming"] == {"data/shards.py"}
    assert importing["lm_eval"] == {"evaluation/harness.py"}
    assert importing["huggingface_hub"] == {"models/hub.py"}
    # Its name, the registry, itself.
    neox = [file for file in FILES if re.search(r"(?i)gpt.?neox", code(file))]
    assert neox == ["declarations/scale.py", "models/architecture.py", "models/neox.py"]


def test_paths_come_from_the_project():
    """No other module finds a folder by its own place or reads a variable that moves one; no mocks."""
    for file in FILES:
        if file != "project.py":
            assert not re.search(
                r"CPT_REPRO_(STORE|CORPORA|HUB)\b", re.sub(r'f?"[^"\n]*\$CPT[^"\n]*"', "", code(file))
            ), file
            assert not re.search(r"^[A-Z_]+ = .*__file__", code(file), flags=re.MULTILINE), file
        assert "unittest" not in code(file), file
