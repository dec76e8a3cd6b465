"""A store from a stranger, whose checksums all agree: refused quickly, in little memory, and nothing else opened."""

import contextlib
import ctypes
import functools
import io
import itertools
import json
import os
import re
import shutil
import socket
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import imgstore
from imgstore import BACKENDS
from imgstore.errors import CorruptStoreError, StoreNotFoundError
from imgstore.tests.checks import record
from imgstore.tests.faults import damage, lmdb_pages
from imgstore.tests.faults.changes import OURS, Store
from imgstore.tests.faults.children import traced
from imgstore.tests.faults.damage import PAGE, Attempt, Reading, Sample

MEMORY = 1 << 28  # what reading may take
GENERATION, SINGLES, LISTED = "generation", "generation/singles", "generation/SINGLES"
MANY = {"disk": "generation/00000000.png", "lmdb": "generation/images.mdb", "hdf5": "generation/images.h5"}
SINGLE = {name: f"{SINGLES}/00000003{module.BACKEND.suffix}" for name, module in BACKENDS.items()}

Tamper = Callable[[Path, Path, str], None]  # root, a folder outside of it, backend


class Case(NamedTuple):
    """What a stranger did; `harmless` where the store may still be read as it was stored."""

    tamper: Tamper
    refusal: tuple[type[Exception], ...] = (CorruptStoreError,)
    harmless: bool = False


def at(root: Path, name: str) -> Path:
    return root / name.replace(GENERATION, damage.current_words(root)[3])


# CURRENT


def current(**words: str) -> Case:
    return Case(lambda root, outside, backend: damage.reseal(root, None, **words))


def current_text(text: bytes) -> Case:
    return Case(lambda root, outside, backend: damage.lay(root, {damage.CURRENT: text}))


def names_outside(is_relative: bool, root: Path, outside: Path, backend: str) -> None:
    path = shutil.copytree(damage.generation_of(root), outside / "imgstore-000001-abcdefabcdef")
    damage.reseal(root, name=os.path.relpath(path, root) if is_relative else str(path))


def other_backend(root: Path, outside: Path, backend: str) -> None:
    damage.reseal(root, backend=next(name for name in BACKENDS if name != backend))


CURRENTS = {
    "CURRENT names a relative path": Case(partial(names_outside, True)),
    "CURRENT names the root": current(name="."),
    "CURRENT names an absolute path": Case(partial(names_outside, False)),
    "CURRENT names a generation that is not there": current(name="imgstore-000009-abcdefabcdef"),
    "CURRENT names the largest generation": current(name=f"imgstore-{10**18 - 1}-abcdefabcdef"),
    "CURRENT has digits of another script": current(name="imgstore-\u0660\u0660\u0660\u0660\u0660\u0661-abcdefabcdef"),
    "CURRENT tells of another backend": Case(other_backend, (CorruptStoreError, StoreNotFoundError)),
    "CURRENT tells of no backend known": Case(current(backend="zip").tamper, (StoreNotFoundError,)),
    "CURRENT tells of a module": current(backend="os.path"),
    "CURRENT names a generation of format 2": current(name="000001-abcdef"),
    **{
        f"CURRENT tells of version {version}": Case(
            current(version=version).tamper, (CorruptStoreError, StoreNotFoundError)
        )
        for version in ("2", "4", "30", "99999999999999999999", "-3", "")
    },
    "CURRENT is empty": current_text(b""),
    "CURRENT has 10 MB": current_text(b"imgstore 3 " * 1_000_000),
    "CURRENT has 4 KiB of digits": current_text(b"imgstore 3 disk " + b"1" * 4000),
    "CURRENT is zeros": current_text(bytes(100)),
}


# DESCRIPTION


def described(**entries: Any) -> Case:
    return Case(partial(describe, entries))


def describe(entries: dict[str, Any], root: Path, outside: Path, backend: str) -> None:
    text = json.loads((damage.generation_of(root) / "DESCRIPTION").read_bytes())
    left = {key: value for key, value in (text | entries).items() if value is not ...}
    damage.reseal(root, json.dumps(left).encode())


def description(text: bytes) -> Case:
    return Case(lambda root, outside, backend: damage.reseal(root, text))


def sparse(name: str, size: int, root: Path, outside: Path, backend: str) -> None:
    os.truncate(at(root, name), size)


def sparse_description(root: Path, outside: Path, backend: str) -> None:
    sparse(f"{GENERATION}/DESCRIPTION", (1 << 20) + 1, root, outside, backend)


