"""LMDB: an environment of blocks for the many, and one of a single block for each single.

A value is a block of consecutive images of one shape and dtype; its key is its last id, 8 bytes big-endian,
so that the first key from an id on is its block. A value holds

    header       checksum of the block (uint64), first id (int64), number of images, H, W, C (uint64 each, C is
                 0 for (H, W)), dtype (its name in 8 bytes of ASCII); all little-endian
    labels       int64
    checksums    uint64, of each image
    pixels       (k, H, W[, C])

and is read through LMDB's map, where one image of a block costs what a value of its own would.

Damaged pages crash LMDB before Python could check anything. So the pages of its tree, which are few, are
checked before the environment is opened: DESCRIPTION holds their checksum for the many, and py-lmdb's
`lmdb.verify`, which walks a file without the engine, checks a single. Neither ever changes once it has its
name, so `lock=False` is safe: there is no lock file, no reader slot, and nothing that a fork could harm.
"""

import collections
import errno
import os
import struct
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import lmdb
import lmdb.verify
import numpy as np

from imgstore._checksums import checksum
from imgstore._generations import Generation, descriptor_path, open_file
from imgstore._images import BYTES_BESIDE_PIXELS, Array, Block, Form, Labels, form_of, image_bytes
from imgstore._mapped import SINGLE, Mapped, View, checksums_of, copies
from imgstore._store import Backend, Contents, Many, Pair
from imgstore.errors import CorruptStoreError

_MANY = "images.mdb"
_HEADER = struct.Struct("<QqQQQQ8s")
_KEY = struct.Struct(">Q")
_COMMIT_BYTES = 2 << 20  # what a transaction holds in memory; with more, malloc gives it back each time
_LEAST_MAP_BYTES = 64 << 20
_SPARE_BYTES = 16 << 20
_LARGEST_IMAGE = 2**32 - (1 << 20)
_ENGINE = 0  # LMDB 0.9, whose pages `_tree_pages` knows
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PAGE_HEADER, _BRANCH = 16, 1
_META = struct.Struct("<40xI84xQ8xQ")  # page size, root, transaction

# py-lmdb waits in a forked child for calls that other threads had under way, so none may be at a fork.
# Not reentrant: a signal handler that reads while its thread does would wait for itself.
_calls = threading.Lock()
os.register_at_fork(before=_calls.acquire, after_in_parent=_calls.release, after_in_child=_calls.release)
# LMDB refuses to open a file twice in a process: readers share an environment, here with its users.
_opened: dict[tuple[int, int], tuple[lmdb.Environment, int]] = {}
_let_go: collections.deque[tuple[int, int]] = collections.deque()  # a key for each user that is gone


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
            pages = _tree_pages(file.fileno())
            return {"tree": [os.path.getsize(path), _pages_checksum(file.fileno(), pages, _PAGE), pages, _PAGE]}

    def open_many(self, generation: Generation, contents: Contents, verify: bool) -> Many:
        return _Environment(generation.path(_MANY), 0, contents, verify, generation.description.get("tree"))

    def verify_many(self, generation: Generation) -> Labels:
        if generation.description.get("count"):
            _Environment(generation.path(_MANY), 0, SINGLE, True, None)  # walks the pages, reads nothing
        return super().verify_many(generation)

    def write_single(self, path: str, block: Block) -> None:
        _write(path, iter([block]))

    def read_single_file(self, path: str, image_id: int, verify: bool) -> Pair:
        return _Environment(path, image_id, SINGLE, verify, None).read(image_id)


