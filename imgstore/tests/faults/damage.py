"""Small stores in memory, what is done to their files, and children that may die of reading them."""

import collections
import contextlib
import faulthandler
import json
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

import imgstore
from imgstore._hdf5 import structure as _hdf5_structure
from imgstore._lmdb import tree as _lmdb_tree
from imgstore.core import blocks as _images
from imgstore.core import reading as _reading
from imgstore.errors import CorruptStoreError, ImgstoreError
from imgstore.tests.checks import Record, record
from imgstore.tests.faults.changes import Store
from imgstore.tests.strategies import Array, Stored, pixels

Files = dict[str, bytes]  # by path below the store's root
Changes = Mapping[str, bytes | None]  # what becomes of files; None: removed
Attempt = Callable[[int], str]  # the outcome of a numbered case, as one line
Pair = tuple[Array, int]
Read = Callable[[], Iterable[Pair]]

CURRENT = "CURRENT"
READ, REFUSED, HANG = "as stored", "refused", "hang"
LARGEST = 64 << 20  # bytes that an image of a damaged store may have
QUICK = 2.0  # seconds of the processor's time for a read
MEMORY = 512 << 20  # what an attempt may take beyond what its process has
PAGE = 4096
PNG = b"\x89PNG\r\n\x1a\n"  # its first bytes
FORMS = [((20, 20, 3), "|u1"), ((9, 11), "<u2"), ((8, 16), "|b1"), ((40, 30), "|u1")]  # what every format holds
IMAGES = 12
SMALL_BLOCKS = 4096  # several images each, in pages of their own
SINGLE_BLOCKS = 1  # an image each, several of which share a page of LMDB: a tree with branches

_FORK: Any = multiprocessing.get_context("fork")


class Contents(NamedTuple):
    """How many forms the many have in turn, the size of their blocks, each single's id and form; how many they are."""

    forms: int
    block_bytes: int
    singles: list[tuple[int, int]]
    images: int = IMAGES


SINGLES = [(3, 1), (4, 0), (300, 2), (2**63 - 1, 3)]
CONTENTS = [
    Contents(1, SMALL_BLOCKS, []),
    Contents(1, SINGLE_BLOCKS, []),
    Contents(4, SMALL_BLOCKS, []),
    Contents(1, SMALL_BLOCKS, SINGLES),
    Contents(3, SINGLE_BLOCKS, SINGLES),
]
PLAIN_CONTENTS = [Contents(1, SMALL_BLOCKS, []), Contents(1, SMALL_BLOCKS, [(3, 0), (12, 0)])]


class Sample(NamedTuple):
    """A small store in memory and what it holds."""

    files: Files
    held: dict[int, Record]  # by id, ascending
    behind: dict[int, Record]  # what a single replaced


class Reading(NamedTuple):
    """A tampered store that is read in every way; `harmless` where it may be read as it was stored."""

    store: Store
    root: Path
    held: dict[int, Record]
    refusal: tuple[type[Exception], ...] = (CorruptStoreError,)
    harmless: bool = True
    step: int = 1  # from one image to the next of those that are read one by one

    def problems(self) -> Iterator[str]:
        """What must not be, in a line each."""
        verified = self.outcome([], self.verify)
        outcomes = [verified, *(self.outcome(*way) for way in self.reads())]
        some = [image_id for image_id in self.held if image_id in (0, 3, 300)]
        unchecked = {survival(read) for _, read in reads(self.store, self.root, some, verify=False)}
        yield from sorted({*outcomes, *unchecked} - {READ, REFUSED})
        if verified != REFUSED and not self.harmless:
            yield "not found by verify"
        if verified != REFUSED and REFUSED in outcomes:
            yield "refused, but not by verify"

    def reads(self) -> Iterator[tuple[list[int], Read]]:
        return reads(self.store, self.root, list(self.held), self.step)

    def verify(self) -> list[Pair]:
        imgstore.verify(self.root)
        return []

    def outcome(self, asked: list[int], read: Read) -> str:
        start = time.process_time()
        try:
            got = [record(*pair) for pair in read()]
            outcome = READ if got == [self.held[image_id] for image_id in asked] else "read something else"
        except Exception as error:
            outcome = REFUSED if isinstance(error, self.refusal) else f"raised {type(error).__name__}: {error}"
        return outcome if time.process_time() - start < QUICK else f"{outcome}, and took long"


def survival(read: Read) -> str:
    """Without `verify` anything of a plausible size may come."""
    try:
        sizes = [image.nbytes for image, _ in read() if image.ndim in (2, 3)]
    except ImgstoreError:
        return REFUSED
    except Exception as error:
        return f"raised {type(error).__name__}, without verify: {error}"
    if not sizes:
        return "read nothing, without verify"
    return READ if max(sizes) < LARGEST else "of no plausible size, without verify"