NUMBERS: list[Any] = [2**60, 2**31, 13, -1, "12", 12.0, 1e400, float("nan"), True, None, [], {}]
SHAPES: list[Any] = [
    [],
    [20],
    [2**47, 1, 1],
    [2**20, 2**20, 3],
    [0, 20, 3],
    [-20, -20, 3],
    [20.0, 20, 3],
    ["20", 20, 3],
    "20",
    20,
    {},
]
DTYPES: list[Any] = [
    "|O",
    "<U5",
    "<M8[s]",
    "<f4,<f4",
    "O",
    "|V8",
    "<i\u0668",
    "<i99",
    "|u1" * 1000,
    1,
    [["a", "<i4"]],
    None,
]
DESCRIPTIONS = {
    **{f"count is {value!r}": described(count=value) for value in NUMBERS},
    **{f"shape is {value!r}": described(shape=value) for value in SHAPES},
    **{f"dtype is {str(value)[:20]!r}": described(dtype=value) for value in DTYPES},
    "no count": described(count=...),
    "no shape": Case(described(shape=...).tamper, harmless=True),
    "no dtype": described(dtype=...),
    "count has 10,000 digits": description(b'{"count": ' + b"9" * 10_000 + b"}"),
    "DESCRIPTION is nested 100,000 deep": description(b"[" * 100_000),
    "DESCRIPTION is an object nested 100,000 deep": description(b'{"count":' * 100_000 + b"1" + b"}" * 100_000),
    "DESCRIPTION is not JSON": description(b"count: 12"),
    "DESCRIPTION is empty": description(b""),
    "DESCRIPTION is not UTF-8": description(b'{"count": "\xff\xfe"}'),
    **{f"DESCRIPTION is {text}": description(text.encode()) for text in ("12", "null", "[]", '"count"', "NaN")},
    "DESCRIPTION has more than 1 MiB": Case(sparse_description),
}


# of a backend that has blocks
PER_BLOCK = {
    f"{value!r} images in a block": described(per_block=value)
    for value in (0, -1, 4, 13, 2**60, 2**64, "3", 3.0, True, None)
}


# other kinds of files


def replaced(name: str, make: Callable[[Path, Path], Any]) -> Case:
    def tamper(root: Path, outside: Path, backend: str) -> None:
        path = at(root, name)
        os.rename(path, outside / path.name)
        make(path, outside / path.name)

    return Case(tamper)


def make_device(path: Path, _: Path) -> None:
    with contextlib.suppress(PermissionError):  # then it is missing
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero


def make_socket(path: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):
        bound.bind(path.name)


KINDS: dict[str, Callable[[Path, Path], Any]] = {
    "a symbolic link": lambda path, outside: path.symlink_to(outside),
    "a link to nothing": lambda path, _: path.symlink_to("nothing"),
    "a link to itself": lambda path, _: path.symlink_to(path.name),
    "a FIFO": lambda path, _: os.mkfifo(path),
    "a directory": lambda path, _: path.mkdir(),
    "an empty file": lambda path, _: path.touch(),
    "a device": make_device,
    "a socket": make_socket,
}


def of_other_kinds(backend: str) -> dict[str, Case]:
    names = ["CURRENT", f"{GENERATION}/DESCRIPTION", MANY[backend], SINGLE[backend], GENERATION, SINGLES, LISTED]
    names += [f"{GENERATION}/labels.csv"] if backend == "disk" else []
    cases = {f"{name} is {kind}": replaced(name, make) for name in names for kind, make in KINDS.items()}
    empty = f"{LISTED} is an empty file"  # which lists none: what lies in singles/ is there all the same
    return cases | {empty: cases[empty]._replace(harmless=True)}


# singles


def copied(name: str, root: Path, outside: Path, backend: str) -> None:
    """The single 3 under another name."""
    path = at(root, SINGLE[backend])
    shutil.copyfile(path, path.with_name(name + path.suffix))


NAMES = ["+0000003", "-0000003", "00000003.0", "3", "0" * 200 + "3", "\n", ".new", "\u0660" * 7 + "\u0663", "000000003"]
SINGLE_CASES = {
    "a single holds another id": Case(partial(copied, "00000001")),
    "a single has the largest id that is none": Case(partial(copied, str(2**63)), harmless=True),
    "a single has 19 nines": Case(partial(copied, "9" * 19), harmless=True),
    "a single has 20 digits": Case(partial(copied, "9" * 20), harmless=True),
    **{f"a single is named {name[:20]!r}": Case(partial(copied, name), harmless=True) for name in NAMES},
}


def edited(edit: Callable[[bytes], bytes], root: Path, outside: Path, backend: str, single: bool = True) -> None:
    """Image 0, or the file of the many, and the single 3 are changed."""
    for name in (MANY[backend], SINGLE[backend])[: 1 + single]:
        path = at(root, name)
        path.write_bytes(edit(path.read_bytes()))
    damage.reseal_format(backend, root)


# PNG

Chunks = list[tuple[bytes, bytes]]  # kind and body


def png(*edits: Callable[[Chunks], Chunks], harmless: bool = False) -> Case:
    """Changes to the chunks of image 0 and single 3."""

    def edit(data: bytes) -> bytes:
        chunks = [(kind, data[start : start + length]) for start, kind, length in damage.png_chunks(data)]
        for change in edits:
            chunks = change(chunks)
        return data[:8] + b"".join(damage.png_chunk(*chunk) for chunk in chunks)

    return Case(partial(edited, edit), harmless=harmless)


def with_body(kind: bytes, change: Callable[[bytes], bytes]) -> Callable[[Chunks], Chunks]:
    return lambda chunks: [(name, change(body) if name == kind else body) for name, body in chunks]