class _Environment(Mapped):
    """What `_write` wrote, open read-only, once its tree is what `tree` tells, or was walked."""

    def __init__(self, path: str, first: int, contents: Contents, verify: bool, tree: object) -> None:
        super().__init__(path, first, contents, verify)
        descriptor, status = open_file(path)
        try:
            if tree is None:
                _check_offline(path, descriptor, status)
            elif not _is_tree(tree, descriptor, status.st_size):
                raise CorruptStoreError(path, "its size, or a page of its tree, is not what DESCRIPTION tells")
            self._transaction = _share(descriptor, status, self)
        except lmdb.Error as error:
            raise _system_error(error, path) from error
        finally:
            os.close(descriptor)
        if self.count * (BYTES_BESIDE_PIXELS + (image_bytes(self.form) if self.form else 1)) > status.st_size:
            raise CorruptStoreError(path, f"is too short for {self.count} images")
        self._views: dict[int, View] = {}  # by number of the block, where all have one form
        if self.form:
            self.labels, self.checksums = np.empty(self.count, np.int64), np.empty(self.count, np.uint64)
            self.addresses = np.zeros(-(-self.count // self.per_block), np.int64)

    def view(self, image_id: int) -> View:
        if not self.form:
            return self.block(image_id)
        number = image_id // self.per_block
        if number not in self._views:
            view = self.block(image_id)
            rows = slice(view.block.first, view.block.first + len(view.checksums))
            self.labels[rows], self.checksums[rows] = view.block.labels, view.checksums
            self.addresses[number] = view.block.images.ctypes.data
            self._views[number] = view  # last: another thread takes what is there for whole
        return self._views[number]

    def take(self, ids: Labels) -> Array:
        assert self.form is not None
        numbers, rows = np.divmod(ids, self.per_block)
        for image_id in ids[self.addresses[numbers] == 0].tolist():
            self.view(image_id)
        return copies(self.addresses[numbers] + rows * image_bytes(self.form), self.form)

    def block(self, image_id: int) -> View:
        try:
            with _calls, self._transaction.cursor() as cursor:
                key, data = cursor.item() if cursor.set_range(_KEY.pack(image_id)) else (b"", memoryview(b""))
        except lmdb.Error as error:
            raise self.fault(f"LMDB cannot read it: {error}", image_id) from None
        view = _view(data)
        if view is None:
            raise self.fault("is in no block", image_id)
        first, images, _ = view.block
        last, end = first + len(images), self.first + self.count
        if not self.first <= first <= image_id < last <= end or key != _KEY.pack(last - 1):
            raise self.fault("is in a block with other ids or another key", image_id)
        if self.form and (self.form != (images.shape[1:], images.dtype) or (first, last) != self.bounds(image_id)):
            raise self.fault("is in a block that is not of the form and size that DESCRIPTION tells", image_id)
        return view


def _size(count: int, form: Form) -> int:
    """Bytes of the value of so many images."""
    return _HEADER.size + count * (BYTES_BESIDE_PIXELS + image_bytes(form))


def _pack(block: Block, data: memoryview) -> bytes:
    """Make `data` the value of a block; gives its key."""
    shape, dtype = block.images.shape[1:], block.images.dtype
    checksums, checksum = checksums_of(block)
    _HEADER.pack_into(data, 0, checksum, block.first, len(checksums), *(*shape, 0)[:3], dtype.str.encode())
    view = _view(data)
    assert view is not None
    view.block.images[...], view.block.labels[:], view.checksums[:] = block.images, block.labels, checksums
    return _KEY.pack(block.first + len(checksums) - 1)


def _view(data: memoryview) -> View | None:
    """A value as a block that lies in it, or None where it is no block."""
    if len(data) < _HEADER.size:
        return None
    checksum, first, count, *shape, dtype = _HEADER.unpack_from(data)
    form = form_of([length for length in shape if length], dtype.rstrip(b"\0").decode("latin-1"))
    if not form or len(data) != _size(count, form):
        return None
    labels = np.ndarray((count,), np.int64, data, _HEADER.size)
    checksums = np.ndarray((count,), np.uint64, data, _HEADER.size + 8 * count)
    images = np.ndarray((count, *form[0]), form[1], data, _HEADER.size + 16 * count)
    return View(Block(first, images, labels), checksums, checksum)


def _write(path: str, blocks: Iterator[Block]) -> None:
    try:
        # not writemap: a full disk would end the process
        options: dict[str, Any] = {"subdir": False, "lock": False, "sync": False, "lib_version": _ENGINE}
        with lmdb.open(path, map_size=_LEAST_MAP_BYTES, **options) as environment:
            _put(environment, blocks)
    except lmdb.Error as error:
        raise _system_error(error, path) from error


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


def _system_error(error: lmdb.Error, path: str) -> OSError:
    """The OSError that LMDB met: a full disk, too many open files; or a file that is none of LMDB's."""
    if error.code == errno.EIO:  # what LMDB also says when the disk took a part of what it wrote
        try:
            with open(path, "ab") as file:
                os.posix_fallocate(file.fileno(), file.tell(), _SPARE_BYTES)
        except OSError as full:
            return full
    if error.code > 0:
        return OSError(error.code, os.strerror(error.code), path)
    return CorruptStoreError(path, f"LMDB cannot use it: {error}")


def _share(descriptor: int, status: os.stat_result, user: Many) -> "lmdb.Transaction[memoryview]":
    """A read transaction on the environment that all readers of this file share, until the last one is gone."""
    key = status.st_dev, status.st_ino
    with _calls:
        _close_unused()
        environment, users = _opened.get(key, (None, 0))
        if environment is None:
            path = descriptor_path(descriptor)
            environment = lmdb.open(path, subdir=False, readonly=True, lock=False, map_size=status.st_size)
        _opened[key] = environment, users + 1
        # not at exit: a thread may still read, and would from memory that is no longer mapped
        weakref.finalize(user, _forget, key).atexit = False
        return environment.begin(buffers=True)


def _forget(key: tuple[int, int]) -> None:
    """A user is gone, perhaps to the collector of garbage in the middle of a call that holds the lock."""
    _let_go.append(key)
    if _calls.acquire(blocking=False):
        try:
            _close_unused()
        finally:
            _calls.release()


def _close_unused() -> None:
    while _let_go:
        key = _let_go.popleft()
        environment, users = _opened.pop(key)
        if users > 1:
            _opened[key] = environment, users - 1
        else:
            environment.close()


def _check_offline(path: str, descriptor: int, status: os.stat_result) -> None:
    """Walk the pages without the engine, which a forged file could crash."""
    if status.st_size > 1024 * status.st_blocks * 512 + _SPARE_BYTES:  # what is a hole would be walked for long
        raise CorruptStoreError(path, "is mostly a hole, which LMDB does not write")
    try:
        faults = lmdb.verify.verify(descriptor_path(descriptor), subdir=False)  # type: ignore[no-untyped-call]
    except (lmdb.verify.VerifyError, RecursionError) as error:
        faults = [str(error)]
    if faults:
        raise CorruptStoreError(path, f"is not the LMDB file that was stored: {faults[0]}")


def _is_tree(tree: object, descriptor: int, size: int) -> bool:
    """Whether the file is the one of which DESCRIPTION keeps size, checksum, numbers and size of pages."""
    if not isinstance(tree, list) or len(tree) != 4 or tree[0] != size or not isinstance(tree[2], list):
        return False
    page_size = tree[3]  # of the machine that wrote it
    if type(page_size) is not int or not 512 <= page_size <= 65536:
        return False
    last = size // page_size
    whole = all(type(page) is int and 0 <= page < last for page in tree[2])
    return whole and len(tree[2]) <= last and _pages_checksum(descriptor, tree[2], page_size) == tree[1]


def _pages_checksum(descriptor: int, pages: list[int], page_size: int) -> int:
    return checksum(b"".join(_page(descriptor, page, page_size) for page in pages))


def _page(descriptor: int, number: int, page_size: int = _PAGE) -> bytes:
    return os.pread(descriptor, page_size, number * page_size)


def _tree_pages(descriptor: int) -> list[int]:
    """The meta pages and those of the tree, from its root: all that LMDB reads to find a value.

    The layout of LMDB 0.9's pages is that of its source, mdb.c: MDB_page, MDB_meta and MDB_node.
    """
    newest = max(_page(descriptor, 0), _page(descriptor, 1), key=lambda meta: _META.unpack_from(meta)[2])
    page_size, root, _ = _META.unpack_from(newest)
    if page_size != _PAGE:
        raise RuntimeError(f"LMDB made pages of {page_size} bytes, not {_PAGE}; report the version of py-lmdb")
    pages, reached = [0, 1], [root]
    while reached:
        pages.append(reached.pop())
        reached += _children(_page(descriptor, pages[-1]))
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
