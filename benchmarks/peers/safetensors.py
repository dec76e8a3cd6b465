"""safetensors: a file of two tensors, read whole by `load_file` and at random through `safe_open` and `get_slice`.

safetensors documentation, "Load tensors" ("Loading only part of the tensors"), and "Numpy API".
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from benchmarks.peers import Array, Many, Pair, Reader, stacked, sync


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    images = stacked(images)
    os.makedirs(root, exist_ok=True)
    save_file({"images": images, "labels": labels}, _path(root))
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    with safe_open(_path(root), "np") as file:
        return file.get_slice("images")[image_id], int(file.get_slice("labels")[image_id : image_id + 1][0])


def read_many(root: str, *, verify: bool = True) -> Many:
    tensors = load_file(_path(root))
    return tensors["images"], tensors["labels"]


def open_reader(root: str, *, verify: bool = True) -> "Slices":
    return Slices(root)


class Slices(Reader):
    """A slice of a tensor cannot be taken by a list of rows, so a batch is read row by row."""

    def __init__(self, root: str) -> None:
        file: Any = safe_open(_path(root), "np")
        self._images, self._labels = file.get_slice("images"), file.get_tensor("labels")

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int) -> Pair:
        return self._images[position], int(self._labels[position])

    def read_many(self, image_ids: Array) -> Many:
        return np.stack([self._images[row] for row in image_ids.tolist()]), self._labels[image_ids]


def _path(root: str) -> str:
    return os.path.join(root, "images.safetensors")