def with_header(offset: int, layout: str, *values: int) -> Callable[[Chunks], Chunks]:
    size = struct.calcsize(layout)
    return with_body(b"IHDR", lambda body: body[:offset] + struct.pack(layout, *values) + body[offset + size :])


def with_text(old: bytes, new: bytes) -> Callable[[Chunks], Chunks]:
    return with_body(b"tEXt", lambda body: body.replace(old, new))


def with_chunk(place: int, kind: bytes, body: bytes = b"", unpacked: int = -1) -> Callable[[Chunks], Chunks]:
    """A chunk more, with so many zeros packed behind its body."""
    return lambda chunks: [
        *chunks[:place],
        (kind, body if unpacked < 0 else body + zeros(unpacked)),
        *chunks[place:],
    ]


def without(kind: bytes) -> Callable[[Chunks], Chunks]:
    return lambda chunks: [chunk for chunk in chunks if chunk[0] != kind]


@functools.cache
def zeros(size: int) -> bytes:
    """Deflated, a thousandth of their size."""
    packer, part = zlib.compressobj(1), bytes(1 << 20)
    return b"".join(packer.compress(part) for _ in range(size >> 20)) + packer.flush()


def deflate_bomb(side: int) -> list[Callable[[Chunks], Chunks]]:
    """As large as header and text tell."""
    text = with_text(b"20x20", b"%dx%d" % (side, side))
    return [with_header(0, ">2I", side, side), text, with_body(b"IDAT", lambda _: zeros(BOMB))]


def other_format(name: str) -> Case:
    def edit(data: bytes) -> bytes:
        file = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").save(file, name)
        return file.getvalue()

    return Case(partial(edited, edit))


def resaved(shape: tuple[int, ...]) -> Case:
    """The same pixels and text in an image of another shape."""

    def edit(data: bytes) -> bytes:
        with Image.open(io.BytesIO(data)) as png:
            info, file = PngInfo(), io.BytesIO()
            info.add_text("imgstore", png.info["imgstore"])
            Image.fromarray(np.asarray(png).reshape(shape)).save(file, "PNG", pnginfo=info)
        return file.getvalue()

    return Case(partial(edited, edit))


def in_ifunc(data: bytes) -> bytes:
    """The same pixels and text in a format whose files may say anything of themselves (IFUNC's IM)."""
    with Image.open(io.BytesIO(data)) as png:
        file = io.BytesIO()
        png.save(file, "IM")
        header, pixels = file.getvalue()[:512].rstrip(b"\0\x1a"), file.getvalue()[512:]
        line = f"imgstore: {png.info['imgstore']}\r\n".encode()
    return (header + line).ljust(511, b"\0") + b"\x1a" + pixels


def sparse_png(root: Path, outside: Path, backend: str) -> None:
    for name in (MANY[backend], SINGLE[backend]):
        sparse(name, (1 << 31) - 1, root, outside, backend)


def table(edit: Callable[[bytes], bytes]) -> Case:
    def tamper(root: Path, outside: Path, backend: str) -> None:
        path = at(root, f"{GENERATION}/labels.csv")
        path.write_bytes(edit(path.read_bytes()))

    return Case(tamper)


BEFORE_TEXT, BEFORE_PIXELS, BEFORE_END = 1, 2, 3
BOMB = 1 << 29
FRAMES = with_chunk(1, b"acTL", struct.pack(">2I", 2, 0))
FRAME = with_chunk(2, b"fcTL", struct.pack(">5I2H2B", 0, 20, 20, 0, 0, 1, 1, 0, 0))
SECOND_FRAME = with_chunk(5, b"fcTL", struct.pack(">5I2H2B", 1, 20, 20, 0, 0, 1, 1, 0, 0))
KINDS_OF_CHUNK = [
    "IHDR",
    "PLTE",
    "IDAT",
    "tRNS",
    "gAMA",
    "cHRM",
    "iCCP",
    "sRGB",
    "pHYs",
    "sBIT",
    "tEXt",
    "zTXt",
    "iTXt",
    "eXIf",
    "acTL",
    "fcTL",
    "fdAT",
    "CgBI",
    "XXXX",
]

