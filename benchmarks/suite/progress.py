"""Where a run is: what is under way, how much is done, and how long the rest will take.

In one line that is rewritten on a terminal, in lines of their own elsewhere.
"""

import time
from collections.abc import Generator, Sequence
from statistics import fmean
from typing import Any

import pytest


class Pace:
    """Seconds that cells took, by what is done in them and the number of images."""

    def __init__(self) -> None:
        self.taken: dict[str, dict[int, float]] = {}

    def add(self, kind: str, cutoff: int, seconds: float) -> None:
        self.taken.setdefault(kind, {})[cutoff] = seconds

    def expected(self, kind: str, cutoff: int) -> float:
        """On a straight line through the last two numbers of images of its kind, and no less than the last took."""
        known = list(self.taken.get(kind, {}).items())[-2:]
        if not known:
            return fmean(seconds for taken in self.taken.values() for seconds in taken.values())
        (count, seconds), (last_count, last) = known[0], known[-1]
        slope = (last - seconds) / (last_count - count) if last_count != count else 0.0
        return max(last, last + slope * (cutoff - last_count))


def show(reporter: Any, text: str) -> None:
    if reporter.isatty:
        reporter.rewrite(text[: reporter._tw.fullwidth - 1], erase=True)
    else:
        reporter.write_line(text)


class PairProgress:
    """Of a comparison with another commit; elsewhere than on a terminal once for each pair."""

    def __init__(self, reporter: Any) -> None:
        self.reporter, self.pairs = reporter, -1

    def __call__(self, cell: str, pairs: int, left: float) -> None:
        if self.reporter.isatty or pairs != self.pairs:
            show(self.reporter, f"{cell}: {pairs} pairs done, {left:.0f} s left at most")
        self.pairs = pairs


class CellProgress:
    """Of a run, cell by cell: a plugin of pytest that says it in place of a dot for each test."""

    def __init__(self, reporter: Any, items: Sequence[Any]) -> None:
        self.reporter, self.items = reporter, {item.nodeid: item for item in items}
        self.waiting, self.pace, self.start = dict(self.items), Pace(), 0.0
        reporter.showfspath = False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if nodeid in self.items:
            self.start = time.monotonic()
            done = len(self.items) - len(self.waiting)
            name = self.items[nodeid].name.removeprefix("test_")
            show(self.reporter, f"cell {done + 1} of {len(self.items)}: {name}{self.left()}")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        item = self.waiting.pop(nodeid, None)
        if item:
            self.pace.add(*kind_of(item), time.monotonic() - self.start)

    def left(self) -> str:
        """Nothing before the first cell is done, which is all there is to go by."""
        if not self.pace.taken:
            return ""
        seconds = round(sum(self.pace.expected(*kind_of(item)) for item in self.waiting.values()))
        minutes = f"{seconds // 60} min " if seconds >= 60 else ""
        return f", about {minutes}{seconds % 60} s left"

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self, report: Any) -> Generator[None, tuple[Any, ...], tuple[Any, ...]]:
        """Counted as ever, but without a letter as long as the run lasts: the end tells what failed or was skipped."""
        category, *words = yield
        return (category, "", "") if report.nodeid in self.items else (category, *words)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self.items = {}
        if self.reporter.isatty:
            self.reporter.rewrite("", erase=True)
            self.reporter.rewrite("")


def kind_of(item: Any) -> tuple[str, int]:
    """What a cell does, on which backend and in which setting, and the number of images."""
    parameters = dict(item.callspec.params)
    cutoff = parameters.pop("cutoff")
    return f"{item.originalname}{sorted(parameters.items())}", cutoff
