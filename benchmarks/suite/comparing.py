"""--against: compare the cells with another commit's instead of measuring them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

import imgstore
from benchmarks.gate import compare as gate
from benchmarks.gate import reference, tables
from benchmarks.gate.contest import Key
from benchmarks.measure.operations import OPERATIONS
from benchmarks.suite.asked import REFERENCE, run_directory, sizes_of, sources_of, terms_of
from benchmarks.suite.cells import is_cell, operation_of
from benchmarks.suite.progress import PairProgress

OUTCOME = pytest.StashKey[tables.Outcome]()


def must_be_one_kind(config: pytest.Config) -> None:
    """Raise UsageError where a comparison with another commit is asked for more than it can tell apart."""
    if config.getoption("--readers") or len(sizes_of(config)) > 1 or len(config.getoption("--cache")) > 1:
        raise pytest.UsageError("--against: takes one --cache, one --image-size and no --readers")


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Say what the gate refuses as pytest says what is wrong with its options."""
    try:
        yield
    except reference.GateError as error:
        raise pytest.UsageError(f"--against: {error}") from None


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
        tables.write_reports(outcome, config.getoption("--against-report"))
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
