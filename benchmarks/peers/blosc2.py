"""Blosc2: an NDArray file of images and one of labels, uncompressed, read through a memory map.

python-blosc2 reference: `asarray` (`chunks`, `blocks`, `cparams`) and `open` (`mmap_mode`). A random read unpacks
blocks of 64 KiB. Level 0, as LZ4 leaves photographs at 99% of their size and reads no faster.
"""

import os
from collections.abc import Sequence
from typing import Any

import blosc2
import numpy as np

from benchmarks.peers import Array, Many, Pair, rows_in, stacked, sync
from benchmarks.peers._rows import Rows

_CHUNK_BYTES, _BLOCK_BYTES = 4 << 20, 64 << 10


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    images = stacked(images)
    os.makedirs(root, exist_ok=True)
    for name, data in (("images", images), ("labels", labels)):
        chunks, blocks = ((rows_in(size, data), *data.shape[1:]) for size in (_CHUNK_BYTES, _BLOCK_BYTES))
        blosc2.asarray(data, urlpath=_path(root, name), mode="w", chunks=chunks, blocks=blocks, cparams={"clevel": 0})
    sync(root, durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    for name, data in (("images", image), ("labels", np.int64(label))):
        array = blosc2.open(_path(root, name), mode="a")
        array.resize((max(image_id + 1, array.shape[0]), *array.shape[1:]))
        array[image_id] = data
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    return Rows(_open(root, "images"), _open(root, "labels"))[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    return _open(root, "images")[:], _open(root, "labels")[:]


def open_reader(root: str, *, verify: bool = True) -> Rows:
    return Rows(_open(root, "images"), _open(root, "labels")[:])


def _path(root: str, name: str) -> str:
    return os.path.join(root, f"{name}.b2nd")


def _open(root: str, name: str) -> Any:
    return blosc2.open(_path(root, name), mode="r", mmap_mode="r")
