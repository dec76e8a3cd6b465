"""The options and fixtures of the suite. What measures is in `benchmarks`."""

import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import imgstore
from benchmarks import floor, gate, peers, report, terms
from benchmarks.contest import Key
from benchmarks.floor import FLOOR
from benchmarks.images import Source, memory_to_open, open_source
from benchmarks.loader import LoadEpoch
from benchmarks.progress import CellProgress, PairProgress
from benchmarks.readers import ReadWhileReplaced
from benchmarks.runs import RunError
from benchmarks.workloads import (
    OPERATIONS,
    Cell,
    ReadBatch,
    Reading,
    Rounds,
    Terms,
    Workload,
    free_memory,
    missing_room,
    parts_of,
    verb_of,
)
from imgstore.errors import ImgstoreError, printable

CACHES = ("warm", "cold")
TRAINING = (ReadWhileReplaced.operation, LoadEpoch.operation)  # measured where --readers are asked for
IN_BATCHES = (ReadBatch.operation, *TRAINING)
CUTOFFS = (10, 100, 1000, 10_000)
LARGEST_CUTOFF = 100_000
LABEL_BYTES = 8
SOURCES = pytest.StashKey[dict[int | None, Source]]()
DIRECTORY = pytest.StashKey[str]()
REFERENCE = pytest.StashKey[gate.Reference]()
OUTCOME = pytest.StashKey[gate.Outcome]()
REPORT = pytest.StashKey[Path]()
SAVED = pytest.StashKey[dict[str, Any]]()  # the run as pytest-benchmark saves it
RUN_FILE = "run.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    add_measuring_options(parser)
    add_comparing_options(parser)
    add_fault_options(parser)


def add_measuring_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("imgstore", "imgstore: what is measured (write options with a path as --name=PATH)")
    group.addoption(
        "--images",
        metavar="PATH",
        help="the images to measure with: a folder of image files, or CIFAR-10 (cifar-10-python.tar.gz, "
        "cifar-10-binary.tar.gz, or what either unpacks to); default: synthetic 32x32x3 images",
    )
    group.addoption(
        "--max-pixels",
        metavar="N",
        type=parsed_pixels,
        help="read image files of up to N pixels; default: 89,478,485, as more may be a decompression bomb",
    )
    group.addoption(
        "--cutoffs",
        metavar="N,...",
        type=parsed_cutoffs,
        help="how many images a store holds: positive integers, or `all` for the default and "
        f"{LARGEST_CUTOFF}; default: {','.join(map(str, CUTOFFS))}, "
        f"with --against {','.join(map(str, gate.DEFAULT_CUTOFFS))}",
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
        metavar="STATE,...",
        type=parsed_caches,
        default=("warm",),
        help="warm: read from the page cache; cold: after evicting the store from it before each round; "
        "warm,cold: both; default: warm",
    )
    group.addoption(
        "--readers",
        metavar="N,...",
        type=functools.partial(positive_integers, "--readers"),
        help="read batches and all images in so many processes at once, also while the store is replaced, and load "
        "epochs with PyTorch's DataLoader; default: no other process",
    )
    group.addoption(
        "--image-size",
        metavar="PIXELS,...",
        type=functools.partial(positive_integers, "--image-size"),
        help="measure with square images of so many pixels a side; default: the images' own sizes",
    )
    group.addoption(
        "--peers",
        action="store_true",
        help="also measure other formats: those whose packages are installed, see benchmarks/peers/requirements.txt",
    )
    group.addoption(
        "--report",
        metavar="DIR",
        help="write a page with the answer, charts and tables of the run into this folder, and the run as run.json",
    )
    group.addoption("--no-durable", action="store_true", help="store without waiting for the disk")
    group.addoption("--no-verify", action="store_true", help="read without checking checksums")


def add_comparing_options(parser: pytest.Parser) -> None:
    against = parser.getgroup("against", "imgstore: compare with another commit")
    against.addoption(
        "--against",
        metavar="REF",
        help="compare the cells of the run with those of this commit, instead of measuring them the usual way; "
        "exit with 1 when one is slower",
    )
    against.addoption(
        "--against-budget",
        metavar="SECONDS",
        type=parsed_budget,
        default=gate.DEFAULT_BUDGET,
        help=f"how long that may take; default: {gate.DEFAULT_BUDGET:.0f}",
    )
    against.addoption(
        "--against-report",
        metavar="FILE",
        type=parsed_report,
        action="append",
        default=[],
        help="also write the verdicts to a file, .md or .json; may be given several times",
    )


