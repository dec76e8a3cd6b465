"""Parquet: row groups of about 1 MiB, uncompressed and without a dictionary, of which random reads read whole ones.

Arrow documentation, "Reading and Writing the Apache Parquet Format": "Finer-grained Reading and Writing" and memory
mapping. `verify` is its `page_checksum_verification`.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from pyarrow import parquet

from benchmarks.peers import Array, Many, Pair, Reader, sync
from benchmarks.peers._tables import arrays, table

_GROUP_BYTES = 1 << 20


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    data = table(images, labels)
    os.makedirs(root, exist_ok=True)
    parquet.write_table(
        data,
        os.path.join(root, "images.parquet"),
        row_group_size=max(1, _GROUP_BYTES * len(labels) // data.nbytes),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    with open_reader(root, verify=verify) as reader:
        return reader[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    with open_reader(root, verify=verify) as reader:
        return arrays(reader.file.read(), reader.file.schema_arrow)


def open_reader(root: str, *, verify: bool = True) -> "Groups":
    path = os.path.join(root, "images.parquet")
    return Groups(parquet.ParquetFile(path, memory_map=True, page_checksum_verification=verify))


class Groups(Reader):
    def __init__(self, file: Any) -> None:
        self.file = file
        self._rows = file.metadata.row_group(0).num_rows

    def __len__(self) -> int:
        return int(self.file.metadata.num_rows)

    def read_many(self, image_ids: Array) -> Many:
        groups, at = np.unique(image_ids // self._rows, return_inverse=True)
        read = self.file.read_row_groups(groups.tolist())
        return arrays(read.take(at * self._rows + image_ids % self._rows), self.file.schema_arrow)

    def close(self) -> None:
        self.file.close()
