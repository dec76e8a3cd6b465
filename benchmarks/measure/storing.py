"""The operations that store."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

from benchmarks.measure.cell import Array, Cell
from benchmarks.measure.checks import must_equal_one, must_hold
from benchmarks.measure.images import Images
from benchmarks.measure.machine import copy_tree, settle
from benchmarks.measure.workload import Workload

LONG_SECONDS = 5.0  # of storing, beyond which one more call tells nothing new


class StoreMany(Workload):
    """All images into a new store."""

    operation = "store_many"
    grows = True

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.images_per_call = len(cell.images)
        self.root = os.path.join(cell.directory, "store_many")

    def prepare(self) -> tuple[Any, ...]:
        self.finish()
        settle()
        return (self.root,)

    def pilot(self) -> float:
        known = self.cell.store_seconds
        return known if known > LONG_SECONDS else super().pilot()

    def call(self, root: str) -> None:
        self.store(root, self.cell.images)

    def call_for_memory(self) -> None:
        """From a generator: images that come one by one should not be held."""
        (root,) = self.prepare()
        self.store(root, iter(self.cell.images))

    def store(self, root: str, images: Images | Iterator[Array]) -> None:
        cell = self.cell
        cell.backend.store_many(root, images, cell.labels, durable=cell.terms.durable)

    def check(self, result: None) -> None:
        must_hold(self.cell, self.root)

    def finish(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


class StoreSingle(Workload):
    """One image more, with a new id, into a store of all of them."""

    operation = "store_single"

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.root = os.path.join(cell.directory, "store_single")
        copy_tree(cell.stored, self.root)  # reading cells share the other
        self.image_id = len(cell.images) - 1
        self.chosen = 0

    def prepare(self) -> tuple[Any, ...]:
        self.image_id += 1
        self.chosen = self.draw()
        settle()
        return self.root, self.cell.images[self.chosen], self.image_id, int(self.cell.labels[self.chosen])

    def call(self, *arguments: Any) -> None:
        self.cell.backend.store_single(*arguments, durable=self.cell.terms.durable)

    def check(self, result: None) -> None:
        must_equal_one(self.cell.backend.read_single(self.root, self.image_id), self.cell, self.chosen)

    def finish(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
