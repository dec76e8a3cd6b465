"""HDF5: one file for the many, one for each single, whose contiguous datasets any HDF5 tool reads.

    images       (N, H, W[, C]) where shapes and dtypes agree; else `pixels`, the images end to end in bytes
    labels       int64 (N,)
    checksums    uint64, of each image, and behind them of each block
    blocks       beside `pixels` only: uint64 (M, 6): first id, offset in the pixels, H, W, C (0 for (H, W)),
                 dtype as the number that its ASCII name is in little-endian order

HDF5 has no journal and can crash on a full disk, so it writes no file of ours: pixels are written first,
where the first dataset of a new file lies; then HDF5 lays out a file of that size in memory, and the few
bytes of metadata that it writes are put in their places. That also streams, with N and the shapes unknown
until the end. `libver="latest"`, because its metadata carries checksums. A contiguous dataset lies at
`dataset.id.get_offset()` and is read there, through a memory map.
"""

import atexit
import bisect
import contextlib
import errno
import functools
import io
import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from h5py._objects import phil

from imgstore._checksums import Checksums
from imgstore._generations import Generation, descriptor_path, open_file
from imgstore._images import Array, Block, Labels, form_of, image_bytes
from imgstore._mapped import SINGLE, Mapped, View, checksums_of
from imgstore._store import Backend, Contents, Many, Pair
from imgstore.errors import CorruptStoreError, ReaderClosedError

_MANY = "images.h5"
_BLOCK_FIELDS = 6
_LAYOUT: dict[str, Any] = {"libver": "latest", "alignment_threshold": 1, "alignment_interval": 64}  # a cache line
_EXPECTED = {  # dimensions and dtype
    b"images": ((3, 4), None),
    b"pixels": ((1,), np.dtype("u1")),
    b"labels": ((1,), np.dtype("<i8")),
    b"checksums": ((1,), np.dtype("<u8")),
    b"blocks": ((2,), np.dtype("<u8")),
}
_Dataset = tuple[str, tuple[int, ...], np.dtype[Any]]  # name, shape, dtype

_ending = threading.Event()


@atexit.register
def _end() -> None:
    with phil:
        _ending.set()


@contextlib.contextmanager
def _inside_h5py() -> Iterator[None]:
    """No other thread is. Where one was stopped at exit, the process would wait for h5py's lock for ever."""
    with phil:
        if _ending.is_set() and threading.current_thread() is not threading.main_thread():
            raise ReaderClosedError("the process is ending, and only its main thread may go on to read and store")
        yield


class _Hdf5(Backend):
    name = "hdf5"
    suffix = ".h5"

    def write_many(self, generation: str, blocks: Iterator[Block]) -> dict[str, Any]:
        _write(os.path.join(generation, _MANY), blocks)
        return {}

    def open_many(self, generation: Generation, contents: Contents, verify: bool) -> Many:
        many = _File(generation.path(_MANY), 0, contents, verify)
        if many.form != contents.form:
            raise CorruptStoreError(many.path, "does not have the shape and dtype that DESCRIPTION tells")
        return many

    def write_single(self, path: str, block: Block) -> None:
        _write(path, iter([block]))

    def read_single_file(self, path: str, image_id: int, verify: bool) -> Pair:
        return _File(path, image_id, SINGLE, verify).read(image_id)


