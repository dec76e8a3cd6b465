"""Pillow: a PNG file for each image at its defaults, the labels in CSV files.

Pillow handbook, "Tutorial", "Reading and Writing Images", and "Image file formats", "PNG". It is also how tutorials
teach it; see `_files`.
"""

import numpy as np
from PIL import Image

from benchmarks.peers import Array
from benchmarks.peers._files import Files


def _write(path: str, image: Array) -> None:
    Image.fromarray(image).save(path)


def _read(path: str) -> Array:
    with Image.open(path) as image:
        return np.array(image)


_KEEPS = {(channels, "uint8") for channels in (0, 2, 3, 4)} | {(0, "uint16")}
_PILLOW = Files(_read, _write, frozenset(_KEEPS))
store_many, store_single = _PILLOW.store_many, _PILLOW.store_single
read_single, read_many, open_reader = _PILLOW.read_single, _PILLOW.read_many, _PILLOW.open_reader
