"""HDF5 as tutorials teach it: one dataset of images and one of labels, the file opened anew for each read.

Real Python, "Three Ways of Storing and Accessing Lots of Images in Python", "Storing With HDF5" and "Reading From
HDF5"; a single is a file of its own there. h5py documentation, "Fancy indexing": rows must increase, so a batch
reads each of its rows once and repeats them after.
"""

import os
from collections.abc import Sequence

import h5py
import numpy as np

from benchmarks.peers import Array, Many, Pair, Reader, stacked, sync


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    images = stacked(images)
    os.makedirs(root, exist_ok=True)
    with h5py.File(_many(root), "w") as file:
        file.create_dataset("images", data=images)
        file.create_dataset("labels", data=labels)
    sync(root, durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    path = _single(root, image_id)
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image)
        file.create_dataset("label", data=label, dtype=np.int64)
    sync(path, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    if os.path.exists(_single(root, image_id)):
        with h5py.File(_single(root, image_id), "r") as file:
            return file["image"][()], int(file["label"][()])
    with h5py.File(_many(root), "r") as file:
        return file["images"][image_id], int(file["labels"][image_id])


def read_many(root: str, *, verify: bool = True) -> Many:
    with h5py.File(_many(root), "r") as file:
        return file["images"][:], file["labels"][:]


def open_reader(root: str, *, verify: bool = True) -> "Reopening":
    return Reopening(root)


class Reopening(Reader):
    def __init__(self, root: str) -> None:
        self._root = root

    def __len__(self) -> int:
        with h5py.File(_many(self._root), "r") as file:
            return len(file["labels"])

    def __getitem__(self, position: int) -> Pair:
        return read_single(self._root, position)

    def read_many(self, image_ids: Array) -> Many:
        rows, again = np.unique(image_ids, return_inverse=True)
        with h5py.File(_many(self._root), "r") as file:
            return file["images"][rows][again], file["labels"][rows][again]


def _many(root: str) -> str:
    return os.path.join(root, "images.h5")


def _single(root: str, image_id: int) -> str:
    return os.path.join(root, f"{image_id}.h5")
