"""What every operation that is measured has in common."""

import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from benchmarks.measure.cell import SEED, Cell, pixel_bytes


class Workload(ABC):
    """One operation on one cell. `images_per_call` and `bytes_per_call` are what a call moves."""

    operation: str
    repeats: ClassVar[bool] = False  # too short to be timed alone: pytest-benchmark calls it several times a round
    grows: ClassVar[bool] = False  # holds so many images that its memory is of interest
    readers: int = 1
    calls: int = 1  # of each reader in what is timed as one
    cache: str = "warm"  # what storing has to do with

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.random = np.random.default_rng(SEED)
        self.images_per_call = 1

    @property
    def bytes_per_call(self) -> float:
        """Bytes of pixels, on average."""
        return self.images_per_call * pixel_bytes(self.cell.images) / len(self.cell.images)

    @abstractmethod
    def prepare(self) -> tuple[Any, ...]:
        """Get ready for a round; gives the arguments of `call`."""

    @abstractmethod
    def call(self, *arguments: Any) -> Any:
        """The timed call."""

    @abstractmethod
    def check(self, result: Any) -> None:
        """Raise WrongResultError unless the result of the last call is what was stored."""

    def pilot(self) -> float:
        """Seconds of a round with its preparation, which is what the rounds to come will take."""
        start = time.perf_counter()
        self.call(*self.prepare())
        return time.perf_counter() - start

    def call_for_memory(self) -> Any:
        """The call by whose peak of memory the operation is known."""
        return self.call(*self.prepare())

    def finish(self) -> None:  # noqa: B027  # most need nothing
        """Let go of what the rounds needed."""

    def draw(self) -> int:
        return int(self.random.integers(len(self.cell.images)))
