"""The options and fixtures of the suite. What measures is in `benchmarks`."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

import imgstore
from benchmarks import floor, peers, report, terms
from benchmarks.images import Source, SourceError, open_source
from benchmarks.workloads import Cell, Rounds, Terms, free_memory, missing_room, verb_of

FLOOR = "floor"
CUTOFFS = (10, 100, 1000, 10_000)
LARGEST_CUTOFF = 100_000
SYNTHETIC_BYTES, LABEL_BYTES = 32 * 32 * 3, 8
SOURCE = pytest.StashKey[Source]()
DIRECTORY = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("imgstore", "imgstore: what is measured (write options with a path as --name=PATH)")
    group.addoption(
        "--images",
        metavar="PATH",
        help="the images to measure with: a folder of image files, or CIFAR-10 (cifar-10-python.tar.gz, "
        "cifar-10-binary.tar.gz, or what either unpacks to); default: synthetic 32x32x3 images",
    )
    group.addoption(
        "--cutoffs",
        metavar="N,...",
        type=parsed_cutoffs,
        default=CUTOFFS,
        help="how many images a store holds: positive integers, or `all` for the default and "
        f"{LARGEST_CUTOFF}; default: {','.join(map(str, CUTOFFS))}",
    )
    group.addoption(
        "--backends",
        metavar="NAME,...",
        type=parsed_backends,
        default=tuple(imgstore.BACKENDS),
        help=f"the formats to measure beside the floor; default: {','.join(imgstore.BACKENDS)}",
    )
    group.addoption(
        "--store-dir",
        metavar="PATH",
        help="an existing folder on the disk to measure; stores are made below it and removed again; "
        "default: the system's temporary folder",
    )
    group.addoption(
        "--cache",
        choices=("warm", "cold"),
        default="warm",
        help="read from the page cache, or after evicting the store from it before each round; default: warm",
    )
    group.addoption(
        "--peers",
        action="store_true",
        help="also measure other formats: those whose packages are installed, see benchmarks/peers/requirements.txt",
    )
    group.addoption("--no-durable", action="store_true", help="store without waiting for the disk")
    group.addoption("--no-verify", action="store_true", help="read without checking checksums")
    faults = parser.getgroup("faults", "imgstore: the fault tests of `pytest imgstore/tests/faults`")
    faults.addoption("--long", action="store_true", help="try each fault as often as the README's table says")
    faults.addoption("--fault-seed", type=int, default=0, help="what the faults are drawn from; default: 0")


def parsed_cutoffs(text: str) -> tuple[int, ...]:
    if text == "all":
        return (*CUTOFFS, LARGEST_CUTOFF)
    if not all(part.isascii() and part.isdigit() and int(part) for part in text.split(",")):
        raise pytest.UsageError(f"--cutoffs: {text!r} is not a list of positive integers such as 10,1000, nor `all`")
    return tuple(sorted({int(part) for part in text.split(",")}))


def parsed_backends(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in {*imgstore.BACKENDS, FLOOR}:
            raise pytest.UsageError(f"--backends: there is no {name!r}; choose from {', '.join(imgstore.BACKENDS)}")
    return names


def pytest_configure(config: pytest.Config) -> None:
    store_directory(config)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupted)


def interrupted(number: int, frame: Any) -> None:
    """End as Ctrl-C does, so that what was stored is removed."""
    raise KeyboardInterrupt("terminated")


def store_directory(config: pytest.Config) -> str:
    """Where stores are made; UsageError where nothing can be."""
    path = config.getoption("--store-dir") or tempfile.gettempdir()
    if not os.path.isdir(path):
        raise pytest.UsageError(f"--store-dir: {path} is not a folder; give one that exists")
    if not os.access(path, os.W_OK | os.X_OK):
        raise pytest.UsageError(f"--store-dir: {path} cannot be written to; give a folder of yours")
    return os.path.abspath(path)


def source_of(config: pytest.Config) -> Source:
    """The images of the run, opened when first asked for; UsageError where there are none."""
    if SOURCE not in config.stash:
        count, free = max(config.getoption("--cutoffs")), free_memory()
        need = count * (LABEL_BYTES if config.getoption("--images") else LABEL_BYTES + SYNTHETIC_BYTES)
        if need > free:
            room = f"{count} images need {need >> 20} MiB of memory or more"
            raise pytest.UsageError(f"--cutoffs: {room}, {free >> 20} MiB are free; choose fewer")
        try:
            config.stash[SOURCE] = open_source(config.getoption("--images"), count)
        except SourceError as error:
            raise pytest.UsageError(f"--images: {error}") from None
    return config.stash[SOURCE]


def terms_of(config: pytest.Config) -> Terms:
    return Terms(
        durable=not config.getoption("--no-durable"),
        cold=config.getoption("--cache") == "cold",
        verify=not config.getoption("--no-verify"),
    )


def run_directory(config: pytest.Config) -> str:
    """The run's own folder below the store directory, removed however the run ends."""
    if DIRECTORY not in config.stash:
        try:
            path = tempfile.mkdtemp(prefix="imgstore-", dir=store_directory(config))
        except OSError as error:
            where = f"--store-dir: {store_directory(config)} cannot be written to; give a folder of yours"
            raise pytest.UsageError(f"{where} ({error.strerror})") from None
        config.add_cleanup(lambda: shutil.rmtree(path, ignore_errors=True))
        config.stash[DIRECTORY] = path
    return config.stash[DIRECTORY]


