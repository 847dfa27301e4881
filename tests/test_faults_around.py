"""Faults around a run: a killed snakemake, two at once, full and read-only storage, clocks, neighbours, locales."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from exhibit_receipts import make_results
from tiny_project import REPOSITORY

from cpt_repro import cli
from cpt_repro.declarations.scale import load_scale
from cpt_repro.data.build import build_corpus
from cpt_repro.errors import StorageError
from cpt_repro.evaluation.suites import build_suites
from cpt_repro.declarations.exhibits import load_exhibits
from cpt_repro.exhibits.draw import draw
from cpt_repro.files import locked, read_json, whole_file, write_json, write_text, writing
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import read_receipt, receipt_path
from cpt_repro.training.train import train_segments
from cpt_repro.training.store import SavedStates, Store
from cpt_repro.workflow.jobs import CLOCK_TOLERANCE, Workflow

DAY = 86400


def _same(receipt):
    return receipt.model_dump(exclude={"measured"})


def _wait_for(met, what, seconds=300):
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


# --- snakemake


def test_a_killed_snakemake_goes_on(project, faults):
    """Killed with all it started, then alone while another call is refused; what it started goes on by itself."""
    run = "third2026/405m/german/seed-0"
    published = project.folder / "results" / "smoke" / "runs" / run / "receipt.json"
    expected, figures = _same(read_receipt(published)), _contents(project.folder / "figures")
    states = project.folder / "store" / "smoke" / run / expected["identity"][:16] / "resume.json"
    published.unlink()
    shutil.rmtree(states.parent)

    def saved():
        return read_json(states)[0]["iteration"] if states.exists() else 0

    running = project.start()
    _wait_for(saved, "a saved state")
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    first = saved()
    assert first and not published.exists()

    running = project.start()
    _wait_for(lambda: saved() > first or running.poll() is not None, "another saved state")
    assert running.poll() is None, running.stderr.read()[-3000:]
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stderr.close()
    result = project.snakemake()
    assert result.returncode == 0, result.stderr[-3000:]
    receipt = read_receipt(published)
    assert _same(receipt) == expected and receipt.measured["resumed_at"] >= first
    assert _contents(project.folder / "figures") == figures
    assert not list(project.folder.rglob("*.aside*"))
    faults("SIGKILL of snakemake with all it started, and alone", 2, "the next call ended with the same bits")


def test_a_snakemake_killed_while_it_draws(project, faults):
    """What was drawn then may be torn or not all there: it is drawn again, without being asked for."""
    drawn = project.folder / "figures" / "smoke" / "third2026"
    figures = _contents(drawn)
    for path in drawn.glob("figure_01.*"):
        path.unlink()
    running = project.start()
    _wait_for(lambda: any(drawn.glob("figure_01.*")), "a figure's first file")
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    result = project.snakemake()
    assert result.returncode == 0, result.stderr[-3000:]
    assert _contents(drawn) == figures
    faults("SIGKILL of snakemake while it draws", 1, "drawn again by the next call")


def test_two_calls_in_one_folder(project, faults):
    """The second is refused before it removes or writes anything, and may run when the first has ended."""
    table = project.folder / "figures" / "smoke" / "third2026" / "table_01.csv"
    whole = table.read_bytes()
    table.unlink()
    with open(project.folder / ".snakemake" / "smoke.running") as stream, _flock(stream):
        result = project.snakemake()
        told = result.stdout + result.stderr
        assert result.returncode != 0 and not table.exists()
        assert (
            "snakemake is already running for the scale 'smoke' in this folder" in told
            and "Traceback" not in told
        )
    both = [project.start(), project.start()]
    told = [call.communicate()[1] for call in both]
    assert 0 in [call.returncode for call in both], told
    for call, text in zip(both, told, strict=True):
        assert call.returncode == 0 or "snakemake is already running" in text
    assert table.read_bytes() == whole
    faults("two snakemake calls in one folder", 2, "the second is refused, nothing is lost")


def test_a_clock_set_back(project, faults):
    """Everything lies in the future but a receipt made since: what shows it is drawn again, nothing is trained."""
    results, figures = (_contents(project.folder / name) for name in ("results", "figures"))
    later = time.time() + DAY
    for folder in ("figures", "results", "data", "store"):
        for path in (project.folder / folder).rglob("*"):
            os.utime(path, (later, later))
    name = "runs/third2026/405m/german/seed-0/receipt.json"
    receipt = project.folder / "results" / "smoke" / name
    write_json(receipt, read_json(receipt) | {"code": {"cpt_repro": "another"}})
    first, second = project.snakemake(), project.snakemake()
    assert first.returncode == 0, first.stderr[-3000:]
    assert "training" not in first.stderr and "evaluating" not in first.stderr
    drawn = _contents(project.folder / "figures")
    assert {path for path in drawn if drawn[path] != figures[path]} >= {"smoke/third2026/table_01.json"}
    now = _contents(project.folder / "results")
    assert {path for path in now if now[path] != results[path]} == {f"smoke/{name}"}
    assert "Nothing to be done" in second.stdout + second.stderr
    faults("clock set back by a day", 1, "what changed since is drawn again, then quiet")


def test_what_is_not_current_is_older_than_its_wish(tmp_path, monkeypatch):
    """A stale receipt from the future would pass for made, and a figure from the future for drawn from what is now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CPT_REPRO_STORE", str(tmp_path / "store"))
    workflow = Workflow("smoke")
    run = next(iter(workflow.plan.segments))
    receipt, figure = Path(workflow.receipt(run)), Path(workflow.all_files()[0])
    write_text(receipt, '{"schema_version": 1, "identity": "another"}')
    write_text(figure, "drawn")
    workflow.training()
    for path in (receipt, figure):
        os.utime(path, (time.time() + DAY,) * 2)
    again = Workflow("smoke")
    again.mend_times()
    wish = next(
        path for job in again.training() for path in job.inputs if path.endswith(f"requests/runs/{run}")
    )
    assert os.stat(wish).st_mtime > receipt.stat().st_mtime > figure.stat().st_mtime
    shortly = time.time() + CLOCK_TOLERANCE / 2  # a file server's clock
    os.utime(figure, (shortly, shortly))
    again.mend_times()
    assert figure.stat().st_mtime == pytest.approx(shortly, abs=1e-3)


