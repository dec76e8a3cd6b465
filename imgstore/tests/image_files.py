"""Image files of kinds that Pillow does not write, made byte by byte from samples that a test knows."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SHORT, LONG = 3, 4  # types of a TIFF entry
GREY, PALETTE, GREY_ALPHA, COLOUR, COLOUR_ALPHA = 0, 3, 4, 2, 6  # colour types of PNG
RAW, DEFLATE, PACKBITS = 1, 8, 32773  # compressions of TIFF
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # of Adam7


def packed(samples: Array, bits: int, order: str = ">") -> list[bytes]:
    """Each row of samples (H, n) as the bytes of a file, the first sample in the highest bits."""
    if bits % 8 == 0:
        kind = samples.dtype.kind if samples.dtype.kind in "if" else "u"
        return [row.tobytes() for row in samples.astype(f"{order}{kind}{bits // 8}")]
    each = (samples[..., None].astype(np.uint16) >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
    return [row.tobytes() for row in np.packbits(each.reshape(len(samples), -1), axis=1)]


def tiff(
    samples: Array,
    photometric: int,
    *,
    bits: int = 8,
    order: str = "<",
    kind: int = 1,
    planar: bool = False,
    compression: int = RAW,
    fill_order: int = 1,
    extra: Sequence[int] = (),
    palette: Array | None = None,
    rows: int = 3,
    tile: int = 0,
    big: bool = False,
    tags: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF file of samples (H, W, n). `kind`: 1 unsigned, 2 signed, 3 float. `palette`: (3, 2**bits) uint16."""
    height, width, count = samples.shape
    planes = [samples[..., i : i + 1] for i in range(count)] if planar else [samples]
    pieces = [piece for plane in planes for piece in (_tiles(plane, tile) if tile else _strips(plane, rows))]
    chunks = [_squeezed(packed(piece.reshape(len(piece), -1), bits, order), compression) for piece in pieces]
    if fill_order == 2:
        chunks = [
            np.packbits(np.unpackbits(np.frombuffer(chunk, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()
            for chunk in chunks
        ]
    sizes = [len(chunk) for chunk in chunks]
    first = 16 if big else 8
    places = [first + sum(sizes[:i]) for i in range(len(sizes))]
    entries: dict[int, tuple[int, Sequence[int]]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * count),
        259: (SHORT, [compression]),
        262: (SHORT, [photometric]),
        266: (SHORT, [fill_order]),
        277: (SHORT, [count]),
        284: (SHORT, [2 if planar else 1]),
        324 if tile else 273: (LONG, places),
        325 if tile else 279: (LONG, sizes),
        339: (SHORT, [kind] * count),
    }
    entries |= {322: (LONG, [tile]), 323: (LONG, [tile])} if tile else {278: (LONG, [rows])}
    entries |= {338: (SHORT, extra)} if extra else {}
    entries |= {} if palette is None else {320: (SHORT, palette.reshape(-1).tolist())}
    entries |= {tag: (SHORT, values) for tag, values in (tags or {}).items()}
    body = b"".join(chunks)
    body += bytes(-len(body) % 2)
    return _header(order, big, first + len(body)) + body + _directory(entries, order, big, first + len(body))


def _strips(plane: Array, rows: int) -> list[Array]:
    return [plane[top : top + rows] for top in range(0, len(plane), rows)]


def _tiles(plane: Array, side: int) -> list[Array]:
    height, width = plane.shape[:2]
    full = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)))
    return [full[y : y + side, x : x + side] for y in range(0, height, side) for x in range(0, width, side)]


def _squeezed(rows: list[bytes], compression: int) -> bytes:
    if compression == PACKBITS:  # as bytes that do not repeat
        parts = [row[i : i + 128] for row in rows for i in range(0, len(row), 128)]
        return b"".join(bytes([len(part) - 1]) + part for part in parts)
    return zlib.compress(b"".join(rows)) if compression == DEFLATE else b"".join(rows)


def _header(order: str, big: bool, directory: int) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    return mark + (
        struct.pack(f"{order}HHHQ", 43, 8, 0, directory) if big else struct.pack(f"{order}HI", 42, directory)
    )


def _directory(entries: dict[int, tuple[int, Sequence[int]]], order: str, big: bool, at: int) -> bytes:
    room, counted, offset = (8, "Q", "Q") if big else (4, "I", "I")
    size = (8 + 20 * len(entries) + 8) if big else (2 + 12 * len(entries) + 4)
    listed, beyond = struct.pack(f"{order}{'Q' if big else 'H'}", len(entries)), b""
    for tag, (code, values) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(values)}{'H' if code == SHORT else 'I'}", *values)
        if len(content) > room:
            beyond, content = beyond + content, struct.pack(f"{order}{offset}", at + size + len(beyond))
        listed += struct.pack(f"{order}HH{counted}", tag, code, len(values)) + content.ljust(room, b"\0")
    return listed + bytes(room) + beyond


def png(
    samples: Array,
    colour: int,
    *,
    bits: int = 8,
    interlaced: bool = False,
    palette: Array | None = None,
    transparent: bytes | None = None,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG file of samples (H, W, n). `palette`: (n, 3) uint8. `transparent`: the content of tRNS."""
    height, width = samples.shape[:2]
    parts = [samples[y::down, x::right] for y, x, down, right in PASSES] if interlaced else [samples]
    lines = [row for part in parts if part.size for row in packed(part.reshape(len(part), -1), bits)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, content)
        for name, content in [
            (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)),
            *([] if palette is None else [(b"PLTE", palette.tobytes())]),
            *([] if transparent is None else [(b"tRNS", transparent)]),
            *chunks,
            (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))),
            (b"IEND", b""),
        ]
    )


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def gif(samples: Array, palette: Array, *, transparent: int | None = None, interlaced: bool = False) -> bytes:
    """A GIF file of indices (H, W) below 128 into `palette`, (128, 3) uint8."""
    height, width = samples.shape
    order = [y for start, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(start, height, step)]
    indices = (samples[order] if interlaced else samples).astype(np.uint8).tobytes()
    # 8-bit codes: each index as it is, and a clear code before the codes would grow
    codes = b"".join(bytes([128]) + indices[i : i + 100] for i in range(0, len(indices), 100)) + bytes([129])
    blocks = b"".join(bytes([len(codes[i : i + 255])]) + codes[i : i + 255] for i in range(0, len(codes), 255))
    control = b"" if transparent is None else b"\x21\xf9\x04" + bytes([1, 0, 0, transparent, 0])
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF6, 0, 0) + palette.astype(np.uint8).tobytes()
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0x40 if interlaced else 0)
    return screen + control + image + b"\x07" + blocks + b"\0\x3b"
