"""Short runs over the built smoke corpora, and a way to end them in the middle."""

import pytest
from short_runs import SHORT, World


@pytest.fixture
def world(built, tmp_path):
    """`world(**changes of the scale)`: short runs, nothing trained yet."""
    return lambda folder="own", **changes: World(built, tmp_path / folder, **SHORT | changes)


@pytest.fixture(scope="session")
def trained(built, tmp_path_factory):
    """Short runs that are trained once, and stay as they are."""
    made = World(built, tmp_path_factory.mktemp("trained"), **SHORT)
    made.train("pile", "pile--sp/replay-0.05")
    return made


class Killed(Exception):
    """The end of a process, which the test survives."""


@pytest.fixture
def killed_at(monkeypatch):
    """`killed_at(world, name, iteration)`: trains a run, and ends it after that iteration."""

    def kill(world, name, iteration, **changes):
        from cpt_repro.training import composer

        def progress(done):
            if done == iteration:
                raise Killed

        monkeypatch.setattr(composer.Report, "every", 1)
        with pytest.raises(Killed):
            world.fit(name, progress=progress, **changes)

    return kill