PNGS = {
    "60000 x 60000": png(with_header(0, ">2I", 60_000, 60_000)),
    "60000 x 60000, and its text": png(with_header(0, ">2I", 60_000, 60_000), with_text(b"20x20", b"60000x60000")),
    "9000 x 9000, and its text": png(with_header(0, ">2I", 9000, 9000), with_text(b"20x20", b"9000x9000")),
    "9 digits a side, in its text": png(with_text(b"20x20", b"999999999x999999999")),
    "a deflate bomb": png(with_body(b"IDAT", lambda _: zeros(BOMB))),
    **{f"a deflate bomb of {side} x {side}": png(*deflate_bomb(side)) for side in (13_000, 16_384)},
    "another size": png(with_header(0, ">2I", 40, 10)),
    "another size, saved so": resaved((10, 40, 3)),
    "another mode, saved so": resaved((20, 60)),
    "an IM": Case(partial(edited, in_ifunc)),
    "another size, in its text": png(with_text(b"20x20", b"40x10")),
    "another depth": png(with_header(8, ">B", 16)),
    "another mode": png(with_header(9, ">B", 0)),
    "a palette": png(with_header(9, ">B", 3), with_chunk(2, b"PLTE", bytes(768))),
    "another dtype, in its text": png(with_text(b"|u1", b"<u2")),
    "a dtype of objects, in its text": png(with_text(b"|u1", b"|O8")),
    "interlaced": png(with_header(12, ">B", 1)),
    "another id, in its text": png(with_text(b"id=", b"id=1")),
    "digits of another script": png(without(b"tEXt"), with_chunk(1, b"iTXt", "imgstore\0\0\0\0\0id=\u0660".encode())),
    "a label that int64 does not hold": png(with_text(b"label=", b"label=99999999999999999999")),
    "another label": png(with_text(b"label=", b"label=1")),
    "two texts": png(with_chunk(2, b"tEXt", b"imgstore\0id=0"), harmless=True),
    "no text": png(without(b"tEXt")),
    "10 MB of text": png(with_body(b"tEXt", lambda _: b"imgstore\0" + b"9" * 10_000_000)),
    "a zTXt bomb": png(with_chunk(1, b"zTXt", b"Comment\0\0", BOMB), harmless=True),
    "an iTXt bomb": png(with_chunk(1, b"iTXt", b"Comment\0\1\0\0\0", BOMB), harmless=True),
    "an iCCP bomb": png(with_chunk(1, b"iCCP", b"profile\0\0", BOMB), harmless=True),
    "1,500 texts": png(
        lambda chunks: [*chunks[:1], *[(b"tEXt", b"a\0" + bytes(50_000))] * 1500, *chunks[1:]], harmless=True
    ),
    "animated": png(FRAMES, FRAME, SECOND_FRAME, with_chunk(6, b"fdAT", struct.pack(">I", 2), 0)),
    "animated, without frames": png(FRAMES),
    "animated, of one frame": png(with_chunk(1, b"acTL", struct.pack(">2I", 1, 0)), harmless=True),
    "of Apple's making": png(with_chunk(0, b"CgBI", b"\x50\x00\x20\x02"), harmless=True),
    "no pixels": png(without(b"IDAT")),
    "no header": png(without(b"IHDR")),
    "no end": png(without(b"IEND"), harmless=True),
    "2 GiB, most of them a hole": Case(sparse_png),
    **{
        f"a {kind} of {len(body)} bytes at {place}": png(with_chunk(place, kind.encode(), body), harmless=True)
        for kind in KINDS_OF_CHUNK
        for body in (b"", b"\xff" * 13)
        for place in (BEFORE_TEXT, BEFORE_PIXELS, BEFORE_END)
    },
    **{f"a {name}": other_format(name) for name in ("JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM")},
    "labels.csv with a huge field": table(lambda data: data.replace(b"0,", b"0," + b"1" * 50_000_000, 1)),
    "labels.csv without a row": table(lambda data: data[: data.rindex(b"\n", 0, -1) + 1]),
    "labels.csv with double ids": table(lambda data: data.replace(b"1,", b"0,", 1)),
    "labels.csv with another label": table(lambda data: data.replace(b",", b",1")),
    "labels.csv with a row more": table(lambda data: data + b"12,0\n"),
    "labels.csv of zeros": table(lambda data: bytes(len(data))),
}


# HDF5

Make = Callable[[h5py.File, str, Any, Path], Any]  # a file, the name of a dataset, its data, a folder outside


def hdf5(make: Make, *keys: str, harmless: bool = False, **options: Any) -> Case:
    """The file of the many and single 3 written anew by h5py, with something else in the place of a dataset."""

    def tamper(root: Path, outside: Path, backend: str) -> None:
        for name in (MANY[backend], SINGLE[backend]):
            path = at(root, name)
            with h5py.File(path) as file:
                arrays = {key: file[key][:] for key in file}
            path.unlink()
            with h5py.File(path, "w", libver="latest", **options) as file:
                for key, array in arrays.items():
                    (make if key in keys else contiguous)(file, key, array, outside)
        damage.reseal_metadata(root)

    return Case(tamper, harmless=harmless)


