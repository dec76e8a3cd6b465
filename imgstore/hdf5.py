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
`dataset.id.get_offset()`, and is read there.

A damaged or forged file can crash HDF5, too. So it is given only what was looked at first: see
`imgstore/_hdf5/structure.py`. DESCRIPTION holds the size of the file and the checksum of all that is no dataset's
contents.
"""

import atexit
import functools
import os
import threading
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np
from h5py._objects import phil, with_phil

from imgstore._hdf5.structure import metadata_checksum, structure
from imgstore.core.blocks import Array, Block, Form, Labels, form_of, image_bytes
from imgstore.core.checksums import Checksums
from imgstore.core.files import NewFile, memory_file, naming, new_file
from imgstore.core.format import Contents, Many
from imgstore.core.generations import Generation
from imgstore.core.mapped import SINGLE, Mapped, Place, checksums_of
from imgstore.core.reading import File, of_the_file
from imgstore.core.verbs import Backend
from imgstore.errors import CorruptStoreError, ReaderClosedError

_MANY = "images.h5"
_BLOCK_FIELDS = 6
_ROW_BYTES = 8 * _BLOCK_FIELDS
_LAYOUT: dict[str, Any] = {"libver": "latest", "alignment_threshold": 1, "alignment_interval": 64}  # a cache line
_EXPECTED = {  # dimensions and dtype
    b"images": ((3, 4), None),
    b"pixels": ((1,), np.dtype("u1")),
    b"labels": ((1,), np.dtype("<i8")),
    b"checksums": ((1,), np.dtype("<u8")),
    b"blocks": ((2,), np.dtype("<u8")),
}
_T = TypeVar("_T")
_Description = tuple[str, tuple[int, ...], np.dtype[Any]]  # name, shape, dtype

_ending = threading.Event()


@atexit.register
def _end() -> None:
    with phil:
        _ending.set()


def _in_hdf5(call: Callable[..., _T], *arguments: object) -> _T:
    """What this call gives, all of it under h5py's lock, and what it leaves to the collector, too.

    Raises ReaderClosedError in another thread than the main one where the process is ending: HDF5 has ended by then,
    and crashes, and a thread that were stopped in h5py would keep its lock.
    """
    found: _T = _locked(call, *arguments)
    return found


@with_phil  # type: ignore[untyped-decorator]  # which gives the lock back, whatever a signal handler raises
def _locked(call: Callable[..., _T], *arguments: object) -> _T:
    if _ending.is_set() and threading.current_thread() is not threading.main_thread():
        raise ReaderClosedError("the process is ending, and only its main thread may go on to read and store")
    return call(*arguments)


class _Hdf5(Backend):
    name = "hdf5"
    suffix = ".h5"

    def write_many(self, generation: str, blocks: Iterator[Block]) -> dict[str, Any]:
        path = os.path.join(generation, _MANY)
        with new_file(path) as new:
            _write(new, blocks)
        file = File(path)
        return {"metadata": [file.size, metadata_checksum(file, structure(file))]}

    def open_many(self, generation: Generation, contents: Contents, verify: bool) -> Many:
        many = _File(generation.path(_MANY), 0, contents, verify, generation.description.get("metadata"))
        if many.form != contents.form:
            raise CorruptStoreError(many.path, "does not have the shape and dtype that DESCRIPTION tells")
        return many

    def write_single(self, file: NewFile, block: Block) -> None:
        _write(file, iter([block]))

    def open_single(self, path: str, image_id: int, verify: bool) -> Many:
        return _File(path, image_id, SINGLE, verify, None)


class _Dataset(NamedTuple):
    """Where one lies in the file, and of what it is."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _File(Mapped):
    """What `_write` wrote; `metadata` is what DESCRIPTION tells of it, or None for a single."""

    def __init__(self, path: str, first: int, contents: Contents, verify: bool, metadata: object) -> None:
        super().__init__(path, first, contents, verify)
        count, _, per_block = contents
        names = (b"images", b"labels", b"checksums") if per_block else (b"pixels", b"labels", b"checksums", b"blocks")
        self._pixels, self._labels, self._checksums, *self._table = _datasets(self.file, names, metadata)
        shape = self._pixels.shape
        self.form = (shape[1:], self._pixels.dtype) if per_block else None
        blocks = -(-count // per_block) if per_block else self._table[0].shape[0]
        beside = {*self._labels.shape, self._checksums.shape[0] - blocks, shape[0] if per_block else count}
        if beside != {count} or any(each.shape[1:] != (_BLOCK_FIELDS,) for each in self._table):
            raise CorruptStoreError(path, f"does not hold {count} images")

    def find(self, image_id: int) -> Place:
        if self.form:
            first, last = self.bounds(image_id)
            number = (first - self.first) // self.per_block
            form, offset = self.form, (first - self.first) * image_bytes(self.form)
        else:
            number = self._number(image_id)
            (first, offset, *kind), last = self._rows(number)
            form = self._form(kind, image_id)
        row, count = first - self.first, last - first
        if not 0 <= row < row + count <= self.count:
            raise self.fault("is in no block", image_id)
        self.must_be_block(count, form, image_id)
        return Place(
            first,
            form,
            self._pixels.offset + offset,
            self.file.numbers(self._labels.offset + 8 * row, count),
            self.file.numbers(self._checksums.offset + 8 * row, count, np.uint64),
            int(self.file.numbers(self._checksums.offset + 8 * (self.count + number), 1, np.uint64)[0]),
        )

    def _number(self, image_id: int) -> int:
        """Of the block of this image: the last whose first image is not behind it. Read row by row, none is kept."""
        low, high = 0, self._table[0].shape[0]
        while high - low > 1:
            middle = (low + high) // 2
            first = int(self.file.numbers(self._table[0].offset + _ROW_BYTES * middle, 1)[0])
            low, high = (middle, high) if first <= image_id else (low, middle)
        return low

    def _rows(self, number: int) -> tuple[list[int], int]:
        """The row of a block, and the first image of the next, or the end."""
        count = min(2, self._table[0].shape[0] - number)
        rows = self.file.numbers(self._table[0].offset + _ROW_BYTES * number, _BLOCK_FIELDS * count).tolist()
        return rows[:_BLOCK_FIELDS], rows[_BLOCK_FIELDS] if count == 2 else self.first + self.count

    def _form(self, shape_and_dtype: list[int], image_id: int) -> Form:
        *shape, dtype = shape_and_dtype
        name = (dtype % 2**64).to_bytes(8, "little").rstrip(b"\0").decode("latin-1")
        form = form_of([length for length in shape if length], name)
        if not form:
            raise self.fault("is in a block that has no shape or dtype", image_id)
        return form


def _write(new: NewFile, blocks: Iterator[Block]) -> None:
    table: list[tuple[int, ...]] = []
    beside: list[tuple[Labels, Checksums, int]] = []
    start = end = _pixels_offset()
    for block in blocks:
        shape, dtype = block.images.shape[1:], block.images.dtype
        name = int.from_bytes(dtype.str.encode(), "little")
        table.append((block.first, end - start, *(*shape, 0)[:3], name))
        beside.append((block.labels, *checksums_of(block)))
        new.write_at(end, block.images.reshape(-1).view(np.uint8))
        end += block.images.nbytes
    labels, of_images, of_blocks = zip(*beside, strict=True)
    datasets: dict[str, Array] = {"labels": np.concatenate(labels)}
    datasets["checksums"] = np.concatenate([*of_images, np.array(of_blocks, np.uint64)])
    if len({row[2:] for row in table}) == 1:
        pixels = "images", (len(datasets["labels"]), *shape), dtype
    else:
        pixels = "pixels", (end - start,), np.dtype(np.uint8)
        datasets["blocks"] = np.array(table, np.uint64)
    beside_pixels = ((name, each.shape, each.dtype) for name, each in datasets.items())
    pieces, (at, *offsets), size = _layout(pixels, *beside_pixels)
    if at != start:
        raise RuntimeError("HDF5 does not lay the pixels where it did; report the versions of h5py and HDF5")
    for offset, piece in (*pieces, *zip(offsets, datasets.values(), strict=True)):
        new.write_at(offset, piece)
    with naming(new.path):
        os.ftruncate(new.descriptor, size)


@functools.lru_cache(maxsize=16)
def _layout(*datasets: _Description) -> tuple[list[tuple[int, bytes]], list[int], int]:
    """What HDF5 writes of a new file with these, as (offset, bytes); the offset of each; the size of the file."""
    try:
        return _in_hdf5(_laid_out, datasets)
    except AttributeError:  # what h5py 3.16 raises of a write to a file object that fails, whatever the reason
        return _in_hdf5(_laid_out, datasets)


def _laid_out(datasets: tuple[_Description, ...]) -> tuple[list[tuple[int, bytes]], list[int], int]:
    with memory_file("memory", 0, ()) as new:
        with h5py.File(open(new.descriptor, "r+b", buffering=0, closefd=False), "w", **_LAYOUT) as file:
            offsets = [_create(file, *dataset) for dataset in datasets]
        laid = File(new.path, new.descriptor)
        return structure(laid).pieces, offsets, laid.size


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


def _datasets(file: File, names: tuple[bytes, ...], metadata: object) -> list[_Dataset]:
    """These datasets of a file of ours. Raises CorruptStoreError for any other."""

    def found() -> list[_Dataset]:
        seen = structure(file)
        if metadata is not None and metadata != [file.size, metadata_checksum(file, seen)]:
            raise ValueError("its size, or what is no dataset in it, is not what DESCRIPTION tells")
        with memory_file(file.path, file.size, seen.pieces) as alike:
            return _in_hdf5(_asked, alike.descriptor, names)

    datasets: list[_Dataset] = of_the_file(found, file.path, "is not the HDF5 file that was stored")
    return datasets


def _asked(descriptor: int, names: tuple[bytes, ...]) -> list[_Dataset]:
    """What HDF5 says of these datasets."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)  # what is open in it is closed with it
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, FileIO(descriptor, closefd=False))
    file = h5py.h5f.open(b"in memory", h5py.h5f.ACC_RDONLY, access)
    try:
        return [_dataset(h5py.h5d.open(file, name), name) for name in names]
    finally:
        file.close()


def _dataset(dataset: h5py.h5d.DatasetID, name: bytes) -> _Dataset:
    offset, shape, dtype = dataset.get_offset(), dataset.shape, np.dtype(dataset.dtype.str)
    dimensions, expected = _EXPECTED[name]
    if dtype.kind not in "biufc" or dtype != (expected or dtype) or len(shape) not in dimensions or offset is None:
        raise ValueError(f"{name.decode()} has another shape or dtype")
    return _Dataset(offset, shape, dtype)


BACKEND = _Hdf5()
store_single = BACKEND.store_single
store_many = BACKEND.store_many
read_single = BACKEND.read_single
read_many = BACKEND.read_many
open_reader = BACKEND.open_reader
verify = BACKEND.verify
