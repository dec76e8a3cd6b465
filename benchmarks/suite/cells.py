"""The cells of the run: which there are, and the fixtures that store them."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import imgstore
from benchmarks import peers
from benchmarks.measure import floor
from benchmarks.measure.cell import Cell, Rounds, missing_room, parts_of
from benchmarks.measure.floor import FLOOR
from benchmarks.measure.loader import LoadEpoch
from benchmarks.measure.operations import OPERATIONS, verb_of
from benchmarks.measure.processes import ReadWhileReplaced
from benchmarks.measure.reading import ReadBatch, Reading
from benchmarks.measure.workload import Workload
from benchmarks.suite.asked import REFERENCE, run_directory, source_of, terms_of

TRAINING = (ReadWhileReplaced.operation, LoadEpoch.operation)  # measured where --readers are asked for
IN_BATCHES = (ReadBatch.operation, *TRAINING)


def is_cell(item: pytest.Item) -> bool:
    return "cell" in getattr(item, "fixturenames", ())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What needs other processes is measured only where they are asked for; of a file that is named nobody asks."""
    return True if collection_path.name == "test_training.py" and not config.getoption("--readers") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    operation = operation_of(metafunc.function)
    if operation in TRAINING and not metafunc.config.getoption("--readers"):
        raise pytest.Collector.CollectError(f"{operation} needs other processes: give --readers=N,...")
    metafunc.parametrize("cutoff", metafunc.config.getoption("--cutoffs"), scope="session")
    metafunc.parametrize("backend", names_for(operation, metafunc.config), scope="session")
    sizes, readers, caches = (metafunc.config.getoption(name) for name in ("--image-size", "--readers", "--cache"))
    metafunc.parametrize("image_size", named("{}px", sizes) if sizes else unnamed(None), scope="session")
    if "readers" in metafunc.fixturenames:
        metafunc.parametrize("readers", named("{}readers", readers) if readers else unnamed(None))
    caches = caches if has_cache(operation) else ("warm",)
    metafunc.parametrize("cache", named("{}", caches) if caches[1:] else unnamed(*caches))


def operation_of(test: Callable[..., None]) -> str:
    return test.__name__.removeprefix("test_")


def names_for(operation: str, config: pytest.Config) -> list[str]:
    """The backends to measure the operation with."""
    ours = [name for name in config.getoption("--backends") if name != FLOOR]
    if REFERENCE in config.stash or operation == ReadWhileReplaced.operation:  # others cannot be read meanwhile
        return ours
    names = [FLOOR, *ours]  # first, so that a run cut short has its limit
    if operation == LoadEpoch.operation:
        return [*names, "pillow"]  # as torchvision's ImageFolder reads
    if config.getoption("--peers"):
        names += [name for name in peers.available() if verb_of(operation) in peers.PEERS[name].verbs]
    return names


def named(text: str, values: Sequence[Any]) -> list[Any]:
    """Parameters with a name each."""
    return [pytest.param(value, id=text.format(value)) for value in values]


def unnamed(value: Any) -> list[Any]:
    """The one parameter where none was asked for, which stands in no name."""
    return [pytest.param(value, id=pytest.HIDDEN_PARAM)]


def has_cache(operation: str) -> bool:
    """Whether it is measured both warm and cold."""
    return issubclass(OPERATIONS.get(operation, Workload), Reading)


@pytest.fixture(scope="session")
def stored_cell(pytestconfig: pytest.Config, backend: str, cutoff: int, image_size: int | None) -> Iterator[Cell]:
    """A backend and the first `cutoff` images, stored once for all operations on them."""
    images, labels = source_of(pytestconfig, image_size).take(cutoff)
    ours = backend in {*imgstore.BACKENDS, FLOOR}
    directory, kept = run_directory(pytestconfig), terms_of(pytestconfig)
    cell = Cell(backend, module_of(backend), images, labels, directory, kept, forks=ours, image_size=image_size)
    reason = why_not(cell)
    if reason:
        pytest.skip(reason)
    try:
        start = time.perf_counter()
        cell.store()
        yield replace(cell, store_seconds=time.perf_counter() - start)
    except peers.Unsupported as error:
        pytest.skip(str(error))
    finally:
        shutil.rmtree(cell.stored, ignore_errors=True)


def why_not(cell: Cell) -> str | None:
    """Why the cell cannot be stored and read here, or None."""
    return (all_or_none(cell) if len(parts_of(cell.images)) > 1 else None) or missing_room(cell)


def all_or_none(cell: Cell) -> str | None:
    """Why its images cannot be read in parts, or None."""
    return (
        f"they are read in parts, and {cell.name} gives all or none" if peers.reads_in_order_only(cell.name) else None
    )


@pytest.fixture
def cell(request: pytest.FixtureRequest, stored_cell: Cell, cache: str) -> Cell:
    reason = why_not_run(stored_cell, operation_of(request.function), request.node.callspec.params.get("readers"))
    if reason:
        pytest.skip(reason)
    return replace(stored_cell, terms=replace(stored_cell.terms, cold=cache == "cold"))


def why_not_run(stored: Cell, operation: str, readers: int | None) -> str | None:
    """Why the operation, by so many readers, cannot be run on what is stored, or None."""
    if readers and (reason := all_or_none(stored)):
        return reason
    copies = 3 if operation == ReadWhileReplaced.operation else 0  # that one, the next, and one that is still open
    return missing_room(stored, copies, readers or 1) if operation in IN_BATCHES else None


@pytest.fixture
def rounds(pytestconfig: pytest.Config) -> Rounds | None:
    """How long to measure; None where pytest-benchmark is disabled and everything runs once."""
    option = pytestconfig.getoption
    if option("benchmark_disable") and not option("benchmark_enable"):
        return None
    return Rounds(option("benchmark_min_rounds"), float(option("benchmark_max_time")))


def module_of(backend: str) -> Any:
    return floor if backend == FLOOR else imgstore.BACKENDS.get(backend) or peers.load(backend)
