"""PNG files on disk: one for each image, whole in itself.

Label, shape, dtype and checksum stand in a text chunk `imgstore` before the pixels, so a single is one file
and one rename, and no read parses a table. `labels.csv` (id, label) lies beside the many for people and other
tools; `verify` holds it against the files. Held without loss: uint8 with 1 to 4 channels, uint16 and bool with
one. Small images are not compressed where that would not save a block of the disk; Pillow does all others.
"""

import contextlib
import functools
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from imgstore._checksums import image_checksum, image_checksums
from imgstore._files import NewFile, naming, new_file, open_file, read_file, write_file
from imgstore._generations import Generation
from imgstore._images import Array, Block, Form, Labels, checked_integer, form_of, image_bytes
from imgstore._reading import File, of_the_file
from imgstore._store import Backend, Contents, Many, Pair
from imgstore.errors import CorruptStoreError

_MODES = {("uint8", channels): mode for channels, mode in enumerate(("L", "LA", "RGB", "RGBA"), 1)}
_MODES |= {("uint16", 1): "I;16", ("bool", 1): "1"}
_LARGEST_PIXELS = 89_478_485  # what Pillow opens without taking it for a decompression bomb
_DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this
_LARGEST_FILE = 1 << 29
_SPARE_BYTES = 1 << 16
_STRIP_BYTES = 8 << 20
_NOT_STORED = "is not the PNG that was stored"
_PLAIN_BYTES = 4096 - 300  # of pixels, in a file that still fits a block of the usual file systems
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's colour types, by channels
_TEXT_AT = 41  # behind signature, IHDR, and length and name of the text chunk
_HEAD_BYTES = 512  # hold the text chunk
_AFTER_PIXELS = 20  # the checksums of deflate and of the chunk, and IEND
_LABELS = "labels.csv"
_TITLE = "id,label\n"
_TEXT = re.compile(
    rb"id=(?P<id>\d{1,19}) label=(?P<label>-?\d{1,19}) shape=(?P<shape>\d{1,9}(x\d{1,9}){1,2})"
    rb" dtype=(?P<dtype>[|<]\w\d) xxh3=(?P<checksum>[0-9a-f]{16})"
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
        with new_file(os.path.join(generation, _LABELS)) as table:
            table.write(_TITLE.encode())
            for block in blocks:
                for image_id, png in enumerate(_encoded(block), block.first):
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
        if form and image_bytes(form) > _DEFLATE_RATIO * 8 * os.lstat(first).st_size:
            raise CorruptStoreError(first, "is too short for the shape that DESCRIPTION tells", 0)
        return _Files(generation, count, form, verify)

    def write_single(self, file: NewFile, block: Block) -> None:
        file.write(next(_encoded(block)))

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
        self._data = read_file(path, _LARGEST_FILE)

    def read(self, image_id: int) -> Pair:
        return _checked(self._data, self._path, image_id, self._verify)

    def forms(self) -> Iterator[Form]:
        yield _form_in(self._data, self._path, self._image_id)


class _Files(Many):
    """The PNG files of a generation."""

    def __init__(self, generation: Generation, count: int, form: Form | None, verify: bool) -> None:
        self.count, self.form = count, form
        self._generation, self._verify = generation, verify

    def read(self, image_id: int) -> Pair:
        path = self._path(image_id)
        with self._there(path, image_id):
            data = read_file(path, _largest_file(self.form))
        image, label = _checked(data, path, image_id, self._verify)
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
                    head = os.read(descriptor, _HEAD_BYTES)
            finally:
                os.close(descriptor)
            yield _form_in(head, path, image_id)

    def _path(self, image_id: int) -> str:
        return self._generation.path(f"{image_id:08d}.png")

    @contextlib.contextmanager
    def _there(self, path: str, image_id: int) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise self._generation.fault(path, "is missing from the store", image_id) from None


def _largest_file(form: Form | None) -> int:
    """Bytes of a PNG of this form at most, with room to spare."""
    return min(_LARGEST_FILE, 2 * image_bytes(form) + _SPARE_BYTES) if form else _LARGEST_FILE


def _encoded(block: Block) -> Iterator[bytes]:
    """The PNG of each image."""
    images, ids = block.images, np.arange(len(block.labels)) + block.first
    if images.dtype.kind == "b":
        images = images.view(np.uint8) != 0  # the bytes that will be read back, whatever was True before
    checksums = image_checksums(images, ids, block.labels).tolist()
    form = f"shape={'x'.join(map(str, images.shape[1:]))} dtype={images.dtype.str}"
    told = zip(ids.tolist(), block.labels.tolist(), checksums, strict=True)
    texts = (f"id={image_id} label={label} {form} xxh3={digest:016x}" for image_id, label, digest in told)
    if images.dtype == np.uint8 and images[0].nbytes + images.shape[1] <= _PLAIN_BYTES:
        return _plain_pngs(images, texts)
    return map(_pillow_png, images, texts)


def _pillow_png(image: Array, text: str) -> bytes:
    file, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("imgstore", text)
    plane = image[:, :, 0] if image.shape[2:] == (1,) else image
    Image.fromarray(plane).save(file, "PNG", pnginfo=info, compress_level=1)
    return file.getvalue()


def _checked(data: bytes, path: str, image_id: int, verify: bool) -> Pair:
    def decoded() -> tuple[Array, int, int]:
        return _read_plain_png(data, image_id) or _decoded(data, image_id)

    image, label, digest = of_the_file(decoded, path, _NOT_STORED, image_id)
    if verify and image_checksum(image, image_id, label) != digest:
        raise CorruptStoreError(path, "does not match its checksum", image_id)
    return image, label


def _form_in(head: bytes, path: str, image_id: int) -> Form:
    form: Form = of_the_file(lambda: _told(_text(head), image_id)[0], path, _NOT_STORED, image_id)
    return form


def _decoded(data: bytes, image_id: int) -> tuple[Array, int, int]:
    """Image, label and checksum. Raises ValueError, or what Pillow raises, for anything but a PNG of ours."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as png:
        form, label, digest = _told(str(png.info.get("imgstore", "")).encode(), image_id)
        (height, width, *_), dtype = form
        if png.size != (width, height) or png.mode != _mode(*form) or getattr(png, "is_animated", False):
            raise ValueError(f"a {png.mode} image of {png.size} is not what its text tells")
        if image_bytes(form) > _DEFLATE_RATIO * len(data) * 8:
            raise ValueError("it claims more pixels than its bytes can hold")
        image = np.empty(*form)
        step = max(1, _STRIP_BYTES // image[0].nbytes)
        for top in range(0, height, step):  # in strips, as Pillow's pixels are copied twice on their way
            strip = png.crop((0, top, width, min(top + step, height)))
            part = image[top : top + step]
            # of a bool, Pillow gives bytes of 255, which are True but not the byte that NumPy has for it
            part[...] = np.asarray(strip.convert("L") if dtype.kind == "b" else strip).reshape(part.shape)
        return image, label, digest


def _text(data: bytes) -> bytes:
    """What the text chunk says where it stands before all others, as in each file of ours; else nothing."""
    end = _TEXT_AT + int.from_bytes(data[33:37], "big")
    return data[_TEXT_AT + 9 : end] if data[37 : _TEXT_AT + 9] == b"tEXtimgstore\0" else b""


def _told(text: bytes, image_id: int) -> tuple[Form, int, int]:
    """Form, label and checksum from the text chunk. Raises ValueError where it does not tell of this image."""
    entry = _TEXT.fullmatch(text)
    if not entry or int(entry["id"]) != image_id:
        raise ValueError("it has no text that tells of this image")
    form = _form(entry["shape"], entry["dtype"])
    return form, checked_integer(int(entry["label"]), "label"), int(entry["checksum"], 16)


@functools.lru_cache(maxsize=256)
def _form(shape: bytes, dtype: bytes) -> Form:
    form = form_of(tuple(map(int, shape.split(b"x"))), dtype.decode())
    if not form or form[0][0] * form[0][1] > _LARGEST_PIXELS:
        raise ValueError("its text tells no shape and dtype of an image")
    return form


def _plain_pngs(images: Array, texts: Iterator[str]) -> Iterator[bytes]:
    """PNGs without filter and compression, which would not make a file of a single block any smaller."""
    head, height, row_bytes, start = _plain_layout(images.shape[1:])
    rows = np.zeros((len(images), height, row_bytes), np.uint8)
    rows[:, :, 1:] = images.reshape(len(images), height, -1)
    end = _chunk(b"IEND", b"")
    length, start_crc = struct.pack(">I", len(start) + height * row_bytes), zlib.crc32(start)
    for text, row in zip(texts, rows.reshape(len(images), -1), strict=True):
        pixels = row.data
        adler = zlib.adler32(pixels)
        crc = zlib.crc32(struct.pack(">I", adler), zlib.crc32(pixels, start_crc))
        text_chunk = _chunk(b"tEXt", b"imgstore\0" + text.encode())
        yield b"".join((head, text_chunk, length, start, pixels, struct.pack(">2I", adler, crc), end))


@functools.lru_cache(maxsize=256)
def _plain_layout(shape: tuple[int, ...]) -> tuple[bytes, int, int, bytes]:
    """Signature and IHDR of 8 bits a channel; rows, bytes of a row, and how the chunk of pixels begins."""
    height, width, channels = (*shape, 1)[:3]
    header = struct.pack(">2I5B", width, height, 8, _COLOURS[channels], 0, 0, 0)
    row_bytes = 1 + width * channels
    size = height * row_bytes
    start = b"IDAT\x78\x01\x01" + struct.pack("<HH", size & 0xFFFF, ~size & 0xFFFF)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header), height, row_bytes, start


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))))


def _read_plain_png(data: bytes, image_id: int) -> tuple[Array, int, int] | None:
    """What `_plain_png` wrote, read without a codec; None for any other file."""
    text = _text(data)
    if not text:
        return None
    form, label, digest = _told(text, image_id)
    if form[1] != np.uint8 or _mode(*form) is None:
        return None
    head, height, row_bytes, start = _plain_layout(form[0])
    text_end = _TEXT_AT + 9 + len(text)
    pixels_at = text_end + 8 + len(start)
    end = pixels_at + height * row_bytes
    is_plain = data[:33] == head and data[text_end + 8 : pixels_at] == start and len(data) == end + _AFTER_PIXELS
    if not is_plain or data[pixels_at:end:row_bytes].strip(b"\0"):  # a filter other than none
        return None
    image = np.empty(*form)
    rows = np.frombuffer(data, np.uint8, height * row_bytes, pixels_at)
    image.reshape(height, -1)[...] = rows.reshape(height, row_bytes)[:, 1:]
    return image, label, digest


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
