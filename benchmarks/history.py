"""Several saved runs: which of them compare, and where a cell's time took a step that stands out from the noise.

The floor runs none of our code, so its cells tell how the machine differed between two runs, and how unsteady it
was. A step is a change beyond theirs that the runs before and after it confirm.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from benchmarks.floor import FLOOR
from benchmarks.runs import Cell, Place, Run, Setting
from benchmarks.terms import COMPARED, compared_part
from benchmarks.workloads import stores

LEAST_STEP = math.log(1.10)  # runs of the same code differ by as much
NOISE_FACTOR = 4.0
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
    found: list[Step] = []
    own = [cells[number] for number in numbers]
    compared = {(i, j): Comparison(own[i], own[j]) for j in range(len(own)) for i in (j - 1, j - 2) if i >= 0}
    for at in range(1, len(own)):
        ours = [key for key in own[at] if key.place.backend != FLOOR]
        changes = {key: change for key in ours if (change := _confirmed(compared, at, key))}
        largest_first = sorted(changes, key=lambda key: -abs(changes[key]))
        found += [Step(numbers[at - 1], numbers[at], key, math.exp(changes[key])) for key in largest_first]
    return found


def _confirmed(compared: "Mapping[tuple[int, int], Comparison]", at: int, key: Key) -> float:
    """The change from the run before, where the runs beside the two bear it out; else 0."""
    change = compared[at - 1, at].standing_out(key)
    beside = (compared[pair] for pair in ((at - 2, at), (at - 1, at + 1)) if pair in compared)
    return change if all(other.standing_out(key) * change > 0 for other in beside if other.has(key)) else 0.0


class Comparison:
    """Two runs, and how the floor moved between them when storing and when reading."""

    def __init__(self, before: Mapping[Key, Cell], after: Mapping[Key, Cell]) -> None:
        self.before, self.after = before, after
        floors: dict[bool, list[float]] = {True: [], False: []}
        for key in before.keys() & after.keys():
            if key.place.backend == FLOOR:
                floors[stores(key.place.operation)].append(self.change(key))
        self.drifts = {storing: drift(of) for storing, of in floors.items() if len(of) >= FEWEST_FLOORS}

    def has(self, key: Key) -> bool:
        return key in self.before and key in self.after and stores(key.place.operation) in self.drifts

    def change(self, key: Key) -> float:
        """The logarithm of how many times as long the cell takes."""
        return math.log(self.after[key].seconds.median / self.before[key].seconds.median)

    def standing_out(self, key: Key) -> float:
        """The change less the floor's; 0 where it may be noise, or cannot be known."""
        if not self.has(key):
            return 0.0
        shift, noise = self.drifts[stores(key.place.operation)]
        change = self.change(key) - shift
        apart = not self.before[key].seconds.times(math.exp(shift)).overlaps(self.after[key].seconds)
        return change if apart and abs(change) > max(LEAST_STEP, NOISE_FACTOR * noise) else 0.0


def drift(changes: Sequence[float]) -> tuple[float, float]:
    """Their median, and their deviation from it, by the median again, so that a few strays do not count."""
    shift = median(changes)
    return shift, TO_DEVIATION * median(abs(change - shift) for change in changes)
