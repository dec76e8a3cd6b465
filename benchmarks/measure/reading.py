"""The operations that read."""

import itertools
from abc import abstractmethod
from typing import Any

import numpy as np

from benchmarks.measure.cell import BATCH, Array, Cell, parts_of
from benchmarks.measure.checks import must_equal_one, must_equal_part, must_hold
from benchmarks.measure.machine import evict
from benchmarks.measure.workload import Workload


class Reading(Workload):
    """What all reading has in common: the stored set, in the page cache or out of it."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.cache = "cold" if cell.terms.cold else "warm"

    def prepare(self) -> tuple[Any, ...]:
        if self.cell.terms.cold:
            self.let_go()
            evict(self.cell.stored)
        return self.arguments()

    def let_go(self) -> None:
        """Hold nothing of the store, because what is mapped is not evicted."""
        self.finish()

    @abstractmethod
    def arguments(self) -> tuple[Any, ...]:
        """What `call` is given this time."""


class ReadingInOthers(Reading):
    """Reading in other processes, which the first preparation starts."""

    def pilot(self) -> float:
        self.call(*self.prepare())
        return super().pilot()


class ReadSingle(Reading):
    """Open the store, read a random image, close."""

    operation = "read_single"

    def arguments(self) -> tuple[Any, ...]:
        self.chosen = self.draw()
        return self.cell.stored, self.chosen

    def call(self, root: str, image_id: int) -> Any:
        return self.cell.backend.read_single(root, image_id, verify=self.cell.terms.verify)

    def check(self, result: Any) -> None:
        must_equal_one(result, self.cell, self.chosen)


class ReadMany(Reading):
    """Open the store, read all images in order, close."""

    operation = "read_many"
    grows = True

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.images_per_call = len(cell.images)
        self.parts = parts_of(cell.images)
        self.at_once = len(self.parts) == 1

    def take_share(self, number: int, readers: int) -> None:
        self.parts = [np.array_split(part, readers)[number] for part in self.parts]
        self.at_once = False

    def arguments(self) -> tuple[Any, ...]:
        return (self.cell.stored,)

    def call(self, root: str) -> Any:
        """The images, or the last part of them."""
        backend, verify = self.cell.backend, self.cell.terms.verify
        if self.at_once:
            return backend.read_many(root, verify=verify)
        with backend.open_reader(root, verify=verify) as reader:
            for part in self.parts:
                result = None
                result = reader.read_many(part)
        return result

    def check(self, result: Any) -> None:
        must_equal_part(result, self.cell, self.parts[-1])
        if len(self.parts) > 1:
            must_hold(self.cell, self.cell.stored)


class ThroughReader(Reading):
    """Reading through one open reader."""

    reader: Any = None

    def prepare(self) -> tuple[Any, ...]:
        arguments = super().prepare()
        if self.reader is None:
            self.open()
        return arguments

    def open(self) -> None:
        self.reader = self.cell.backend.open_reader(self.cell.stored, verify=self.cell.terms.verify)

    def finish(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None


class ReadOne(ThroughReader):
    """A random image through an open reader."""

    operation = "read_one"

    repeats = True

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.positions = itertools.cycle(self.random.integers(len(cell.images), size=10_000).tolist())

    def arguments(self) -> tuple[Any, ...]:
        return ()

    def call(self) -> Any:
        """Which and what: a runner may give the result of any of its calls."""
        chosen = next(self.positions)
        return chosen, self.reader[chosen]

    def check(self, result: Any) -> None:
        chosen, pair = result
        must_equal_one(pair, self.cell, chosen)


class ReadBatch(ThroughReader):
    """256 random images through an open reader, drawn anew each round: what training does."""

    operation = "read_batch"

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.images_per_call = BATCH
        self.share = np.arange(len(cell.images))

    def take_share(self, number: int, readers: int) -> None:
        """Of fewer images than readers, some have the same."""
        self.share = self.share[number % len(self.share) :: readers]

    def arguments(self) -> tuple[Any, ...]:
        self.chosen = self.share[self.random.integers(len(self.share), size=BATCH)]
        return (self.chosen,)

    def call(self, image_ids: Array) -> Any:
        return self.reader.read_many(image_ids)

    def check(self, result: Any) -> None:
        must_equal_part(result, self.cell, self.chosen)
