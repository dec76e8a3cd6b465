"""What the record formats share: an image and its label as one run of bytes, and many as arrays."""

import struct
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.peers import Array, Many, Pair, Reader

_LABEL = struct.Struct("<q")
_FORM = struct.Struct("<3i4s")  # height, width, channels (0 for none), dtype
_PIXELS_AT = _LABEL.size + _FORM.size


class Records(Reader):
    """Of records that are found by their number."""

    @abstractmethod
    def records(self, image_ids: Iterable[int]) -> Sequence[Any]:
        """Each in the order asked for."""

    def __getitem__(self, position: int) -> Pair:
        return unpacked(self.records((position,))[0])

    def read_many(self, image_ids: Array) -> Many:
        return all_unpacked(self.records(image_ids.tolist()))


def form_of(image: Array) -> bytes:
    return _FORM.pack(*(*image.shape, 0)[:3], image.dtype.str.encode())


def pixels_of(image: Array) -> memoryview:
    return np.ascontiguousarray(image).data


def image_of(form: bytes, pixels: Any) -> Array:
    """An array of its own with these pixels."""
    shape, dtype = _parsed(form)
    return np.ndarray(shape, dtype, bytearray(pixels))


def images_of(forms: Sequence[bytes], pixels: Sequence[Any]) -> Array | list[Array]:
    """One array where the forms agree, else a list."""
    if len(set(forms)) > 1:
        return [image_of(form, each) for form, each in zip(forms, pixels, strict=True)]
    shape, dtype = _parsed(forms[0])
    return np.ndarray((len(pixels), *shape), dtype, bytearray().join(pixels))


def packed(image: Array, label: int) -> bytes:
    """The record of an image: label, form, pixels."""
    return b"".join((_LABEL.pack(label), form_of(image), pixels_of(image)))


def unpacked(record: Any) -> Pair:
    (label,) = _LABEL.unpack_from(record)
    view = memoryview(record)
    return image_of(bytes(view[_LABEL.size : _PIXELS_AT]), view[_PIXELS_AT:]), label


def all_unpacked(records: Iterable[Any]) -> Many:
    views = [memoryview(record) for record in records]
    labels = np.frombuffer(bytearray().join([view[: _LABEL.size] for view in views]), np.int64)
    forms = [bytes(view[_LABEL.size : _PIXELS_AT]) for view in views]
    return images_of(forms, [view[_PIXELS_AT:] for view in views]), labels


def _parsed(form: bytes) -> tuple[tuple[int, ...], str]:
    *lengths, dtype = _FORM.unpack(form)
    return tuple(length for length in lengths if length), dtype.rstrip(b"\0").decode()