def is_cell(item: pytest.Item) -> bool:
    return "cell" in getattr(item, "fixturenames", ())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    cells = [item.nodeid for item in items if is_cell(item)]
    if not cells or config.getoption("collectonly"):
        return
    source_of(config)
    run_directory(config)
    kind = terms.file_system(store_directory(config))[0]
    if kind in terms.RAM_DISKS:
        message = f"{store_directory(config)} is a RAM disk ({kind}): storing there measures no disk; see --store-dir"
        config.issue_config_time_warning(UserWarning(message), stacklevel=2)
    must_match = bool(config.getoption("benchmark_compare_fail"))
    if must_match or config.getoption("benchmark_compare"):
        compared = config._benchmarksession.compared_mapping  # type: ignore[attr-defined]
        reason = terms.missing_rows(compared, cells, must_match)
        if reason:
            raise pytest.UsageError(f"--benchmark-compare: {reason}")


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    if SOURCE not in config.stash:
        return []
    source, kept = source_of(config), terms_of(config)
    kind, device = terms.file_system(store_directory(config))
    left_out = [f"left out: {path}: {reason}" for path, reason in source.left_out]
    missing = peers.missing() if config.getoption("--peers") else {}
    return [
        *(f"no {name}: {reason}" for name, reason in missing.items()),
        f"images: {source.name}" + (f"; {len(left_out)} files left out" if left_out else ""),
        *left_out,
        f"stores: in {store_directory(config)}, {kind} on {device}",
        f"terms: {terms.shown(asdict(kept))}",
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    names = [FLOOR, *metafunc.config.getoption("--backends")]  # first, so that a run cut short has its limit
    if metafunc.config.getoption("--peers"):
        verb = verb_of(metafunc.function.__name__.removeprefix("test_"))
        names += [name for name in peers.available() if verb in peers.PEERS[name].verbs]
    metafunc.parametrize("cutoff", metafunc.config.getoption("--cutoffs"), scope="session")
    metafunc.parametrize("backend", dict.fromkeys(names), scope="session")


@pytest.fixture(scope="session")
def cell(pytestconfig: pytest.Config, backend: str, cutoff: int) -> Iterator[Cell]:
    """A backend and the first `cutoff` images, stored once for all operations on them."""
    images, labels = source_of(pytestconfig).take(cutoff)
    ours = backend in {*imgstore.BACKENDS, FLOOR}
    directory, kept = run_directory(pytestconfig), terms_of(pytestconfig)
    cell = Cell(backend, module_of(backend), images, labels, directory, kept, forks=ours)
    reason = missing_room(cell)
    if reason:
        pytest.skip(reason)
    try:
        cell.store()
        yield cell
    except peers.Unsupported as error:
        pytest.skip(str(error))
    finally:
        shutil.rmtree(cell.stored, ignore_errors=True)


@pytest.fixture
def rounds(pytestconfig: pytest.Config) -> Rounds | None:
    """How long to measure; None where pytest-benchmark is disabled and everything runs once."""
    option = pytestconfig.getoption
    if option("benchmark_disable") and not option("benchmark_enable"):
        return None
    return Rounds(option("benchmark_min_rounds"), float(option("benchmark_max_time")))


def module_of(backend: str) -> Any:
    return floor if backend == FLOOR else imgstore.BACKENDS.get(backend) or peers.available()[backend]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    terms.forget_clock_speed(machine_info)
    machine_info["imgstore"] = terms.recorded(source_of(config), terms_of(config), store_directory(config))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_compare_machine_info(machine_info: dict[str, Any], compared_benchmark: dict[str, Any]) -> None:
    reason = terms.incomparable(machine_info["imgstore"], compared_benchmark["machine_info"].get("imgstore", {}))
    if reason:
        raise pytest.UsageError(f"--benchmark-compare: {reason}")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-benchmark saves
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    benchmarks = session.config._benchmarksession.benchmarks  # type: ignore[attr-defined]
    # an interrupted cell has no round, which pytest-benchmark does not expect; a failed one has no figure
    benchmarks[:] = [benchmark for benchmark in benchmarks if benchmark and not benchmark.has_error]
    report.add_figures(benchmarks)
    yield


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    try:
        yield  # pytest-benchmark's tables
    finally:
        for line in report.summary(config._benchmarksession.benchmarks):  # type: ignore[attr-defined]
            terminalreporter.write_line(line)
