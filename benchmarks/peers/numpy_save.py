"""`numpy.save`, an .npy file of images and one of labels; read whole by `numpy.load`, at random through a memory map.

NumPy reference, `numpy.load`, `mmap_mode`, which it recommends for small parts of large files.
"""

import os
from collections.abc import Sequence

import numpy as np

from benchmarks.peers import Array, Many, Pair, stacked, sync
from benchmarks.peers._rows import Rows


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    images = stacked(images)
    os.makedirs(root, exist_ok=True)
    np.save(_path(root, "images"), images)
    np.save(_path(root, "labels"), labels)
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    return open_reader(root)[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    return np.load(_path(root, "images")), np.load(_path(root, "labels"))


def open_reader(root: str, *, verify: bool = True) -> Rows:
    return Rows(*(np.asarray(np.load(_path(root, name), mmap_mode="r")) for name in ("images", "labels")))


def _path(root: str, name: str) -> str:
    return os.path.join(root, f"{name}.npy")
