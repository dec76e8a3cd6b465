"""What is refused before anything is measured, and what the run says of itself first."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers
from benchmarks.gate import compare as gate
from benchmarks.gate import reference
from benchmarks.measure.images import Source
from benchmarks.report import conditions as terms
from benchmarks.suite.asked import (
    REFERENCE,
    SOURCES,
    run_directory,
    sources_of,
    store_directory,
    told_terms,
)
from benchmarks.suite.cells import is_cell
from benchmarks.suite.comparing import must_be_one_kind, one_line
from benchmarks.suite.options import CUTOFFS
from benchmarks.suite.progress import CellProgress
from benchmarks.suite.reporting import prepare_report
from imgstore.errors import printable
from imgstore.sources.account import EXPECTED


def pytest_configure(config: pytest.Config) -> None:
    must_be_measured_with(config)
    store_directory(config)
    prepare_report(config)
    against = config.getoption("--against")
    config.option.cutoffs = config.option.cutoffs or (CUTOFFS if against is None else gate.DEFAULT_CUTOFFS)
    if against is not None:
        must_be_one_kind(config)
        with one_line():
            config.stash[REFERENCE] = reference.Reference.of(config.rootpath, against)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupted)


def must_be_measured_with(config: pytest.Config) -> None:
    """Raise UsageError where images are given that are not there, or to tests, which take none."""
    images = config.getoption("--images")
    if images is None:
        return
    if all("tests" in Path(argument.partition("::")[0]).parts for argument in config.args):
        message = f"the tests take no images; to measure with them: pytest benchmarks --images={images}"
        raise pytest.UsageError(printable(f"--images: {message}"))
    if not os.path.exists(images):
        raise pytest.UsageError(printable(f"--images: {images}: there is no such file or folder; {EXPECTED}"))


def interrupted(number: int, frame: Any) -> None:
    """End as Ctrl-C does, so that what was stored is removed."""
    raise KeyboardInterrupt("terminated")


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


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where all tests are cells, tell how far the run is, instead of a dot for each."""
    config, items = session.config, [item for item in session.items if is_cell(item)]
    reporter = config.pluginmanager.getplugin("terminalreporter")
    busy = items and len(items) == len(session.items) and not config.getoption("collectonly")
    if busy and reporter and reporter.verbosity == 0 and REFERENCE not in config.stash:
        config.pluginmanager.register(CellProgress(reporter, items))
