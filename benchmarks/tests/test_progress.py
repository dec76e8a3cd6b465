"""Tests of the line that says where a run is."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.suite import progress
from benchmarks.suite.progress import CellProgress, Pace, PairProgress


class Reporter:
    """A terminal, as far as progress looks at it."""

    def __init__(self, isatty: bool, width: int = 80) -> None:
        self.isatty, self.text, self.showfspath = isatty, "", True
        self._tw = SimpleNamespace(fullwidth=width)

    def write_line(self, line: str) -> None:
        self.text += f"{line}\n"

    def rewrite(self, line: str, erase: bool = False) -> None:
        self.text += f"\r{line}"


class Clock:
    """Time that the test tells."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def item(operation: str, cutoff: int, backend: str) -> Any:
    name = f"test_{operation}"
    return SimpleNamespace(
        nodeid=f"benchmarks/x.py::{name}[{cutoff}-{backend}]",
        name=f"{name}[{cutoff}-{backend}]",
        originalname=name,
        callspec=SimpleNamespace(params={"cutoff": cutoff, "backend": backend}),
    )


def run(show: CellProgress, clock: Clock, items: list[Any], seconds: list[float]) -> None:
    for each, taken in zip(items, seconds, strict=True):
        show.pytest_runtest_logstart(each.nodeid)
        clock.now += taken
        show.pytest_runtest_logfinish(each.nodeid)
    show.pytest_sessionfinish()


ITEMS = [item("read_many", cutoff, backend) for cutoff in (10, 100) for backend in ("lmdb", "hdf5")]


def test_a_line_for_each_cell_where_there_is_no_terminal(clock: Clock) -> None:
    reporter = Reporter(isatty=False)
    run(CellProgress(reporter, ITEMS), clock, ITEMS, [2, 40, 9, 9])
    assert reporter.text.splitlines() == [
        "cell 1 of 4: read_many[10-lmdb]",
        "cell 2 of 4: read_many[10-hdf5], about 6 s left",  # three cells of two seconds
        "cell 3 of 4: read_many[100-lmdb], about 42 s left",
        "cell 4 of 4: read_many[100-hdf5], about 40 s left",
    ]


def test_one_line_that_does_not_scroll_on_a_terminal(clock: Clock) -> None:
    reporter = Reporter(isatty=True, width=30)
    run(CellProgress(reporter, ITEMS), clock, ITEMS, [2, 40, 9, 9])
    assert "\n" not in reporter.text and reporter.text.endswith("\r\r")
    shown = reporter.text.split("\r")
    assert shown[1] == "cell 1 of 4: read_many[10-lmd" and all(len(line) < 30 for line in shown)


def test_minutes(clock: Clock) -> None:
    reporter = Reporter(isatty=False)
    run(CellProgress(reporter, ITEMS[:2]), clock, ITEMS[:2], [125, 1])
    assert reporter.text.splitlines()[1].endswith("about 2 min 5 s left")


def test_the_time_of_more_images_lies_on_the_line_through_fewer() -> None:
    pace = Pace()
    pace.add("read_many", 10, 1.0)
    assert pace.expected("read_many", 1000) == 1.0
    pace.add("read_many", 100, 4.0)
    assert pace.expected("read_many", 1000) == pytest.approx(34)
    pace.add("read_many", 1000, 3.0)  # faster than before: no less than the last
    assert pace.expected("read_many", 10_000) == 3.0
    assert pace.expected("store_many", 10) == pytest.approx((1 + 4 + 3) / 3)


def test_settings_have_a_pace_of_their_own() -> None:
    cold = item("read_many", 10, "lmdb")
    cold.callspec.params["cache"] = "cold"
    assert progress.kind_of(cold)[0] != progress.kind_of(ITEMS[0])[0]


def test_cells_are_counted_without_a_letter_and_other_tests_are_left_alone() -> None:
    show = CellProgress(Reporter(isatty=True), ITEMS)
    for nodeid, expected in ((ITEMS[0].nodeid, ("failed", "", "")), ("other", ("failed", "F", "FAILED"))):
        status = show.pytest_report_teststatus(SimpleNamespace(nodeid=nodeid))
        next(status)
        with pytest.raises(StopIteration) as stopped:
            status.send(("failed", "F", "FAILED"))
        assert stopped.value.value == expected


def test_at_the_end_it_is_told_what_failed() -> None:
    show = CellProgress(Reporter(isatty=False), ITEMS)
    show.pytest_sessionfinish()
    status = show.pytest_report_teststatus(SimpleNamespace(nodeid=ITEMS[0].nodeid))
    next(status)
    with pytest.raises(StopIteration) as stopped:
        status.send(("failed", "F", "FAILED"))
    assert stopped.value.value == ("failed", "F", "FAILED")


def test_a_test_that_is_no_cell_shows_nothing(clock: Clock) -> None:
    reporter = Reporter(isatty=False)
    show = CellProgress(reporter, ITEMS)
    show.pytest_runtest_logstart("other")
    show.pytest_runtest_logfinish("other")
    assert reporter.text == "" and not show.pace.taken


@pytest.mark.parametrize(("isatty", "shown"), [(True, ["", "a", "b", "a"]), (False, ["a", "a"])])
def test_pairs_are_one_line_on_a_terminal_and_a_line_each_elsewhere(isatty: bool, shown: list[str]) -> None:
    reporter = Reporter(isatty)
    show = PairProgress(reporter)
    for cell, pairs in (("a", 0), ("b", 0), ("a", 1)):
        show(cell, pairs, 12.4)
    lines = reporter.text.split("\r") if isatty else reporter.text.splitlines()
    assert [line.partition(":")[0] for line in lines] == shown
    assert lines[-1] == "a: 1 pairs done, 12 s left at most"
