"""Two copies of `imgstore` against each other: pairs of fresh processes that alternate, screening, confirming.

The unit is a pair of processes, because what differs between two runs of the same code is settled when a process
starts: where its memory lies, how its hashes fall. Within a pair the sides take turns on one core, in an order drawn
anew each round, so that both meet the same moods of the machine; a pair gives one number, the median of its rounds'
log-ratios. (With any core for either side the numbers of identical code that reads spread by 3 to 27%, not 1 to 4%.)
"""

import math
import os
import pickle
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from random import Random
from statistics import median
from typing import NamedTuple

import benchmarks
from benchmarks.gate.verdicts import FEWEST_PAIRS, Row, Series, judge, looks_changed, looks_slower, settled, strength
from benchmarks.measure.cell import Terms
from benchmarks.measure.floor import FLOOR
from benchmarks.measure.images import Source
from benchmarks.measure.operations import stores
from benchmarks.measure.reading import ReadMany
from benchmarks.measure.storing import StoreSingle
from benchmarks.measure.worker import CannotRunError, OutOfTimeError, Worker, WorkerGoneError

PACKAGE, HARNESS = "imgstore", os.path.dirname(benchmarks.__file__)
NEW, REF = 0, 1
SIDES = ("working tree", "REF")
ROUND_SECONDS = 0.01
SCREENING_ROUNDS, CONFIRMING_ROUNDS, FEWEST_ROUNDS = 10, 24, 3
CELL_SECONDS = 1.0  # of a pair, beyond which a cell gets fewer rounds
SCREENING_PAIRS, SCREENING_SHARE = 4, 0.5
SPARE_SECONDS = 5.0  # beyond the budget, for the cell that is being measured
MOST_PAIRS = 24  # that confirm
MOST_AT_ONCE = 3  # cells, so that the time goes to what looks changed most
PAIRS_TO_A_CONTROL = 2  # pairs that confirm for each of REF against REF, once there are enough of these for a verdict
CONTROLLED_PAIRS = 2  # that confirm, below which it is too early for a control
CONTROLLED_STRENGTH = 2.0  # standard errors of change, below which nothing is found that a control could forbid
LARGEST_CONTROL_CUTOFF = 1000


class CannotStartError(Exception):
    """The fault is in what measures, or in the machine: neither side's process starts."""


class Key(NamedTuple):
    """A cell."""

    operation: str
    cutoff: int
    backend: str

    def __str__(self) -> str:
        return f"{self.operation}[{self.cutoff}-{self.backend}]"

    @property
    def floor(self) -> "Key":
        """The cell that answers for this one: as it reads or stores, but without our code."""
        kind = StoreSingle if stores(self.operation) else ReadMany
        return Key(kind.operation, min(self.cutoff, LARGEST_CONTROL_CUTOFF), FLOOR)


class Trees(NamedTuple):
    """Folders with a package `imgstore` each, that of the working tree and that of REF, and `benchmarks` beside it."""

    new: str
    ref: str


def copy_package(package: str | os.PathLike[str], tree: str) -> None:
    """Copy a package below the folder `tree`, as it is now."""
    ignored = shutil.ignore_patterns("__pycache__", "tests", "results")
    shutil.copytree(package, os.path.join(tree, os.path.basename(package)), ignore=ignored)


def plan(seconds: float, whole: float) -> tuple[int, int]:
    """How many calls a round repeats, and how many rounds there is time for; of a call that takes so many seconds.

    whole: the same with its preparation and check.
    """
    calls = max(1, round(ROUND_SECONDS / seconds))
    return calls, max(FEWEST_ROUNDS, int(CELL_SECONDS / (2 * calls * whole)))


