"""PNG files on disk: one for each image, whole in itself.

Label, shape, dtype and checksum stand in a text chunk `imgstore` before the pixels, so a single is one file
and one rename, and no read parses a table. `labels.csv` (id, label) lies beside the many for people and
other tools; `verify` holds it against the files. Held without loss: uint8 with 1 to 4 channels, uint16 with
one, bool with one.
"""

import io
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from imgstore._checksums import image_checksum
from imgstore._generations import Generation, read_file
from imgstore._images import Array, Block, Form, Labels, checked_integer, form_of, image_bytes
from imgstore._store import Allocate, Backend, Many, Pair
from imgstore.errors import CorruptStoreError

_MODES = {("uint8", channels): mode for channels, mode in enumerate(("L", "LA", "RGB", "RGBA"), 1)}
_MODES |= {("uint16", 1): "I;16", ("bool", 1): "1"}
_LARGEST_PIXELS = 89_478_485  # what Pillow opens without taking it for a decompression bomb
_DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this
_LARGEST_FILE = 1 << 31
_LABELS = "labels.csv"
_TITLE = "id,label\n"
_TEXT = re.compile(
    r"id=(?P<id>\d{1,19}) label=(?P<label>-?\d{1,19}) shape=(?P<shape>\d{1,9}(x\d{1,9}){1,2})"
    r" dtype=(?P<dtype>[|<]\w\d) xxh3=(?P<checksum>[0-9a-f]{16})"
)


class _Disk(Backend):
    name = "disk"
    suffix = ".png"

    def refusal(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
        if _mode(shape, dtype) is None:
            return (
                f"has shape {shape} and dtype {dtype}; PNG holds uint8 with 1 to 4 channels, "
                "uint16 or bool with one; convert it, or use lmdb or hdf5"
            )
        if shape[0] * shape[1] > _LARGEST_PIXELS:
            return f"has {shape[0]} x {shape[1]} pixels; Pillow reads at most {_LARGEST_PIXELS}"
        return None

    def write_many(self, generation: str, blocks: Iterator[Block]) -> dict[str, Any]:
        with open(os.path.join(generation, _LABELS), "w", encoding="ascii", newline="") as table:
            table.write(_TITLE)
            for block in blocks:
                for image_id, image, label in _entries(block):
                    _write_png(os.path.join(generation, f"{image_id:08d}.png"), image, image_id, label)
                table.write(_rows(block.first, block.labels))
        return {}

    def open_many(self, generation: Generation, count: int, form: Form | None, verify: bool) -> Many:
        # each row of labels.csv has at least four bytes: no forged count makes us allocate more than that
        if count > os.lstat(generation.path(_LABELS)).st_size // 4:
            raise CorruptStoreError(generation.path(_LABELS), f"is too short for {count} images")
        return _Files(generation, count, form, verify)

    def write_single(self, path: str, block: Block) -> None:
        for image_id, image, label in _entries(block):
            _write_png(path, image, image_id, label)

    def read_single_file(self, path: str, image_id: int, verify: bool) -> Pair:
        return _read_png(path, image_id, verify)

    def verify_many(self, generation: Generation) -> Labels:
        labels = super().verify_many(generation)
        path, expected = generation.path(_LABELS), (_TITLE + _rows(0, labels)).encode()
        if len(labels) and read_file(path, len(expected)) != expected:
            raise CorruptStoreError(path, "does not have the labels of the image files")
        return labels


class _Files(Many):
    """The PNG files of a generation."""

    def __init__(self, generation: Generation, count: int, form: Form | None, verify: bool) -> None:
        self.count, self.form = count, form
        self._generation, self._verify = generation, verify

    def read(self, image_id: int) -> Pair:
        path = self._generation.path(f"{image_id:08d}.png")
        try:
            image, label = _read_png(path, image_id, self._verify)
        except FileNotFoundError:
            raise self._generation.fault(path, "is missing from the store", image_id) from None
        if self.form and self.form != (image.shape, image.dtype):
            raise CorruptStoreError(path, "has not the shape and dtype that DESCRIPTION tells", image_id)
        return image, label

    def gather(self, ids: Labels) -> tuple[Array, Labels]:
        images, labels = zip(*map(self.read, ids.tolist()), strict=True)
        return np.stack(images), np.array(labels)

    def read_blocks(self, allocate: Allocate) -> Iterator[Block]:
        for image_id in range(self.count):
            image, label = self.read(image_id)
            images = allocate(image_id, 1, (image.shape, image.dtype))
            images[0] = image
            yield Block(image_id, images, np.array([label], np.int64))


def _entries(block: Block) -> Iterator[tuple[int, Array, int]]:
    return ((block.first + row, block.images[row], int(block.labels[row])) for row in range(len(block.images)))


def _write_png(path: str, image: Array, image_id: int, label: int) -> None:
    shape = "x".join(map(str, image.shape))
    digest = image_checksum(image, image_id, label)
    text = PngImagePlugin.PngInfo()
    text.add_text("imgstore", f"id={image_id} label={label} shape={shape} dtype={image.dtype.str} xxh3={digest:016x}")
    plane = image[:, :, 0] if image.shape[2:] == (1,) else image
    Image.fromarray(plane).save(path, "PNG", pnginfo=text, compress_level=1)


def _read_png(path: str, image_id: int, verify: bool) -> Pair:
    data = read_file(path, _LARGEST_FILE)
    try:
        image, label, digest = _decoded(data, image_id)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptStoreError(path, f"is not the PNG that was stored: {error}", image_id) from None
    if verify and image_checksum(image, image_id, label) != digest:
        raise CorruptStoreError(path, "does not match its checksum", image_id)
    return image, label


def _decoded(data: bytes, image_id: int) -> tuple[Array, int, int]:
    """Image, label and checksum. Raises ValueError, or what Pillow raises, for anything but our own PNG."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as png:
        entry = _TEXT.fullmatch(str(png.info.get("imgstore", "")))
        if not entry or int(entry["id"]) != image_id:
            raise ValueError("it has no text that tells of this image")
        shape = tuple(map(int, entry["shape"].split("x")))
        kind = form_of(shape, entry["dtype"])
        label = checked_integer(int(entry["label"]), "label")
        if (
            kind is None
            or png.size != (shape[1], shape[0])
            or png.mode != _mode(*kind)
            or getattr(png, "is_animated", False)
        ):
            raise ValueError(f"a {png.mode} image of {png.size} is not what its text tells")
        if image_bytes(kind) > _DEFLATE_RATIO * len(data) * 8:
            raise ValueError("it claims more pixels than its bytes can hold")
        return np.array(png, kind[1]).reshape(shape), label, int(entry["checksum"], 16)


def _mode(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    """Pillow's name for images of this form."""
    return _MODES.get((dtype.name, shape[2] if len(shape) == 3 else 1))


def _rows(first: int, labels: Labels) -> str:
    return "".join(f"{image_id},{label}\n" for image_id, label in enumerate(labels.tolist(), first))


BACKEND = _Disk()
store_single = BACKEND.store_single
store_many = BACKEND.store_many
read_single = BACKEND.read_single
read_many = BACKEND.read_many
open_reader = BACKEND.open_reader
verify = BACKEND.verify
