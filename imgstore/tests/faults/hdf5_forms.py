"""HDF5 files with the contents of ours in every form that HDF5 knows, and where their checksums lie."""

import contextlib
import ctypes
import io
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import h5py
import numpy as np

from imgstore.tests.faults import damage
from imgstore.tests.strategies import Array

SEALED: tuple[bytes, ...] = (b"OHDR", b"OCHK", b"BTHD", b"BTLF", b"BTIN", b"FRHP", b"FHIB", b"SMTB", b"SMLI")
SEALED += (b"FSHD", b"FSSE", b"EAHD", b"EAIB", b"EASB", b"EADB", b"FAHD", b"FADB")
UNSEALED = (b"TREE", b"SNOD", b"HEAP", b"GCOL")
SUPERBLOCK = b"\x89HDF\r\n\x1a\n"
LONGEST = 1200  # bytes that a checksum of those built here covers
EXTENDED, SHARED = 0.4, 0.15  # of those built
REACH = 96  # bytes of what has no checksum that are taken for its numbers
VERSIONS = ["earliest", "latest", "latest", "v108", "v110", ("earliest", "v110"), ("v112", "latest"), "v114"]
STRATEGIES = [None, None, None, "fsm", "page", "aggregate", "none"]

Make = Callable[[Any, str, Array, Random], Any]  # an object of a file, a name, contents


class Seal(NamedTuple):
    """What a checksum covers, and where it lies; `within`: it is counted as zeros where it lies in that."""

    start: int
    stop: int
    at: int
    within: bool = False


class Built(NamedTuple):
    """A file that h5py wrote."""

    data: bytes
    seals: list[Seal]
    numbers: list[int]  # places of what HDF5 reads to find its way

    def sealed(self, mutated: bytes) -> bytes:
        """With every checksum made to agree again."""
        new = bytearray(mutated)
        for seal in self.seals:
            new[seal.at : seal.at + 4] = bytes(4) if seal.within else new[seal.at : seal.at + 4]
            new[seal.at : seal.at + 4] = struct.pack("<I", lookup3(bytes(new[seal.start : seal.stop])))
        return bytes(new)