# --- storage


@pytest.fixture(scope="module")
def small():
    """A plan of short runs that save their state every 6 iterations, and the shortest of its runs."""
    plan = Plan(load_scale("smoke").model_copy(update={"tokens_per_billion": 100, "save_every": 60}))
    return plan, plan.segments["ibrahim2024/405m/pile/seed-0"]


@pytest.fixture(scope="module")
def untouched(small, smoke_data, tmp_path_factory):
    """A folder with the finished run of `small`, and its receipt."""
    folder = tmp_path_factory.mktemp("untouched")
    return folder, _train(small, smoke_data, folder)


def _train(small, data, folder, results=None):
    plan, segment = small
    results = results or folder / "results"
    train_segments(plan, [segment], data, results, Store("smoke", folder / "store"), lambda line: None)
    return read_receipt(receipt_path(results, "smoke", segment.id))


@contextmanager
def _at_most(size):
    """Files of this process may not grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def _flock(stream):
    import fcntl

    fcntl.flock(stream, fcntl.LOCK_EX)
    yield
    fcntl.flock(stream, fcntl.LOCK_UN)


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own, and a function that mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", *options, "cpt_repro", str(folder)], capture_output=True
        )

    if os.geteuid() != 0 or mount("-o", "size=2300k").returncode != 0:
        pytest.skip("a file system of its own needs the right to mount one")
    yield folder, lambda options: mount("-o", f"remount,{options}").check_returncode()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _asides(folder):
    return [path for path in folder.rglob("*") if "aside" in path.name]


@pytest.mark.parametrize(("size", "file"), [(500_000, "resume-6.pt"), (100_000, "iteration-29")])
def test_no_room_for_a_checkpoint(size, file, small, smoke_data, untouched, tmp_path, faults):
    plan, segment = small
    if file != "resume-6.pt":
        small = Plan(plan.scale.model_copy(update={"save_every": 0})), segment
    with _at_most(size), pytest.raises(StorageError) as raised:
        _train(small, smoke_data, tmp_path)
    assert raised.value.where == str(Store("smoke", tmp_path / "store").folder(segment) / file)
    assert "larger than is allowed" in str(raised.value) and "run the same command again" in str(raised.value)
    assert not _asides(tmp_path) and not (tmp_path / "results").exists()
    assert _same(_train(small, smoke_data, tmp_path)) == _same(untouched[1])
    faults("no room for a training state or weights", 1, "named; with room again the same bits")


def test_a_full_disk_keeps_the_states_that_are_whole(disk, small, smoke_data, untouched, faults, monkeypatch):
    folder, remount = disk
    monkeypatch.setattr(
        "cpt_repro.training.train.check_room", lambda *told: None
    )  # there was room when it began
    with pytest.raises(StorageError, match="no space is left.*Make room") as raised:
        _train(small, smoke_data, folder)
    states = SavedStates(Store("smoke", folder / "store").folder(small[1]), _fingerprints(small, smoke_data))
    assert Path(raised.value.where).parent == states.folder and not _asides(folder)
    saved = states.newest()[0]
    assert saved > 0
    remount("size=50m")
    receipt = _train(small, smoke_data, folder)
    assert _same(receipt) == _same(untouched[1]) and receipt.measured["resumed_at"] == saved
    faults("disk full while training (tmpfs)", 1, "whole states kept; with room again the same bits")


def _fingerprints(small, data):
    return {corpus: read_json(data / corpus / "fingerprint.json")["fingerprint"] for corpus in small[1].data}


def test_a_receipt_that_cannot_be_published(small, smoke_data, untouched, tmp_path, faults):
    """The weights are safe: the next call only publishes."""
    folder, expected = untouched
    with (
        _at_most(1000),
        pytest.raises(StorageError, match=r"runs/ibrahim2024/405m/pile/seed-0/receipt\.json: "),
    ):
        _train(small, smoke_data, folder, tmp_path / "results")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert _train(small, smoke_data, folder, tmp_path / "results") == expected
    faults("no room for a receipt", 1, "named; published by the next call without training")


def test_read_only_results(disk, small, smoke_data, untouched, faults):
    results, remount = disk
    remount("ro")
    with pytest.raises(
        StorageError, match=r"seed-0/receipt\.json: the file system is read-only. Make it writable"
    ):
        _train(small, smoke_data, untouched[0], results)
    remount("rw")
    assert _train(small, smoke_data, untouched[0], results) == untouched[1]
    faults("read-only results folder", 1, "named; published by the next call without training")


def test_forbidden_results(small, smoke_data, untouched, tmp_path, faults):
    """Runs for root too where it gave up its privilege: `setpriv --bounding-set -dac_override make test`."""
    results = tmp_path / "results"
    results.mkdir(mode=0o500)
    if os.access(results, os.W_OK):
        pytest.skip("root may write everywhere")
    with pytest.raises(StorageError, match="permission is denied"):
        _train(small, smoke_data, untouched[0], results)
    results.chmod(0o700)
    assert _train(small, smoke_data, untouched[0], results) == untouched[1]
    faults("forbidden results folder", 1, "named; published by the next call without training")


@pytest.mark.parametrize("processes", [1, 2])
def test_no_room_for_a_shard(processes, smoke_data, tmp_path, faults):
    shutil.copytree(smoke_data / "tokenizer", tmp_path / "tokenizer")
    scale = load_scale("smoke")
    # Of a build that was killed before its first file had its name.
    left = tmp_path / "german" / ".build.1.aside.json"
    write_text(left, "{")
    with (
        _at_most(20_000),
        pytest.raises(StorageError, match=r"german/.*/part\.0000\d: the file would be larger"),
    ):
        build_corpus(scale, "german", tmp_path, processes, progress=False)
    assert not _asides(tmp_path) and not (tmp_path / "german" / "fingerprint.json").exists()
    build_corpus(scale, "german", tmp_path, processes, progress=False)
    assert _contents(tmp_path / "german") == _contents(smoke_data / "german")
    faults("no room for a shard", 1, "named; with room again the same shards")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A folder of made-up receipts of the scale smoke."""
    folder = tmp_path_factory.mktemp("made_up") / "results"
    make_results(Plan(load_scale("smoke")), folder)
    return folder


