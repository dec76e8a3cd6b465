"""PNG files on disk: one for each image, whole in itself.

Label, shape, dtype and checksum stand in a text chunk `imgstore` before the pixels, so a single is one file
and one rename, and no read parses a table. `labels.csv` (id, label) lies beside the many for people and other
tools; `verify` holds it against the files. Held without loss: uint8 with 1 to 4 channels, uint16 and bool with
one. Small images are not compressed where that would not save a block of the disk; Pillow does all others.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from imgstore._disk.png import (
    DEFLATE_RATIO,
    HEAD_BYTES,
    LARGEST_FILE,
    LARGEST_PIXELS,
    checked,
    encoded,
    form_in,
    largest_file,
    mode_of,
)
from imgstore.core.blocks import Array, Block, Form, Labels, image_bytes
from imgstore.core.files import NewFile, naming, new_file, open_file, read_file, write_file
from imgstore.core.format import Contents, Many, Pair
from imgstore.core.generations import Generation
from imgstore.core.reading import File
from imgstore.core.verbs import Backend
from imgstore.errors import CorruptStoreError

_LABELS = "labels.csv"
_TITLE = "id,label\n"


class _Disk(Backend):
    name = "disk"
    suffix = ".png"

    def refusal(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
        if mode_of(shape, dtype) is None:
            return (
                f"has shape {shape} and dtype {dtype}; PNG holds uint8 with 1 to 4 channels, "
                "uint16 or bool with one; convert it, or use lmdb or hdf5"
            )
        if shape[0] * shape[1] > LARGEST_PIXELS:
            return f"has {shape[0]} x {shape[1]} pixels; Pillow reads at most {LARGEST_PIXELS}"
        return None

    def write_many(self, generation: str, blocks: Iterator[Block]) -> dict[str, Any]:
        with new_file(os.path.join(generation, _LABELS)) as table:
            table.write(_TITLE.encode())
            for block in blocks:
                for image_id, png in enumerate(encoded(block), block.first):
                    write_file(f"{generation}/{image_id:08d}.png", png)
                table.write(_rows(block.first, block.labels).encode())
        return {}

    def open_many(self, generation: Generation, contents: Contents, verify: bool) -> Many:
        count, form, _ = contents
        # no forged number makes us allocate more than the files could hold: a row of labels has four bytes or more
        if count > os.lstat(generation.path(_LABELS)).st_size // 4:
            raise CorruptStoreError(generation.path(_LABELS), f"is too short for {count} images")
        first, last = (generation.path(f"{image_id:08d}.png") for image_id in (0, count - 1))
        os.lstat(last)  # else a number that is only claimed would cost memory
        if form and image_bytes(form) > DEFLATE_RATIO * 8 * os.lstat(first).st_size:
            raise CorruptStoreError(first, "is too short for the shape that DESCRIPTION tells", 0)
        return _Files(generation, count, form, verify)

    def write_single(self, file: NewFile, block: Block) -> None:
        file.write(next(encoded(block)))

    def open_single(self, path: str, image_id: int, verify: bool) -> Many:
        return _Single(path, image_id, verify)

    def verified(self, generation: Generation) -> Iterator[Block]:
        path = generation.path(_LABELS)
        count = generation.description.get("count")
        table = File(path) if count else None
        at = len(_TITLE)
        for block in super().verified(generation):
            rows = _rows(block.first, block.labels).encode()
            title = _TITLE.encode() if not block.first else b""
            if table and table.bytes_at(at - len(title), len(title + rows)) != title + rows:
                raise CorruptStoreError(path, "does not have the labels of the image files")
            at += len(rows)
            yield block
        if table and at != table.size:
            raise CorruptStoreError(path, "does not have the labels of the image files")


class _Single(Many):
    """A PNG file."""

    count = 1

    def __init__(self, path: str, image_id: int, verify: bool) -> None:
        self._path, self._image_id, self._verify = path, image_id, verify
        self._data = read_file(path, LARGEST_FILE)

    def read(self, image_id: int) -> Pair:
        return checked(self._data, self._path, image_id, self._verify)

    def forms(self) -> Iterator[Form]:
        yield form_in(self._data, self._path, self._image_id)


class _Files(Many):
    """The PNG files of a generation."""

    def __init__(self, generation: Generation, count: int, form: Form | None, verify: bool) -> None:
        self.count, self.form = count, form
        self._generation, self._verify = generation, verify

    def read(self, image_id: int) -> Pair:
        path = self._path(image_id)
        with self._there(path, image_id):
            data = read_file(path, largest_file(self.form))
        image, label = checked(data, path, image_id, self._verify)
        if self.form and self.form != (image.shape, image.dtype):
            raise CorruptStoreError(path, "has not the shape and dtype that DESCRIPTION tells", image_id)
        return image, label

    def gather(self, ids: Labels) -> tuple[Array, Labels]:
        assert self.form is not None
        images, labels = np.empty((len(ids), *self.form[0]), self.form[1]), np.empty(len(ids), np.int64)
        for row, image_id in enumerate(ids.tolist()):
            images[row], labels[row] = self.read(image_id)
        return images, labels

    def read_blocks(self, images: Array | None = None) -> Iterator[Block]:
        for image_id in range(self.count):
            image, label = self.read(image_id)
            if images is not None:
                images[image_id] = image
            yield Block(image_id, image[np.newaxis], np.array([label]))

    def forms(self) -> Iterator[Form]:
        for image_id in range(self.count):
            path = self._path(image_id)
            with self._there(path, image_id):
                descriptor, _ = open_file(path)
            try:
                with naming(path):
                    head = os.read(descriptor, HEAD_BYTES)
            finally:
                os.close(descriptor)
            yield form_in(head, path, image_id)

    def _path(self, image_id: int) -> str:
        return self._generation.path(f"{image_id:08d}.png")

    @contextlib.contextmanager
    def _there(self, path: str, image_id: int) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise self._generation.fault(path, "is missing from the store", image_id) from None


def _rows(first: int, labels: Labels) -> str:
    return "".join(f"{image_id},{label}\n" for image_id, label in enumerate(labels.tolist(), first))


BACKEND = _Disk()
store_single = BACKEND.store_single
store_many = BACKEND.store_many
read_single = BACKEND.read_single
read_many = BACKEND.read_many
open_reader = BACKEND.open_reader
verify = BACKEND.verify
