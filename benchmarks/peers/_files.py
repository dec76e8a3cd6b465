"""What the peers with a PNG file for each image share: the files' names, and the labels in CSV files.

As in Real Python's "Three Ways of Storing and Accessing Lots of Images in Python", "Storing to Disk" and "Reading
From Disk": the many have one CSV file, a single has a small one of its own.
"""

import csv
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.peers import Array, Many, Pair, Reader, Unsupported, gathered, sync

_LABELS = "labels.csv"


@dataclass(frozen=True)
class Files:
    """The verbs, given what reads and writes one file and which (channels, dtype) it keeps; 0 is for (H, W)."""

    read: Callable[[str], Array]
    write: Callable[[str, Array], object]
    keeps: frozenset[tuple[int, str]]

    def store_many(self, root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
        for image in images[:1] if isinstance(images, np.ndarray) else images:
            self._check(image)
        os.makedirs(root, exist_ok=True)
        for image_id, image in enumerate(images):
            self.write(_png(root, image_id), image)
        _write_csv(os.path.join(root, _LABELS), enumerate(labels.tolist()))
        sync(root, durable)

    def store_single(self, root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
        self._check(image)
        self.write(_png(root, image_id), image)
        _write_csv(_csv(root, image_id), [(image_id, label)])
        sync(_png(root, image_id), durable)
        sync(_csv(root, image_id), durable)

    def read_single(self, root: str, image_id: int, *, verify: bool = True) -> Pair:
        return self.read(_png(root, image_id)), _label(root, image_id)

    def read_many(self, root: str, *, verify: bool = True) -> Many:
        reader = self.open_reader(root)
        return reader.read_many(np.arange(len(reader)))

    def open_reader(self, root: str, *, verify: bool = True) -> "Folder":
        return Folder(root, self.read)

    def _check(self, image: Array) -> None:
        form = (image.shape[2] if image.ndim == 3 else 0, image.dtype.name)
        if form not in self.keeps:
            raise Unsupported(f"its PNG files do not keep {image.dtype} of shape {image.shape}")


class Folder(Reader):
    def __init__(self, root: str, read: Callable[[str], Array]) -> None:
        self._root, self._read = root, read
        labels = dict(_rows(os.path.join(root, _LABELS)))
        with os.scandir(root) as entries:
            singles = [entry.path for entry in entries if entry.name.endswith(".csv") and entry.name != _LABELS]
        labels.update(itertools.chain.from_iterable(map(_rows, singles)))
        self._labels = np.array([labels[image_id] for image_id in range(len(labels))], np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int) -> Pair:
        return self._read(_png(self._root, position)), int(self._labels[position])

    def read_many(self, image_ids: Array) -> Many:
        images = [self._read(_png(self._root, image_id)) for image_id in image_ids.tolist()]
        return gathered(images), self._labels[image_ids]


def _png(root: str, image_id: int) -> str:
    return os.path.join(root, f"{image_id}.png")


def _csv(root: str, image_id: int) -> str:
    return os.path.join(root, f"{image_id}.csv")


def _write_csv(path: str, rows: Iterable[tuple[int, int]]) -> None:
    with open(path, "w", newline="", encoding="ascii") as file:
        csv.writer(file).writerows(rows)


def _rows(path: str) -> list[tuple[int, int]]:
    with open(path, newline="", encoding="ascii") as file:
        return [(int(image_id), int(label)) for image_id, label in csv.reader(file)]


def _label(root: str, image_id: int) -> int:
    if os.path.exists(_csv(root, image_id)):
        return _rows(_csv(root, image_id))[0][1]
    with open(os.path.join(root, _LABELS), newline="", encoding="ascii") as file:
        return int(next(itertools.islice(csv.reader(file), image_id, None))[1])
