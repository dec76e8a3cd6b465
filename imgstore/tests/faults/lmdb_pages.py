"""LMDB's pages, as mdb.c lays them out (MDB_page, MDB_meta, MDB_node), and files whose pages lead astray."""

import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from imgstore.tests.faults.damage import PAGE

META = {
    "magic": (16, "<I"),
    "version": (20, "<I"),
    "size of the map": (32, "<Q"),
    "page size": (40, "<I"),
    "flags of the free": (44, "<H"),
    "root of the free": (80, "<Q"),
    "flags": (92, "<H"),
    "depth": (94, "<H"),
    "branch pages": (96, "<Q"),
    "leaf pages": (104, "<Q"),
    "overflow pages": (112, "<Q"),
    "entries": (120, "<Q"),
    "root": (128, "<Q"),
    "last page": (136, "<Q"),
    "transaction": (144, "<Q"),
}
HEADER = {
    "number": (0, "<Q"),
    "flags": (10, "<H"),
    "lower": (12, "<H"),
    "upper": (14, "<H"),
    "pages": (12, "<I"),
    "first node": (16, "<H"),
    "second node": (18, "<H"),
}
NODE = {
    "low": (0, "<H"),
    "high": (2, "<H"),
    "low and high": (0, "<I"),
    "flags": (4, "<H"),
    "key size": (6, "<H"),
    "key": (8, ">Q"),
    "value": (16, "<Q"),
}
BLOCK = {
    "checksum": (0, "<Q"),
    "first": (8, "<q"),
    "count": (16, "<Q"),
    "height": (24, "<Q"),
    "width": (32, "<Q"),
    "channels": (40, "<Q"),
    "dtype": (48, "8s"),
}
BRANCH, LEAF, OVERFLOW = 1, 2, 4
NO_PAGE = 2**64 - 1
NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    17,
    4080,
    4095,
    4096,
    2**15,
    2**16 - 1,
    2**31,
    2**32 - 1,
    2**47,
    2**62,
    2**63,
    NO_PAGE,
]

Fields = dict[str, tuple[int, str]]  # place and layout of a number, by its name
Mutate = Callable[[bytearray, Random], None]


