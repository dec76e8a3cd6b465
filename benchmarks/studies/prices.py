"""What each mechanism of the package costs: the same call with it and without it, in turn.

`python -m benchmarks.studies.prices` prints the table. What is not being priced stays as it is, but for the sync, which
would hide all else: only its own rows wait for the disk.
"""

import argparse
import functools
import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from benchmarks.measure.cell import Cell, Terms
from benchmarks.measure.checks import must_equal
from benchmarks.measure.reading import ReadBatch, ReadMany, ReadOne, ReadSingle, ThroughReader
from benchmarks.measure.storing import StoreMany, StoreSingle
from benchmarks.measure.workload import Workload
from benchmarks.sources import open_source
from benchmarks.studies.pairs import Ratio, alternate, timed
from imgstore import BACKENDS
from imgstore.core.blocks import blocks
from imgstore.core.generations import Generation, open_live
from imgstore.core.reading import File

UNSYNCED = Terms(durable=False)


class StoreUnchecked(StoreMany):
    """Zeros in the place of every checksum."""

    def call(self, root: str) -> None:
        with without_checksums(self.cell.backend):
            super().call(root)

    def check(self, result: None) -> None:
        must_equal(self.cell.backend.read_many(self.root, verify=False), self.cell.images, self.cell.labels)


class StoreBare(StoreMany):
    """The files of a generation without CURRENT, DESCRIPTION and the writer's lock."""

    def call(self, root: str) -> None:
        os.mkdir(root)
        images, labels, backend = self.cell.images, self.cell.labels, self.cell.backend.BACKEND
        stream = blocks(images, labels, backend.refusal)
        first = next(stream)
        self.told, self.per_block = backend.write_many(root, chain([first], stream)), len(first.labels)

    def check(self, result: None) -> None:
        image, (folder, name) = self.cell.images[0], os.path.split(self.root)
        form = {"count": len(self.cell.images), "shape": image.shape, "dtype": image.dtype.str}
        told = form | {"per_block": self.per_block} | self.told
        many = self.cell.backend.BACKEND.open_all(Generation(folder, "", name, False, "", told), True)
        must_equal(many.gather(np.arange(many.count)), self.cell.images, self.cell.labels)


class ReadKnown(ReadSingle):
    """Open the files, read an image, close; CURRENT and DESCRIPTION were read before, and singles/ is passed over."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.generation = open_live(cell.stored, lambda generation: generation)

    def call(self, root: str, image_id: int) -> Any:
        return self.cell.backend.BACKEND.open_all(self.generation, True).read(image_id)


class Touched(File):
    """A file that is read by touching its map, where a bad sector or a cut ends the process."""

    def fill(self, array: Any, offset: int) -> None:
        array.reshape(-1).view(np.uint8)[:] = self.memory[offset : offset + array.nbytes]

    def gather(self, offsets: Any, form: Any) -> Any:
        size = math.prod(form[0]) * form[1].itemsize
        everywhere = np.lib.stride_tricks.sliding_window_view(self.memory, size)
        return everywhere[offsets].view(form[1]).reshape(len(offsets), *form[0])

    @functools.cached_property
    def memory(self) -> Any:
        return np.frombuffer(mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ), np.uint8)


class ReadTouching(ThroughReader):
    """Through an open reader that touches the map."""

    def open(self) -> None:
        super().open()
        many = self.reader.unreplaced()
        many.file = Touched(many.file.path)


class ReadBatchTouching(ReadTouching, ReadBatch):
    """Random batches."""


class ReadOneTouching(ReadTouching, ReadOne):
    """Single images."""


class ReadManyTouching(ReadMany):
    """All of them."""

    def call(self, root: str) -> Any:
        with mock.patch("imgstore.core.mapped.File", Touched):
            return super().call(root)


class Mechanism(NamedTuple):
    """What is priced: two workloads, and the terms that each is on."""

    name: str
    whole: type[Workload]
    without: type[Workload]
    terms: Terms = UNSYNCED
    terms_without: Terms = UNSYNCED
    of_files: bool = True  # whether disk has it, too


SAFE = "reading that cannot end the process"
MECHANISMS = (
    Mechanism("checksums", StoreMany, StoreUnchecked),
    *(
        Mechanism("checksums", kind, kind, terms_without=Terms(durable=False, verify=False))
        for kind in (ReadMany, ReadBatch, ReadOne, ReadSingle)
    ),
    Mechanism("generation and CURRENT", StoreMany, StoreBare),
    Mechanism("generation and CURRENT", ReadSingle, ReadKnown),
    Mechanism(SAFE, ReadMany, ReadManyTouching, of_files=False),
    Mechanism(SAFE, ReadBatch, ReadBatchTouching, of_files=False),
    Mechanism(SAFE, ReadOne, ReadOneTouching, of_files=False),
    *(Mechanism("sync", kind, kind, terms=Terms()) for kind in (StoreMany, StoreSingle)),
)


def mechanisms(backend: ModuleType) -> list[Mechanism]:
    """Those of a backend."""
    return [mechanism for mechanism in MECHANISMS if mechanism.of_files or hasattr(backend, "checksums_of")]


def without_checksums(backend: ModuleType) -> AbstractContextManager[object]:
    """The backend's storing with nothing summed up."""
    if hasattr(backend, "checksums_of"):  # of blocks
        return mock.patch.object(backend, "checksums_of", lambda block: (np.zeros(len(block.labels), np.uint64), 0))
    return mock.patch("imgstore._disk.png.image_checksums", lambda images, *_: np.zeros(len(images), np.uint64))


def rows(cell: Cell, other: Cell, seconds: float) -> Iterator[str]:
    """The table's lines of one backend, measured on two stores of the same images."""
    for mechanism in mechanisms(cell.backend):
        kept = mechanism.whole(replace(cell, terms=mechanism.terms))
        left_out = mechanism.without(replace(other, terms=mechanism.terms_without))
        ratio = Ratio.of(alternate(timed(kept), timed(left_out), seconds))
        kept.finish()
        left_out.finish()
        more = (ratio.first - ratio.second) / kept.images_per_call * 1e6
        spread = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        yield f"| {mechanism.name} | {kept.operation} | {cell.name} | {spread} | {more:+.2f} | {ratio.pairs} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.prices", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cutoff", type=int, default=10_000, help="images in a store; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5, help="for each row, five pairs at least; default: 5")
    parser.add_argument("--store-dir", metavar="PATH", help="a folder on the disk to measure")
    options = parser.parse_args()
    images, labels = open_source(None, options.cutoff).take(options.cutoff)
    print("| mechanism | operation | backend | takes times as long with it (quartiles) | us more an image | pairs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, backend in BACKENDS.items():
        with tempfile.TemporaryDirectory(prefix="imgstore-", dir=options.store_dir) as directory:
            folders = (os.path.join(directory, part) for part in ("with", "without"))
            cell, other = (Cell(name, backend, images, labels, folder, UNSYNCED) for folder in folders)
            for each in (cell, other):
                os.mkdir(each.directory)
                each.store()
            for row in rows(cell, other, options.seconds):
                print(row, flush=True)


if __name__ == "__main__":
    main()