def files_of(root: Path) -> Files:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def lay(root: Path, files: Changes) -> None:
    """Write or remove files; each gets a new inode, for what was open stays as it was."""
    for name, data in files.items():
        path = root / name
        path.unlink(missing_ok=True)
        if data is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def lay_out(root: Path, files: Files) -> None:
    """Make `root` a store of exactly these files."""
    shutil.rmtree(root, ignore_errors=True)
    lay(root, files)


@contextlib.contextmanager
def memory_directory() -> Iterator[Path]:
    """A folder in memory where the system has one, else a temporary one."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="imgstore-faults-", dir=where) as path:
        yield Path(path)


def sample(store: Store, contents: Contents) -> Sample:
    many = [image(number, number % contents.forms) for number in range(contents.images)]
    singles = [(image(-number, form), number, -number) for number, form in contents.singles]
    stored = Stored(many, [7 * number - 30 for number in range(contents.images)], singles)
    with memory_directory() as root, mock.patch.object(_images, "_BLOCK_BYTES", contents.block_bytes):
        terms = {"durable": False} if store.ours else {}
        store.verbs.store_many(root / "store", np.array(many) if contents.forms == 1 else many, stored.labels, **terms)
        for single in singles:
            store.verbs.store_single(root / "store", *single, **terms)
        files = files_of(root / "store")
    behind = {number: record(many[number], stored.labels[number]) for _, number, _ in singles if number < len(many)}
    return Sample(files, {number: record(*pair) for number, pair in stored.pairs().items()}, behind)


def image(seed: int, form: int) -> Array:
    return pixels(abs(seed) + IMAGES * (seed < 0), FORMS[form][0], np.dtype(FORMS[form][1]))


def reads(store: Store, root: Path, ids: list[int], step: int = 1, **terms: bool) -> Iterator[tuple[list[int], Read]]:
    """Every way to read, each with the ids that it asks for."""
    for image_id in ids[::step]:
        yield [image_id], partial(read_single, store, root, image_id, **terms)
    yield ids, lambda: zip(*store.verbs.read_many(root, **terms), strict=True)
    if store.ours:
        some = [*ids[::-1], *ids[::3]]
        yield some, lambda: zip(*store.verbs.read_many(root, some, **terms), strict=True)
        yield ids, lambda: list(imgstore.open_reader(root, **terms))
        yield some, partial(read_batch, root, some, **terms)


def read_single(store: Store, root: Path, image_id: int, **terms: bool) -> list[Pair]:
    return [store.verbs.read_single(root, image_id, **terms)]


def read_batch(root: Path, ids: list[int], **terms: bool) -> list[Pair]:
    with imgstore.open_reader(root, **terms) as reader:
        positions = {image_id: position for position, image_id in enumerate(reader.ids.tolist())}
        return reader.__getitems__([positions[image_id] for image_id in ids])


def png_chunks(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Offset, kind and length of each chunk's body."""
    at = len(PNG)
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        yield at + 8, kind, length
        at += 12 + length


def pixel_places(name: str, data: bytes, held: dict[int, Record]) -> NDArray[np.bool_]:
    """Which bytes of a file are pixels: of a PNG its IDAT, else wherever an image lies byte for byte."""
    found = np.zeros(len(data), bool)
    if name.endswith(".png"):
        for at, kind, length in png_chunks(data):
            found[at : at + length] |= kind == b"IDAT"
        return found
    for _, _, stored, _ in held.values():
        at = data.find(stored)
        found[at : at + len(stored)] |= at >= 0
    return found


class Places:
    """Draws places in the files of a store: half of them pixels, half what is not."""

    def __init__(self, sample: Sample) -> None:
        held = {**sample.held, **{-1 - number: record for number, record in sample.behind.items()}}
        pixels = {name: pixel_places(name, data, held) for name, data in sample.files.items() if data}
        self._pixels = {name: np.flatnonzero(where) for name, where in pixels.items() if where.any()}
        self._others = {name: np.flatnonzero(~where) for name, where in pixels.items()}
        written = {name: np.frombuffer(sample.files[name], np.uint8) != 0 for name in pixels}
        # most of a page of LMDB or a header of HDF5 is unused zeros, where damage does nothing
        self._in_use = {name: np.flatnonzero(~where & written[name]) for name, where in pixels.items()}

    def draw(self, random: Random) -> tuple[str, int]:
        places = random.choice([self._pixels, self._pixels, self._in_use, self._others])
        name = random.choice(list(places))
        return name, int(random.choice(places[name]))


