"""Sharded stores: a folder of stores, and SHARDS, which lists them; read under ids that run through all of them.

    root/SHARDS             a line for each shard: folder, count, shape and dtype where all agree, backend, and
                            generation and checksum of DESCRIPTION as the shard's CURRENT tells them; a checksum
    root/shard-000017/      a store of any backend, whole in itself
    root/PLAN               while shards are being stored: what is to become of them

SHARDS is written when all shards are whole, and they stay as they are then. A shard in which an image was replaced
singly is read; one that was itself replaced, restored or added to is not, for its ids would be others.
"""

import itertools
import os
import re
import resource
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from imgstore._checksums import checksum, image_checksums
from imgstore._generations import SHARDS, Generation, open_live, read_file
from imgstore._images import Array, Block, Form, Labels, form_of, image_bytes
from imgstore._mapped import Mapped, copies
from imgstore._store import Backend, Many, Pair, Reader, stacked
from imgstore.errors import CorruptStoreError, StoreNotFoundError, StoreReplacedError

T = TypeVar("T")
BackendOf = Callable[[Generation], Backend]

SHARDS_FORMAT = 1
_TITLE = f"imgstore-shards {SHARDS_FORMAT}\n"
_LARGEST_MANIFEST = 1 << 30
_SHARD = re.compile(
    r"(shard-\d{6,9}) (\d{1,18}) (?:(\d{1,15}(?:x\d{1,15}){1,2}) ([<|]\w\d{1,2})|mixed) "
    r"(\w+) (\d{6,18}-[0-9a-f]{6}) ([0-9a-f]{16})"
)
_NUMBER: Form = (), np.dtype(np.int64)


class Shard(NamedTuple):
    """What SHARDS tells of a shard."""

    name: str
    count: int
    form: Form | None  # of all its images, where they agree
    backend: str
    generation: str
    checksum: str  # of its DESCRIPTION

    @classmethod
    def of(cls, generation: Generation) -> "Shard":
        """What SHARDS is to tell of a shard that has this generation."""
        told, name = generation.description, os.path.basename(generation.root)
        form = form_of(told.get("shape"), told.get("dtype"))
        return cls(name, told.get("count", -1), form, generation.backend, generation.name, generation.checksum)

    def line(self) -> str:
        form = f"{'x'.join(map(str, self.form[0]))} {self.form[1].str}" if self.form else "mixed"
        return f"{self.name} {self.count} {form} {self.backend} {self.generation} {self.checksum}\n"


class Manifest(NamedTuple):
    """SHARDS, as read."""

    root: str
    shards: list[Shard]
    checksum: str


def shard_name(number: int) -> str:
    """The folder of a shard."""
    return f"shard-{number:06d}"


def manifest_text(shards: list[Shard]) -> str:
    text = _TITLE + "".join(shard.line() for shard in shards)
    return f"{text}{checksum(text.encode()):016x}\n"


def is_sharded(root: str) -> bool:
    """Whether `root` holds SHARDS, so that it is a sharded store."""
    return os.path.lexists(f"{root}/{SHARDS}")


