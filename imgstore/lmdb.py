"""LMDB: an environment of blocks for the many, and one of a single block for each single.

A value is a block of consecutive images of one shape and dtype; its key is its last id, 8 bytes big-endian,
so that the first key from an id on is its block. A value holds

    header       checksum of the block, first id, number of images, H, W, C (0 for (H, W)), dtype
    labels       int64
    checksums    uint64, of each image
    pixels       (k, H, W[, C])

and is read through LMDB's map, where one image of a block costs what a value of its own would.

Damaged pages crash LMDB before Python could check anything. So the pages of its tree, which are few, are
checked before the environment is opened: DESCRIPTION holds their checksum for the many, and py-lmdb's
`lmdb.verify`, which walks a file without the engine, checks a single. Neither ever changes once it has its
name, so `lock=False` is safe: there is no lock file, no reader slot, and nothing that a fork could harm.
"""

import os
import struct
import threading
import weakref
from collections.abc import Iterator
from typing import Any, BinaryIO

import lmdb
import lmdb.verify
import numpy as np

from imgstore._checksums import checksum
from imgstore._generations import Generation, open_file
from imgstore._images import Block, Form, Labels, form_of, image_bytes
from imgstore._mapped import Mapped, View, checksums_of
from imgstore._store import Backend, Many, Pair
from imgstore.errors import CorruptStoreError

_MANY = "images.mdb"
_HEADER = struct.Struct("<QqQQQQ8s")
_KEY = struct.Struct(">Q")
_COMMIT_BYTES = 16 << 20  # what a transaction may hold in memory
_LARGEST_IMAGE = 2**32 - (1 << 20)
_ENGINE = 0  # LMDB 0.9, whose pages `_tree_pages` knows
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PAGE_HEADER, _BRANCH = 16, 1
_META = struct.Struct("<40xI84xQ8xQ")  # page size, root, transaction

# py-lmdb waits in a forked child for calls that other threads had under way, so none may be at a fork.
_calls = threading.RLock()
os.register_at_fork(before=_calls.acquire, after_in_parent=_calls.release, after_in_child=_calls.release)
# LMDB refuses to open a file twice in a process: readers share an environment, here with its users.
_opened: dict[tuple[int, int], tuple[lmdb.Environment, int]] = {}


