"""LMDB: an environment of blocks for the many, and one of a single block for each single.

A value is a block of consecutive images of one shape and dtype; its key is its last id, 8 bytes big-endian,
so that the first key from an id on is its block. A value holds

    header       checksum of the block (uint64), first id (int64), number of images, H, W, C (uint64 each, C is
                 0 for (H, W)), dtype (its name in 8 bytes of ASCII); all little-endian
    labels       int64
    checksums    uint64, of each image
    pixels       (k, H, W[, C])

and is padded to half a page, so that LMDB gives it pages of its own, which are read with system calls.

Damaged pages crash LMDB before Python could check anything. So it is given only what was looked at first: the pages
of its tree, which are few, in a file in memory: see `imgstore/_lmdb/tree.py`. DESCRIPTION holds the size of the file
and the checksum of these pages. LMDB finds the entry of a block there, and with it the page where its value begins.
No file of ours ever changes once it has its name, so `lock=False` is safe: there is no lock file, no reader slot, and
nothing that a fork could harm.
"""

import collections
import ctypes
import errno
import functools
import os
import struct
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import lmdb
import numpy as np
import xxhash

from imgstore._lmdb.tree import PAGE_HEADER, Piece, tree
from imgstore.core.blocks import BYTES_BESIDE_PIXELS, Block, Form, form_of, image_bytes
from imgstore.core.files import NewFile, memory_file, new_file
from imgstore.core.format import Contents, Many
from imgstore.core.generations import Generation
from imgstore.core.mapped import SINGLE, Mapped, Place, checksums_of
from imgstore.core.reading import File, of_the_file
from imgstore.core.verbs import Backend
from imgstore.errors import CorruptStoreError, InvalidArgumentError

_MANY = "images.mdb"
_HEADER = struct.Struct("<QqQQQQ8s")
_KEY = struct.Struct(">Q")
_COMMIT_BYTES = 2 << 20  # what a transaction holds in memory; with more, malloc gives it back each time
_LEAST_MAP_BYTES = 64 << 20
_SPARE_BYTES = 16 << 20
_LARGEST_IMAGE = 2**32 - (1 << 20)
_ENGINE = 0  # LMDB 0.9, whose pages `_lmdb_tree` knows
_LARGEST_PAGE = 1 << 15
_PAGE = min(os.sysconf("SC_PAGE_SIZE"), _LARGEST_PAGE)
_ENTRY, _KEY_AT = struct.Struct("<HH4x8sQ"), 8  # of a leaf, as NODE of `_lmdb_tree`
_PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

_fallocate = ctypes.CDLL(None).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

# py-lmdb waits, when an environment is closed in a forked child, for calls that other threads had under way at the
# fork, for ever. So a child of a process with threads never closes those that it inherits.
_environments: weakref.WeakSet[lmdb.Environment] = weakref.WeakSet()
_threads_at_fork = [0]


def _count_threads() -> None:
    _threads_at_fork[0] = len(sys._current_frames())


def _keep_open() -> None:
    for environment in list(_environments) if _threads_at_fork[0] > 1 else []:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(environment))


os.register_at_fork(before=_count_threads, after_in_child=_keep_open)


