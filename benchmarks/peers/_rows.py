"""What the array formats share: a reader of an array of images and one of labels."""

from typing import Any

import numpy as np

from benchmarks.peers import Array, Many, Pair, Reader


class Rows(Reader):
    """`images` and `labels` are indexed as NumPy's arrays are, by a position or by an array of them."""

    def __init__(self, images: Any, labels: Any) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int) -> Pair:
        return np.array(self._images[position]), int(np.asarray(self._labels[position]))

    def read_many(self, image_ids: Array) -> Many:
        return np.asarray(self._images[image_ids]), np.asarray(self._labels[image_ids])

    def close(self) -> None:
        self._images = self._labels = ()