class _Lmdb(Backend):
    name = "lmdb"
    suffix = ".mdb"

    def refusal(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
        if image_bytes((shape, dtype)) > _LARGEST_IMAGE:
            return f"has {image_bytes((shape, dtype))} bytes of pixels; a value of LMDB holds less than 4 GiB"
        return None

    def write_many(self, generation: str, blocks: Iterator[Block]) -> dict[str, Any]:
        path = os.path.join(generation, _MANY)
        _write(path, blocks)
        with open(path, "rb") as file:
            pages = _tree_pages(file)
            return {"tree": [os.path.getsize(path), _pages_checksum(file, pages), pages]}

    def open_many(self, generation: Generation, count: int, form: Form | None, verify: bool) -> Many:
        path = generation.path(_MANY)
        with open(open_file(path), "rb") as file:
            size, tree, pages = generation.description["tree"]
            if size != os.fstat(file.fileno()).st_size or tree != _pages_checksum(file, pages):
                raise CorruptStoreError(path, "its size, or a page of its tree, is not what DESCRIPTION tells")
        return _Environment(path, 0, count, form, verify)

    def verify_many(self, generation: Generation) -> Labels:
        if os.path.lexists(generation.path(_MANY)):
            _check_offline(generation.path(_MANY))
        return super().verify_many(generation)

    def write_single(self, path: str, block: Block) -> None:
        _write(path, iter([block]))

    def read_single_file(self, path: str, image_id: int, verify: bool) -> Pair:
        _check_offline(path)
        return _Environment(path, image_id, 1, None, verify).read(image_id)


class _Environment(Mapped):
    """What `_write` wrote, open read-only."""

    def __init__(self, path: str, first: int, count: int, form: Form | None, verify: bool) -> None:
        super().__init__(path, first, count, form, verify)
        self._transaction = _begin(path, self)
        self._views: dict[int, View] = {}  # of a store of one form, whose blocks are equally large
        self._per_block = len(self.block(first).checksums) if form else 0

    def view(self, image_id: int) -> View:
        if not self._per_block:
            return self.block(image_id)
        number = image_id // self._per_block
        view = self._views.get(number)
        if view is None or not 0 <= image_id - view.block.first < len(view.checksums):
            view = self._views[number] = self.block(image_id)
        return view

    def block(self, image_id: int) -> View:
        try:
            with _calls, self._transaction.cursor() as cursor:
                key, data = cursor.item() if cursor.set_range(_KEY.pack(image_id)) else (b"", memoryview(b""))
        except lmdb.Error as error:
            raise self.fault(f"LMDB cannot read it: {error}", image_id) from None
        view = _view(data)
        if view is None or key != _KEY.pack(view.block.first + len(view.checksums) - 1):
            raise self.fault("is in no block", image_id)
        first, images, labels = view.block
        if not self.first <= first <= image_id < first + len(labels) <= self.first + self.count:
            raise self.fault("is in a block with other ids", image_id)
        if self.form not in (None, (images.shape[1:], images.dtype)):
            raise self.fault("does not have the shape and dtype that DESCRIPTION tells", image_id)
        return view


def _packed(block: Block) -> tuple[bytes, memoryview]:
    """Key and value of a block."""
    form = block.images.shape[1:], block.images.dtype
    count = len(block.images)
    data = np.empty(_HEADER.size + count * (16 + image_bytes(form)), np.uint8).data
    checksums, checksum = checksums_of(block)
    _HEADER.pack_into(data, 0, checksum, block.first, count, *(*form[0], 0)[:3], form[1].str.encode())
    view = _view(data)
    assert view is not None
    view.block.images[...], view.block.labels[:], view.checksums[:] = block.images, block.labels, checksums
    return _KEY.pack(block.first + count - 1), data


def _view(data: memoryview) -> View | None:
    """A value as a block that lies in it, or None where it is no block."""
    if len(data) < _HEADER.size:
        return None
    checksum, first, count, *shape, dtype = _HEADER.unpack_from(data)
    form = form_of([length for length in shape if length], dtype.rstrip(b"\0").decode("latin-1"))
    if not form or len(data) != _HEADER.size + count * (16 + image_bytes(form)):
        return None
    labels = np.ndarray((count,), np.int64, data, _HEADER.size)
    checksums = np.ndarray((count,), np.uint64, data, _HEADER.size + 8 * count)
    images = np.ndarray((count, *form[0]), form[1], data, _HEADER.size + 16 * count)
    return View(Block(first, images, labels), checksums, checksum)


def _write(path: str, blocks: Iterator[Block]) -> None:
    try:
        # not writemap: a full disk would end the process
        environment = lmdb.open(path, subdir=False, lock=False, sync=False, lib_version=_ENGINE)
        try:
            written = 0
            for values in _batches(map(_packed, blocks)):
                written += sum(len(value) for _, value in values)
                environment.set_mapsize(2 * written + _COMMIT_BYTES)
                with environment.begin(write=True) as transaction:
                    for key, value in values:
                        transaction.put(key, value, append=True)
        finally:
            environment.close()
    except lmdb.Error as error:
        raise _system_error(error, path) from error


def _batches(values: Iterator[tuple[bytes, memoryview]]) -> Iterator[list[tuple[bytes, memoryview]]]:
    """What goes into one transaction, which LMDB holds in memory."""
    batch: list[tuple[bytes, memoryview]] = []
    size = 0
    for key, value in values:
        batch.append((key, value))
        size += len(value)
        if size >= _COMMIT_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _system_error(error: lmdb.Error, path: str) -> OSError | lmdb.Error:
    """The OSError that LMDB met, where it met one: a full disk, too many open files."""
    return OSError(error.code, os.strerror(error.code), path) if error.code > 0 else error


def _begin(path: str, user: Many) -> "lmdb.Transaction[memoryview]":
    """A read transaction on the shared environment of `path`, which is closed when its last user is gone."""
    descriptor = open_file(path)
    status = os.fstat(descriptor)
    os.close(descriptor)
    key = status.st_dev, status.st_ino
    with _calls:
        environment, users = _opened.get(key, (None, 0))
        try:
            if environment is None:
                environment = lmdb.open(path, subdir=False, readonly=True, lock=False, map_size=status.st_size)
            transaction = environment.begin(buffers=True)
        except lmdb.Error as error:
            if error.code > 0:
                raise _system_error(error, path) from error
            raise CorruptStoreError(path, f"LMDB cannot open it: {error}") from None
        _opened[key] = environment, users + 1
        weakref.finalize(user, _let_go, key)
        return transaction


def _let_go(key: tuple[int, int]) -> None:
    with _calls:
        environment, users = _opened.pop(key)
        if users > 1:
            _opened[key] = environment, users - 1
        else:
            environment.close()


def _check_offline(path: str) -> None:
    """Walk the pages without the engine, which a forged file could crash."""
    os.close(open_file(path))
    try:
        faults = lmdb.verify.verify(path, subdir=False)  # type: ignore[no-untyped-call]
    except (lmdb.verify.VerifyError, OSError) as error:
        faults = [str(error)]
    if faults:
        raise CorruptStoreError(path, f"is not the LMDB file that was stored: {faults[0]}")


def _pages_checksum(file: BinaryIO, pages: list[int]) -> int:
    return checksum(b"".join(_page(file, page) for page in pages))


def _page(file: BinaryIO, number: int) -> bytes:
    return os.pread(file.fileno(), _PAGE, number * _PAGE)


def _tree_pages(file: BinaryIO) -> list[int]:
    """The meta pages and those of the tree, from its root: all that LMDB reads to find a value.

    The layout of LMDB 0.9's pages is that of its source, mdb.c: MDB_page, MDB_meta and MDB_node.
    """
    newest = max(_page(file, 0), _page(file, 1), key=lambda meta: _META.unpack_from(meta)[2])
    page_size, root, _ = _META.unpack_from(newest)
    if page_size != _PAGE:
        raise RuntimeError(f"LMDB made pages of {page_size} bytes, not {_PAGE}; report the version of py-lmdb")
    pages, reached = [0, 1], [root]
    while reached:
        pages.append(reached.pop())
        reached += _children(_page(file, pages[-1]))
    return pages


def _children(page: bytes) -> list[int]:
    flags, lower = struct.unpack_from("<HH", page, 10)
    if not flags & _BRANCH:
        return []
    nodes = struct.unpack_from(f"<{(lower - _PAGE_HEADER) // 2}H", page, _PAGE_HEADER)
    parts = [struct.unpack_from("<HHH", page, node) for node in nodes]
    return [low | middle << 16 | high << 32 for low, middle, high in parts]


BACKEND = _Lmdb()
store_single = BACKEND.store_single
store_many = BACKEND.store_many
read_single = BACKEND.read_single
read_many = BACKEND.read_many
open_reader = BACKEND.open_reader
verify = BACKEND.verify
