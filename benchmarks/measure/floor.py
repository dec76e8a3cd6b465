"""The physical limit, as a backend with the same verbs: the same bytes in one flat file, and nothing else.

It stands in every table, so that each figure shows how far it is from what the disk and the memory allow. It
keeps no promise: no checksum, no atomicity but that of a single, no other ids than 0 to N - 1. The arguments
are those of imgstore's backends; `verify` is taken and has no effect.

    root/flat       pixels end to end, labels (int64), forms (one where all images agree, else N), footer
    root/ID         the same of one image, for a single
"""

import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence, Sized
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = tuple[Array, int]

FLOOR = "floor"  # its name in tables

_FORM = np.dtype([("offset", "<i8"), ("shape", "<i8", 3), ("dtype", "S4")])
_FOOTER = struct.Struct("<qqq")  # bytes of pixels, images, forms
_WRITE_BYTES = 1 << 20


def store_many(root: str, images: Iterable[Array], labels: Sized, *, durable: bool = True) -> None:
    new = not os.path.isdir(root)
    os.makedirs(root, exist_ok=True)
    _store(os.path.join(root, "flat"), images, np.asarray(labels, np.int64), durable)
    _sync(root, durable)
    if new:
        _sync(os.path.dirname(os.path.abspath(root)), durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    path = os.path.join(root, str(image_id))
    _store(f"{path}.new", image[np.newaxis], np.array([label]), durable)
    os.replace(f"{path}.new", path)
    _sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    path = os.path.join(root, str(image_id))
    single = os.path.exists(path)
    with open(path if single else os.path.join(root, "flat"), "rb", buffering=0) as file:
        return _read_one(file, 0 if single else image_id)


def read_many(root: str, *, verify: bool = True) -> tuple[Array | list[Array], Array]:
    """One `readinto` of all pixels; of different forms, each image into memory of its own, as the contract has it."""
    with open(os.path.join(root, "flat"), "rb", buffering=0) as file:
        size, labels, forms = _described(file)
        if len(forms) > 1:
            return [_image(file, form, int(form["offset"])) for form in forms], labels
        pixels = _page_aligned(size)
        file.seek(0)
        filled = 0
        while filled < size:  # the system reads at most 2 GiB at once
            filled += file.readinto(pixels[filled:].data)
    return _shaped(pixels, len(labels), forms), labels


def open_reader(root: str, *, verify: bool = True) -> "Reader":
    return Reader(root)


class Reader(Sequence[Pair]):
    """One memory map; a batch is gathered from it."""

    def __init__(self, root: str) -> None:
        with open(os.path.join(root, "flat"), "rb") as file:
            _, self._labels, forms = _described(file)
            pixels = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        self._images = _shaped(pixels, len(self._labels), forms)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int) -> Pair:  # type: ignore[override]
        return self._images[position].copy(), int(self._labels[position])

    def __getitems__(self, positions: list[int]) -> list[Pair]:
        images, labels = self.read_many(np.array(positions))
        return list(zip(images, labels.tolist(), strict=True))

    def read_many(self, image_ids: Array) -> tuple[Array | list[Array], Array]:
        if isinstance(self._images, np.ndarray):
            return self._images.take(image_ids, axis=0), self._labels[image_ids]
        return [self._images[image_id].copy() for image_id in image_ids.tolist()], self._labels[image_ids]

    def close(self) -> None:
        self._images = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()


def _page_aligned(size: int) -> Array:
    """Room for bytes. NumPy's own begins 16 bytes into a page, and to copy a whole page there takes twice as long.

    Where what is written lies just behind what is read, modulo 4096, the processor waits for the writes.
    """
    room = np.empty(size + mmap.PAGESIZE, np.uint8)
    start = -room.ctypes.data % mmap.PAGESIZE
    return room[start : start + size]


def _store(path: str, images: Iterable[Array], labels: Array, durable: bool) -> None:
    with open(path, "wb", buffering=_WRITE_BYTES) as file:
        if isinstance(images, np.ndarray):
            forms = [(0, (*images.shape[1:], 0)[:3], images.dtype.str)]
            file.write(np.ascontiguousarray(images).data)
        else:
            forms = list(_written(file, images))
            forms = forms[:1] if len({form[1:] for form in forms}) == 1 else forms
        size = file.tell()
        file.write(labels.tobytes() + np.array(forms, _FORM).tobytes())
        file.write(_FOOTER.pack(size, len(labels), len(forms)))
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _written(file: BinaryIO, images: Iterable[Array]) -> Iterator[tuple[int, tuple[int, ...], str]]:
    offset = 0
    for image in images:
        file.write(np.ascontiguousarray(image).data)
        yield offset, (*image.shape, 0)[:3], image.dtype.str
        offset += image.nbytes


def _footer(file: BinaryIO) -> tuple[int, int, int]:
    descriptor = file.fileno()
    data = os.pread(descriptor, _FOOTER.size, os.fstat(descriptor).st_size - _FOOTER.size)
    size, count, forms = _FOOTER.unpack(data)
    return size, count, forms


def _described(file: BinaryIO) -> tuple[int, Array, Array]:
    """Bytes of pixels, labels, forms."""
    size, count, forms = _footer(file)
    data = os.pread(file.fileno(), 8 * count + _FORM.itemsize * forms, size)
    return size, np.frombuffer(data, "<i8", count).copy(), np.frombuffer(data, _FORM, forms, 8 * count)


def _read_one(file: BinaryIO, row: int) -> Pair:
    size, count, forms = _footer(file)
    descriptor = file.fileno()
    form_at = size + 8 * count + _FORM.itemsize * (row if forms > 1 else 0)
    form = np.frombuffer(os.pread(descriptor, _FORM.itemsize, form_at), _FORM)[0]
    pixels = int(form["offset"] if forms > 1 else row * (size // count))
    (label,) = struct.unpack("<q", os.pread(descriptor, 8, size + 8 * row))
    return _image(file, form, pixels), label


def _image(file: BinaryIO, form: Any, offset: int) -> Array:
    image = np.empty(_shape(form), form["dtype"].decode())
    os.preadv(file.fileno(), [image.data], offset)
    return image


def _shaped(pixels: Array, count: int, forms: Array) -> Array | list[Array]:
    if len(forms) == 1:
        return np.ndarray((count, *_shape(forms[0])), forms[0]["dtype"].decode(), pixels)
    return [np.ndarray(_shape(form), form["dtype"].decode(), pixels, int(form["offset"])) for form in forms]


def _shape(form: Any) -> tuple[int, ...]:
    return tuple(int(length) for length in form["shape"] if length)


def _sync(directory: str, durable: bool) -> None:
    if durable:
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
