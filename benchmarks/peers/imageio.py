"""imageio: `imwrite` and `imread` of its v3 API, a PNG file for each image, the labels in CSV files.

imageio documentation, "Core API v3", `plugin`: naming it (here Pillow) saves the search for one.
"""

import imageio.v3 as iio
import numpy as np

from benchmarks.peers import Array
from benchmarks.peers._files import Files


def _write(path: str, image: Array) -> None:
    iio.imwrite(path, image, plugin="pillow", extension=".png")


def _read(path: str) -> Array:
    return np.require(iio.imread(path, plugin="pillow", extension=".png"), requirements="W")


_KEEPS = {(channels, "uint8") for channels in (0, 2, 3, 4)} | {(0, "uint16")}
_IMAGEIO = Files(_read, _write, frozenset(_KEEPS))
store_many, store_single = _IMAGEIO.store_many, _IMAGEIO.store_single
read_single, read_many, open_reader = _IMAGEIO.read_single, _IMAGEIO.read_many, _IMAGEIO.open_reader
