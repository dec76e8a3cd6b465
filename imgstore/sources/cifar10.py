"""CIFAR-10, from its tar file or folder, in its Python or its binary version."""

import bz2
import copy
import gzip
import lzma
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from imgstore.errors import SourceError, reason_of
from imgstore.sources.account import EXPECTED
from imgstore.sources.folder import Labels, Pair
from imgstore.sources.pickled import load, read_whole

PYTHON_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BINARY_BATCHES = tuple(f"{name}.bin" for name in PYTHON_BATCHES)
BATCHES = PYTHON_BATCHES + BINARY_BATCHES
BATCH_PIXELS = 3 * 32 * 32
LARGEST_BATCH = 32 * 2**20  # bytes; a genuine one has 31,035,704 at most
MOVES = 16
LARGEST_REST = 16 * 2**20  # of an archive beside its batches
LARGEST_HEADERS, MOST_MEMBERS = 2**20, 1000
UNPACKED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))


class Cifar10(Sequence[Pair]):
    """CIFAR-10 from its tar file or folder: (32, 32, 3) uint8, the training batches, then the test batch.

    Both its Python and its binary version. All 60,000 are held in memory, 184 MB. A tar file is read in memory,
    and nothing that a pickle names is ever called. Raises SourceError with the name of a batch that is missing,
    truncated or no such batch.
    """

    def __init__(self, path: Path) -> None:
        # one array, filled batch by batch: what is freed of several the system does not get back at once
        self.path, room = path, LARGEST_BATCH // BATCH_PIXELS
        self.images = np.empty((len(PYTHON_BATCHES) * room, 32, 32, 3), np.uint8)
        labels, name, why = dict[str, Labels](), "its beginning", ""
        try:
            for name, file, size in _batch_files(path):
                if name in PYTHON_BATCHES or labels.keys() <= set(BINARY_BATCHES):
                    labels[name] = _read_batch(name, file, size, self.images[_number(name) * room :])
        except Exception as error:  # an archive or a pickle breaks with whatever its damage leads to
            why = f"not readable as CIFAR-10 from {name} on ({reason_of(error)}); {EXPECTED}"
        if why:  # raised here, as what was caught holds what was read
            raise SourceError(path, why)
        expected = BINARY_BATCHES if labels and labels.keys() <= set(BINARY_BATCHES) else PYTHON_BATCHES
        if missing := [name for name in expected if name not in labels]:
            raise SourceError(path, f"CIFAR-10 lacks {', '.join(missing)} here; {EXPECTED}")
        self.labels = np.concatenate([labels[name] for name in expected])
        end = 0
        for name in expected:  # moved together, in pieces that do not overlap
            first = _number(name) * room
            for piece in np.array_split(self.images[first : first + len(labels[name])], MOVES):
                self.images[end : end + len(piece)] = piece
                end += len(piece)
        self.images = self.images[:end]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Pair:  # type: ignore[override]  # no slices
        return self.images[position], int(self.labels[position])

    def part(self, positions: Sequence[int]) -> Self:
        """The images at these positions alone."""
        part = copy.copy(self)
        part.images, part.labels = self.images[positions], self.labels[positions]
        return part


def _batch_files(path: Path) -> Iterator[tuple[str, IO[bytes], int]]:
    """The name of each batch, the file, and its size."""
    if path.is_dir():
        for name in (name for name in BATCHES if (path / name).is_file()):
            with open(path / name, "rb") as file:
                yield name, file, os.fstat(file.fileno()).st_size
        return
    with open(path, "rb") as packed:
        start = packed.read(6)
        packed.seek(0)
        unpack = next((unpack for mark, unpack in UNPACKED if start.startswith(mark)), None)
        archive = _Archive(unpack(packed) if unpack else packed)
        with tarfile.open(fileobj=cast(IO[bytes], archive), mode="r:") as members:
            for number, member in enumerate(members):
                if number == MOST_MEMBERS:
                    raise ValueError(f"it has more than {MOST_MEMBERS} files")
                name = PurePosixPath(member.name).name
                if name in BATCHES and member.isreg() and (content := members.extractfile(member)):
                    archive.left = member.size + LARGEST_HEADERS
                    yield name, content, member.size
                    archive.left = LARGEST_HEADERS


class _Archive:
    """An unpacked tar file as `tarfile` reads it, which believes what a header claims, and would read terabytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, LARGEST_HEADERS
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"its headers are larger than {LARGEST_HEADERS} bytes")
        return cast(bytes, self.file.read(size))

    def seek(self, position: int) -> int:
        if position > (largest := len(PYTHON_BATCHES) * LARGEST_BATCH + LARGEST_REST):
            raise ValueError(f"it is larger than {largest} bytes")
        return cast(int, self.file.seek(position))


def _number(name: str) -> int:
    return PYTHON_BATCHES.index(name.removesuffix(".bin"))


def _read_batch(name: str, file: IO[bytes], size: int, images: NDArray[np.uint8]) -> Labels:
    """Put the pixels of one batch into the first n of `images`; gives its labels (n,)."""
    if size > LARGEST_BATCH:
        raise ValueError(f"it is larger than {LARGEST_BATCH} bytes")
    planes, labels = (_binary_batch if name in BINARY_BATCHES else _python_batch)(file, size)
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError("its labels are not all from 0 to 9")
    images[: len(labels)] = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return labels


def _binary_batch(file: IO[bytes], size: int) -> tuple[NDArray[np.uint8], Labels]:
    if not size or size % (1 + BATCH_PIXELS):
        raise ValueError(f"{size} bytes are not whole records of {1 + BATCH_PIXELS}")
    records = np.frombuffer(read_whole(file, size), np.uint8).reshape(-1, 1 + BATCH_PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _python_batch(file: IO[bytes], size: int) -> tuple[NDArray[np.uint8], Labels]:
    n, fortran, pixels, labels = load(file, size)
    planes = np.frombuffer(pixels, np.uint8).reshape((n, BATCH_PIXELS), order="F" if fortran else "C")
    return planes, np.array(labels, np.int64)
