"""Alternates two callables and gives the ratio of their times with its spread.

Two runs one after the other compare the moods of a machine as much as the code; two callables in turn meet the
same ones. `python -m benchmarks.studies.pairs` prints how far each backend is from the physical limit and from the
plain use of its format, beside the goals that were set.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import imgstore
from benchmarks import peers
from benchmarks.measure import floor
from benchmarks.measure.cell import Cell, Terms
from benchmarks.measure.images import Source
from benchmarks.measure.operations import OPERATIONS, stores
from benchmarks.measure.reading import ReadOne
from benchmarks.measure.workload import Workload
from benchmarks.sources import open_source
from imgstore.errors import ImgstoreError

SEED = 20
CALLS_OF_A_SHORT_ONE = 200
AT_LEAST = 5
MOST_FILES = 10_000  # where a file is made for each image: the time of one does not depend on how many there are
UNVERIFIED = "verify=False"


@dataclass(frozen=True)
class Ratio:
    """Of the first's times to the second's, pair by pair: the median and the quartiles."""

    median: float
    low: float
    high: float
    pairs: int
    first: float  # median seconds
    second: float

    @classmethod
    def of(cls, times: list[tuple[float, float]]) -> "Ratio":
        first, second = np.array(times).T
        low, median, high = np.quantile(first / second, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high, len(times), float(np.median(first)), float(np.median(second)))


def alternate(
    first: Callable[[], float], second: Callable[[], float], seconds: float, at_least: int = AT_LEAST
) -> list[tuple[float, float]]:
    """Pairs of what `first` and `second` return, called in turn, in an order drawn for each pair."""
    order = random.Random(SEED)
    end = time.monotonic() + seconds
    times: list[tuple[float, float]] = []
    while len(times) < at_least or time.monotonic() < end:
        if order.random() < 0.5:
            one = first()
            times.append((one, second()))
        else:
            other = second()
            times.append((first(), other))
    return times


def timed(workload: Workload) -> Callable[[], float]:
    """A round of the workload; gives the seconds of one call. Its first result is checked."""
    workload.check(workload.call(*workload.prepare()))
    calls = CALLS_OF_A_SHORT_ONE if workload.repeats else 1

    def round_() -> float:
        arguments = workload.prepare()
        start = time.perf_counter()
        for _ in range(calls):
            result = workload.call(*arguments)
        seconds = time.perf_counter() - start
        del result  # only now: to let go of the memory takes its time, too
        return seconds / calls

    return round_


class Goal(NamedTuple):
    """`ours` takes at most `most` times as long as `reference`, or in read_one as many seconds more."""

    operation: str
    ours: str
    reference: str
    most: float
    verify: bool = True


GOALS = (
    Goal("store_many", "hdf5", "floor", 1.3),
    Goal("store_many", "lmdb", "floor", 1.5),
    Goal("read_many", "hdf5", "floor", 1.2, verify=False),
    Goal("read_many", "lmdb", "floor", 1.3, verify=False),
    Goal("read_many", "hdf5", "floor", 1.6),
    Goal("read_many", "lmdb", "floor", 1.6),
    Goal("read_batch", "hdf5", "floor", 2, verify=False),
    Goal("read_batch", "lmdb", "floor", 3, verify=False),
    Goal("read_batch", "hdf5", "floor", 4),
    Goal("read_batch", "lmdb", "floor", 5),
    Goal("read_one", "hdf5", "floor", 5e-6),
    Goal("read_one", "lmdb", "floor", 5e-6),
    Goal("read_single", "hdf5", "h5py", 1),
    Goal("read_single", "lmdb", "py-lmdb", 1.3),
    Goal("store_single", "hdf5", "floor", 3.5),
    Goal("store_single", "lmdb", "floor", 1.5),
)
GOALS_OF_FILES = (
    Goal("store_many", "disk", "pillow", 1 / 4),
    Goal("store_many", "disk", "opencv", 1),
    Goal("read_many", "disk", "pillow", 1 / 4, verify=False),
    Goal("read_many", "disk", "opencv", 1, verify=False),
    Goal("read_many", "disk", UNVERIFIED, 1.1),
    Goal("read_batch", "disk", "opencv", 1),
    Goal("read_single", "disk", "pillow", 1.2),
    Goal("store_single", "disk", "floor", 1.5),
)
GOALS_OF_PHOTOGRAPHS = tuple(
    Goal(operation, ours, "floor", most, verify)
    for operation, most, verify in (("store_many", 1.3, True), ("read_many", 1.3, False), ("read_many", 1.6, True))
    for ours in ("hdf5", "lmdb")
)


def row(goal: Goal, count: int, ratio: Ratio) -> str:
    """A line of the table, in Markdown; `count` images were in the store."""
    if goal.operation == ReadOne.operation:
        more = ratio.first - ratio.second
        measured, most, met = f"{more * 1e6:+.1f} us", f"+{goal.most * 1e6:.0f} us", more <= goal.most
    else:
        measured = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        most, met = f"{goal.most:.2f}", ratio.median <= goal.most
    check = "on" if goal.verify or stores(goal.operation) else "off"
    met_or_not = "yes" if met else "no"
    entries = (goal.operation, f"{count:,}", goal.ours, check, goal.reference, measured, most, met_or_not, ratio.pairs)
    return f"| {' | '.join(map(str, entries))} |"


class Bench:
    """Stored sets and workloads of one source, below one folder."""

    def __init__(self, source: Source, cutoff: int, directory: str) -> None:
        self.images, self.labels = source.take(cutoff)
        self.directory = directory

    def ratio(self, goal: Goal, seconds: float) -> Ratio:
        ours = self.workload(goal.operation, goal.ours, goal.verify)
        reference = goal.ours if goal.reference == UNVERIFIED else goal.reference
        other = self.workload(goal.operation, reference, goal.verify and goal.reference != UNVERIFIED)
        try:
            return Ratio.of(alternate(timed(ours), timed(other), seconds))
        finally:
            ours.finish()
            other.finish()

    def workload(self, operation: str, name: str, verify: bool) -> Workload:
        module: Any = floor if name == "floor" else imgstore.BACKENDS.get(name) or peers.load(name)
        directory = os.path.join(self.directory, name)
        cell = Cell(name, module, self.images, self.labels, directory, Terms(verify=verify))
        if not os.path.isdir(cell.stored):
            os.makedirs(directory, exist_ok=True)
            cell.store()
        return OPERATIONS[operation](cell)


HEADINGS = (
    "operation",
    "images",
    "backend",
    "verify",
    "against",
    "takes times as long (quartiles), or so much longer",
    "goal",
    "met",
    "pairs",
)


def lines(bench: Bench, goals: Iterable[Goal], seconds: float) -> Iterator[str]:
    """A row of the table for each goal."""
    count = len(bench.images)
    for goal in goals:
        reason = peers.missing().get(goal.reference)
        if reason:
            yield f"| {goal.operation} | {count:,} | {goal.ours} | | {reason} |"
        else:
            yield row(goal, count, bench.ratio(goal, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.pairs", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--images", metavar="PATH", help="as for pytest benchmarks; photographs have goals of their own"
    )
    parser.add_argument("--cutoff", type=int, default=100_000, help="images in a store; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="for each row, five pairs at least; default: 10")
    parser.add_argument(
        "--store-dir", metavar="PATH", help="a folder on the disk to measure; default: the temporary one"
    )
    options = parser.parse_args()
    try:
        source = open_source(options.images, options.cutoff)
    except ImgstoreError as error:
        parser.error(f"--images: {error}")
    print(f"| {' | '.join(HEADINGS)} |")
    print(f"| {' | '.join('---' for _ in HEADINGS)} |")
    if options.images:
        parts = [(GOALS_OF_PHOTOGRAPHS, options.cutoff)]
    else:
        parts = [(GOALS, options.cutoff), (GOALS_OF_FILES, min(options.cutoff, MOST_FILES))]
    for goals, count in parts:
        with tempfile.TemporaryDirectory(prefix="imgstore-", dir=options.store_dir) as directory:
            for line in lines(Bench(source, count, directory), goals, options.seconds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
