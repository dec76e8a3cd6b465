"""Sharded stores: a folder of stores, and SHARDS, which lists them; read under ids that run through all of them.

    root/SHARDS             a line for each shard: folder, count, shape and dtype where all agree, and generation
                            and checksum of DESCRIPTION as the shard's CURRENT tells them; then a checksum
    root/shard-000017/      a store of any backend, whole in itself; its DESCRIPTION also tells its PLAN and number
    root/PLAN               while shards are being stored: what is to become of them

SHARDS is written when all shards are whole, and they stay as they are then. A shard in which an image was replaced
singly is read; one that was itself replaced, restored or added to is not, for its ids would be others.
"""

import itertools
import resource
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgstore.core.blocks import Array, Block, Form, Labels, image_bytes
from imgstore.core.checksums import image_checksums
from imgstore.core.format import Many, Pair
from imgstore.core.generations import Generation
from imgstore.core.mapped import HELD, Mapped, Met
from imgstore.core.reader import Reader, stacked
from imgstore.core.reading import gather
from imgstore.core.verbs import Backend
from imgstore.errors import StoreReplacedError
from imgstore.shards.manifest import Manifest, open_shard, read_manifest

_HELD = 3 * HELD  # bytes that a reader of shards keeps of what was met in them


class _OpenShards(NamedTuple):
    """The shards that are open. It never changes: who reads holds it, and with it all that has an address."""

    readers: dict[int, Reader]
    met: dict[int, tuple[Mapped, Met]]  # what can be read by address; a reader that is closed does not hold it
    # for each shard the addresses of `slots`, `offsets`, `labels` and `checksums` of its Met, how many images a block
    # has, and where its file is mapped; 0 where it is not in `met`
    places: NDArray[np.int64]  # (6, shards)

    def without_others(self, numbers: list[int]) -> "_OpenShards":
        places = np.zeros_like(self.places)
        places[:, numbers] = self.places[:, numbers]
        readers = {number: self.readers[number] for number in numbers if number in self.readers}
        met = {number: self.met[number] for number in numbers if number in self.met}
        return _OpenShards(readers, met, places)

    def and_also(self, readers: dict[int, Reader], held: int) -> "_OpenShards":
        kept, places = dict(self.met), self.places.copy()
        for number, reader in readers.items():
            many = reader.unreplaced()
            if isinstance(many, Mapped) and many.form and many.file.address:
                many.held = held
                kept[number] = many, (met := many.met)
                told = met.slots, met.offsets, met.labels, met.checksums
                places[:, number] = *(each.ctypes.data for each in told), many.per_block, many.file.address
        return _OpenShards(self.readers | readers, kept, places)


