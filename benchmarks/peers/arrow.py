"""Arrow IPC: a file of one record batch, read as views of a memory map.

Arrow documentation, "Streaming, Serialization, and IPC", "Efficiently Writing and Reading Arrow Data": a mapped file
is read without a copy.
"""

import os
from collections.abc import Sequence
from typing import Any

import pyarrow

from benchmarks.peers import Array, Many, Pair, Reader, sync
from benchmarks.peers._rows import Rows
from benchmarks.peers._tables import arrays, is_mixed, table, view


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    data = table(images, labels)
    os.makedirs(root, exist_ok=True)
    with pyarrow.OSFile(_path(root), "wb") as file, pyarrow.ipc.new_file(file, data.schema) as writer:
        writer.write_table(data)
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    return open_reader(root)[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    data = _mapped(root)
    return arrays(data, data.schema)


def open_reader(root: str, *, verify: bool = True) -> Reader:
    data = _mapped(root)
    if is_mixed(data.schema):
        return Taken(data)
    return Rows(view(data.schema, data["image"].chunk(0)), data["label"].to_numpy())


class Taken(Reader):
    """Images of different forms."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return int(self._data.num_rows)

    def read_many(self, image_ids: Array) -> Many:
        return arrays(self._data.take(image_ids), self._data.schema)


def _mapped(root: str) -> Any:
    return pyarrow.ipc.open_file(pyarrow.memory_map(_path(root))).read_all()


def _path(root: str) -> str:
    return os.path.join(root, "images.arrow")
