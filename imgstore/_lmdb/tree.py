"""The tree of our LMDB files, looked at before the engine sees it, which a forged page could crash.

A file of ours is two meta pages, a tree of branches and leaves, and for each leaf's entry a run of pages with the
value: keys of 8 bytes, no entry whose value lies in the leaf, no other database. The layout is that of LMDB 0.9, as
its source tells it (mdb.c: MDB_page, MDB_meta, MDB_node).
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from imgstore.core.reading import File

PAGE_HEADER = 16
NODE = np.dtype([("low", "<u2"), ("high", "<u2"), ("flags", "<u2"), ("key", "<u2"), ("id", ">u8"), ("page", "<u8")])
_META = struct.Struct("<QHHIII2Q" + 2 * "IHH5Q" + "QQ")  # up to the number of its transaction
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_USUAL_FLAGS = 0x4008  # MDB_NOSUBDIR, and MDB_INTEGERKEY of the free pages' keys
_BRANCH_NODE, _NODE_HEAD = 16, 8
_BRANCH, _LEAF, _META_PAGE, _BIG = 1, 2, 8, 1
_NO_PAGE = 2**64 - 1
_MOST_DEPTH = 16
_SMALLEST_PAGE, _LARGEST_PAGE = 512, 65536
_SPARE_MAP = 1 << 30

LARGEST_TREE = 32 << 20  # bytes, of a file of more than a million blocks; more belong into shards

Piece = tuple[int, bytes]  # offset and contents


class _Meta(NamedTuple):
    page_bytes: int
    flags: int  # of the database of free pages, and of the file
    main_flags: int
    depth: int
    root: int
    last: int
    transaction: int
    map_bytes: int

    @classmethod
    def of(cls, page: bytes, number: int) -> "_Meta":
        if len(page) < _META.size:
            raise ValueError("it is too short")
        own, _, flags, _, magic, version, _, size, *rest = _META.unpack_from(page)
        free, main, (last, transaction) = rest[:8], rest[8:16], rest[16:]
        if (own, flags, magic, version) != (number, _META_PAGE, _MAGIC, _VERSION):
            raise ValueError(f"page {number} is no meta page of LMDB 0.9")
        return cls(free[0], free[1], main[1], main[2], main[7], last, transaction, size)


def tree(file: File, digest: Any) -> Iterator[Piece]:
    """The pages that the engine reads to find a value, each when `digest` was updated with it.

    Raises ValueError for any other file than one of ours, in the words of a clause about it; OSError.
    """
    metas = [_Meta.of(file.bytes_at(0, _META.size), 0)]
    size = metas[0].page_bytes
    if not _SMALLEST_PAGE <= size <= _LARGEST_PAGE or size & (size - 1):
        raise ValueError("its pages have a size that none of LMDB's have")
    metas.append(_Meta.of(file.bytes_at(size, _META.size), 1))
    for meta in metas:
        is_sound = meta.page_bytes == size and not meta.flags & ~_USUAL_FLAGS and meta.main_flags == 0
        if not is_sound or meta.depth > _MOST_DEPTH or meta.map_bytes > 16 * file.size + _SPARE_MAP:
            raise ValueError("a meta page tells of more than we write")
        if (meta.last + 1) * size > file.size or not (meta.root == _NO_PAGE or 2 <= meta.root <= meta.last):
            raise ValueError("a meta page tells of pages that are not there")
    newest = max(metas, key=lambda meta: meta.transaction)
    if newest.root == _NO_PAGE:
        raise ValueError("it holds nothing")
    for number, page in _walk(file, newest):
        digest.update(page)
        yield number * size, page


def _walk(file: File, meta: _Meta) -> Iterator[tuple[int, bytes]]:
    """The meta pages, and all from the root on, by number."""
    waiting, seen = [(meta.root, 1), (1, 0), (0, 0)], {meta.root}
    while waiting:
        number, depth = waiting.pop()
        page = file.bytes_at(number * meta.page_bytes, meta.page_bytes)
        if len(page) < meta.page_bytes:
            raise ValueError("a page of its tree is not there")
        below = _children(page, number, meta.last) if number > 1 else []
        if number > 1 and (depth == meta.depth) == bool(below):
            raise ValueError("its leaves do not all lie as deep as it tells")
        if not seen.isdisjoint(below) or (len(seen) + len(below)) * meta.page_bytes > LARGEST_TREE:
            raise ValueError("its tree has more pages than it can")
        yield number, page
        seen.update(below)
        waiting += ((page, depth + 1) for page in below)


def _children(page: bytes, number: int, last: int) -> list[int]:
    """Of a branch the pages below it, of a leaf none. Raises ValueError where the page is not sound."""
    own, _, flags, lower, upper = struct.unpack_from("<QHHHH", page)
    if own != number or flags not in (_BRANCH, _LEAF) or not PAGE_HEADER < lower <= upper <= len(page) or lower % 2:
        raise ValueError(f"page {number} is none of its tree")
    places = np.frombuffer(page, "<u2", (lower - PAGE_HEADER) // 2, PAGE_HEADER).astype(np.int64)
    # padded, as the last entry of a branch is shorter than one of a leaf
    padded = np.frombuffer(page + bytes(NODE.itemsize), np.uint8)
    if (places < upper).any() or (places > len(page) - _NODE_HEAD).any() or (places % 2).any():
        raise ValueError(f"page {number} has entries outside of it")
    nodes = padded[places[:, np.newaxis] + np.arange(NODE.itemsize)].view(NODE)[:, 0]
    first = 1 if flags == _BRANCH and nodes[0]["key"] == 0 else 0  # that of a branch may have no key
    ends = places[first:] + (NODE.itemsize if flags == _LEAF else _BRANCH_NODE)
    keys = nodes["id"][first:]
    if (ends > len(page)).any() or (nodes["key"][first:] != 8).any() or (keys[1:] <= keys[:-1]).any():
        raise ValueError(f"page {number} has keys that none of ours has")
    below = nodes["low"].astype(np.int64) | nodes["high"].astype(np.int64) << 16
    if flags == _LEAF:
        _must_lie_within(nodes, below, number, len(page), last)
        return []
    pages: list[int] = (below | nodes["flags"].astype(np.int64) << 32).tolist()
    if len(pages) < 2 or not all(1 < each <= last for each in pages):
        raise ValueError(f"page {number} leads to pages that are not there")
    return pages


def _must_lie_within(nodes: Any, sizes: Any, number: int, page_bytes: int, last: int) -> None:
    """Raise ValueError where a leaf has another value than one that fills pages of the file."""
    is_big = (nodes["flags"] == _BIG) & (nodes["page"] > 1) & (nodes["page"] <= last)
    ends = nodes["page"].astype(np.int64) + (sizes + PAGE_HEADER - 1) // page_bytes
    if not is_big.all() or (ends > last).any():
        raise ValueError(f"page {number} has values that are not there")
