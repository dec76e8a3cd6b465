"""The images of a benchmark, in memory."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Images = NDArray[Any] | Sequence[NDArray[Any]]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Repeated(Sequence[NDArray[Any]]):
    """`images` over and over, up to `length`, without holding a repeat in memory."""

    images: Images
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        at = range(self.length)[index]
        return [self[i] for i in at] if isinstance(at, range) else self.images[at % len(self.images)]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        # itertools.cycle would keep every image that it has seen.
        return itertools.islice(itertools.chain.from_iterable(itertools.repeat(self.images)), self.length)


@dataclass(frozen=True, eq=False)
class Source:
    """Images with their labels, in memory.

    name: what a report shows.
    images: (N, H, W[, C]) where shapes and dtypes agree, else a list of (H, W[, C]); N is at least 1.
    labels: int64 (N,).
    fingerprint: 16 hex digits, xxh3_64 over every shape, dtype, pixel and label.
    left_out: path and reason of each file that could not be read or has no class.
    not_looked_at: how many files with which suffixes. less: what is not kept of the files that were read.
    """

    name: str
    images: NDArray[Any] | list[NDArray[Any]]
    labels: Labels
    fingerprint: str
    left_out: tuple[tuple[str, str], ...] = ()
    not_looked_at: str = ""
    less: tuple[str, ...] = ()

    def take(self, count: int) -> tuple[Images, Labels]:
        """The first `count` images and labels: views where the source has that many, else `Repeated`."""
        if count <= len(self.images):
            return self.images[:count], self.labels[:count]
        return Repeated(self.images, count), np.resize(self.labels, count)


def fingerprint(images: Images, labels: Labels) -> str:
    """16 hex digits: xxh3_64 over every shape, dtype, pixel and label."""
    digest = xxhash.xxh3_64()
    for array in (*([images] if isinstance(images, np.ndarray) else images), labels):
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