@cache
def library() -> Any:
    """HDF5 itself, for what h5py has no call for; None where it cannot be found, or keeps its checksum to itself."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libhdf5" in line}
    for path in sorted(loaded):
        with contextlib.suppress(OSError, AttributeError):
            found = ctypes.CDLL(path)
            checksum = found.H5_checksum_lookup3
            checksum.argtypes, checksum.restype = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint32], ctypes.c_uint32
            found.H5Pset_shared_mesg_nindexes.argtypes = [ctypes.c_int64, ctypes.c_uint]
            found.H5Pset_shared_mesg_index.argtypes = [ctypes.c_int64, *[ctypes.c_uint] * 3]
            return found
    return None


def lookup3(data: bytes) -> int:
    """A hundred times as fast as ours."""
    return int(library().H5_checksum_lookup3(data, len(data), 0)) if library() else damage.lookup3(data)


def seals(data: bytes) -> Iterator[Seal]:
    """Of the whole file, each found by the checksum that agrees."""
    start = data.find(SUPERBLOCK)
    if data[start + 8] >= 2:
        yield Seal(start, start + 44, start + 44)
    for at in places(data, SEALED):
        yield from _seal(data, at)
    for at in places(data, (b"FHDB",)):
        yield from _seal_of_block(data, at)


def places(data: bytes, signatures: tuple[bytes, ...]) -> Iterator[int]:
    for signature in signatures:
        at = data.find(signature)
        while at >= 0:
            yield at
            at = data.find(signature, at + 1)


def _seal(data: bytes, at: int) -> Iterator[Seal]:
    for end in range(at + 6, min(at + LONGEST, len(data) - 3)):
        if lookup3(data[at:end]) == int.from_bytes(data[end : end + 4], "little"):
            yield Seal(at, end, end)
            return


def _seal_of_block(data: bytes, at: int) -> Iterator[Seal]:
    """A direct block of a heap: its checksum lies in its head."""
    for size in (512, 1024, 2048, 4096):
        for place in range(at + 13, at + 22):
            block = data[at:place] + bytes(4) + data[place + 4 : at + size]
            if lookup3(block) == int.from_bytes(data[place : place + 4], "little"):
                yield Seal(at, at + size, place, within=True)
                return


def built(data: bytes, random: Random) -> Built:
    """The contents of a file of ours, written anew or with more added to them."""
    file, shared = io.BytesIO(data), b""
    if random.random() < EXTENDED:
        with h5py.File(file, "r+", libver=random.choice(["latest", "earliest"])) as old:
            add(old, random)
    else:
        with h5py.File(file) as old:
            arrays = {name: old[name][...] for name in old}
        file = io.BytesIO()
        with shared_messages(random) if random.random() < SHARED else h5py.File(file, "w", **options(random)) as new:
            for name, array in arrays.items():
                kept = random.random() < 0.6
                (contiguous if kept else random.choice(FORMS))(new, name, array, random)
            add(new, random)
            new.flush()
            shared = new.id.get_file_image() if new.driver == "core" else b""
    written = shared or file.getvalue()
    found = list(seals(written))
    numbers = [place for seal in found for place in range(seal.start, seal.stop)]
    numbers += [place for at in places(written, UNSEALED) for place in range(at, min(at + REACH, len(written)))]
    if written[written.find(SUPERBLOCK) + 8] < 2:  # an older superblock, and its older headers
        numbers += range(REACH)
        numbers += [place for at in _old_headers(written) for place in range(at, min(at + REACH, len(written)))]
    return Built(written, found, numbers)


def _old_headers(data: bytes) -> Iterator[int]:
    """Object headers of version 1, which begin as hardly anything else does."""
    for at in range(0, len(data) - 16, 8):
        version, _, messages, references, size = struct.unpack_from("<BBHII", data, at)
        if version == 1 and 0 < messages < 64 and 0 < references < 64 and 16 <= size < 4096:
            yield at


def options(random: Random) -> dict[str, Any]:
    chosen: dict[str, Any] = {"libver": random.choice(VERSIONS), "track_order": random.random() < 0.2}
    if random.random() < 0.15:
        return chosen | {"userblock_size": 512}
    if strategy := random.choice(STRATEGIES):
        chosen |= {"fs_strategy": strategy, "fs_persist": random.random() < 0.5}
    if random.random() < 0.5:
        chosen |= {"alignment_threshold": 1, "alignment_interval": 64}
    return chosen


def shared_messages(random: Random) -> h5py.File:
    """A file in memory that keeps types, spaces and the like in a table of its own; it is lost where it is closed."""
    created, access = h5py.h5p.create(h5py.h5p.FILE_CREATE), h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    if library():
        library().H5Pset_shared_mesg_nindexes(created.id, 1)
        library().H5Pset_shared_mesg_index(created.id, 0, 0x1F, random.choice([1, 40]))
    access.set_fapl_core(backing_store=False)
    latest = random.choice([h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_LATEST])
    access.set_libver_bounds(latest, h5py.h5f.LIBVER_LATEST)
    return h5py.File(h5py.h5f.create(b"shared", h5py.h5f.ACC_TRUNC, created, access))


def add(file: Any, random: Random) -> None:
    """Up to three kinds of what no file of ours has."""
    for number in range(random.randint(0, 3)):
        with contextlib.suppress(Exception):  # what this version of HDF5 cannot have, or what is not there by now
            random.choice(ADDED)(file, random, number)


def some_name(file: Any, random: Random) -> str:
    names: list[str] = list(file) or ["labels"]
    return random.choice(names)


def hard_links(file: Any, random: Random, number: int) -> None:
    target = file[some_name(file, random)]
    for link in range(random.choice([1, 3, 9, 9, 20])):
        file[f"{random.choice('abz')}{number}{link}"] = target


def soft_links(file: Any, random: Random, number: int) -> None:
    for link in range(random.choice([1, 9])):
        file[f"s{number}{link}"] = h5py.SoftLink(random.choice(["/labels", "/nothing", f"/s{number}{link}"]))


def external_links(file: Any, random: Random, number: int) -> None:
    for link in range(random.choice([1, 9])):
        file[f"e{number}{link}"] = h5py.ExternalLink(random.choice(["images.h5", "/dev/zero", "nothing"]), "/labels")


def attributes(file: Any, random: Random, number: int) -> None:
    target = random.choice([file, file[some_name(file, random)]])
    for attribute in range(random.choice([1, 3, 9, 40])):
        target.attrs[f"{number}{attribute}"] = random.choice([1, "a text", np.arange(9), [b"bytes"], 1.5])


def groups(file: Any, random: Random, number: int) -> None:
    group = file
    for depth in range(random.choice([1, 2, 9])):
        group = group.create_group(f"g{number}{depth}", track_order=random.random() < 0.5)
    group["labels"] = file[some_name(file, random)]


def named_types(file: Any, random: Random, number: int) -> None:
    """Which a dataset and an attribute share, so that their message is a shared one."""
    file[f"t{number}"] = np.dtype(random.choice(["<i8", "<u8", "u1"]))
    file.create_dataset(f"d{number}", (4,), dtype=file[f"t{number}"])
    file.attrs.create(f"t{number}", 3, dtype=file[f"t{number}"])


def references(file: Any, random: Random, number: int) -> None:
    file.attrs[f"r{number}"] = file.ref
    file.create_dataset(f"r{number}", (2,), h5py.ref_dtype)[0] = file[some_name(file, random)].ref


def comments(file: Any, random: Random, number: int) -> None:
    h5py.h5o.set_comment(file.id, b"a comment", obj_name=some_name(file, random).encode())


def replaced(file: Any, random: Random, number: int) -> None:
    """What is removed leaves free space, and gaps in headers."""
    name = some_name(file, random)
    array = file[name][...]
    del file[name]
    random.choice(FORMS)(file, name, array, random)


ADDED: list[Callable[[Any, Random, int], None]] = [
    *(hard_links, hard_links, soft_links, external_links, attributes, attributes),
    *(groups, named_types, references, comments, replaced),
]


def contiguous(file: Any, name: str, array: Array, random: Random) -> None:
    file.create_dataset(name, data=array, track_times=random.random() < 0.2)


def chunked(file: Any, name: str, array: Array, random: Random) -> None:
    filters: dict[str, Any] = random.choice([{}, {}, {"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True}])
    shape = tuple(random.randint(1, length) for length in array.shape)
    most = random.choice([None, array.shape, (None, *array.shape[1:]), (None,) * array.ndim])
    file.create_dataset(name, data=array, chunks=shape, maxshape=most, **filters)


def compact(file: Any, name: str, array: Array, random: Random) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    part = array[: max(1, min(len(array), 4000 // array[:1].nbytes))]
    kind, space = h5py.h5t.py_create(part.dtype, logical=True), h5py.h5s.create_simple(part.shape)
    h5py.h5d.create(file.id, name.encode(), kind, space, plist).write(h5py.h5s.ALL, h5py.h5s.ALL, part)


def virtual(file: Any, name: str, array: Array, random: Random) -> None:
    file.create_dataset(f"{name}-of", data=array)
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource(random.choice([".", "nothing.h5"]), f"{name}-of", array.shape)
    file.create_virtual_dataset(name, layout)


def in_other_bytes(file: Any, name: str, array: Array, random: Random) -> None:
    file.create_dataset(name, data=array.astype(array.dtype.newbyteorder()))


def with_a_fill_value(file: Any, name: str, array: Array, random: Random) -> None:
    file.create_dataset(name, data=array, fillvalue=array.flat[0])


def of_another_kind(file: Any, name: str, array: Array, random: Random) -> None:
    kinds: list[Any] = [h5py.string_dtype(), h5py.vlen_dtype("u1"), "S8", "V8", [("a", "<i4"), ("b", "<f8")], "<f2"]
    kinds += [h5py.enum_dtype({"a": 1}, basetype="i8"), np.dtype(("<i8", (2,))), h5py.ref_dtype]
    file.create_dataset(name, array.shape, random.choice(kinds))


def none(file: Any, name: str, array: Array, random: Random) -> None:
    file.create_dataset(name, data=random.choice([h5py.Empty(array.dtype), array.flat[0], array[:0]]))


FORMS: list[Make] = [contiguous, chunked, chunked, compact, virtual, in_other_bytes, with_a_fill_value]
FORMS += [of_another_kind, none]
