"""Several saved runs: which of them compare, and where a cell's time took a step that stands out from the noise.

The floor runs none of our code, so its cells tell how the machine differed between two runs, and how unsteady it
was. A step is a change beyond theirs from the runs before it to those after it.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from statistics import fmean, median
from typing import NamedTuple

from benchmarks.measure.floor import FLOOR
from benchmarks.measure.operations import stores
from benchmarks.report.conditions import COMPARED, compared_part
from benchmarks.report.runs import Cell, Place, Run, Setting

LEAST_STEP = 1.10  # runs of the same code differ by as much
NOISE_FACTOR = 5.0
STRAY_FACTOR = 8.0  # where fewer than ENOUGH runs stand on a side, which may be strays
ENOUGH = 3
WINDOW = 5  # runs on either side of a step; over more, a machine changes
TOGETHER_FROM = 4  # cells, from which on what they do together is known
OWN_FROM = 3  # changes, from which on a cell's own noise is known
TO_DEVIATION = 1.4826  # of a median absolute deviation, to estimate a standard deviation
FEWEST_FLOORS = 2


class Key(NamedTuple):
    """A cell in every run."""

    place: Place
    setting: Setting

    def __str__(self) -> str:
        return f"{self.place.operation}[{self.place.cutoff}-{self.place.backend}]"

    def within(self, settings: Iterable[Setting]) -> str:
        """What tells its setting from the others, in words; nothing where it stores."""
        return "" if stores(self.place.operation) else self.setting.within(settings)


class Step(NamedTuple):
    """From run number `before` to run number `after` a cell's time became `ratio` times itself, beyond the floor's."""

    before: int
    after: int
    key: Key
    ratio: float


@dataclass(frozen=True)
class History:
    """Runs in order, the cells of each, the numbers of those that compare, and the steps that stand out."""

    runs: Sequence[Run]
    cells: Sequence[Mapping[Key, Cell]]
    comparable: Sequence[Sequence[int]]
    steps: Sequence[Step]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "History":
        cells = [{Key(cell.place, cell.setting): cell for cell in run.cells} for run in runs]
        groups = comparable(runs)
        return cls(runs, cells, groups, [step for numbers in groups for step in steps(cells, numbers)])


def comparable(runs: Sequence[Run]) -> list[list[int]]:
    """The numbers of the runs, those together that were made of the same images, on the same terms and machine."""
    kinds: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        parts = [compared_part(run.made_of, name) for name in COMPARED]
        cpu = run.machine.get("cpu") or {}
        machine = run.machine.get("machine"), cpu.get("brand_raw"), cpu.get("count")
        kinds.setdefault(json.dumps([parts, machine], sort_keys=True), []).append(number)
    return list(kinds.values())


def steps(cells: Sequence[Mapping[Key, Cell]], numbers: Sequence[int]) -> list[Step]:
    """All that stand out among the runs of these numbers, run by run, the largest first."""
    own = [cells[number] for number in numbers]
    compared = cache(lambda before, after: Comparison(own[before], own[after]))
    keys = dict.fromkeys(key for of in own for key in of if key.place.backend != FLOOR)
    all_changes = [Changes(key, [i for i, of in enumerate(own) if key in of], compared) for key in keys]
    noise = {storing: pooled(of for of in all_changes if of.storing == storing) for storing in (True, False)}
    found = []
    for changes in all_changes:
        changes.noise = max(changes.noise, noise[changes.storing])
        for before, after, change in changes.steps(changes.at):
            found.append(Step(numbers[before], numbers[after], changes.key, math.exp(change)))
    return sorted(found, key=lambda step: (step.after, -abs(math.log(step.ratio))))


def pooled(all_changes: "Iterable[Changes]") -> float:
    """The noise of these cells: how far each changes from a run to the next, beyond what they do together."""
    together: dict[tuple[int, int], list[float]] = {}
    for changes in all_changes:
        for pair, change in changes.own.items():
            together.setdefault(pair, []).append(change)
    shifts = {pair: median(of) if len(of) >= TOGETHER_FROM else 0.0 for pair, of in together.items()}
    return deviation([change - shifts[pair] for pair, of in together.items() for change in of])


class Comparison:
    """Two runs, and how the floor's cells changed from one to the other when storing and when reading."""

    def __init__(self, before: Mapping[Key, Cell], after: Mapping[Key, Cell]) -> None:
        self.before, self.after = before, after
        floors: dict[bool, list[float]] = {True: [], False: []}
        for key in before.keys() & after.keys():
            if key.place.backend == FLOOR:
                floors[stores(key.place.operation)].append(self.raw(key))
        self.shifts = {storing: median(of) for storing, of in floors.items() if len(of) >= FEWEST_FLOORS}
        self.rests = {storing: [change - shift for change in floors[storing]] for storing, shift in self.shifts.items()}

    def raw(self, key: Key) -> float:
        """The logarithm of how many times as long the cell takes."""
        return math.log(self.after[key].seconds.median / self.before[key].seconds.median)

    def change(self, key: Key) -> float | None:
        """The same beyond the floor's; None where that is not known."""
        shift = self.shifts.get(stores(key.place.operation))
        return None if shift is None else self.raw(key) - shift

    def apart(self, key: Key) -> bool:
        """Whether the intervals do not overlap, once the floor's change is taken off."""
        shift = self.shifts[stores(key.place.operation)]
        return not self.before[key].seconds.times(math.exp(shift)).overlaps(self.after[key].seconds)