class _File(Mapped):
    """What `_write` wrote."""

    def __init__(self, path: str, first: int, contents: Contents, verify: bool) -> None:
        super().__init__(path, first, contents, verify)
        count, _, per_block = contents
        self._descriptor, _ = open_file(path)
        # not at exit: a thread may still read
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        names = (b"images", b"labels", b"checksums") if per_block else (b"pixels", b"labels", b"checksums", b"blocks")
        self._memory, (self._pixels, self.labels, self.checksums, *table) = _datasets(path, self._descriptor, names)
        self.form = (self._pixels.shape[1:], self._pixels.dtype) if per_block else None
        blocks = -(-count // per_block) if per_block else len(table[0])
        beside = {len(self.labels), len(self.checksums) - blocks, len(self._pixels) if per_block else count}
        if beside != {count} or any(each.shape[1:] != (_BLOCK_FIELDS,) for each in table):
            raise CorruptStoreError(path, f"does not hold {count} images")
        self._places = table[0].tolist() if table else []
        self._firsts = [place[0] for place in self._places]
        self._bytes = self._pixels.reshape(-1).view(np.uint8)
        if self.form:
            self.addresses = self._pixels.ctypes.data + np.arange(blocks) * (per_block * image_bytes(self.form))
        self._all = View(Block(first, self._pixels, self.labels), self.checksums, 0)

    def view(self, image_id: int) -> View:
        return self._all if self.form else self.block(image_id)

    def copy(self, mapped: Array, images: Array) -> None:
        # a sixth faster than to copy what is mapped, whose pages would first be looked up one by one
        offset = mapped.ctypes.data - self._memory.ctypes.data
        read = os.preadv(self._descriptor, [images.data], offset)
        if read < images.nbytes:  # the system reads at most 2 GiB at once
            super().copy(mapped, images)

    def take(self, ids: Labels) -> Array:
        return self._pixels.take(ids, axis=0)

    def block(self, image_id: int) -> View:
        if self.form:
            first, last = self.bounds(image_id)
            number = (first - self.first) // self.per_block
        else:
            number = max(bisect.bisect_right(self._firsts, image_id) - 1, 0)
            first = self._firsts[number]
            last = self._firsts[number + 1] if number + 1 < len(self._firsts) else self.count
            if not self.first <= first <= image_id < last <= self.count:
                raise self.fault("is in no block", image_id)
        rows = slice(first - self.first, last - self.first)
        images = self._pixels[rows] if self.form else self._placed(image_id, last - first, *self._places[number][1:])
        checksum = int(self.checksums[self.count + number])
        return View(Block(first, images, self.labels[rows]), self.checksums[rows], checksum)

    def _placed(self, image_id: int, count: int, offset: int, *shape_and_dtype: int) -> Array:
        *shape, dtype = shape_and_dtype
        name = dtype.to_bytes(8, "little").rstrip(b"\0").decode("latin-1")
        form = form_of([length for length in shape if length], name)
        if not form or not offset <= len(self._bytes) - count * image_bytes(form):
            raise self.fault("is in a block that lies outside the pixels, or has no shape or dtype", image_id)
        return np.ndarray((count, *form[0]), form[1], self._bytes, offset)


class _MetadataOnly(io.RawIOBase):
    """The file that HDF5 lays a new file out in: keeps what is written, as (offset, bytes); nothing is read back."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.size = self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def write(self, data: Any) -> int:
        self.writes.append((self._position, bytes(data)))
        self.size = max(self.size, self._position + len(data))
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self.size = size or 0
        return self.size


def _write(path: str, blocks: Iterator[Block]) -> None:
    table: list[tuple[int, ...]] = []
    beside: list[tuple[Labels, Checksums, int]] = []
    with open(path, "wb") as file:
        start = file.seek(_pixels_offset())
        for block in blocks:
            shape, dtype = block.images.shape[1:], block.images.dtype
            name = int.from_bytes(dtype.str.encode(), "little")
            table.append((block.first, file.tell() - start, *(*shape, 0)[:3], name))
            beside.append((block.labels, *checksums_of(block)))
            file.write(block.images.data)
        labels, of_images, of_blocks = zip(*beside, strict=True)
        datasets: dict[str, Array] = {"labels": np.concatenate(labels)}
        datasets["checksums"] = np.concatenate([*of_images, np.array(of_blocks, np.uint64)])
        if len({row[2:] for row in table}) == 1:
            pixels = "images", (len(datasets["labels"]), *shape), dtype
        else:
            pixels = "pixels", (file.tell() - start,), np.dtype(np.uint8)
            datasets["blocks"] = np.array(table, np.uint64)
        beside_pixels = ((name, each.shape, each.dtype) for name, each in datasets.items())
        writes, (at, *offsets), size = _layout(pixels, *beside_pixels)
        if at != start:
            raise RuntimeError("HDF5 does not lay the pixels where it did; report the versions of h5py and HDF5")
        parts: list[tuple[int, Any]] = [*writes, *zip(offsets, datasets.values(), strict=True)]
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
        file.truncate(size)


@functools.lru_cache(maxsize=16)
def _layout(*datasets: _Dataset) -> tuple[list[tuple[int, bytes]], list[int], int]:
    """What HDF5 writes of a new file with these, as (offset, bytes); the offset of each; the size of the file."""
    layout = _MetadataOnly()
    with _inside_h5py(), h5py.File(layout, "w", **_LAYOUT) as file:
        offsets = [_create(file, *dataset) for dataset in datasets]
    return layout.writes, offsets, layout.size


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Make a contiguous dataset whose place is fixed at once; gives its offset in the file."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    kind = h5py.h5t.py_create(dtype, logical=True)
    return int(h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plist).get_offset())


@functools.cache
def _pixels_offset() -> int:
    """Where the first dataset of a new file lies: the same for every shape and dtype that was tried."""
    _, (offset,), _ = _layout(("images", (1, 1, 1), np.dtype(np.uint8)))
    return offset


def _datasets(path: str, descriptor: int, names: tuple[bytes, ...]) -> tuple[Array, list[Array]]:
    """The mapped file, and these datasets in it. Raises CorruptStoreError for anything else."""
    try:
        memory = np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
        with _inside_h5py():
            file = h5py.h5f.open(descriptor_path(descriptor).encode(), h5py.h5f.ACC_RDONLY, _access())
            try:
                return memory, [_view(file, name, memory) for name in names]
            finally:
                file.close()
    except ReaderClosedError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise CorruptStoreError(path, f"is not the HDF5 file that was stored: {error}") from None


@functools.cache
def _access() -> h5py.h5p.PropFAID:
    """How files are opened: closing one closes all that is open in it, and no locks, as they never change."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_file_locking(False, True)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    return access


def _view(file: h5py.h5f.FileID, name: bytes, memory: Array) -> Array:
    if file.links.get_info(name).type != h5py.h5l.TYPE_HARD:  # another kind could lead out of the file
        raise ValueError(f"{name.decode()} is a link")
    dataset = h5py.h5d.open(file, name)
    # no offset: chunked and so perhaps filtered, virtual, in another file, or never written
    offset, shape, dtype = dataset.get_offset(), dataset.shape, np.dtype(dataset.dtype.str)
    dimensions, expected = _EXPECTED[name]
    if dtype.kind not in "biufc" or dtype != (expected or dtype) or len(shape) not in dimensions:
        raise ValueError(f"{name.decode()} has another shape or dtype")
    if offset is None or offset >= len(memory):
        raise ValueError(f"{name.decode()} does not hold what was stored there")
    return np.ndarray(shape, dtype, memory, offset)


BACKEND = _Hdf5()
store_single = BACKEND.store_single
store_many = BACKEND.store_many
read_single = BACKEND.read_single
read_many = BACKEND.read_many
open_reader = BACKEND.open_reader
verify = BACKEND.verify
