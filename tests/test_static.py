"""The code as ruff sees it: its lint rules, among them those of bandit, and its format."""

import re
import subprocess
import sys

import pytest
from third_study import REPOSITORY


@pytest.mark.parametrize("command", [["check", "--output-format", "concise"], ["format", "--check"]])
def test_ruff_has_nothing_to_say(command):
    told = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=REPOSITORY, capture_output=True)
    assert told.returncode == 0, told.stdout.decode()


def test_bandits_checks_are_on_and_every_exception_has_its_reason():
    program = "import subprocess, sys\nsubprocess.run(sys.argv[1], shell=True)\neval(sys.argv[2])\n"
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename"]
    told = subprocess.run(
        [*command, "cpt_repro/x.py", "-"], input=program, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "S602" in told.stdout and "S307" in told.stdout
    for path in (REPOSITORY / "cpt_repro").rglob("*.py"):
        for given in re.findall(r"# noqa: (S\d{3}.*)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"S\d{3}  \S.+", given), f"{path}: {given}"
