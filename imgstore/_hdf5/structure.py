"""The structure of our HDF5 files, looked at before the library sees it, which a forged file could crash.

A file of ours is a superblock and an object header for the root and for each dataset, and nothing else: no dense
links, attributes, shared messages, continuations or other groups. What is no dataset's contents is read once, held
against that, and given to HDF5 in a file of its own. HDF5 itself compares its checksums. The layout is that of the
HDF5 File Format Specification 3.0 (support.hdfgroup.org/documentation); messages whose contents differ between
versions of HDF5 are held against their structure only.
"""

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from imgstore.core.checksums import checksum
from imgstore.core.reading import File

NAMES = frozenset({b"images", b"pixels", b"labels", b"checksums", b"blocks"})
_SUPERBLOCK = struct.Struct("<8s4B4QI")
_SIGNATURE, _UNDEFINED = b"\x89HDF\r\n\x1a\n", 2**64 - 1
_LARGEST_HEADER, _LARGEST_METADATA = 4096, 1 << 16
_NIL, _SPACE, _LINK_INFO, _TYPE, _FILL, _LINK, _LAYOUT, _GROUP_INFO = 0, 1, 2, 3, 5, 6, 8, 10
_CONTIGUOUS = struct.Struct("<BBQQ")
_LINK_HEAD = struct.Struct("<3B")
_TIMES, _WIDTH = 0x20, 0x01  # flags of an object header: HDF5 1.14 keeps times in that of the root
_FLOATS = {  # of so many bytes: the message that tells of the type, as IEEE 754 and the x87 have it
    2: "11200f0002000000000010000a05000a0f000000",
    4: "11201f000400000000002000170800177f000000",
    8: "11203f000800000000004000340b0034ff030000",
    16: "11004f001000000000005000400f0040ff3f0000",
}
_BOOL = "080200000100000010080000010000000000080046414c53450054525545000001"  # an enumeration: FALSE, TRUE

Piece = tuple[int, bytes]  # offset and contents


class Header(NamedTuple):
    """An object header, as bytes, and its messages: kind, flags, body."""

    offset: int
    content: bytes
    messages: list[tuple[int, int, bytes]]


class Structure(NamedTuple):
    """What the library may see of a file."""

    pieces: list[Piece]  # superblock and headers
    extents: dict[bytes, tuple[int, int]]  # of each dataset by name: offset and end of its contents


def structure(file: File) -> Structure:
    """Of a file of ours. Raises ValueError for any other, in the words of a clause about the file; OSError."""
    head = file.bytes_at(0, _SUPERBLOCK.size)
    if len(head) < _SUPERBLOCK.size:
        raise ValueError("it is too short")
    signature, version, *sizes, flags, base, extension, end, root, _ = _SUPERBLOCK.unpack(head)
    if signature != _SIGNATURE or version not in (2, 3) or sizes != [8, 8] or flags:
        raise ValueError("it does not begin as one of ours")
    if (base, extension, end) != (0, _UNDEFINED, file.size):
        raise ValueError("its superblock tells of another size or of more than we write")
    group = _header(file, root)
    links = dict(_links(group))
    if not links:
        raise ValueError("it holds no dataset")
    datasets = [_header(file, offset) for offset in links.values()]
    extents = {name: _extent(each, file.size) for name, each in zip(links, datasets, strict=True)}
    pieces = [(0, head), *((each.offset, each.content) for each in (group, *datasets))]
    taken = sorted([*extents.values(), *((offset, offset + len(content)) for offset, content in pieces)])
    if any(left[1] > right[0] for left, right in itertools.pairwise(taken)):
        raise ValueError("parts of it overlap")
    return Structure(pieces, extents)


def metadata_checksum(file: File, found: Structure) -> int:
    """Over all bytes that are no dataset's contents."""
    starts, ends = zip(*sorted(found.extents.values()), strict=True)
    spans = list(zip((0, *ends), (*starts, file.size), strict=True))
    if sum(end - start for start, end in spans) > _LARGEST_METADATA:
        raise ValueError("it holds more than datasets")
    return checksum(b"".join(file.bytes_at(start, end - start) for start, end in spans))


