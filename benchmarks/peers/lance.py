"""Lance: a dataset with a row for each image; batches by `take`, which is what it is made for.

Lance documentation, "Read and Write Data" (`write_dataset`, mode "append") and "Random access" (`take`).
"""

import os
from collections.abc import Sequence
from typing import Any

import lance
import numpy as np

from benchmarks.peers import Array, Many, Pair, Reader, Unsupported, sync
from benchmarks.peers._tables import arrays, is_mixed, table


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    data = table(images, labels)
    lance.write_dataset(data, _path(root))
    sync(root, durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    dataset = lance.dataset(_path(root))
    row = table([image], np.array([label]), is_mixed(dataset.schema))
    if dataset.count_rows() != image_id or not dataset.schema.equals(row.schema, check_metadata=True):
        raise Unsupported("to a dataset of one form, a row of that form is added, at its end")
    dataset.insert(row)
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    return open_reader(root)[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    dataset = lance.dataset(_path(root))
    return arrays(dataset.to_table(), dataset.schema)


def open_reader(root: str, *, verify: bool = True) -> "Rows":
    return Rows(lance.dataset(_path(root)))


class Rows(Reader):
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    def read_many(self, image_ids: Array) -> Many:
        return arrays(self._dataset.take(image_ids.tolist()), self._dataset.schema)


def _path(root: str) -> str:
    return os.path.join(root, "images.lance")
