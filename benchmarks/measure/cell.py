"""A cell of the table: a format with so many images, on which terms, for how many rounds."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.images import Images, Labels, Repeated
from benchmarks.measure.machine import free_disk, free_memory, settle

Array = NDArray[Any]

BATCH = 256
SEED = 20
SPARE_BYTES = 256 << 20
WHOLE_BYTES = 4 << 30  # of pixels: more is read in parts, each let go of before the next
PART_BYTES = 512 << 20
FILE_SYSTEM_BLOCK = 4096


@dataclass(frozen=True)
class Terms:
    """What every backend is held to in a run."""

    durable: bool = True
    cold: bool = False
    verify: bool = True


@dataclass(frozen=True)
class Rounds:
    """pytest-benchmark's bounds, which its pedantic mode leaves to us."""

    at_least: int
    seconds: float

    def after(self, pilot_seconds: float) -> int:
        return max(self.at_least, int(self.seconds / pilot_seconds))


@dataclass(frozen=True)
class Cell:
    """One backend with the images of one cutoff, in a directory of the run."""

    name: str
    backend: Any
    images: Images
    labels: Labels
    directory: str
    terms: Terms
    forks: bool = True  # whether its libraries work on in a forked child, where memory is measured
    store_seconds: float = 0.0  # that it took to store what all reading cells share
    image_size: int | None = None  # pixels a side, where the images were made that size

    @property
    def stored(self) -> str:
        """The store that all reading cells share."""
        return os.path.join(self.directory, "stored")

    def store(self) -> None:
        self.backend.store_many(self.stored, self.images, self.labels, durable=False)
        settle()


def parts_of(images: Images) -> list[Array]:
    """The ids of all images: in one part, or in parts of about PART_BYTES where they are many."""
    count, size = len(images), pixel_bytes(images)
    step = count if size <= WHOLE_BYTES else max(1, count * PART_BYTES // size)
    return np.split(np.arange(count), range(step, count, step))


def pixel_bytes(images: Images) -> int:
    if isinstance(images, np.ndarray):
        return images.nbytes
    if isinstance(images, Repeated):
        times, rest = divmod(len(images), len(images.images))
        return times * pixel_bytes(images.images) + pixel_bytes(images.images[:rest])
    return sum(image.nbytes for image in images)


def missing_room(cell: Cell, copies: int = 3, batches: int = 0) -> str | None:
    """Why so many more copies of the store would not fit into the free disk, or what is read into memory; or None.

    That is all images or a part, or so many batches if they are more; twice, because those before are there, too.
    """
    size, count = pixel_bytes(cell.images), len(cell.images)
    disk_need = copies * (size + FILE_SYSTEM_BLOCK * count) + SPARE_BYTES
    at_once = max(size if size <= WHOLE_BYTES else PART_BYTES, batches * BATCH * size // count)
    memory_need = 2 * at_once + SPARE_BYTES
    for need, free, what in ((disk_need, free_disk(cell.directory), "disk"), (memory_need, free_memory(), "memory")):
        if need > free:
            return f"needs {need >> 20} MiB of {what}, {free >> 20} MiB are free"
    return None
