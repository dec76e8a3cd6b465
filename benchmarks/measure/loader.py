"""PyTorch's DataLoader over a store, end to end: reading, collating, and what comes over from the workers."""

import importlib
from typing import Any

import numpy as np

from benchmarks.measure.cell import BATCH, Array, Cell
from benchmarks.measure.checks import WrongResultError, must_equal_part
from benchmarks.measure.images import Images, Repeated
from benchmarks.measure.reading import ReadingInOthers


class LoadEpoch(ReadingInOthers):
    """An epoch of shuffled batches of 256, with worker processes that persist from epoch to epoch."""

    operation = "load_epoch"

    def __init__(self, cell: Cell, readers: int) -> None:
        super().__init__(cell)
        self.readers, self.images_per_call = readers, len(cell.images)
        self.order = list[int]()
        self.dataset: Any = None
        self.loader: Any = None

    def arguments(self) -> tuple[Any, ...]:
        self.order[:] = self.random.permutation(len(self.cell.images)).tolist()
        if self.loader is None:
            self.dataset = self.cell.backend.open_reader(self.cell.stored, verify=self.cell.terms.verify)
            self.loader = importlib.import_module("torch.utils.data").DataLoader(
                self.dataset,
                batch_size=BATCH,
                sampler=self.order,
                num_workers=self.readers,
                persistent_workers=True,
                multiprocessing_context="fork",  # not every dataset here can be pickled
                collate_fn=None if alike(self.cell.images) else listed,
            )
        return ()

    def call(self) -> tuple[int, Any]:
        """The number of images, and the last batch."""
        seen = 0
        for batch in self.loader:
            seen += len(batch[1])
        return seen, batch

    def check(self, result: tuple[int, Any]) -> None:
        seen, (images, labels) = result
        if seen != len(self.order):
            raise WrongResultError(f"{seen} images in an epoch of {len(self.order)}")
        read = [np.asarray(image) for image in images], np.asarray(labels)
        must_equal_part(read, self.cell, np.array(self.order[-len(labels) :]))

    def finish(self) -> None:
        if self.loader is not None:
            self.loader = None  # and with it the workers
            self.dataset.close()


def alike(images: Images) -> bool:
    """Whether all have one form, as what PyTorch puts together by itself must have."""
    return isinstance(images.images if isinstance(images, Repeated) else images, np.ndarray)


def listed(pairs: list[tuple[Array, int]]) -> tuple[list[Array], Array]:
    """A batch of images of mixed sizes."""
    images, labels = zip(*pairs, strict=True)
    return list(images), np.array(labels)