class _Lmdb(Backend):
    name = "lmdb"
    suffix = ".mdb"

    def refusal(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
        if image_bytes((shape, dtype)) > _LARGEST_IMAGE:
            return f"has {image_bytes((shape, dtype))} bytes of pixels; a value of LMDB holds less than 4 GiB"
        return None

    def write_many(self, generation: str, blocks: Iterator[Block]) -> dict[str, Any]:
        path, digest = os.path.join(generation, _MANY), xxhash.xxh3_64()
        with new_file(path) as new:
            _write(new, blocks)
        file = File(path)
        try:
            collections.deque(tree(file, digest), maxlen=0)
        except ValueError as error:
            message = f"are more than a reader of one LMDB file looks at ({error}); store them in shards"
            raise InvalidArgumentError("images", message) from None
        return {"tree": [file.size, digest.intdigest()]}

    def open_many(self, generation: Generation, contents: Contents, verify: bool) -> Many:
        return _Environment(generation.path(_MANY), 0, contents, verify, generation.description.get("tree"))

    def write_single(self, file: NewFile, block: Block) -> None:
        _write(file, iter([block]))

    def open_single(self, path: str, image_id: int, verify: bool) -> Many:
        return _Environment(path, image_id, SINGLE, verify, None)


class _Environment(Mapped):
    """What `_write` wrote, once its tree was looked at; `expected` is what DESCRIPTION tells, None for a single."""

    def __init__(self, path: str, first: int, contents: Contents, verify: bool, expected: object) -> None:
        super().__init__(path, first, contents, verify)
        if self.count * (BYTES_BESIDE_PIXELS + (image_bytes(self.form) if self.form else 1)) > self.file.size:
            raise CorruptStoreError(path, f"is too short for {self.count} images")
        of_the_file(lambda: self._open(expected), path, "is not the LMDB file that was stored")

    def _open(self, expected: object) -> None:
        digest, offsets = xxhash.xxh3_64(), set[int]()

        def noted() -> Iterator[Piece]:
            for offset, page in tree(self.file, digest):
                offsets.add(offset)
                yield offset, page

        with memory_file(self.path, self.file.size, noted()) as pages:
            if expected is not None and expected != [self.file.size, digest.intdigest()]:
                raise ValueError("its size, or a page of its tree, is not what DESCRIPTION tells")
            try:
                environment = lmdb.open(pages.path, subdir=False, readonly=True, lock=False, map_size=self.file.size)
            except lmdb.Error as error:
                raise (OSError(error.code, os.strerror(error.code), self.path) if error.code > 0 else error) from None
            _environments.add(environment)
            self._pages = os.dup(pages.descriptor)
        weakref.finalize(self, os.close, self._pages).atexit = False  # not at exit: a thread may still read
        self._tree = offsets
        self._page_bytes = int(environment.stat()["psize"])
        self._transaction = environment.begin(buffers=True)

    def find(self, image_id: int) -> Place:
        key, offset, size = self._value(image_id)
        head = self.file.bytes_at(offset, _HEADER.size)
        if len(head) < _HEADER.size:
            raise self.fault("is in a block that is not there", image_id)
        checksum, first, count, *shape, dtype = _HEADER.unpack(head)
        form = _form(tuple(shape), dtype)
        is_block = form and 0 < count <= self.count and key == first + count - 1
        if not form or not is_block or size != _size(count, form, self._page_bytes):
            raise self.fault("is in no block", image_id)
        self.must_be_block(count, form, image_id)
        beside = self.file.numbers(offset + _HEADER.size, 2 * count)
        at = offset + _HEADER.size + BYTES_BESIDE_PIXELS * count
        return Place(first, form, at, beside[:count], beside[count:].view(np.uint64), checksum)

    def _value(self, image_id: int) -> tuple[int, int, int]:
        """The key that LMDB finds, and offset and bytes of its value.

        py-lmdb's own `value` would touch all of it. The entry is read where LMDB found its key: the page that its
        value begins on stands behind it.
        """
        with self._transaction.cursor() as cursor:
            try:
                is_found = cursor.set_range(_KEY.pack(image_id))
            except lmdb.Error as error:
                raise self.fault(f"LMDB cannot find it: {error}", image_id) from None
            if not is_found:
                raise self.fault("is in no block", image_id)
            entry = np.frombuffer(cursor.key(), np.uint8).ctypes.data - _KEY_AT
            low, high, key, page = _ENTRY.unpack(ctypes.string_at(entry, _ENTRY.size))
        offset = page * self._page_bytes
        if offset not in self._tree:  # LMDB looked at this page, a hole where it looks, which takes memory from then on
            _fallocate(self._pages, _PUNCH_HOLE, offset, self._page_bytes)
        return int.from_bytes(key, "big"), offset + PAGE_HEADER, low | high << 16


@functools.lru_cache(maxsize=256)
def _form(shape: tuple[int, ...], dtype: bytes) -> Form | None:
    return form_of([length for length in shape if length], dtype.rstrip(b"\0").decode("latin-1"))


def _size(count: int, form: Form, page_bytes: int = _PAGE) -> int:
    """Bytes of the value of so many images."""
    return max(page_bytes // 2, _HEADER.size + count * (BYTES_BESIDE_PIXELS + image_bytes(form)))


def _pack(block: Block, data: memoryview) -> bytes:
    """Make `data` the value of a block; gives its key."""
    shape, dtype, count = block.images.shape[1:], block.images.dtype, len(block.labels)
    checksums, checksum = checksums_of(block)
    _HEADER.pack_into(data, 0, checksum, block.first, count, *(*shape, 0)[:3], dtype.str.encode())
    np.ndarray((count,), np.int64, data, _HEADER.size)[:] = block.labels
    np.ndarray((count,), np.uint64, data, _HEADER.size + 8 * count)[:] = checksums
    at = _HEADER.size + BYTES_BESIDE_PIXELS * count
    np.ndarray(block.images.shape, dtype, data, at)[...] = block.images
    data[at + block.images.nbytes :] = bytes(len(data) - at - block.images.nbytes)
    return _KEY.pack(block.first + count - 1)


def _write(new: NewFile, blocks: Iterator[Block]) -> None:
    try:
        # not writemap: a full disk would end the process
        options: dict[str, Any] = {"subdir": False, "lock": False, "sync": False, "lib_version": _ENGINE}
        with lmdb.open(new.name_for_library(), map_size=_LEAST_MAP_BYTES, **options) as environment:
            _put(environment, blocks)
    except lmdb.Error as error:
        raise _system_error(error, new) from error


def _put(environment: lmdb.Environment, blocks: Iterator[Block]) -> None:
    buffer = np.empty(0, np.uint8)
    transaction = environment.begin(write=True)
    total, room = 0, _COMMIT_BYTES
    for block in blocks:
        size = _size(len(block.images), (block.images.shape[1:], block.images.dtype))
        if size > len(buffer):
            buffer = np.empty(size, np.uint8)
        value = buffer[:size].data
        key = _pack(block, value)
        total += size
        if size > room:
            transaction.commit()
            environment.set_mapsize(4 * total + _LEAST_MAP_BYTES)  # address space, of which pages are used
            transaction, room = environment.begin(write=True), _COMMIT_BYTES
        transaction.put(key, value, append=True)
        room -= size
    transaction.commit()


def _system_error(error: lmdb.Error, new: NewFile) -> OSError:
    """The OSError that LMDB met: a full disk, or too many open files."""
    if error.code == errno.EIO:  # what LMDB also says when the disk took a part of what it wrote
        try:
            os.posix_fallocate(new.descriptor, os.fstat(new.descriptor).st_size, _SPARE_BYTES)
        except OSError as full:
            return OSError(full.errno, full.strerror, new.path)
    code = error.code if error.code > 0 else errno.EIO
    return OSError(code, os.strerror(code), new.path)


BACKEND = _Lmdb()
store_single = BACKEND.store_single
store_many = BACKEND.store_many
read_single = BACKEND.read_single
read_many = BACKEND.read_many
open_reader = BACKEND.open_reader
verify = BACKEND.verify
