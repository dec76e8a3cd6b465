"""TensorStore's zarr3 driver: two arrays, the images in shards of 4 MiB whose chunks of 64 KiB are read alone.

TensorStore documentation, "zarr3 driver" and `ChunkLayout`: write chunks for few files, read chunks for random
reads. `file_io_sync`, of its "file Key-Value Store driver", is off, as one sync at the end is faster.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorstore

from benchmarks.peers import Array, Many, Pair, rows_in, stacked, sync
from benchmarks.peers._rows import Rows

_SHARD_CHUNKS, _CHUNK_BYTES = 64, 64 << 10


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    for name, data in (("images", stacked(images)), ("labels", labels)):
        rows = rows_in(_CHUNK_BYTES, data)
        layout = tensorstore.ChunkLayout(
            read_chunk_shape=(rows, *data.shape[1:]), write_chunk_shape=(rows * _SHARD_CHUNKS, *data.shape[1:])
        )
        array = _open(root, name, create=True, dtype=data.dtype, shape=data.shape, chunk_layout=layout)
        array.write(data).result()
    sync(root, durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    for name, data in (("images", image), ("labels", np.int64(label))):
        array = _open(root, name)
        shape = [max(image_id + 1, array.shape[0]), *[None] * (array.rank - 1)]
        array.resize(exclusive_max=shape, expand_only=True).result()[image_id].write(data).result()
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    return Rows(_open(root, "images"), _open(root, "labels"))[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    images, labels = (_open(root, name).read() for name in ("images", "labels"))
    return images.result(), labels.result()


def open_reader(root: str, *, verify: bool = True) -> Rows:
    return Rows(_open(root, "images"), _open(root, "labels").read().result())


def _open(root: str, name: str, **how: Any) -> Any:
    files = {"driver": "file", "path": os.path.join(root, name, "")}
    spec = {"driver": "zarr3", "kvstore": files, "context": {"file_io_sync": False}}
    return tensorstore.open(spec, **how or {"open": True}).result()