class Changes:
    """Of one cell from any run to any other, and how much of them is noise: the floor's or the cell's own.

    own: from each of its runs to the next. A few of those tell little; what all cells change tells the more.
    """

    def __init__(self, key: Key, at: Sequence[int], compared: Callable[[int, int], Comparison]) -> None:
        self.key, self.at, self.compared, self.storing = key, at, compared, stores(key.place.operation)
        neighbours = {pair: compared(*pair) for pair in pairwise(at)}
        self.own = {pair: change for pair, of in neighbours.items() if (change := of.change(key)) is not None}
        floors = [rest for of in neighbours.values() for rest in of.rests.get(self.storing, ())]
        self.noise = max(deviation(floors), deviation(self.own.values()) if len(self.own) >= OWN_FROM else 0.0)

    def steps(self, at: Sequence[int]) -> list[tuple[int, int, float]]:
        """Before, after and change of each that stands out among these runs: the clearest, then those beside it."""
        found = {split: self.change(at[:split][-WINDOW:], at[split:][:WINDOW]) for split in range(1, len(at))}
        clear = [split for split, change in found.items() if change.stands_out]
        if not clear:
            return []
        split = max(clear, key=lambda split: found[split].contrast)
        step = at[split - 1], at[split], found[split].change
        return [*self.steps(at[:split]), step, *self.steps(at[split:])]

    def change(self, before: Sequence[int], after: Sequence[int]) -> "Change":
        """From the runs before to those after, each with each; nothing where intervals overlap."""
        pairs = [self.compared(*pair) for pair in product(before, after)]
        known = [(change, pair.apart(self.key)) for pair in pairs if (change := pair.change(self.key)) is not None]
        changes = [change if apart else 0.0 for change, apart in known] or [0.0]
        factor = NOISE_FACTOR if min(len(before), len(after)) >= ENOUGH else STRAY_FACTOR
        width = math.sqrt((1 / len(before) + 1 / len(after)) / 2)
        change, least = median(changes), max(math.log(LEAST_STEP), factor * self.noise * width)
        return Change(change, abs(change) > least, abs(fmean(changes)) / width)


class Change(NamedTuple):
    """A logarithm of a ratio, whether it is more than noise, and a measure that is largest where the step is."""

    change: float
    stands_out: bool
    contrast: float


def deviation(changes: Collection[float]) -> float:
    """From nothing, by the median, so that a few strays and a step do not count."""
    return TO_DEVIATION * median(map(abs, changes)) if changes else math.inf
