"""What the fault tests share: the stores, the changes that a fault interrupts, the table at the end."""

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from imgstore.tests.faults.changes import CHANGES, SIDE, STORES, Case, MakeCase, Store, changes, stand
from imgstore.tests.faults.children import traced
from imgstore.tests.faults.tally import Tally

Standing = Callable[[Store, int, bool], Path]

TALLY = pytest.StashKey[Tally]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if TALLY not in config.stash:
        return
    form = "long" if config.getoption("--long", default=False) else "short"
    terminalreporter.section(f"faults, {form} form, seed {config.getoption('--fault-seed', default=0)}")
    for row in config.stash[TALLY].rows():
        terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    return pytestconfig.stash.setdefault(TALLY, Tally())


@pytest.fixture(scope="session")
def is_long(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--long", default=False))


@pytest.fixture
def random(request: pytest.FixtureRequest) -> np.random.Generator:
    """Of the seed and the test's name: the same whatever else is run."""
    seed = request.config.getoption("--fault-seed", default=0)
    return np.random.default_rng([seed, zlib.crc32(request.node.name.encode())])


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder where a sync costs nothing, where there is one."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="imgstore-faults-", dir=folder) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def strace(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where system calls cannot be traced."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    try:
        traced(os.getpid, tmp_path_factory.mktemp("strace") / "log")
    except AssertionError as error:
        pytest.skip(f"strace cannot attach to a process: {error}")


@pytest.fixture(params=STORES, ids=str)
def store(request: pytest.FixtureRequest) -> Store:
    """Ours, and what it is compared with."""
    store: Store = request.param
    return store


@pytest.fixture(params=CHANGES)
def name(request: pytest.FixtureRequest) -> str:
    """Of the change that a fault interrupts."""
    return str(request.param)


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Standing:
    """Where a store lies that is only copied; made once for each form."""
    made: dict[tuple[str, int, bool], Path] = {}

    def standing(store: Store, side: int, durable: bool) -> Path:
        key = str(store), side, durable
        if key not in made:
            made[key] = tmp_path_factory.mktemp("standing") / "store"
            stand(store, made[key], side, durable)
        return made[key]

    return standing


@pytest.fixture
def case(store: Store, name: str, standing: Standing) -> MakeCase:
    """The change of a store at a given root."""

    def case(root: Path, side: int = SIDE, durable: bool = True) -> Case:
        return Case(store, changes(side)[name], standing(store, side, durable), root)

    return case