@dataclass
class Contest:
    """Which cells of `trees.new` are slower than those of `trees.ref`, within `budget` seconds.

    progress: called with what is being done, the pairs that are done and the seconds left. turn: a context
    around each round of a side, for what shall happen in its turns only. times: for each cell and pair, seconds
    of a call in each round, of both sides; the first pairs are those that screened.
    """

    trees: Trees
    directory: str
    source: Source
    terms: Terms
    budget: float
    progress: Callable[[str, int, float], None] = lambda cell, pairs, left: None
    turn: Callable[[int], AbstractContextManager[object]] = lambda side: nullcontext()
    cells: dict[Key, Series] = field(default_factory=dict)
    floors: dict[Key, list[float]] = field(default_factory=dict)
    times: dict[Key, list[list[tuple[float, float]]]] = field(default_factory=dict)
    pairs: int = 0
    started: Counter[Trees] = field(default_factory=Counter)
    plans: dict[Key, tuple[int, int]] = field(default_factory=dict)
    random: Random = field(default_factory=Random)

    def run(self, keys: Iterable[Key]) -> dict[Key, Row]:
        """Screen all cells, then confirm with fresh pairs what looks changed or is too uncertain."""
        self.end = time.monotonic() + self.budget
        self.cells = {key: Series() for key in keys}
        with tempfile.NamedTemporaryFile(dir=self.directory) as file:
            pickle.dump(self.source, file)
            file.flush()
            self.images = file.name
            self._screen()
            self._confirm()
        return judge(self.cells, {key: self.floors.get(key.floor, ()) for key in self.cells})

    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def _screen(self) -> None:
        until = self.budget * (1 - SCREENING_SHARE)
        for number in range(SCREENING_PAIRS):
            if self.left() > (0 if number < 2 else until):
                self._pair(self.trees, self._live(), lambda key: self.cells[key].screened, SCREENING_ROUNDS)

    def _confirm(self) -> None:
        """Fresh pairs for what looks changed most; once nothing does, for what is still too uncertain.

        Pairs may end as soon as a cell looks unchanged: that makes a finding rarer, never more frequent.
        """
        while self.left() and (keys := self._open()):
            self._pair(self.trees, [*keys, *dict.fromkeys(key.floor for key in keys)], self._fresh)
            if behind := [key for key in self._open() if self._lacks_control(self.cells[key])]:
                self._pair(Trees(self.trees.ref, self.trees.ref), behind, lambda key: self.cells[key].control)

    def _open(self) -> list[Key]:
        short = [key for key in self._live() if len(self.cells[key].fresh) < MOST_PAIRS]
        changed = [key for key in short if looks_changed(self.cells[key])]
        wanted = changed or [key for key in short if not settled(self.cells[key].latest)]
        return sorted(wanted, key=self._urgency, reverse=True)[:MOST_AT_ONCE]

    def _urgency(self, key: Key) -> tuple[bool, float]:
        """What looked slower comes first: it alone fails a run, and a commit may make any number of cells faster.

        As it was screened: what fresh pairs show must not decide when they end.
        """
        return looks_slower(self.cells[key].screened), strength(self.cells[key])

    @staticmethod
    def _lacks_control(series: Series) -> bool:
        may_be_found = len(series.fresh) >= CONTROLLED_PAIRS and strength(series) > CONTROLLED_STRENGTH
        return may_be_found and len(series.control) < max(FEWEST_PAIRS, len(series.fresh) / PAIRS_TO_A_CONTROL)

    def _live(self) -> list[Key]:
        return [key for key, series in self.cells.items() if series.reason is None]

    def _fresh(self, key: Key) -> list[float]:
        return self.floors.setdefault(key, []) if key.backend == FLOOR else self.cells[key].fresh

    def _pair(
        self, trees: Trees, keys: Sequence[Key], into: Callable[[Key], list[float]], rounds: int = CONFIRMING_ROUNDS
    ) -> None:
        """Append a log-ratio for each cell; a cell that a side cannot run is struck off with its reason."""
        with tempfile.TemporaryDirectory(dir=self.directory) as top, ExitStack() as stack, suppress(OutOfTimeError):
            workers = self._workers(trees, top, stack)
            self._must_start(workers)
            for key in self.random.sample(keys, len(keys)):
                if not self.left():
                    return
                self.progress(str(key), self.pairs, self.left())
                try:
                    times = self._rounds(workers, key, rounds)
                except CannotRunError as error:
                    if key in self.cells:
                        self.cells[key].reason = str(error)
                    if isinstance(error, WorkerGoneError):
                        return
                    continue
                into(key).append(median(math.log(new / ref) for new, ref in times))
                self.times.setdefault(key, []).append(times)
            self.pairs += 1

    def _workers(self, trees: Trees, top: str, stack: ExitStack) -> list[Worker]:
        """One for each side; from pair to pair of these trees they swap folders, and who is started first."""
        swapped, seed = self.started[trees] % 2, self.random.randrange(2**32)
        core = self.random.choice(sorted(os.sched_getaffinity(0)))  # for both: two cores differ by up to a fifth
        self.started[trees] += 1
        workers: dict[int, Worker] = {}
        for side in (swapped, 1 - swapped):
            folder = os.path.join(top, str(side ^ swapped))
            name = SIDES[REF] if trees[side] == self.trees.ref else SIDES[NEW]
            deadline = self.end + SPARE_SECONDS
            started = Worker(name, trees[side], folder, self.images, self.terms, seed, deadline, core)
            workers[side] = stack.enter_context(started)
        return [workers[NEW], workers[REF]]

    @staticmethod
    def _must_start(workers: Sequence[Worker]) -> None:
        errors = []
        for worker in workers:
            try:
                worker.ask("ready")
            except WorkerGoneError as error:
                errors.append(error)
        if len(errors) == len(workers):
            raise CannotStartError(str(errors[0]))

    def _rounds(self, workers: Sequence[Worker], key: Key, rounds: int) -> list[tuple[float, float]]:
        """Seconds of a call, of both sides, in that many rounds or as many as there is time for."""
        for worker in self.random.sample(workers, 2):
            worker.ask("open", *key)
        if not self.pairs and key.backend != FLOOR:
            self._must_read_each_other(workers, key)
        if key not in self.plans:
            pilots = [worker.ask("pilot") for worker in workers]
            self.plans[key] = plan(*map(max, zip(*pilots, strict=True)))
        calls, most = self.plans[key]
        times = [self._round(workers, calls) for _ in range(min(rounds, most))]
        for worker in workers:
            worker.ask("close")
        return times

    def _round(self, workers: Sequence[Worker], calls: int) -> tuple[float, float]:
        seconds = {}
        for side in self.random.sample((NEW, REF), 2):
            with self.turn(side):
                seconds[side] = workers[side].ask("round", calls)
        return seconds[NEW], seconds[REF]

    @staticmethod
    def _must_read_each_other(workers: Sequence[Worker], key: Key) -> None:
        """Two layouts on disk are two formats, whose times say nothing about one of them."""
        for reader, writer in (workers, reversed(workers)):
            try:
                reader.ask("read_store", key.cutoff, key.backend, reader.folder)
            except CannotRunError:
                continue  # it cannot read at all, which the cells that read will tell
            try:
                reader.ask("read_store", key.cutoff, key.backend, writer.folder)
            except CannotRunError as error:
                raise CannotRunError(f"another layout on disk, which {reader.name} cannot read ({error})") from None
