"""What is around a command does not show: neighbours, homes, locales, time zones."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from short_runs import SHORT, World, numbers
from third_study import REPOSITORY, put_third_study

pytestmark = pytest.mark.slow


def _child(work):
    """Forks; the child, with a process group of its own, does `work`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def test_neighbours_and_what_the_killed_leave(built, tmp_path, wait_for, faults):
    """Two trainings at once with data workers, a third killed with its workers: the bits of a run alone."""
    shared = set(os.listdir("/dev/shm"))
    alone, *worlds = (World(built, tmp_path / name, **SHORT, loader_workers=2) for name in "abcd")
    states = worlds[2].folder("pile") / "resume.json"
    children = [_child(lambda world=world: world.train("pile")) for world in worlds]
    wait_for(states.exists, "a saved state")
    os.killpg(children[2], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0, -signal.SIGKILL]
    worlds[2].train("pile")
    (expected,) = alone.train("pile")
    for world in worlds:
        assert numbers(world.records.receipt(world.run("pile"))) == numbers(expected)
        assert not [path for path in world.project.store.rglob("*") if "aside" in path.name]
    assert set(os.listdir("/dev/shm")) <= shared
    faults("two trainings at once on one machine", 2, "the bits of a run alone")
    faults("data workers of a killed training", 1, "no shared memory left; the next call goes on")


def test_a_remotes_secret_is_told_to_nobody(built, tmp_path):
    """Of a training that cannot have a shard: not on the terminal, in logs, in records, in notes."""
    root = tmp_path / "project"
    shutil.copytree(built.root, root)
    shutil.copytree(REPOSITORY / "profiles", root / "profiles")
    shutil.copy(REPOSITORY / "Snakefile", root)
    next((root / "data" / "smoke" / "pile" / "train").rglob("*.mds")).unlink()
    place = root / "results" / "smoke" / "runs" / "ibrahim2024" / "405m" / "pile" / "seed-0"
    receipt = place.relative_to(root) / "receipt.json"
    command = [sys.executable, "-m", "snakemake", "--cores", "1", str(receipt)]
    environment = os.environ | {"CPT_REPRO_SHARDS_REMOTE": "foo://KEY:SECRET@bucket/x?sig=SEC%52ET"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode and "cannot be fetched" in json.loads((place / "failure.json").read_text())["why"]
    (log,) = (root / "logs").rglob("*.log")
    assert all("foo://***@bucket/x" in text for text in (done.stderr + done.stdout, log.read_text()))
    everything = {"the terminal": (done.stdout + done.stderr).encode()} | _contents(root)
    assert [name for name, text in everything.items() if b"SECRET" in text or b"SEC%52ET" in text] == []
    ignored = ["git", "-C", str(REPOSITORY), "check-ignore", "results/pocket/runs/x/failure.json"]
    assert subprocess.run(ignored, capture_output=True).returncode == 0


COMMANDS = """
import sys
from cpt_repro import cli
for arguments in (line.split() for line in sys.stdin.read().splitlines()):
    try:
        cli.app(arguments, prog_name="cpt-repro")
    except SystemExit as ended:
        assert not ended.code, arguments
"""


def test_receipts_alone_decide_every_byte(repository, tmp_path, faults):
    """A figure of each kind, all tables, ledger and report, from two clones in two surroundings."""
    from cpt_repro.workflow.jobs import Workflow

    commands, kinds = ["claims --write --scale pocket", "report --scale pocket"], set()
    for (paper, key), exhibit in Workflow(repository, "pocket").catalogue.exhibits.items():
        if key.startswith("table") or exhibit.kind not in kinds:
            commands.insert(0, f"draw {paper}/{key} --scale pocket")
            kinds.add(exhibit.kind)
    languages = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split() or ["C"]
    other = next((name for name in languages if name.lower().startswith(("de", "fr", "tr"))), "C.UTF-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "UTC", "PYTHONHASHSEED": "0"}
    exotic = {"LC_ALL": other, "LANG": other, "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "1", "COLUMNS": "40"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "CPT_REPRO"))}
    running = []
    for name, surroundings, umask in (("one", plain, 0o022), ("zwei ü", exotic, 0o077)):
        clone, home = tmp_path / name, tmp_path / f"home {name}"
        put_third_study(clone)
        shutil.copytree(repository.results, clone / "results")
        home.mkdir()
        # Taken from the working directory by matplotlib, if it is let.
        look = f"font.size: {umask}\naxes.ymargin: 0.{umask}\npolaraxes.grid: False\n"
        (clone / "matplotlibrc").write_text(look)
        homes = {"HOME": str(home), "MPLCONFIGDIR": str(home / "mpl")}
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        command = [sys.executable, "-c", COMMANDS]
        environment = kept | homes | surroundings
        process = subprocess.Popen(command, cwd=clone, env=environment, umask=umask, text=True, **streams)
        process.stdin.write("\n".join(commands))
        process.stdin.close()
        running.append(process)
    for process in running:
        errors = process.stderr.read()
        assert process.wait() == 0, errors[-3000:]
        process.stderr.close()
    one, two = (_contents(tmp_path / name / "figures") for name in ("one", "zwei ü"))
    assert {Path(path).suffix for path in one} == {
        ".png",
        ".svg",
        ".pdf",
        ".json",
        ".csv",
        ".md",
        ".tex",
        ".html",
    }
    assert {"pocket/claims.md", "pocket/claims.json", "pocket/index.html"} <= set(one)
    assert sorted(one) == sorted(two)
    assert [path for path in one if one[path] != two[path]] == []
    assert not [path for path, content in one.items() if str(tmp_path).encode() in content]
    assert json.loads(one["pocket/index.json"])["files"]["index.html"]
    what = "another home, locale, time zone, hash seed, umask, folder"
    faults(what, 1, f"{len(one)} exhibit files of the same bytes")


def _contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
