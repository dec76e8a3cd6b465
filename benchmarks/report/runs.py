"""Saved runs, as the report takes them: what pytest-benchmark's JSON says of each cell and of what was measured.

A file may come from anyone: what is read here are numbers and short texts, checked once.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure.operations import stores

QUARTILES_FROM = 8  # rounds; of fewer, the quartiles say little
DESCRIBED = ("images", "terms", "file system", "versions")
EXPECTED = "give files of --report, --benchmark-json or --benchmark-autosave"


class RunError(Exception):
    """A file is no saved run of this suite: one sentence says which, what was wrong and what to do."""


class Spread(NamedTuple):
    """A figure with its interval: the middle half of the rounds, or all of them where they are few."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, stats: Any) -> "Spread":
        """From what pytest-benchmark says of a cell, measured or saved."""
        low, high = ("q1", "q3") if stats["rounds"] >= QUARTILES_FROM else ("min", "max")
        return cls(*(positive(stats[name]) for name in (low, "median", high)))

    @classmethod
    def together(cls, parts: Iterable["Spread"]) -> "Spread":
        return cls(*map(sum, zip(*parts, strict=True)))

    def times(self, factor: float) -> "Spread":
        return Spread(*(factor * value for value in self))

    def into(self, amount: float) -> "Spread":
        """The rate of `amount` for each."""
        return Spread(*(amount / value for value in reversed(self)))

    def overlaps(self, other: "Spread") -> bool:
        return self.low <= other.high and other.low <= self.high


class Setting(NamedTuple):
    """In what cells of one operation can differ, beside the backend and the number of images."""

    cache: str
    readers: int
    image_size: int  # pixels of an edge, or 0 where the run has one source

    @property
    def order(self) -> tuple[Any, ...]:
        """The warm cache first, and one reader."""
        return self.image_size, self.cache != "warm", self.cache, self.readers

    def within(self, all_of_them: Iterable["Setting"]) -> str:
        """What tells it from the others, in words; several readers are always told."""
        cache, readers, size = (len({*values}) > 1 for values in zip(*all_of_them, strict=True))
        words = (
            (cache, f"{self.cache} cache"),
            (readers or self.readers > 1, f"{self.readers} reading process{'es' * (self.readers > 1)}"),
            (size, f"images of {self.image_size}x{self.image_size}" if self.image_size else "images of one source"),
        )
        return ", ".join(word for told, word in words if told)


class Place(NamedTuple):
    """Where a cell stands in a table of one setting."""

    operation: str
    cutoff: int
    backend: str


@dataclass(frozen=True)
class Cell:
    """A measured cell. seconds: of a call, which moves `images`. disk_bytes: of the store, for each image;
    0 where the file system does not tell. Of several readers, one call of each.
    """

    place: Place
    setting: Setting
    seconds: Spread
    rounds: int
    images: float
    pixel_bytes: float
    disk_bytes: float
    peak_bytes: float | None

    @classmethod
    def of(cls, benchmark: dict[str, Any], cache: str) -> "Cell":
        facts, stats = benchmark["extra_info"], benchmark["stats"]
        peak, calls, size = facts.get("peak_bytes"), positive(facts.get("calls", 1)), facts.get("image_size")
        disk = facts["disk_bytes_per_image"]
        return cls(
            Place(str(facts["operation"]), whole(facts["cutoff"]), str(facts["backend"])),
            Setting(str(facts.get("cache", cache)), whole(facts.get("readers", 1)), whole(size) if size else 0),
            Spread.of(stats).times(1 / calls),
            whole(stats["rounds"]),
            positive(facts["images_per_call"]) / calls,
            positive(facts["pixel_bytes_per_call"]) / calls,
            0.0 if disk == 0 else positive(disk),
            None if peak is None else float(peak),
        )

    @property
    def rate(self) -> Spread:
        """Images per second."""
        return self.seconds.into(self.images)


