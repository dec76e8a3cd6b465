"""Hugging Face datasets: an `Array2D` or `Array3D` feature and one of labels, saved to disk, read in Arrow's format.

datasets documentation, "Use with NumPy", "N-dimensional arrays", and "Use with PyArrow": its NumPy format turns every
integer into int64 unless all columns are to have one dtype, so arrays are taken from the Arrow columns.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from benchmarks.peers import Array, Many, Pair, Reader, stacked, sync


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    images = stacked(images)
    datasets.disable_progress_bars()
    array = datasets.Array3D if images.ndim == 4 else datasets.Array2D
    features = {"image": array(images.shape[1:], images.dtype.name), "label": datasets.Value("int64")}
    data = {"image": images, "label": labels}
    datasets.Dataset.from_dict(data, features=datasets.Features(features)).save_to_disk(root)
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    return open_reader(root)[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    return _arrays(_opened(root)[:])


def open_reader(root: str, *, verify: bool = True) -> "Rows":
    return Rows(_opened(root))


class Rows(Reader):
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int) -> Pair:
        images, labels = _arrays(self._dataset[position : position + 1])
        return images[0], int(labels[0])

    def read_many(self, image_ids: Array) -> Many:
        return _arrays(self._dataset[image_ids].combine_chunks())


def _arrays(found: Any) -> Many:
    images = [chunk.to_numpy(zero_copy_only=False) for chunk in found["image"].chunks]
    return np.concatenate(images), found["label"].to_numpy().copy()


def _opened(root: str) -> Any:
    return datasets.load_from_disk(root).with_format("arrow")