class _Shards(Many):
    """The images of all shards. A shard is opened when it is first read, and few stay open."""

    def __init__(self, manifest: Manifest, verify: bool) -> None:
        self.manifest, self._verify, self._most = manifest, verify, _most_open()
        *firsts, self.count = itertools.accumulate((shard.images for shard in manifest.shards), initial=0)
        self._firsts = np.array(firsts, np.int64)
        forms = {shard.form for shard in manifest.shards if shard.images}
        self.form = forms.pop() if len(forms) == 1 else None
        self._opened = _OpenShards({}, {}, np.zeros((6, len(firsts)), np.int64))

    def reader(self, number: int) -> Reader:
        reader = self._opened.readers.get(number)
        return self._have_open([number]).readers[number] if reader is None else reader

    def read(self, image_id: int) -> Pair:
        number = bisect_right(self._firsts, image_id) - 1
        return self.reader(number)[image_id - int(self._firsts[number])]

    def gather(self, ids: Labels) -> tuple[Array | list[Array], Labels]:
        numbers = np.searchsorted(self._firsts, ids, "right") - 1
        rows = ids - self._firsts[numbers]
        if (numbers == numbers[0]).all():
            reader = self.reader(int(numbers[0]))
            many = reader.unreplaced()
            return many.gather(rows) if many else reader.read_many(rows)  # which would look at the ids once more
        opened = self._by_address(numbers)
        found = self._gather_at(opened, numbers, rows) if opened else None
        return found or self._gather_by_shard(numbers, rows)

    def _by_address(self, numbers: Labels) -> _OpenShards | None:
        """These shards, if they can be open at once and all be read by address."""
        opened = self._opened
        if not opened.places[0, numbers].all():
            needed = np.unique(numbers).tolist()
            opened = self._have_open(needed) if len(needed) <= self._most else opened
        return opened if opened.places[0, numbers].all() else None

    def _gather_at(self, opened: _OpenShards, numbers: Labels, rows: Labels) -> tuple[Array, Labels] | None:
        """In as many calls for many shards as for one; None where there is no room to keep what was met of one."""
        assert self.form is not None
        at_slots, at_offsets, at_labels, at_checksums, per_block, base = opened.places[:, numbers]
        blocks, within = np.divmod(rows, per_block)
        slots = _at(at_slots + 4 * blocks, np.int32)
        for row in np.flatnonzero(slots == 0).tolist():
            many, met = opened.met[int(numbers[row])]
            if not many.meet(met, rows[row : row + 1]):
                return None
        slots = _at(at_slots + 4 * blocks, np.int32)
        offsets = _at(at_offsets + 8 * slots) + within * image_bytes(self.form)
        images, places = np.empty((len(rows), *self.form[0]), self.form[1]), 8 * (slots * per_block + within)

        def fill(row: int) -> None:
            opened.met[int(numbers[row])][0].file.fill(images[row], int(offsets[row]))

        gather(base + offsets, images, fill)
        for number in set(numbers.tolist()):
            opened.met[number][0].file.must_be_whole()
        labels = _at(at_labels + places)
        if self._verify:
            expected = _at(at_checksums + places, np.uint64)
            for row in np.flatnonzero(image_checksums(images, rows, labels) != expected).tolist():
                raise opened.met[int(numbers[row])][0].fault("does not match its checksum", int(rows[row]))
        return images, labels

    def _gather_by_shard(self, numbers: Labels, rows: Labels) -> tuple[Array | list[Array], Labels]:
        pairs = dict[int, Pair]()
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            images, labels = self.reader(number).read_many(rows[here])
            pairs |= zip(here.tolist(), zip(images, labels.tolist(), strict=True), strict=True)
        return stacked([pairs[position] for position in range(len(rows))])

    def read_blocks(self, images: Array | None = None) -> Iterator[Block]:
        for number, first in enumerate(self._firsts.tolist()):
            reader = self.reader(number)
            many = reader.unreplaced()
            if many is None:  # ShardedReader looked before; blocks have not what replaced their images
                raise StoreReplacedError(reader.generation.root, "an image was replaced in it meanwhile; read again")
            for block in many.read_blocks(None if images is None else images[first : first + many.count]):
                yield block._replace(first=first + block.first)

    def _have_open(self, needed: list[int]) -> _OpenShards:
        """Have these open, and others only if that is not too many."""
        opened = self._opened  # at once: another thread may open others meanwhile
        if len(opened.readers.keys() | set(needed)) > self._most:
            self._opened = opened = opened.without_others(needed)  # first, as files are few
        new = {number: self._new_reader(number) for number in needed if number not in opened.readers}
        self._opened = opened = opened.and_also(new, _HELD // min(self._most, len(self._firsts)))
        return opened

    def _new_reader(self, number: int) -> Reader:
        def opened(backend: Backend, generation: Generation, singles: Labels) -> Reader:
            return Reader(backend, generation, self._verify, singles)

        return open_shard(self.manifest.root, self.manifest.shards[number], opened)


def _most_open() -> int:
    """How many shards a reader keeps open: an eighth of the files that the process may have open.

    A shard takes up to four, and there may be several readers and threads.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if limit == resource.RLIM_INFINITY else max(1, limit // 8)


class _Memory:
    """What NumPy takes for numbers at every byte from an address on."""

    def __init__(self, address: int, count: int, dtype: np.dtype[Any]) -> None:
        told: dict[str, Any] = {"version": 3, "data": (address, True), "shape": (count,), "typestr": dtype.str}
        self.__array_interface__ = told | {"strides": (1,)}


def _at(addresses: Labels, dtype: Any = np.int64) -> Any:
    """The numbers at these addresses, in one call of NumPy; the caller holds what lies there."""
    lowest = int(addresses.min())
    return np.asarray(_Memory(lowest, int(addresses.max()) - lowest + 1, np.dtype(dtype)))[addresses - lowest]


class ShardedReader(Reader):
    """A sharded store kept open: as `Reader`, of all shards, by ids that run through them.

    Shards are opened when they are read, and at most an eighth as many as the process may have files open. A shard
    that is not as SHARDS lists it raises StoreReplacedError, a missing one CorruptStoreError, when it is read. An
    error that names a file in a shard counts its images as the shard does.
    """

    def __init__(self, manifest: Manifest, verify: bool) -> None:
        self.generation = Generation(manifest.root, "shards", manifest.checksum, True, manifest.checksum, {})
        self._verify = verify
        self._hold(_Shards(manifest, verify), np.empty(0, np.int64))

    def readers(self) -> Iterator[Reader]:
        many = self._open()
        assert isinstance(many, _Shards)
        return map(many.reader, range(len(many.manifest.shards)))

    def read_many(self, image_ids: Any = None) -> tuple[Array | list[Array], Labels]:
        if image_ids is None and any(reader.unreplaced() is None for reader in self.readers()):
            image_ids = self.ids  # see `read_blocks`
        return super().read_many(image_ids)

    def forms(self) -> Counter[Form]:
        return sum((reader.forms() for reader in self.readers()), Counter[Form]())

    def __reduce__(self) -> tuple[Any, ...]:
        self._open()
        return _reopened, (self.generation.root, self.generation.name, self._verify)


def _reopened(root: str, checksum: str, verify: bool) -> ShardedReader:
    """A reader that was pickled: of the same shards, or not at all."""
    manifest = read_manifest(root)
    if manifest.checksum != checksum:
        raise StoreReplacedError(root, "the store was replaced since the reader was pickled; open it again")
    return ShardedReader(manifest, verify)