@pytest.mark.parametrize(("key", "size", "file"), [("figure_05", 9000, "png"), ("table_02", 300, "csv")])
def test_no_room_for_an_exhibit(key, size, file, made_up, tmp_path, monkeypatch, capsys, faults):
    """By the command line: one paragraph, status 2, and the earlier exhibit stays."""
    plan = Plan(load_scale("smoke"))
    draw(plan, "ibrahim2024", key, made_up, tmp_path)
    before = _contents(tmp_path)
    arguments = ["draw", f"ibrahim2024/{key}", "--results", str(made_up), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["cpt-repro", *arguments])
    with _at_most(size), pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("cpt-repro: ") and told.count("\n") == 1
    assert f"{key}.{file}: the file would be larger than is allowed." in told
    assert _contents(tmp_path) == before
    faults("no room for a figure or table", 1, "named; the earlier one stays")


def test_what_a_storage_refuses_is_told_once():
    """Also where the refusal is behind another error, or told by a library in Rust; other errors pass."""
    with pytest.raises(StorageError, match="there: no space is left"), writing(Path("there")):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("a writer failed") from None
    with pytest.raises(StorageError, match="no space is left"), writing():
        raise ValueError("I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match="elsewhere: permission is denied"), writing():
        raise PermissionError(errno.EACCES, "Permission denied", "elsewhere")
    with pytest.raises(FileNotFoundError), writing():
        Path("/nowhere/at/all").read_text()


def test_an_error_behind_a_lost_file_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(StorageError), whole_file(tmp_path / "file") as aside, _at_most(3):
        aside.write_text("new and longer")
    assert _contents(tmp_path) == {"file": b"old"}


# --- neighbours


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


def test_neighbours_and_what_the_killed_leave(small, smoke_data, untouched, tmp_path, monkeypatch, faults):
    """Two trainings at once with data workers, and a third killed with its workers: the bits of a run alone."""
    plan = Plan(small[0].scale.model_copy(update={"loader_workers": 2}))
    small = plan, plan.segments[small[1].id]
    shared = set(os.listdir("/dev/shm"))
    folders = [tmp_path / name for name in ("one", "two", "three")]
    states = Store("smoke", folders[2] / "store").folder(small[1]) / "resume.json"
    children = [_child(lambda folder=folder: _train(small, smoke_data, folder)) for folder in folders]
    _wait_for(states.exists, "a saved state")
    os.killpg(children[2], signal.SIGKILL)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [
        0,
        0,
        -signal.SIGKILL,
    ]
    assert states.parent.with_suffix(".lock").exists()
    _train(small, smoke_data, folders[2])
    for folder in folders:
        receipt = read_receipt(receipt_path(folder / "results", "smoke", small[1].id))
        assert _same(receipt) == _same(untouched[1])
        assert not _asides(folder)
    assert set(os.listdir("/dev/shm")) <= shared
    faults("two trainings at once on one machine", 2, "the bits of a run alone")
    faults(
        "lock file and data workers of a killed training", 1, "no shared memory left; the next call goes on"
    )


def test_what_another_process_makes_is_waited_for(small, smoke_data, untouched, tmp_path, faults):
    """Benchmark tasks, and a training in one store: nothing is touched while another process holds the lock."""
    root, store = tmp_path / "data", tmp_path / "store"
    shutil.copytree(smoke_data, root)
    shutil.rmtree(root / "suites", ignore_errors=True)
    working = {
        root / ".suites.lock": lambda: build_suites(small[0].scale, root),
        Store("smoke", store / "store").folder(small[1]).with_suffix(".lock"): lambda: _train(
            small, smoke_data, store
        ),
    }
    for path, work in working.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as stream, _flock(stream):
            before = _contents(tmp_path)
            child = _child(work)
            _wait_for(lambda path=path: _waits(path), "the other process at the lock")
            assert _contents(tmp_path) == before
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (root / "suites" / "fingerprint.json").exists()
    faults("two processes at one work", 2, "the second waits")


def _waits(path):
    """Whether a process waits for the lock file (Linux)."""
    inode = path.stat().st_ino
    return any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_lock_is_waited_for_and_freed_by_death(tmp_path):
    path, told = tmp_path / "file.lock", []

    def hold():
        with locked(path):
            (tmp_path / "held").touch()
            time.sleep(60)

    child = _child(hold)
    _wait_for((tmp_path / "held").exists, "the lock")

    def busy():
        told.append("busy")
        os.kill(child, signal.SIGKILL)

    with locked(path, busy):
        assert told == ["busy"]
    os.waitpid(child, 0)


# --- the same receipts, the same bytes

COMMANDS = """
import sys
from cpt_repro import cli
for arguments in (line.split() for line in sys.stdin.read().splitlines()):
    try:
        cli.app(arguments, prog_name="cpt-repro")
    except SystemExit as ended:
        assert not ended.code, arguments
"""


def test_receipts_alone_decide_every_byte(made_up, tmp_path, faults):
    """A figure of each kind, all tables, ledger and report, from two clones in two surroundings."""
    keys, kinds = [], set()
    for paper in ("gupta2023", "ibrahim2024"):
        for key, exhibit in load_exhibits(paper).items():
            if key.startswith("table") or exhibit.kind not in kinds:
                keys.append(f"{paper}/{key}")
                kinds.add(exhibit.kind)
    commands = [f"draw {key}" for key in keys] + ["claims --write", "report"]
    languages = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split() or ["C"]
    other = next((name for name in languages if name.lower().startswith(("de", "fr", "tr"))), "C.UTF-8")
    surroundings = [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "UTC", "PYTHONHASHSEED": "0"},
        {"LC_ALL": other, "LANG": other, "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "1", "COLUMNS": "40"},
    ]
    running = []
    for name, settings, umask in zip(("one", "zwei ü"), surroundings, (0o022, 0o077), strict=True):
        clone, home, work = tmp_path / name, tmp_path / f"home {name}", tmp_path / name / "work"
        for part in ("cpt_repro", "configs", "data_manifests"):
            shutil.copytree(REPOSITORY / part, clone / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "CITATION.cff", clone)
        shutil.copytree(made_up, work / "results")
        home.mkdir()
        # Taken from the working directory by matplotlib, if it is let.
        (work / "matplotlibrc").write_text(
            f"font.size: {umask}\naxes.ymargin: 0.{umask}\npolaraxes.grid: False\n"
        )
        settings = {
            "HOME": str(home),
            "MPLCONFIGDIR": str(home / "mpl"),
            "PYTHONPATH": str(clone),
            **settings,
        }
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("LC_", "LANG", "CPT_REPRO"))
        }
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", COMMANDS],
                cwd=work,
                env=kept | settings,
                umask=umask,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        running[-1].stdin.write("\n".join(commands))
        running[-1].stdin.close()
    for process in running:
        told = process.stderr.read()
        assert process.wait() == 0, told[-3000:]
        process.stderr.close()
    one, two = (_contents(tmp_path / name / "work" / "figures") for name in ("one", "zwei ü"))
    suffixes = {Path(path).suffix for path in one}
    assert suffixes == {".png", ".svg", ".json", ".csv", ".md", ".tex", ".html"}
    assert {"smoke/claims.md", "smoke/claims.json", "smoke/index.html"} <= set(one)
    assert sorted(one) == sorted(two)
    assert [path for path in one if one[path] != two[path]] == []
    assert not [path for path, content in one.items() if str(tmp_path).encode() in content]
    assert json.loads(one["smoke/index.json"])["files"]["index.html"]
    faults(
        "another home, locale, time zone, hash seed, umask, folder",
        1,
        f"{len(one)} exhibit files of the same bytes",
    )