@dataclass(frozen=True)
class Run:
    """A saved run. made_of: what `terms.recorded` gave. commit_time: of the commit, or `when` where it is unknown."""

    when: datetime
    commit: str
    commit_time: datetime
    machine: dict[str, Any]
    made_of: dict[str, Any]
    cells: tuple[Cell, ...]

    @property
    def settings(self) -> list[Setting]:
        """Of the reading cells, which alone differ in cache and readers; of all, where none read."""
        reading = {cell.setting for cell in self.cells if not stores(cell.place.operation)}
        return sorted(reading or {cell.setting for cell in self.cells}, key=lambda setting: setting.order)

    def at(self, setting: Setting) -> dict[Place, Cell]:
        """The cells of a setting, with those that store images of its size."""
        return {
            cell.place: cell
            for cell in self.cells
            if cell.setting == setting
            or (stores(cell.place.operation) and cell.setting.image_size == setting.image_size)
        }


def positive(value: Any) -> float:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{value!r} where a positive number is expected")
    return float(value)


def whole(value: Any) -> int:
    number = positive(value)
    if not number.is_integer():
        raise ValueError(f"{value!r} where a whole number is expected")
    return int(number)


def read_run(path: Path) -> Run:
    """The run that a file of pytest-benchmark's JSON holds. Raises RunError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        # half of a character, as of a folder's name that is no text, could not be written again
        written = json.dumps(document, ensure_ascii=False).encode(errors="replace")
        return _run(json.loads(written))
    except OSError as error:
        raise RunError(f"{path}: it cannot be read ({error.strerror}); {EXPECTED}") from None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise RunError(f"{path}: this is no saved run of imgstore's benchmarks ({why}); {EXPECTED}") from None


def _run(document: dict[str, Any]) -> Run:
    machine, commit = document["machine_info"], document["commit_info"]
    if not isinstance(machine.get("cpu") or {}, dict):
        raise ValueError("'cpu' is no object")
    made_of, when = described(machine["imgstore"]), moment(document["datetime"])
    made_of = {**made_of, "command": str(document.get("command", "not recorded"))}
    cache = "cold" if made_of["terms"].get("cold") else "warm"
    ours = [benchmark for benchmark in document["benchmarks"] if "operation" in benchmark["extra_info"]]
    if not ours:
        raise ValueError("it has no cell")
    commit_time = moment(commit["time"]) if commit.get("time") else when
    name = re.sub(r"^([0-9a-f]{7})[0-9a-f]{3,}$", r"\1", str(commit["id"])) + ("+" if commit.get("dirty") else "")
    return Run(when, name, commit_time, machine, made_of, tuple(Cell.of(cell, cache) for cell in ours))


def described(made_of: dict[str, Any]) -> dict[str, Any]:
    """What `terms.recorded` gave, once its parts are known to be of their kinds."""
    for name in DESCRIBED:
        if not isinstance(made_of[name], dict):
            raise ValueError(f"{name!r} is no object")
    whole(made_of["images"].get("count", 1))
    positive(made_of.get("memory_bytes", 1))
    return made_of


def moment(text: str) -> datetime:
    """A time in UTC, which is taken for granted where the text names no zone."""
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


def in_order(runs: Iterable[Run]) -> list[Run]:
    """By commit, and runs of one commit by their date."""
    return sorted(runs, key=lambda run: (run.commit_time, run.when))


def names(runs: Sequence[Run]) -> list[str]:
    """The commit of each, with the date where others are of the same one."""
    count = Counter(run.commit for run in runs)
    return [run.commit if count[run.commit] == 1 else f"{run.commit} {run.when:%m-%d %H:%M:%S}" for run in runs]


def in_seconds(value: float) -> str:
    """Three digits or so, and the unit that suits them."""
    size, unit = next((pair for pair in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")) if value >= pair[0]), (1e-9, "ns"))
    return f"{digits(value / size)} {unit}"


def digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