def read_manifest(root: str) -> Manifest:
    """Raises StoreNotFoundError where there is no SHARDS, CorruptStoreError where it is not what was written."""
    path = f"{root}/{SHARDS}"
    try:
        content = read_file(path, _LARGEST_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(root, "there is no sharded store here") from None
    body, digest = content[:-17], content[-17:]
    if digest != b"%016x\n" % checksum(body):
        raise CorruptStoreError(path, "does not match its own checksum")
    title, *lines = body.decode("ascii", "replace").splitlines(keepends=True)
    if title != _TITLE:
        raise CorruptStoreError(path, f"is of another version of the format, which is {SHARDS_FORMAT} here")
    shards = [_shard(line, number, path) for number, line in enumerate(lines)]
    if sum(shard.count for shard in shards) >= 2**63:
        raise CorruptStoreError(path, "lists more images than there are ids")
    return Manifest(root, shards, digest[:-1].decode())


def _shard(line: str, number: int, path: str) -> Shard:
    told = _SHARD.fullmatch(line.rstrip("\n"))
    form = form_of(tuple(map(int, told[3].split("x"))), told[4]) if told and told[3] else None
    if not told or told[1] != shard_name(number) or bool(form) != bool(told[3]):
        raise CorruptStoreError(path, f"does not list {shard_name(number)} as it should")
    return Shard(told[1], int(told[2]), form, *told.group(5, 6, 7))


def open_shard(
    root: str, shard: Shard, backend_of: BackendOf, open_generation: Callable[[Backend, Generation, Labels], T]
) -> T:
    """`open_generation` of the shard and its singles, if it is the one that SHARDS lists.

    Raises StoreReplacedError where it is another, CorruptStoreError where it is missing or damaged.
    """
    path = f"{root}/{shard.name}"

    def listed(generation: Generation) -> T:
        backend = backend_of(generation)
        singles = np.array(generation.singles(backend.suffix), np.int64)
        if Shard.of(generation) != shard or (singles >= shard.count).any():
            message = "is not as SHARDS lists it: it was replaced, restored or added to on its own"
            raise StoreReplacedError(path, f"{message}; put back the one that was there, or store all anew")
        return open_generation(backend, generation, singles)

    if not os.path.lexists(f"{path}/CURRENT"):
        raise CorruptStoreError(path, "is missing, though SHARDS lists it; put it back, or store all anew")
    return open_live(path, listed)


def verify_shard(root: str, shard: Shard, backend_of: BackendOf) -> None:
    """Read everything in it and check it."""
    open_shard(root, shard, backend_of, lambda backend, generation, _: backend.verify_generation(generation))


class _Open(NamedTuple):
    """The shards that are open. It never changes: who reads holds it, and with it all that is mapped."""

    readers: dict[int, Reader]
    # for each shard the addresses of its `addresses`, `labels` and `checksums`, and how many images a block has;
    # 0 where it is not open, or cannot be read by address
    places: NDArray[np.int64]  # (4, shards)


class _Shards(Many):
    """The images of all shards. A shard is opened when it is first read; at most `most` stay open."""

    def __init__(self, manifest: Manifest, verify: bool, backend_of: BackendOf) -> None:
        self.manifest, self._verify, self._backend_of = manifest, verify, backend_of
        *self._starts, self.count = itertools.accumulate((shard.count for shard in manifest.shards), initial=0)
        forms = {shard.form for shard in manifest.shards if shard.count}
        self.form = forms.pop() if len(forms) == 1 else None
        self.most = _most_open()
        self._firsts = np.array(self._starts, np.int64)
        self._used, self._clock = np.zeros(len(self._starts), np.int64), itertools.count(1)
        self._opened = _Open({}, np.zeros((4, len(self._starts)), np.int64))

    def reader(self, number: int) -> Reader:
        self._used[number] = next(self._clock)
        found = self._opened.readers.get(number)
        return self._open([number]).readers[number] if found is None else found

    def read(self, image_id: int) -> Pair:
        number = bisect_right(self._starts, image_id) - 1
        return self.reader(number)[image_id - self._starts[number]]

    def gather(self, ids: Labels) -> tuple[Array | list[Array], Labels]:
        numbers = np.searchsorted(self._firsts, ids, "right") - 1
        rows = ids - self._firsts[numbers]
        number = int(numbers[0])
        if (numbers == number).all() and (many := self.reader(number).unreplaced()):
            return many.gather(rows)
        self._used[numbers] = next(self._clock)
        opened = self._by_address(numbers)
        return self._gather_at(opened, numbers, rows) if opened else self._gather_by_shard(numbers, rows)

    def _by_address(self, numbers: Labels) -> _Open | None:
        """These shards, if they can be open at once and all be read by address."""
        if not self._opened.places[0, numbers].all():
            needed = np.unique(numbers).tolist()
            if len(needed) <= self.most:
                self._open(needed)
        opened = self._opened
        return opened if opened.places[0, numbers].all() else None

    def _gather_at(self, opened: _Open, numbers: Labels, rows: Labels) -> tuple[Array, Labels]:
        """In as many calls of NumPy for many shards as for one."""
        assert self.form is not None
        addresses, at_labels, at_checksums, per_block = opened.places[:, numbers]
        blocks, within = np.divmod(rows, per_block)
        starts = copies(addresses + 8 * blocks, _NUMBER)
        unseen = np.flatnonzero(starts == 0).tolist()
        for row in unseen:
            self._mapped(opened, numbers[row]).view(int(rows[row]))
        if unseen:
            starts = copies(addresses + 8 * blocks, _NUMBER)
        images = copies(starts + within * image_bytes(self.form), self.form)
        labels = copies(at_labels + 8 * rows, _NUMBER)
        if self._verify:
            expected = copies(at_checksums + 8 * rows, _NUMBER).view(np.uint64)
            for row in np.flatnonzero(image_checksums(images, rows, labels) != expected).tolist():
                raise self._mapped(opened, numbers[row]).fault("does not match its checksum", int(rows[row]))
        return images, labels

    def _gather_by_shard(self, numbers: Labels, rows: Labels) -> tuple[Array | list[Array], Labels]:
        assert self.form is not None
        images, labels = np.empty((len(rows), *self.form[0]), self.form[1]), np.empty(len(rows), np.int64)
        for number in np.unique(numbers).tolist():
            here, many = np.flatnonzero(numbers == number), self.reader(number).unreplaced()
            if many is None:  # of what was replaced, the shape may be another
                return stacked([self.read(image_id) for image_id in (rows + self._firsts[numbers]).tolist()])
            images[here], labels[here] = many.gather(rows[here])
        return images, labels

    def read_blocks(self, images: Array | None = None) -> Iterator[Block]:
        for number, first in enumerate(self._starts):
            reader = self.reader(number)
            many = reader.unreplaced()
            assert many is not None  # ShardedReader sees to it
            for block in many.read_blocks(None if images is None else images[first : first + many.count]):
                yield block._replace(first=first + block.first)

    def _open(self, needed: list[int]) -> _Open:
        """Have these open, and of the others those that were used last. The rest goes first: files are few."""
        before, places = self._opened  # at once: another thread may open others meanwhile
        missing = [number for number in needed if number not in before]
        others = sorted(before.keys() - set(needed), key=self._used.__getitem__)
        let_go = others[: max(0, len(before) + len(missing) - self.most)]
        readers = {number: reader for number, reader in before.items() if number not in let_go}
        places = places.copy()
        places[:, let_go] = 0
        self._opened, before = _Open(readers, places), {}
        new = {number: self._reader(self.manifest.shards[number]) for number in missing}
        places = places.copy()
        for number, reader in new.items():
            places[:, number] = _place(reader)
        self._opened = opened = _Open(readers | new, places)
        return opened

    def _reader(self, shard: Shard) -> Reader:
        def opened(backend: Backend, generation: Generation, singles: Labels) -> Reader:
            return Reader(backend, generation, self._verify, singles)

        return open_shard(self.manifest.root, shard, self._backend_of, opened)

    def _mapped(self, opened: _Open, number: int) -> Mapped:
        many = opened.readers[number].unreplaced()
        assert isinstance(many, Mapped)
        return many


def _place(reader: Reader) -> tuple[int, int, int, int]:
    """A column of `places`."""
    many = reader.unreplaced()
    if not isinstance(many, Mapped) or not many.form:
        return 0, 0, 0, 0
    addresses, labels, checksums = (each.ctypes.data for each in (many.addresses, many.labels, many.checksums))
    return addresses, labels, checksums, many.per_block


def _most_open() -> int:
    """How many shards stay open: a quarter of the files that the process may have open; a shard takes one or two."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if limit == resource.RLIM_INFINITY else max(1, limit // 4)


class ShardedReader(Reader):
    """A sharded store kept open: as `Reader`, of all shards, by ids that run through them.

    Shards are opened when they are read, and at most a quarter of the files that the process may have open. A shard
    that is not as SHARDS lists it raises StoreReplacedError, a missing one CorruptStoreError, when it is read. An
    error that names a file in a shard counts its images as the shard does.
    """

    def __init__(self, manifest: Manifest, verify: bool, backend_of: BackendOf) -> None:
        self.generation = Generation(manifest.root, "shards", manifest.checksum, True, manifest.checksum, {})
        self._verify, self._backend_of = verify, backend_of
        self._hold(_Shards(manifest, verify, backend_of), np.empty(0, np.int64))

    def readers(self) -> Iterator[Reader]:
        """The reader of each shard, good until the next one is drawn."""
        many = self._open()
        assert isinstance(many, _Shards)
        return map(many.reader, range(len(many.manifest.shards)))

    def read_many(self, image_ids: Any = None) -> tuple[Array | list[Array], Labels]:
        if image_ids is None and any(reader.unreplaced() is None for reader in self.readers()):
            image_ids = self.ids  # one by one
        return super().read_many(image_ids)

    def forms(self) -> Counter[Form]:
        return sum((reader.forms() for reader in self.readers()), Counter[Form]())

    def __reduce__(self) -> tuple[Any, ...]:
        self._open()
        return _reopened, (self.generation.root, self.generation.name, self._verify, self._backend_of)


def _reopened(root: str, checksum: str, verify: bool, backend_of: BackendOf) -> ShardedReader:
    """A reader that was pickled: of the same shards, or not at all."""
    manifest = read_manifest(root)
    if manifest.checksum != checksum:
        raise StoreReplacedError(root, "the store was replaced since the reader was pickled; open it again")
    return ShardedReader(manifest, verify, backend_of)