def flipped(data: bytearray, at: int, random: Random) -> None:
    data[at] ^= 1 << random.randrange(8)


def overwritten(data: bytearray, at: int, random: Random) -> None:
    data[at] = random.randrange(256)


def run_overwritten(data: bytearray, at: int, random: Random) -> None:
    end = min(len(data), at + random.randint(2, 64))
    data[at:end] = random.randbytes(end - at)


def zeroed(data: bytearray, at: int, random: Random) -> None:
    unit = random.choice([512, PAGE])
    start = at // unit * unit
    end = min(len(data), start + unit)
    data[start:end] = bytes(end - start)


def page_copied(data: bytearray, at: int, random: Random) -> None:
    one, other = _two_pages(data, at, random)
    data[one] = data[other]


def pages_swapped(data: bytearray, at: int, random: Random) -> None:
    one, other = _two_pages(data, at, random)
    data[one], data[other] = data[other], data[one]


def _two_pages(data: bytearray, at: int, random: Random) -> tuple[slice, slice]:
    unit = next(unit for unit in (PAGE, 512, 64, 1) if len(data) >= 2 * unit or unit == 1)
    pages = len(data) // unit
    one, other = min(at // unit, pages - 1), random.randrange(pages)
    return slice(one * unit, (one + 1) * unit), slice(other * unit, (other + 1) * unit)


OVERWRITINGS = (flipped, flipped, overwritten, run_overwritten, zeroed, page_copied, pages_swapped)


def damaged(files: Files, places: Places, random: Random) -> Changes:
    """One file with some bytes changed."""
    while True:
        name, at = places.draw(random)
        data = bytearray(files[name])
        random.choice(OVERWRITINGS)(data, at, random)
        if data != files[name]:
            return {name: bytes(data)}


def cut(files: Files, places: Places, random: Random) -> Changes:
    """One file at a random length."""
    name = random.choice([name for name, data in files.items() if data])
    return {name: files[name][: random.randrange(len(files[name]))]}


def appended(files: Files, places: Places, random: Random) -> Changes:
    """One file with more bytes at its end."""
    name, size = random.choice([name for name, data in files.items() if data]), random.randint(1, 2 * PAGE)
    return {name: files[name] + random.choice([bytes(size), random.randbytes(size), files[name]])}


def reseal(root: Path, description: bytes | None = None, /, **words: str) -> None:
    """Make DESCRIPTION, its checksum in CURRENT and that of CURRENT agree again; `words` of CURRENT are changed."""
    entry = dict(zip(("format", "version", "backend", "name", "synced"), current_words(root), strict=False)) | words
    path = root / current_words(root)[3] / "DESCRIPTION"
    if description is not None:
        path.write_bytes(description)
    line = " ".join([*entry.values(), xxhash.xxh3_64_hexdigest(path.read_bytes())])
    lay(root, {CURRENT: f"{line} {xxhash.xxh3_64_hexdigest(line.encode())}\n".encode()})


def current_words(root: Path) -> list[str]:
    return (root / CURRENT).read_text().split()


def generation_of(root: Path) -> Path:
    return root / current_words(root)[3]


def reseal_tree(root: Path) -> None:
    """Make a store's DESCRIPTION agree with its LMDB file, unless that has a tree that none of ours has."""
    file, path = _reading.File(str(generation_of(root) / "images.mdb")), generation_of(root) / "DESCRIPTION"
    digest = xxhash.xxh3_64()
    with contextlib.suppress(ValueError):
        collections.deque(_lmdb_tree.tree(file, digest), maxlen=0)
    told = json.loads(path.read_bytes()) | {"tree": [file.size, digest.intdigest()]}
    reseal(root, json.dumps(told).encode())


def make_sparse(path: Path) -> None:
    """Leave out its zeros, as a copy of it may."""
    copy = path.with_name("copy")
    subprocess.run(["cp", "--sparse=always", str(path), str(copy)], check=True)
    copy.rename(path)


def reseal_metadata(root: Path) -> None:
    """Make a store's DESCRIPTION agree with its HDF5 file, unless that has a structure that none of ours has."""
    file, path = _reading.File(str(generation_of(root) / "images.h5")), generation_of(root) / "DESCRIPTION"
    with contextlib.suppress(ValueError, struct.error):
        checksum = _hdf5_structure.metadata_checksum(file, _hdf5_structure.structure(file))
        reseal(root, json.dumps(json.loads(path.read_bytes()) | {"metadata": [file.size, checksum]}).encode())


def reseal_format(of: str, root: Path) -> None:
    """Make a store's DESCRIPTION agree with the file of the many, by its backend or its suffix."""
    if of in ("lmdb", ".mdb"):
        reseal_tree(root)
    elif of in ("hdf5", ".h5"):
        reseal_metadata(root)


def sparse_hdf5(path: Path, datasets: Iterable[tuple[str, tuple[int, ...], Any]]) -> None:
    """A file with these datasets as ours have them, nothing of which was written."""
    path.unlink()
    with h5py.File(path, "w", libver="latest", alignment_threshold=1, alignment_interval=64) as file:
        for name, shape, dtype in datasets:
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.CONTIGUOUS)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            plist.set_obj_track_times(False)
            kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plist)


