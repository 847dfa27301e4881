"""The environment's three descriptions (pyproject.toml, requirements.lock, environment.yml) say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cpt_repro import __version__

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12")


def lock_text():
    return (ROOT / "requirements.lock").read_text(encoding="utf-8")


def lock_entries():
    """[(requirement, the lines that belong to it)]; one entry a line, continued by backslashes."""
    joined = lock_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(Requirement(line.split(" --hash=")[0].strip()), line) for line in lines]


def versions(requirements, python, system="linux", processor="x86_64"):
    """Name -> exact version of the requirements that hold for this Python on a machine."""
    machine = {"sys_platform": system, "platform_machine": processor, "implementation_name": "cpython"}
    machine |= {"platform_system": {"linux": "Linux", "darwin": "Darwin"}[system]}
    machine |= {
        "python_version": python,
        "python_full_version": f"{python}.5",
        "platform_python_implementation": "CPython",
    }
    out = {}
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate(machine):
            continue
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "*" not in pin.version, f"{requirement} is not exact"
        name = canonicalize_name(requirement.name)
        assert name not in out, f"{name} stands twice for Python {python}"
        out[name] = pin.version
    return out


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pip(conda):
    (own,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    return own


@pytest.fixture(scope="module")
def direct(project):
    extras = project["optional-dependencies"].values()
    return [
        Requirement(line)
        for line in (*project["dependencies"], *(line for extra in extras for line in extra))
    ]


def test_conda_offers_the_pythons_of_the_project(conda, project):
    (python,) = [
        entry for entry in conda["dependencies"] if isinstance(entry, str) and entry.startswith("python")
    ]
    assert python == "python" + project["requires-python"]
    allowed = Requirement(python).specifier
    assert all(allowed.contains(f"{version}.0") for version in PYTHONS)
    assert not allowed.contains("3.10.9") and not allowed.contains("3.13.0")
    assert "pip" in conda["dependencies"]


def test_pip_part_holds_pins_and_this_program_only(pip):
    assert [line for line in pip if line.startswith("-")] == ["-e ."]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_conda_pin_is_the_locks_version(pip, python):
    locked = versions([requirement for requirement, _ in lock_entries()], python)
    pinned = versions([Requirement(line) for line in pip if not line.startswith("-")], python)
    assert pinned == {name: locked[name] for name in pinned}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_direct_dependency_is_pinned_and_allowed(pip, direct, python):
    pinned = versions([Requirement(line) for line in pip if not line.startswith("-")], python)
    names = {canonicalize_name(requirement.name) for requirement in direct}
    assert set(pinned) == names
    for requirement in direct:
        version = Version(pinned[canonicalize_name(requirement.name)])
        assert requirement.specifier.contains(version), f"{requirement} excludes {version}"


def test_extras_are_asked_for_in_both(pip, direct):
    asked = {canonicalize_name(r.name): r.extras for r in map(Requirement, pip[:-1]) if r.extras}
    assert asked == {canonicalize_name(r.name): r.extras for r in direct if r.extras}


def test_lock_has_a_hash_for_every_entry():
    entries = lock_entries()
    assert len(entries) > 100
    for requirement, text in entries:
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}(?=\s|$)", text), f"{requirement.name} has no hash"
        assert not requirement.url


def test_lock_names_no_address_and_no_index():
    text = lock_text()
    assert "://" not in text
    assert " @ " not in text
    without_comments = re.sub(r"#.*", "", text)
    options = re.findall(r"(?:^|\s)(--?[a-z][a-z-]*)", without_comments, flags=re.MULTILINE)
    assert set(options) == {"--hash"}


def test_licence_and_citation_agree_with_the_project(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License" in licence and "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert citation["title"] == "cpt_repro"
    assert citation["version"] == project["version"] == __version__ == "0.1.0"
    numbers = {identifier["value"] for r in citation["references"] for identifier in r["identifiers"]}
    assert numbers == {"arXiv:2308.04014", "arXiv:2403.08763"}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_holds_for_other_machines_without_cuda(project, python):
    requirements = [requirement for requirement, _ in lock_entries()]
    here = versions(requirements, python)
    assert any(name.startswith("nvidia-") for name in here)
    for machine in (("linux", "aarch64"), ("darwin", "arm64")):
        there = versions(requirements, python, *machine)
        assert not any(name.startswith(("nvidia-", "triton")) for name in there)
        needed = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
        assert {"torch", "mosaicml", "lm-eval"} <= needed
        assert {name: there.get(name) for name in needed} == {name: here[name] for name in needed}