def _types() -> Iterator[bytes]:
    """The messages that tell of the types of our datasets, without the version of the outermost."""
    for size in (1, 2, 4, 8):
        for signed in (0, 8):
            yield struct.pack("<4BIHH", 0, signed, 0, 0, size, 0, 8 * size)
    for size, text in _FLOATS.items():
        kind = bytes.fromhex(text)
        yield bytes([1, *kind[1:]])
        if size > 2:
            head = struct.pack("<4BI", 6, 2, 0, 0, 2 * size)
            yield head + b"r\0\0" + kind + b"i\0" + bytes([size]) + kind
    yield bytes.fromhex(_BOOL)


_TYPES = frozenset(_types())


def _header(file: File, offset: int) -> Header:
    head = file.bytes_at(offset, 24) if offset < file.size else b""
    if len(head) < 24 or head[:5] != b"OHDR\x02" or head[5] & ~(_TIMES | _WIDTH):
        raise ValueError("an object header is not as we write it")
    start = 22 if head[5] & _TIMES else 6
    body = start + 1 + (head[5] & _WIDTH)
    size = int.from_bytes(file.bytes_at(offset + start, body - start), "little")
    content = file.bytes_at(offset, body + size + 4)
    if size > _LARGEST_HEADER or len(content) != body + size + 4:
        raise ValueError("an object header lies outside of it")
    return Header(offset, content, list(_messages(content[body:-4])))


def _messages(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 4 <= len(body):
        kind, size, flags = struct.unpack_from("<BHB", body, at)
        if at + 4 + size > len(body) or flags not in (0, 1):  # that it is constant
            raise ValueError("a message of an object header is not as we write it")
        yield kind, flags, body[at + 4 : at + 4 + size]
        at += 4 + size
    if any(body[at:]):
        raise ValueError("an object header ends in what is no message")


def _links(group: Header) -> Iterator[tuple[bytes, int]]:
    for kind, _, body in group.messages:
        if kind == _LINK:
            version, flags, length = _LINK_HEAD.unpack_from(body) if len(body) > 3 else (0, 0, 0)
            name = body[3 : 3 + length]
            if (version, flags, len(body)) != (1, 0, 11 + length) or name not in NAMES:
                raise ValueError("it has a link that we do not make")
            yield name, int.from_bytes(body[3 + length :], "little")
        elif (kind, body) not in ((_LINK_INFO, b"\0\0" + b"\xff" * 16), (_GROUP_INFO, b"\0\0")) and kind != _NIL:
            raise ValueError("its root holds more than links")


def _extent(dataset: Header, file_size: int) -> tuple[int, int]:
    found = {kind: body for kind, _, body in dataset.messages if kind != _NIL}
    kinds = [kind for kind, _, _ in dataset.messages if kind != _NIL]
    if sorted(kinds) != [_SPACE, _TYPE, _FILL, _LAYOUT]:
        raise ValueError("a dataset has other messages than ours")
    count, item_bytes = _elements(found[_SPACE]), _item_bytes(found[_TYPE])
    fill, layout = found[_FILL], found[_LAYOUT]
    if len(fill) != 2 or fill[0] != 3 or fill[1] & 0x20:
        raise ValueError("a dataset has a fill value")
    version, kind, offset, size = _CONTIGUOUS.unpack(layout) if len(layout) == _CONTIGUOUS.size else (0, 0, 0, 0)
    if version not in (3, 4, 5) or kind != 1 or size != count * item_bytes or not 0 < offset <= file_size - size:
        raise ValueError("a dataset does not lie in one piece within it")
    return offset, offset + size


def _elements(space: bytes) -> int:
    if len(space) < 4:
        raise ValueError("a dataset has no shape")
    version, rank, flags, kind = space[:4]
    numbers = np.frombuffer(space[4:], "<u8").tolist() if len(space) % 8 == 4 else []
    lengths = numbers[:rank]
    is_sound = (version, kind) == (2, 1) and 1 <= rank <= 4 and flags in (0, 1) and 0 not in lengths
    if not is_sound or numbers != lengths * (1 + flags) or len(lengths) != rank:
        raise ValueError("a dataset has a shape that none of ours has")
    count = 1
    for length in lengths:
        count *= length
    return count


def _item_bytes(kind: bytes) -> int:
    if not kind or bytes([kind[0] & 15, *kind[1:]]) not in _TYPES:
        raise ValueError("a dataset has a type that we do not write")
    return int.from_bytes(kind[4:8], "little")