def listed(ids: Iterable[int]) -> bytes:
    """What SINGLES holds for these ids."""
    return b"".join(struct.pack("<QQ", number, ~(number * 0x9E3779B97F4A7C15) & (2**64 - 1)) for number in ids)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_spans(data: bytes) -> list[slice]:
    """What each checksum of a PNG covers; it follows."""
    return [slice(at - 4, at + length) for at, _, length in png_chunks(data)]


def hdf5_spans(data: bytes) -> list[slice]:
    """What each checksum of our HDF5 files' metadata covers: the superblock and the headers of objects."""
    spans, at = [slice(0, 44)], data.find(b"OHDR")
    while at >= 0:
        flags = data[at + 5]
        sizes = at + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        spans.append(slice(at, sizes + width + int.from_bytes(data[sizes : sizes + width], "little")))
        at = data.find(b"OHDR", at + 4)
    return spans


SEALS: dict[str, tuple[Callable[[bytes], list[slice]], Callable[[bytes], bytes]]] = {
    ".png": (png_spans, lambda data: struct.pack(">I", zlib.crc32(data))),
    ".h5": (hdf5_spans, lambda data: struct.pack("<I", lookup3(data))),
}


def sealed(name: str, data: bytes, spans: list[slice]) -> bytes:
    """The file with the checksums of its own format made to agree."""
    new = bytearray(data)
    for span in spans if Path(name).suffix in SEALS else []:
        new[span.stop : span.stop + 4] = SEALS[Path(name).suffix][1](bytes(new[span]))
    return bytes(new)


def lookup3(data: bytes) -> int:
    """The checksum of HDF5's metadata: Bob Jenkins' hashlittle (burtleburtle.net/bob/c/lookup3.c)."""
    last = max(len(data) - 1, 0) // 12 * 3
    words = struct.unpack(f"<{last + 3}I", data.ljust(4 * last + 12, b"\0"))
    state = [(0xDEADBEEF + len(data)) & _WORD] * 3
    for at in range(0, last + 3, 3):
        state = [(number + word) & _WORD for number, word in zip(state, words[at : at + 3], strict=True)]
        for turn, bits in enumerate(_MIX if at < last else ()):
            a, b, c = turn % 3, (turn + 1) % 3, (turn + 2) % 3
            state[a] = (state[a] - state[c] & _WORD) ^ _rotated(state[c], bits)
            state[c] = state[c] + state[b] & _WORD
    for turn, bits in enumerate(_FINAL):
        a, b = (turn + 2) % 3, (turn + 1) % 3
        state[a] = (state[a] ^ state[b]) - _rotated(state[b], bits) & _WORD
    return state[2]


_WORD, _MIX, _FINAL = 0xFFFFFFFF, (4, 6, 8, 16, 19, 4), (14, 11, 25, 16, 4, 14, 24)


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _WORD


def in_children(prepare: Callable[[], Attempt], count: int, seconds: float = 20) -> Iterator[str]:
    """The outcomes of attempts 0 to `count` - 1, made in a child; one that dies or hangs is an outcome."""
    done = 0
    while done < count:
        for outcome in _one_child(prepare, range(done, count), seconds):
            yield outcome
            done += 1


def _one_child(prepare: Callable[[], Attempt], numbers: range, seconds: float) -> Iterator[str]:
    receiving, sending = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=_work, args=(sending, prepare, numbers), daemon=True)
    child.start()
    sending.close()
    try:
        for _ in numbers:
            if not receiving.poll(seconds):
                yield HANG
                return
            yield receiving.recv()
    except EOFError:
        child.join()
        yield ended_by(child.exitcode)
    finally:
        child.kill()
        child.join()
        receiving.close()


def _work(sending: Connection, prepare: Callable[[], Attempt], numbers: range) -> None:
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    attempt = prepare()
    for number in numbers:
        sending.send(attempt(number))


def ended_by(code: int | None) -> str:
    return f"ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"


@contextlib.contextmanager
def limited_memory(more: int = MEMORY) -> Iterator[None]:
    """The process may take no more than so much further address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