def add_fault_options(parser: pytest.Parser) -> None:
    faults = parser.getgroup("faults", "imgstore: the fault tests of `pytest imgstore/tests/faults`")
    faults.addoption("--long", action="store_true", help="try each fault as often as the README's table says")
    faults.addoption("--fault-seed", type=int, default=0, help="what the faults are drawn from; default: 0")


def parsed_cutoffs(text: str) -> tuple[int, ...]:
    return (*CUTOFFS, LARGEST_CUTOFF) if text == "all" else positive_integers("--cutoffs", text)


def parsed_pixels(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise pytest.UsageError(f"--max-pixels: {text!r} is not a positive integer such as 200000000")
    return int(text)


def positive_integers(option: str, text: str) -> tuple[int, ...]:
    if not all(part.isascii() and part.isdigit() and int(part) for part in text.split(",")):
        raise pytest.UsageError(f"{option}: {text!r} is not a list of positive integers such as 10,1000")
    return tuple(sorted({int(part) for part in text.split(",")}))


def parsed_caches(text: str) -> tuple[str, ...]:
    states = tuple(dict.fromkeys(text.split(",")))
    if not set(states) <= set(CACHES):
        raise pytest.UsageError(f"--cache: {text!r} is neither warm nor cold, nor warm,cold")
    return states


def parsed_backends(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in {*imgstore.BACKENDS, FLOOR}:
            raise pytest.UsageError(f"--backends: there is no {name!r}; choose from {', '.join(imgstore.BACKENDS)}")
    return names


def parsed_budget(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise pytest.UsageError(f"--against-budget: {text!r} is not a number of seconds")
    return seconds


def parsed_report(path: str) -> str:
    if not path.endswith(gate.REPORTS):
        raise pytest.UsageError(f"--against-report: {path} should end in {' or '.join(gate.REPORTS)}")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise pytest.UsageError(f"--against-report: there is no folder {os.path.dirname(path)}")
    return os.path.abspath(path)


def pytest_configure(config: pytest.Config) -> None:
    store_directory(config)
    prepare_report(config)
    against = config.getoption("--against")
    config.option.cutoffs = config.option.cutoffs or (CUTOFFS if against is None else gate.DEFAULT_CUTOFFS)
    if against is not None:
        must_be_one_kind(config)
        with one_line():
            config.stash[REFERENCE] = gate.Reference.of(config.rootpath, against)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupted)


def must_be_one_kind(config: pytest.Config) -> None:
    """Raise UsageError where a comparison with another commit is asked for more than it can tell apart."""
    if config.getoption("--readers") or len(sizes_of(config)) > 1 or len(config.getoption("--cache")) > 1:
        raise pytest.UsageError("--against: takes one --cache, one --image-size and no --readers")


def prepare_report(config: pytest.Config) -> None:
    """Have pytest-benchmark save the run that the report will be made from."""
    directory = config.getoption("--report")
    if directory is None:
        return
    if config.getoption("--against") is not None:
        raise pytest.UsageError("--report: with --against nothing is measured that it shows; see --against-report")
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(
            f"--report: {directory} cannot be made ({error.strerror}); give another folder"
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise pytest.UsageError(f"--report: {directory} cannot be written to; give a folder of yours")
    config.stash[REPORT] = Path(directory).absolute()
    if not config.option.benchmark_json:
        config.option.benchmark_json = str(config.stash[REPORT] / RUN_FILE)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Say what the gate refuses as pytest says what is wrong with its options."""
    try:
        yield
    except gate.GateError as error:
        raise pytest.UsageError(f"--against: {error}") from None


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


def source_of(config: pytest.Config, image_size: int | None) -> Source:
    """The images of the run of this size, opened when first asked for; UsageError where there are none."""
    opened = config.stash.setdefault(SOURCES, {})
    if image_size not in opened:
        location, count = config.getoption("--images"), max(config.getoption("--cutoffs"))
        if image_size:
            must_fit("--image-size", f"one of {image_size}x{image_size}", memory_to_open(location, 1, image_size))
        must_fit("--cutoffs", f"{count} images", count * LABEL_BYTES + memory_to_open(location, count, image_size))
        try:
            opened[image_size] = open_source(location, count, image_size, config.getoption("--max-pixels"))
        except ImgstoreError as error:
            raise pytest.UsageError(printable(f"--images: {error}")) from None
    return opened[image_size]


def must_fit(option: str, what: str, need: int) -> None:
    """Raise UsageError where so many bytes are more than the free memory."""
    free = free_memory()
    if need > free:
        room = f"{what} would need {need >> 20} MiB of memory or more, {free >> 20} MiB are free"
        raise pytest.UsageError(f"{option}: {room}; choose a smaller number")


def sizes_of(config: pytest.Config) -> tuple[int | None, ...]:
    """Pixels a side; None for the images' own sizes."""
    return config.getoption("--image-size") or (None,)


def sources_of(config: pytest.Config) -> list[Source]:
    return [source_of(config, size) for size in sizes_of(config)]


def terms_of(config: pytest.Config) -> Terms:
    return Terms(
        durable=not config.getoption("--no-durable"),
        cold=config.getoption("--cache") == ("cold",),
        verify=not config.getoption("--no-verify"),
    )


def told_terms(config: pytest.Config) -> dict[str, Any]:
    """The terms of the run, as they are shown and recorded."""
    both = {"cold": "both"} if len(config.getoption("--cache")) > 1 else {}
    elsewhere = {"readers": "other processes"} if config.getoption("--readers") else {}  # each with its share, by ids
    return asdict(terms_of(config)) | both | elsewhere


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
    sources_of(config)
    run_directory(config)
    kind = terms.file_system(store_directory(config))[0]
    if kind in terms.RAM_DISKS:
        where = f"{store_directory(config)} is a RAM disk ({kind})"
        if "cold" in config.getoption("--cache"):
            raise pytest.UsageError(f"--cache: {where}, where nothing is cold; give --store-dir=PATH on another")
        message = f"{where}: storing there measures no disk; see --store-dir"
        config.issue_config_time_warning(UserWarning(message), stacklevel=2)
    must_match = bool(config.getoption("benchmark_compare_fail"))
    if must_match or config.getoption("benchmark_compare"):
        compared = config._benchmarksession.compared_mapping  # type: ignore[attr-defined]
        reason = terms.missing_rows(compared, cells, must_match)
        if reason:
            raise pytest.UsageError(f"--benchmark-compare: {reason}")


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    if SOURCES not in config.stash:
        return []
    kind, device = terms.file_system(store_directory(config))
    missing = peers.missing() if config.getoption("--peers") else {}
    return [
        *(f"no {name}: {reason}" for name, reason in missing.items()),
        *(line for source in sources_of(config) for line in heading_of(source)),
        f"stores: in {store_directory(config)}, {kind} on {device}",
        f"terms: {terms.shown(told_terms(config))}",
    ]


def heading_of(source: Source) -> list[str]:
    left_out = [f"left out: {path}: {reason}" for path, reason in source.left_out]
    others = [f"not looked at: {source.not_looked_at}"] if source.not_looked_at else []
    first = f"images: {source.name}" + (f"; {len(left_out)} files left out" if left_out else "")
    return [printable(line) for line in (first, *source.less, *others, *left_out)]


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


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With --against, compare the cells instead of running them."""
    config = session.config
    if REFERENCE not in config.stash or session.testsfailed or config.getoption("collectonly"):
        return None
    keys = [key for item in session.items if (key := key_of(item))]
    if not keys:
        raise pytest.UsageError("--against: no cell of ours was chosen; give the folder `benchmarks`, a wider -k")
    directory, budget = run_directory(config), config.getoption("--against-budget")
    show = PairProgress(config.pluginmanager.getplugin("terminalreporter"))
    with one_line():
        outcome = gate.compare(
            config.stash[REFERENCE], keys, directory, sources_of(config)[0], terms_of(config), budget, show
        )
    config.stash[OUTCOME], session.testsfailed = outcome, len(outcome.slower)
    for row in outcome.rows.values():
        show.reporter._add_stats(row.verdict, [row])  # what pytest's last line counts
    try:
        gate.write_reports(outcome, config.getoption("--against-report"))
    except OSError as error:
        raise pytest.UsageError(f"--against-report: {error.filename} cannot be written ({error.strerror})") from None
    return True


def key_of(item: pytest.Item) -> Key | None:
    """The cell of a test that measures one of our backends."""
    if not (is_cell(item) and isinstance(item, pytest.Function)):
        return None
    operation, parameters = operation_of(item.function), dict[str, Any](item.callspec.params)
    if operation not in OPERATIONS or parameters["backend"] not in imgstore.BACKENDS:
        return None
    return Key(operation, parameters["cutoff"], parameters["backend"])


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    terms.forget_clock_speed(machine_info)
    machine_info["imgstore"] = terms.recorded(sources_of(config), told_terms(config), store_directory(config))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add the command, which is no part of the machine: runs whose machines differ are warned of."""
    output_json["command"] = shlex.join(["pytest", *map(str, config.invocation_params.args)])
    config.stash[SAVED] = output_json


@pytest.hookimpl(optionalhook=True, tryfirst=True)  # before pytest-benchmark compares them
def pytest_benchmark_compare_machine_info(machine_info: dict[str, Any], compared_benchmark: dict[str, Any]) -> None:
    reason = terms.incomparable(machine_info["imgstore"], compared_benchmark["machine_info"].get("imgstore", {}))
    if reason:
        raise pytest.UsageError(f"--benchmark-compare: {reason}")
    for name in terms.SHOWN:  # how many images there were, say, which makes no other machine for pytest-benchmark
        compared_benchmark["machine_info"]["imgstore"][name] = machine_info["imgstore"][name]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where all tests are cells, tell how far the run is, instead of a dot for each."""
    config, items = session.config, [item for item in session.items if is_cell(item)]
    reporter = config.pluginmanager.getplugin("terminalreporter")
    busy = items and len(items) == len(session.items) and not config.getoption("collectonly")
    if busy and reporter and reporter.verbosity == 0 and REFERENCE not in config.stash:
        config.pluginmanager.register(CellProgress(reporter, items))


def measured(config: pytest.Config) -> list[Any]:
    """The benchmarks of the run; none where another runner has taken pytest-benchmark's place."""
    session = getattr(config, "_benchmarksession", None)
    return session.benchmarks if session else []


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-benchmark saves
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    benchmarks = measured(session.config)
    # an interrupted cell has no round, which pytest-benchmark does not expect; a failed one has no figure
    benchmarks[:] = [benchmark for benchmark in benchmarks if benchmark and not benchmark.has_error]
    report.add_figures(benchmarks)
    yield


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    try:
        yield  # pytest-benchmark's tables
    finally:
        outcome = config.stash.get(OUTCOME, None)
        for line in report.summary(measured(config)) if outcome is None else gate.table(outcome):
            terminalreporter.write_line(line)
        if REPORT in config.stash:
            terminalreporter.write_line(f"report: {write_report(config, terminalreporter)}")


def write_report(config: pytest.Config, reporter: pytest.TerminalReporter) -> str:
    """Keep the run and make its page; gives the page's path, or says why there is none, which fails the run."""
    if not any("operation" in benchmark.extra_info for benchmark in measured(config)):
        return "nothing was measured, so there is none"
    path = config.stash[REPORT] / RUN_FILE
    try:
        path.write_text(json.dumps(to_be_shown(config.stash[SAVED]), indent=4, default=repr), encoding="utf-8")
        return str(report.write_page([path], config.stash[REPORT]))
    except (RunError, OSError) as error:
        session = reporter._session
        assert session
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        return f"none, because of {error}"


def to_be_shown(run: dict[str, Any]) -> dict[str, Any]:
    """A saved run without the machine's name, nor megabytes of the seconds of each round."""
    benchmarks = [
        {**each, "stats": {name: value for name, value in each["stats"].items() if name != "data"}}
        for each in run["benchmarks"]
    ]
    return {**run, "machine_info": {**run["machine_info"], "node": ""}, "benchmarks": benchmarks}
