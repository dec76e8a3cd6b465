"""LMDB as tutorials teach it: a pickled object for each value, under its number as text.

Real Python, "Three Ways of Storing and Accessing Lots of Images in Python", "Storing to LMDB" and "Reading From
LMDB": the object has the image's bytes, its size and its label.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lmdb
import numpy as np

from benchmarks.peers import Array, Many, Pair, Reader, gathered, sync

_MAP_BYTES = 1 << 40


@dataclass
class Labelled:
    shape: tuple[int, ...]
    dtype: str
    pixels: bytes
    label: int

    def image(self) -> Array:
        return np.frombuffer(self.pixels, self.dtype).reshape(self.shape).copy()


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    with lmdb.open(root, map_size=_MAP_BYTES, sync=durable) as environment, environment.begin(write=True) as txn:
        for image_id, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            _put(txn, image, image_id, label)
    sync(root, durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    with lmdb.open(root, map_size=_MAP_BYTES, sync=durable) as environment, environment.begin(write=True) as txn:
        _put(txn, image, image_id, label)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    with open_reader(root) as reader:
        return reader[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    with open_reader(root) as reader:
        return reader.read_many(np.arange(len(reader)))


def open_reader(root: str, *, verify: bool = True) -> "Objects":
    return Objects(lmdb.open(root, readonly=True))


class Objects(Reader):
    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment

    def __len__(self) -> int:
        return int(self._environment.stat()["entries"])

    def __getitem__(self, position: int) -> Pair:
        with self._environment.begin() as txn:
            found = _get(txn, position)
        return found.image(), found.label

    def read_many(self, image_ids: Array) -> Many:
        with self._environment.begin() as txn:
            found = [_get(txn, image_id) for image_id in image_ids.tolist()]
        return gathered([each.image() for each in found]), np.array([each.label for each in found])

    def close(self) -> None:
        self._environment.close()


def _put(txn: lmdb.Transaction, image: Array, image_id: int, label: int) -> None:
    txn.put(_key(image_id), pickle.dumps(Labelled(image.shape, image.dtype.str, image.tobytes(), label)))


def _get(txn: lmdb.Transaction, image_id: int) -> Labelled:
    value: Any = txn.get(_key(image_id))
    found: Labelled = pickle.loads(value)
    return found


def _key(image_id: int) -> bytes:
    return f"{image_id:08}".encode()
