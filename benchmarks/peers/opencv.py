"""OpenCV: `imwrite` and `imread` of a PNG file for each image, the labels in CSV files.

OpenCV documentation, "Image file reading and writing": channels are in the order B, G, R, so colour is converted;
IMREAD_UNCHANGED gives back what was stored.
"""

import cv2

from benchmarks.peers import Array
from benchmarks.peers._files import Files

_TO_BGR = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
_FROM_BGR = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}


def _write(path: str, image: Array) -> None:
    if not cv2.imwrite(path, cv2.cvtColor(image, _TO_BGR[image.shape[2]]) if image.ndim == 3 else image):
        raise OSError(f"{path}: not written")


def _read(path: str) -> Array:
    image: Array | None = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise OSError(f"{path}: cannot be read")
    return cv2.cvtColor(image, _FROM_BGR[image.shape[2]]) if image.ndim == 3 else image


_KEEPS = {(channels, dtype) for channels in (0, 3, 4) for dtype in ("uint8", "uint16")}
_OPENCV = Files(_read, _write, frozenset(_KEEPS))
store_many, store_single = _OPENCV.store_many, _OPENCV.store_single
read_single, read_many, open_reader = _OPENCV.read_single, _OPENCV.read_many, _OPENCV.open_reader
