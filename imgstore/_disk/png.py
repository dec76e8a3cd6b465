"""A PNG file for each image, which holds its label and checksum as text."""

import functools
import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from imgstore.core.blocks import Array, Block, Form, checked_integer, form_of, image_bytes
from imgstore.core.checksums import image_checksum, image_checksums
from imgstore.core.format import Pair
from imgstore.core.reading import of_the_file
from imgstore.errors import CorruptStoreError

_MODES = {("uint8", channels): mode for channels, mode in enumerate(("L", "LA", "RGB", "RGBA"), 1)}
_MODES |= {("uint16", 1): "I;16", ("bool", 1): "1"}
LARGEST_PIXELS = 89_478_485  # what Pillow opens without taking it for a decompression bomb
DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this
LARGEST_FILE = 1 << 29
_SPARE_BYTES = 1 << 16
_STRIP_BYTES = 8 << 20
_NOT_STORED = "is not the PNG that was stored"
_PLAIN_BYTES = 4096 - 300  # of pixels, in a file that still fits a block of the usual file systems
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's colour types, by channels
_TEXT_AT = 41  # behind signature, IHDR, and length and name of the text chunk
HEAD_BYTES = 512  # hold the text chunk
_AFTER_PIXELS = 20  # the checksums of deflate and of the chunk, and IEND
_TEXT = re.compile(
    rb"id=(?P<id>\d{1,19}) label=(?P<label>-?\d{1,19}) shape=(?P<shape>\d{1,9}(x\d{1,9}){1,2})"
    rb" dtype=(?P<dtype>[|<]\w\d) xxh3=(?P<checksum>[0-9a-f]{16})"
)


def largest_file(form: Form | None) -> int:
    """Bytes of a PNG of this form at most, with room to spare."""
    return min(LARGEST_FILE, 2 * image_bytes(form) + _SPARE_BYTES) if form else LARGEST_FILE


def encoded(block: Block) -> Iterator[bytes]:
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


def checked(data: bytes, path: str, image_id: int, verify: bool) -> Pair:
    def decoded() -> tuple[Array, int, int]:
        return _read_plain_png(data, image_id) or _decoded(data, image_id)

    image, label, digest = of_the_file(decoded, path, _NOT_STORED, image_id)
    if verify and image_checksum(image, image_id, label) != digest:
        raise CorruptStoreError(path, "does not match its checksum", image_id)
    return image, label


def form_in(head: bytes, path: str, image_id: int) -> Form:
    form: Form = of_the_file(lambda: _told(_text(head), image_id)[0], path, _NOT_STORED, image_id)
    return form


def _decoded(data: bytes, image_id: int) -> tuple[Array, int, int]:
    """Image, label and checksum. Raises ValueError, or what Pillow raises, for anything but a PNG of ours."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as png:
        form, label, digest = _told(str(png.info.get("imgstore", "")).encode(), image_id)
        (height, width, *_), dtype = form
        if png.size != (width, height) or png.mode != mode_of(*form) or getattr(png, "is_animated", False):
            raise ValueError(f"a {png.mode} image of {png.size} is not what its text tells")
        if image_bytes(form) > DEFLATE_RATIO * len(data) * 8:
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
    if not form or form[0][0] * form[0][1] > LARGEST_PIXELS:
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
    if form[1] != np.uint8 or mode_of(*form) is None:
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


def mode_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    """Pillow's name for images of this form."""
    return _MODES.get((dtype.name, shape[2] if len(shape) == 3 else 1))