def contiguous(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    file.create_dataset(key, data=array)


def other_file(file: h5py.File, key: str, array: Any, outside: Path) -> str:
    """A file outside that holds the dataset."""
    path = outside / Path(file.filename).name
    with h5py.File(path, "w") as other:
        other[key] = array
    return str(path)


def external_link(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    file[key] = h5py.ExternalLink(other_file(file, key, array, outside), key)


def relative_link(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    path = other_file(file, key, array, outside)
    file[key] = h5py.ExternalLink(os.path.relpath(path, Path(file.filename).parent), key)


def soft_link(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    file["elsewhere"] = array
    file[key] = h5py.SoftLink("/elsewhere")


def linked_out(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    external_link(file, "elsewhere", array, outside)
    file[key] = h5py.SoftLink("/elsewhere")


def external_storage(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    path = outside / Path(file.filename).name
    path.write_bytes(array.tobytes())
    file.create_dataset(key, array.shape, array.dtype, external=[(str(path), 0, array.nbytes)])


def virtual(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[:] = h5py.VirtualSource(other_file(file, key, array, outside), key, array.shape)
    file.create_virtual_dataset(key, layout)


def unknown_filter(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(array.shape)
    plist.set_filter(32_999, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    low_level(file, key, array, plist)


def compact(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    low_level(file, key, array[:1], plist)


def never_written(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    file.create_dataset(key, array.shape, array.dtype)


def low_level(file: h5py.File, key: str, array: Any, plist: Any) -> None:
    kind, space = h5py.h5t.py_create(array.dtype, logical=True), h5py.h5s.create_simple(array.shape)
    h5py.h5d.create(file.id, key.encode(), kind, space, plist).write(h5py.h5s.ALL, h5py.h5s.ALL, array)


def named_type(file: h5py.File, key: str, array: Any, outside: Path) -> None:
    file[key] = np.dtype("<i8")


def stored_as(**options: Any) -> Make:
    return lambda file, key, array, outside: file.create_dataset(key, data=array, **options)


def of_dtype(dtype: Any, value: Any = None) -> Make:
    """As many elements of another dtype."""

    def make(file: h5py.File, key: str, array: Any, outside: Path) -> None:
        dataset = file.create_dataset(key, array.shape, dtype)
        dataset[...] = np.zeros(array.shape, dtype) if value is None else value(file)

    return make


def of_shape(shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Make:
    def make(file: h5py.File, key: str, array: Any, outside: Path) -> None:
        file.create_dataset(key, data=np.resize(array, shape(array.shape)))

    return make


def claims(factor: int) -> Make:
    """A dataset of many more rows, of which none was ever written."""
    return lambda file, key, array, outside: file.create_dataset(
        key, (factor, *array.shape[1:]), array.dtype, chunks=(1, *array.shape[1:])
    )


def forged_shape(value: int) -> Case:
    """The first dimension that each header tells of, and its largest, overwritten."""

    def edit(data: bytes) -> bytes:
        spans, new = damage.hdf5_spans(data), bytearray(data)
        for span in spans[2:]:
            space = span.start + 12  # the dataspace message: version 2, rank, flags, kind, dimensions, largest ones
            assert new[space] == 2
            for offset in (4, 4 + 8 * new[space + 1]):
                struct.pack_into("<Q", new, space + offset, value)
        return damage.sealed("x.h5", bytes(new), spans)

    return Case(partial(edited, edit))


COMPOUND = np.dtype([("a", "<i4"), ("b", "<i4")])
MAKES: dict[str, Make] = {
    "an external link": external_link,
    "an external link by a relative path": relative_link,
    "a soft link": soft_link,
    "a soft link to an external link": linked_out,
    "a soft link to itself": lambda file, key, array, outside: file.__setitem__(key, h5py.SoftLink("/" + key)),
    "a soft link to nothing": lambda file, key, array, outside: file.__setitem__(key, h5py.SoftLink("/nothing")),
    "the root group": lambda file, key, array, outside: file.__setitem__(key, file["/"]),
    "a group": lambda file, key, array, outside: file.create_group(key),
    "a datatype": named_type,
    "missing": lambda file, key, array, outside: None,
    "in external storage": external_storage,
    "virtual": virtual,
    "compact": compact,
    "never written": never_written,
    "under an unknown filter": unknown_filter,
    "in chunks": stored_as(chunks=True),
    **{f"under {name}": stored_as(compression=name) for name in ("gzip", "lzf")},
    **{f"under {name}": stored_as(**{name: True}) for name in ("shuffle", "fletcher32")},
    "of objects' references": of_dtype(h5py.ref_dtype, lambda file: file.ref),
    "of regions' references": of_dtype(
        h5py.regionref_dtype, lambda file: file.create_dataset("region", data=[1]).regionref[:]
    ),
    "of strings of any length": of_dtype(h5py.string_dtype(), lambda file: "a" * 100),
    "of arrays of any length": of_dtype(h5py.vlen_dtype(np.int64), lambda file: np.arange(9)),
    "of fixed strings": of_dtype("S8"),
    "opaque": of_dtype("V8"),
    "compound": of_dtype(COMPOUND),
    "of floats": of_dtype("<f8"),
    "of int32": of_dtype("<i4"),
    "enumerated": of_dtype(h5py.enum_dtype({"a": 1}, basetype="i8")),
    "of arrays": of_dtype(np.dtype(("<i8", (2,)))),
    "null": lambda file, key, array, outside: file.create_dataset(key, data=h5py.Empty(array.dtype)),
    "a scalar": lambda file, key, array, outside: file.create_dataset(key, data=array.flat[0]),
    "empty": of_shape(lambda shape: (0, *shape[1:])),
    "longer": of_shape(lambda shape: (shape[0] + 1, *shape[1:])),
    "longer by a dimension": of_shape(lambda shape: (*shape, 1)),
    "longer by two dimensions": of_shape(lambda shape: (*shape, 3, 2)),
    "of 2**50 rows": claims(2**50),
}


def made(*keys: str) -> dict[str, Case]:
    return {
        f"{key} {name}": hdf5(make, key, harmless=name == "enumerated" or (key, name) == ("pixels", "longer"))
        for name, make in MAKES.items()
        for key in keys
    } | {f"{keys[-1]} flat": hdf5(of_shape(lambda shape: (int(np.prod(shape)),)), keys[-1])}


HDF5S = {
    **made("labels", "checksums", "images"),
    **PER_BLOCK,
    "in other byte orders": hdf5(
        lambda file, key, array, outside: contiguous(file, key, array.astype(array.dtype.newbyteorder()), outside),
        "labels",
    ),
    "behind a user block": hdf5(contiguous, userblock_size=512, harmless=True),
    "of an old format": Case(hdf5(contiguous, harmless=True, track_order=True).tamper, harmless=True),
    **{f"a dimension is {value}": forged_shape(value) for value in (0, 2**50, 2**63, 2**64 - 1)},
}


# LMDB

FORGED = [0, 1, 2, 3, 7, 16, 4095, 2**16 - 1, 2**31, 2**32 - 1, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]
FORGED_DTYPES: list[Any] = [b"|O8", b"<f4", b"<i99", b"<U2", b"\xd9\xa8", b"<M8[s]", b"", b"|u1\0|u1"]


def hdf5_fields(data: bytes) -> dict[str, tuple[int, str]]:
    """Where the numbers of the table of blocks lie, and of labels and checksums the first."""
    with h5py.File(io.BytesIO(data)) as file:
        columns = "first", "offset", "height", "width", "channels", "dtype"
        table, rows = (file["blocks"].id.get_offset(), len(file["blocks"])) if "blocks" in file else (0, 0)
        fields = {f"{name} of all": (file[name].id.get_offset(), "<Q") for name in ("labels", "checksums")}
    for row, column in itertools.product(range(rows), range(len(columns))):
        fields[f"row {row}: {columns[column]}"] = (table + 8 * (row * len(columns) + column), "<Q")
    return fields


def forgeries(data: bytes, fields: Callable[[bytes], dict[str, tuple[int, str]]]) -> Iterator[tuple[str, bytes]]:
    """Each field with each value, and with the number of each page."""
    for name, (start, kind) in fields(data).items():
        size = struct.calcsize(kind)
        numbers = {number % 256**size for number in (*FORGED, *range(len(data) // PAGE + 2))}
        values: list[bytes] = [number.to_bytes(size, "big" if ">" in kind else "little") for number in sorted(numbers)]
        for value in FORGED_DTYPES if "dtype" in name else values:
            new = value.ljust(size, b"\0")[:size]
            if new != data[start : start + size]:
                yield f"{name}: {value.hex()}", data[:start] + new + data[start + size :]


def sub_databases(depth: int) -> bytes:
    """A file of databases, each the only entry of the one above."""
    node = struct.pack("<HHHH2s", 48, 0, 2, 2, b"ab")  # F_SUBDATA

    def database(page: int) -> bytes:
        return struct.pack("<IHHQQQQQ", 0, 0, 1, 0, 1, 0, 1, page)

    def leaf(page: int) -> bytes:
        entry = node + database(page + 1) if page < depth + 1 else struct.pack("<HHHH2s", 0, 0, 0, 2, b"ab")
        upper = PAGE - len(entry) - len(entry) % 2
        header = struct.pack("<QHHHHH", page, 0, lmdb_pages.LEAF, 18, upper, upper)
        return header + bytes(upper - len(header)) + entry + bytes(PAGE - upper - len(entry))

    def meta(page: int) -> bytes:
        free = struct.pack("<IHHQQQQQ", PAGE, 8, 0, 0, 0, 0, 0, 2**64 - 1)
        header = struct.pack("<QHHI", page, 0, 8, 0)
        body = struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, (depth + 2) * PAGE) + free + database(2)
        return (header + body + struct.pack("<QQ", depth + 1, page)).ljust(PAGE, b"\0")

    return meta(0) + meta(1) + b"".join(map(leaf, range(2, depth + 2)))


def treed(change: Callable[[list[Any]], Any]) -> Case:
    """DESCRIPTION's size of the file and checksum of its tree, changed."""

    def tamper(root: Path, outside: Path, backend: str) -> None:
        entries = json.loads((damage.generation_of(root) / "DESCRIPTION").read_bytes())
        describe({"tree": change(entries["tree"])}, root, outside, backend)

    return Case(tamper)


def overlapping(data: bytes) -> bytes:
    """The second block, ids 3 to 5, begins and ends an image earlier; read in bulk, it is what it was."""
    new = bytearray(data)
    for name, (start, kind) in lmdb_pages.fields(data).items():
        field, (number,) = name.split(": ")[1], struct.unpack_from(kind, data, start)
        if (field, number) in (("key", 5), ("first", 3)):
            struct.pack_into(kind, new, start, number - 1)
    return bytes(new)


def sparse_single(root: Path, outside: Path, backend: str) -> None:
    path, size = at(root, SINGLE[backend]), 1 << 27
    data = bytearray(path.read_bytes())
    for meta in (0, PAGE):
        struct.pack_into("<Q", data, meta + lmdb_pages.META["last page"][0], size // PAGE - 1)
    path.write_bytes(data)
    os.truncate(path, size)


NO_TREES: list[Any] = [[], {}, "x", 1, [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5], 1.5, True]
TREES = {
    **PER_BLOCK,
    "no tree": Case(described(tree=...).tamper, harmless=True),  # its pages are walked instead
    **{f"tree is {value!r}": described(tree=value) for value in NO_TREES},
    "the file is said to be smaller": treed(lambda tree: [tree[0] - PAGE, tree[1]]),
    "the file is said to be larger": treed(lambda tree: [tree[0] + PAGE, tree[1]]),
    "the tree has another checksum": treed(lambda tree: [tree[0], tree[1] ^ 1]),
    "the tree has a checksum of 65 bits": treed(lambda tree: [tree[0], tree[1] + 2**64]),
    "the tree has a checksum that is a text": treed(lambda tree: [tree[0], str(tree[1])]),
    "the tree has numbers more": treed(lambda tree: [*tree, PAGE]),
    "1,500 databases in one another": Case(partial(edited, lambda data: sub_databases(1500))),
    "a single of 128 MiB, most of it a hole": Case(sparse_single, harmless=True),
    "blocks that overlap": Case(partial(edited, overlapping, single=False)),
    "not LMDB": Case(partial(edited, lambda data: bytes(len(data)))),
    "of one page": Case(partial(edited, lambda data: data[:PAGE])),
}
FORMATS = {"disk": PNGS, "lmdb": TREES, "hdf5": HDF5S}
GROUPS: dict[str, Callable[[str], dict[str, Case]]] = {
    "CURRENT": lambda backend: CURRENTS,
    "DESCRIPTION": lambda backend: DESCRIPTIONS,
    "kinds": of_other_kinds,
    "singles": lambda backend: SINGLE_CASES,
    "format": FORMATS.__getitem__,
}


class Watch:
    """Whether anything of a folder outside the store was opened, by whatever library (inotify)."""

    OPENED, LIBC = 0x20 | 0x1, ctypes.CDLL(None, use_errno=True)

    def __init__(self) -> None:
        self._descriptor = self.LIBC.inotify_init1(os.O_NONBLOCK)

    def add(self, folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink() and (path.is_dir() or path.is_file()):
                self.LIBC.inotify_add_watch(self._descriptor, os.fsencode(path), self.OPENED)

    def saw(self) -> bool:
        try:
            return bool(os.read(self._descriptor, 1 << 16))
        except BlockingIOError:
            return False


class Audit:
    """What Python opened or listed outside of the store, and what it would have unpickled."""

    def __init__(self, allowed: Path) -> None:
        self.seen: list[str] = []
        self._allowed = [os.path.realpath(path) for path in (allowed, sys.prefix, sys.base_prefix, "/proc/self")]
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            self.seen.append(f"unpickled {arguments}")
        elif event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes)):
            path = os.fsdecode(arguments[0])
            place = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            if not any(os.path.commonpath([place, allowed]) == allowed for allowed in self._allowed):
                self.seen.append(f"opened {path}")


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("store", OURS, ids=str)
def test_refused(store: Store, group: str) -> None:
    all_refused(store, HOSTILE_CONTENTS, GROUPS[group](store.format))


def test_refused_where_forms_differ() -> None:
    """What HDF5 has only then: pixels without a shape, and the table of the blocks."""
    store = next(store for store in OURS if store.format == "hdf5")
    all_refused(store, HOSTILE_CONTENTS._replace(forms=2), made("labels", "checksums", "pixels", "blocks"))


def all_refused(store: Store, contents: damage.Contents, cases: dict[str, Case]) -> None:
    sample = damage.sample(store, contents)
    with damage.memory_directory() as directory:
        found = damage.in_children(partial(prepared, store, sample, list(cases.values()), directory), len(cases))
        problems = {name: problem for name, problem in zip(cases, found, strict=True) if problem}
    assert not problems, "\n".join(f"{name}: {problem}" for name, problem in problems.items())


HOSTILE_CONTENTS = damage.Contents(1, damage.SMALL_BLOCKS, [(3, 0), (300, 0)])


def laid(store: Store, sample: Sample, case: Case, directory: Path, number: int) -> tuple[Path, Path]:
    """A store below `inside`, tampered with, and its folder outside."""
    root, outside = directory / "inside" / str(number), directory / f"outside-{number}"
    outside.mkdir(parents=True)
    damage.lay_out(root, sample.files)
    case.tamper(root, outside, store.format)
    return root, outside


def prepared(store: Store, sample: Sample, cases: list[Case], directory: Path) -> Attempt:
    watch, audit = Watch(), Audit(directory / "inside")

    def attempt(number: int) -> str:
        root, outside = laid(store, sample, cases[number], directory, number)
        watch.add(outside)
        audit.seen.clear()
        case = cases[number]
        with damage.limited_memory(MEMORY):
            problems = list(Reading(store, root, sample.held, case.refusal, case.harmless).problems())
        return "; ".join([*problems, *audit.seen, *["opened what lies outside"] * watch.saw()])

    return attempt


@pytest.mark.parametrize("store", OURS, ids=str)
def test_opens_nothing_else(store: Store, tmp_path: Path) -> None:
    """As the system sees it, whichever library opens."""
    if not shutil.which("strace"):
        pytest.skip("there is no strace")
    sample = damage.sample(store, HOSTILE_CONTENTS)
    cases = [case for group in GROUPS.values() for case in group(store.format).values()]
    with damage.memory_directory() as directory:
        roots = [laid(store, sample, case, directory, number)[0] for number, case in enumerate(cases)]
        traced(partial(read_each, store, roots), tmp_path / "log", "-e", "trace=?open,openat,?openat2,execve")
        opened = set(re.findall(r"^.*(?:open|exec)[^=]*= \d+<([^>]+)>", (tmp_path / "log").read_text(), re.MULTILINE))
        inside = {path for path in opened if Path(path).is_relative_to(directory / "inside")}
    assert inside
    assert not {
        path for path in opened - inside if not path.startswith((sys.prefix, sys.base_prefix, "/proc/", "/memfd:"))
    }


def read_each(store: Store, roots: list[Path]) -> None:
    for root in roots:
        for read in (partial(imgstore.verify, root), partial(store.verbs.read_single, root, 3)):
            with contextlib.suppress(Exception), damage.limited_memory(MEMORY):
                read()


WRITTEN = ["LOCK", "CURRENT.new", f"{SINGLES}/.new", "single 3", GENERATION, SINGLES, LISTED]


@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("store", OURS, ids=str)
def test_writes_nothing_outside(store: Store, name: str, target: str, tmp_path: Path) -> None:
    """A link where a writer would write, to a file or folder outside, or to what is not there."""
    sample, image, label = damage.sample(store, HOSTILE_CONTENTS), damage.image(99, 0), 7
    root, outside = tmp_path / "store", tmp_path / "outside"
    calls = {
        0: partial(store.verbs.store_many, root, [image], [label], durable=False),
        3: partial(store.verbs.store_single, root, image, 3, label, durable=False),
    }
    for image_id, call in calls.items():
        damage.lay_out(root, sample.files)
        damage.lay_out(outside, {"file": b"untouched", "folder/file": b"untouched"})
        path = at(root, SINGLE[store.format] if name == "single 3" else name)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(outside / target)
        before = damage.files_of(outside)
        with contextlib.suppress(OSError):
            call()
            assert record(*store.verbs.read_single(root, image_id)) == record(image, label)
        assert damage.files_of(outside) == before


SHORT_FORGERIES = 70
FORMATS_FORGED = [
    ("lmdb", MANY, damage.SMALL_BLOCKS),
    ("lmdb", MANY, damage.SINGLE_BLOCKS),
    ("lmdb", SINGLE, damage.SMALL_BLOCKS),
    ("hdf5", MANY, damage.SMALL_BLOCKS),
    ("hdf5", MANY, damage.SINGLE_BLOCKS),
    ("hdf5", SINGLE, damage.SMALL_BLOCKS),
]


@pytest.mark.parametrize(("backend", "part", "block_bytes"), FORMATS_FORGED)
def test_forged(
    backend: str, part: dict[str, str], block_bytes: int, is_long: bool, pytestconfig: pytest.Config
) -> None:
    """Each number that finds a block, of LMDB's pages and of HDF5's table; nobody needs to verify first."""

    def judged(reading: Reading) -> str:
        return "; ".join(reading.problems())

    most = None if is_long else SHORT_FORGERIES
    found = forged(part[backend], block_bytes, judged, most, pytestconfig.getoption("--fault-seed", default=0))
    problems = {name: problem for name, problem in found.items() if problem}
    assert not problems, "\n".join(f"{name}: {problem}" for name, problem in problems.items())


def forged(part: str, block_bytes: int, judge: Callable[[Reading], str], most: int | None, seed: int) -> dict[str, str]:
    """The outcome of each forgery of a file, or of so many of them."""
    store = next(store for store in OURS if store.verbs.BACKEND.suffix == Path(part).suffix)
    forms = 1 if store.format == "lmdb" else 2  # HDF5's table gives places only where forms differ
    sample = damage.sample(store, damage.Contents(forms, block_bytes, [(3, 0)]))
    name = next(name for name in sample.files if Path(name).name == Path(part).name)
    forged = list(forgeries(sample.files[name], {"lmdb": lmdb_pages.fields, "hdf5": hdf5_fields}[store.format]))
    Random(seed).shuffle(forged)
    with damage.memory_directory() as root:

        def prepare() -> Attempt:
            damage.lay_out(root / "store", sample.files)
            return attempt

        def attempt(number: int) -> str:
            damage.lay(root / "store", {name: forged[number][1]})
            damage.reseal_format(store.format, root / "store")
            with damage.limited_memory(MEMORY):
                return judge(Reading(store, root / "store", sample.held))

        count = len(forged) if most is None else min(most, len(forged))
        return {forged[n][0]: found for n, found in enumerate(damage.in_children(prepare, count))}