def fields(data: bytes) -> Fields:
    """Where the numbers lie that LMDB, and we, read to find a value."""
    found = {
        f"meta {page}: {name}": (page * PAGE + start, kind) for page in (0, 1) for name, (start, kind) in META.items()
    }
    for page in range(2, len(data) // PAGE):
        found |= {f"page {page}: {name}": (page * PAGE + start, kind) for name, (start, kind) in HEADER.items()}
        flags, lower = struct.unpack_from("<HH", data, page * PAGE + 10)
        if flags & OVERFLOW:
            found |= _of_block("block", page * PAGE + 16)
            continue
        for node in struct.unpack_from(f"<{(lower - 16) // 2}H", data, page * PAGE + 16):
            start = page * PAGE + node
            found |= {f"page {page}, node {node}: {name}": (start + add, kind) for name, (add, kind) in NODE.items()}
            if flags & LEAF and not struct.unpack_from("<H", data, start + 4)[0]:
                found |= _of_block(f"block of node {node}", start + 16)
    return found


def _of_block(name: str, start: int) -> Fields:
    return {f"{name} at {start}: {field}": (start + add, kind) for field, (add, kind) in BLOCK.items()}


def mutated(data: bytes, random: Random) -> bytes:
    """Some of its numbers changed, or pages added that lead astray."""
    new = bytearray(data)
    known = list(fields(data).values())
    for _ in range(random.choice([1, 1, 2, 3, 5])):
        if random.random() < 0.7:
            start, kind = random.choice(known)
            number_put(new, start, struct.calcsize(kind), random)
        else:
            random.choice(ASTRAY)(new, random)
    return bytes(new)


def number_put(data: bytearray, start: int, size: int, random: Random) -> None:
    before, pages = int.from_bytes(data[start : start + size], "little"), len(data) // PAGE
    near = before + random.choice([-2, -1, 1, 2, 8, -8])
    flipped = before ^ 1 << random.randrange(8 * size)
    value = random.choice([random.choice(NUMBERS), random.randrange(pages + 2), near, flipped, len(data)])
    data[start : start + size] = (value % 256**size).to_bytes(size, "little")


def _tree_pages(data: bytes | bytearray, flag: int) -> list[int]:
    return [page for page in range(2, len(data) // PAGE) if data[page * PAGE + 10] & flag]


def _nodes(data: bytes | bytearray, page: int) -> list[int]:
    (lower,) = struct.unpack_from("<H", data, page * PAGE + 12)
    count = max(0, min(lower - 16, PAGE - 16)) // 2
    places = struct.unpack_from(f"<{count}H", data, page * PAGE + 16)
    return [page * PAGE + place for place in places if place <= PAGE - 8]


def child_redirected(data: bytearray, random: Random) -> None:
    """To itself, to what is above it, or to any page."""
    branches = _tree_pages(data, BRANCH)
    if branches and (nodes := _nodes(data, page := random.choice(branches))):
        target = random.choice([page, 0, 1, random.randrange(len(data) // PAGE + 1)])
        struct.pack_into("<HHH", data, random.choice(nodes), target & 0xFFFF, target >> 16, 0)


def pages_exchanged(data: bytearray, random: Random) -> None:
    one, other = (random.randrange(len(data) // PAGE) * PAGE for _ in range(2))
    data[one : one + PAGE], data[other : other + PAGE] = data[other : other + PAGE], data[one : one + PAGE]


def root_redirected(data: bytearray, random: Random) -> None:
    target = random.choice([NO_PAGE, 0, 1, random.randrange(len(data) // PAGE + 2)])
    for meta in random.choice([(0, 1), (0,), (1,)]):
        struct.pack_into("<Q", data, meta * PAGE + META["root"][0], target)


def branches_above(data: bytearray, random: Random) -> None:
    """New roots: a chain of branches, each of which leads to the one below, some of them back to itself."""
    (root,) = struct.unpack_from("<Q", data, PAGE + META["root"][0])
    for _ in range(random.choice([1, 3, 31, 40])):
        page, children = len(data) // PAGE, random.choice([1, 2, 100])
        targets = [random.choice([root, root, root, page, random.randrange(page + 1)]) for _ in range(children)]
        data += branch(page, targets)
        root = page
    for meta in (0, 1):
        struct.pack_into("<Q", data, meta * PAGE + META["root"][0], root)
        struct.pack_into("<Q", data, meta * PAGE + META["last page"][0], len(data) // PAGE - 1)
        struct.pack_into("<H", data, meta * PAGE + META["depth"][0], random.choice([1, 2, 3, 5, 33, 42]))


def tree_grown(data: bytearray, random: Random) -> None:
    """A new tree, whose leaves may lie unequally deep, and whose values may begin on pages of the tree."""
    overflow, last = _tree_pages(data, OVERFLOW) or [2], len(data) // PAGE

    def grown(first: int, room: int, deeper: int) -> int:
        """The number of a page that leads to keys from `first` to before `first + room`."""
        children = random.choice([1, 2, 2, 3])
        if not deeper or random.random() < 0.2:
            values = [random.choice([*overflow, *overflow, random.randrange(2, last + 1)]) for _ in range(children)]
            sizes = [random.choice([2048, 2040, 8200, PAGE - 16, 0]) for _ in values]
            page = leaf(0, [(first + number, *value) for number, value in enumerate(zip(sizes, values, strict=True))])
        else:
            step = max(1, room // children)
            below = [grown(first + number * step, step, deeper - 1) for number in range(children)]
            page = branch(0, below, first, step)
        number = len(data) // PAGE
        data.extend(struct.pack("<Q", number) + page[8:])
        return number

    depth = random.choice([1, 2, 3, 4])
    root = grown(0, 4**depth, depth)
    for meta in (0, 1):
        struct.pack_into("<Q", data, meta * PAGE + META["root"][0], root)
        struct.pack_into("<Q", data, meta * PAGE + META["last page"][0], len(data) // PAGE - 1)
        struct.pack_into("<H", data, meta * PAGE + META["depth"][0], depth + 1)


def meta(page: int, depth: int, last: int) -> bytes:
    """A meta page of a file whose root is page 2."""
    free = struct.pack("<IHHQQQQQ", PAGE, 8, 0, 0, 0, 0, 0, NO_PAGE)
    main = struct.pack("<IHHQQQQQ", 0, 0, depth, last - 2, 1, 0, 6, 2)
    body = struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, (last + 1) * PAGE) + free + main
    return (struct.pack("<QHHI", page, 0, 8, 0) + body + struct.pack("<QQ", last, page)).ljust(PAGE, b"\0")


def branch(page: int, targets: list[int], first: int = 0, step: int = 1) -> bytes:
    """A page with a node for each of these, the first without a key, as the first of a branch is."""
    numbers = range(first, first + step * len(targets), step)
    nodes = [
        struct.pack("<HHHH", target & 0xFFFF, target >> 16 & 0xFFFF, 0, 8 * (number > first))
        + struct.pack(">Q", number)[: 8 * (number > first)]
        for target, number in zip(targets, numbers, strict=True)
    ]
    return page_of(page, BRANCH, nodes)


def leaf(page: int, entries: list[tuple[int, int, int]]) -> bytes:
    """A page with these entries: key, bytes of the value, and the page that it begins on."""
    nodes = [
        struct.pack("<HHHH", size & 0xFFFF, size >> 16, 1, 8) + struct.pack(">Q", key) + struct.pack("<Q", at)
        for key, size, at in entries
    ]
    return page_of(page, LEAF, nodes)


def page_of(page: int, flag: int, nodes: list[bytes]) -> bytes:
    upper, places = PAGE, []
    for node in nodes:
        upper -= len(node)
        places.append(upper)
    head = struct.pack("<QHHHH", page, 0, flag, 16 + 2 * len(nodes), upper) + struct.pack(f"<{len(places)}H", *places)
    return head.ljust(upper, b"\0") + b"".join(reversed(nodes))


def moved_into_a_value(data: bytearray, random: Random) -> None:
    """What lies in pixels taken for a page of the tree."""
    overflow = _tree_pages(data, OVERFLOW)
    if overflow and (leaves := _tree_pages(data, LEAF)):
        source = random.choice(leaves) * PAGE
        page = random.choice(overflow) + random.choice([0, 1])
        if (page + 1) * PAGE <= len(data):
            data[page * PAGE : (page + 1) * PAGE] = data[source : source + PAGE]


def flags_put(data: bytearray, random: Random) -> None:
    page = random.randrange(2, max(3, len(data) // PAGE))
    if (page + 1) * PAGE <= len(data):
        flags = random.choice([1, 2, 3, 4, 5, 6, 0x10, 0x20, 0x22, 0x40, 0x42, 0x8002, 8])
        struct.pack_into("<H", data, page * PAGE + 10, flags)


def cut_or_continued(data: bytearray, random: Random) -> None:
    size = random.choice([len(data) - PAGE, 2 * PAGE, 3 * PAGE, len(data) + PAGE, len(data) + 40 * PAGE])
    del data[max(size, PAGE) :]
    data += bytes(max(0, size - len(data)))


ASTRAY: list[Mutate] = [child_redirected, child_redirected, pages_exchanged, root_redirected, branches_above]
ASTRAY += [tree_grown, moved_into_a_value, flags_put, cut_or_continued]


def walked(data: bytes) -> Iterator[int]:
    """The pages that a reader meets from the root on, as far as they can be followed."""
    seen, reached = set[int](), [int(struct.unpack_from("<Q", data, meta * PAGE + 128)[0]) for meta in (0, 1)]
    yield from (0, 1)
    while reached:
        page = reached.pop()
        if page in seen or not 2 <= page < len(data) // PAGE:
            continue
        seen.add(page)
        yield page
        if data[page * PAGE + 10] & BRANCH:
            nodes = (struct.unpack_from("<HHH", data, node) for node in _nodes(data, page))
            reached += [low | middle << 16 | high << 32 for low, middle, high in nodes]


def listed(data: bytes, before: list[int], random: Random) -> list[Any]:
    """What DESCRIPTION may call the pages of such a file's tree."""
    every, found = range(len(data) // PAGE), list(walked(data)) if len(data) >= 2 * PAGE else [0]
    subset = random.sample(every, random.randrange(len(every) + 1)) if every else []
    lists: list[list[int]] = [
        found,
        found,
        found,
        before,
        list(every),
        sorted(found),
        subset,
        found[:-1],
        found + found,
    ]
    return [page for page in random.choice(lists) if page < len(every)]
