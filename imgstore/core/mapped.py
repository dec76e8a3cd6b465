"""What lmdb and hdf5 share: a file of blocks, whose labels and checksums are kept once a block was met."""

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from imgstore.core.blocks import BYTES_BESIDE_PIXELS, Array, Block, Form, Labels, image_bytes, is_block
from imgstore.core.checksums import Checksums, block_checksum, image_checksum, image_checksums
from imgstore.core.format import Contents, Many, Pair
from imgstore.core.reading import File
from imgstore.errors import CorruptStoreError


class Place(NamedTuple):
    """Where a block lies, and what is stored beside its pixels."""

    first: int
    form: Form
    offset: int  # of the pixels in the file
    labels: Labels  # (k,)
    checksums: Checksums  # (k,)
    checksum: int  # of the block


SINGLE = Contents(1, None, 1)
_MOST_BLOCKS = 1 << 28  # of a file, so that a forged number makes nobody reserve memory for more
HELD = 16 << 20  # bytes that a reader keeps of labels, checksums and places


class Met:
    """What is kept of the blocks that were met. A slot is written once, so threads may share this."""

    def __init__(self, blocks: int, per_block: int, held: int) -> None:
        most = max(1, min(blocks, held // (8 + per_block * BYTES_BESIDE_PIXELS)))
        self.slots = np.zeros(blocks, np.int32)  # of each block; 0 for one that was not met
        self.offsets = np.zeros(most + 1, np.int64)  # of its pixels in the file
        self.labels = np.zeros((most + 1, per_block), np.int64)
        self.checksums = np.zeros((most + 1, per_block), np.uint64)
        self._free = iter(range(1, most + 1))

    def keep(self, number: int, place: Place) -> bool:
        """Whether there was a slot left for this block."""
        slot, count = next(self._free, 0), len(place.labels)
        if slot:
            self.offsets[slot] = place.offset
            self.labels[slot, :count], self.checksums[slot, :count] = place.labels, place.checksums
            self.slots[number] = slot  # last: another thread takes what is there for whole
        return bool(slot)


class Mapped(Many):
    """A file of blocks. `first` is the id of its first image."""

    held = HELD  # less where several share the memory

    def __init__(self, path: str, first: int, contents: Contents, verify: bool) -> None:
        self.file, self.path, self.first, self.verify = File(path), path, first, verify
        self.count, self.form, self.per_block = contents
        self._met: Met | None = None

    @property
    def met(self) -> Met:
        """Where `form` is not None."""
        return self._met or self._meet_anew()

    def _meet_anew(self) -> Met:
        blocks = -(-self.count // self.per_block)
        if blocks > _MOST_BLOCKS:
            raise CorruptStoreError(self.path, f"is said to hold {blocks} blocks, more than a file of the store can")
        self._met = met = Met(blocks, self.per_block, self.held)
        return met

    @abstractmethod
    def find(self, image_id: int) -> Place:
        """The block of this image, whose bounds are not looked at yet."""

    def place(self, image_id: int) -> Place:
        """The block of this image."""
        found = self.find(image_id)
        first, last, end = found.first, found.first + len(found.labels), self.first + self.count
        if not self.first <= first <= image_id < last <= end:
            raise self.fault("is in a block with other ids", image_id)
        if self.form and (self.form != found.form or (first, last) != self.bounds(image_id)):
            raise self.fault("is in a block that is not of the form and size that DESCRIPTION tells", image_id)
        size = len(found.labels) * image_bytes(found.form)
        if not 0 <= found.offset <= self.file.size - size:
            raise self.fault("is in a block that lies outside the file", image_id)
        return found

    def must_be_block(self, count: int, form: Form, image_id: int) -> None:
        """Raise CorruptStoreError for more than a block holds, before anything beside its pixels is read."""
        if not is_block(count, form):
            raise self.fault("is in a block that is too large", image_id)

    def read(self, image_id: int) -> Pair:
        if self.form is None:
            return self._read_at(self.place(image_id), image_id)
        number, row = divmod(image_id - self.first, self.per_block)
        met = self._met or self.met
        slot = met.slots.item(number)
        if not slot:
            place = self.place(image_id)
            if not met.keep(number, place):
                self._met = None
            return self._read_at(place, image_id)
        image = np.empty(*self.form)
        self.file.fill(image, met.offsets.item(slot) + row * image.nbytes)
        label = met.labels.item(slot, row)
        if self.verify and image_checksum(image, image_id, label) != met.checksums.item(slot, row):
            raise self.fault("does not match its checksum", image_id)
        return image, label

    def _read_at(self, place: Place, image_id: int) -> Pair:
        image, row = np.empty(*place.form), image_id - place.first
        self.file.fill(image, place.offset + row * image.nbytes)
        label = int(place.labels[row])
        if self.verify and image_checksum(image, image_id, label) != int(place.checksums[row]):
            raise self.fault("does not match its checksum", image_id)
        return image, label

    def gather(self, ids: Labels) -> tuple[Array, Labels]:
        assert self.form is not None
        offsets, labels, checksums = self.beside(ids)
        images = self.file.gather(offsets, self.form)
        if self.verify:
            for image_id in ids[image_checksums(images, ids, labels) != checksums]:
                raise self.fault("does not match its checksum", int(image_id))
        return images, labels

    def beside(self, ids: Labels) -> tuple[Labels, Labels, Checksums]:
        """Where the pixels of these images lie, their labels and checksums; asked only where `form` is not None."""
        assert self.form is not None
        met = self.met
        if len(ids) > (most := len(met.offsets) - 1) < len(met.slots):  # they may lie in more blocks than are kept
            parts = [self.beside(ids[first : first + most]) for first in range(0, len(ids), most)]
            offsets, labels, checksums = map(np.concatenate, zip(*parts, strict=True))
            return offsets, labels, checksums
        numbers, rows = np.divmod(ids - self.first, self.per_block)
        slots = met.slots.take(numbers)
        if not slots.all():
            if not self.meet(met, ids[slots == 0]):
                self._met = None
                return self.beside(ids)
            slots = met.slots.take(numbers)
        places = slots * np.int64(self.per_block) + rows
        offsets = met.offsets.take(slots) + rows * image_bytes(self.form)
        return offsets, met.labels.reshape(-1).take(places), met.checksums.reshape(-1).take(places)

    def meet(self, met: Met, ids: Labels) -> bool:
        """Whether there was room to keep the blocks of these images."""
        for image_id in ids.tolist():
            number = (image_id - self.first) // self.per_block
            if not met.slots[number] and not met.keep(number, self.place(image_id)):
                return False
        return True

    def read_blocks(self, images: Array | None = None) -> Iterator[Block]:
        first = self.first
        while first < self.first + self.count:
            place = self.place(first)
            if place.first != first:
                raise self.fault("the blocks do not follow one another", first)
            last = first + len(place.labels)
            room = _room(len(place.labels), place.form) if images is None else images[first:last]
            self.file.fill(room, place.offset)
            block = Block(first, room, place.labels)
            if self.verify and block_checksum(block, place.checksums) != place.checksum:
                raise self.fault(f"the block of {len(room)} images does not match its checksum", first)
            del room
            yield block
            del block  # before there is room for the next
            first = last

    def forms(self) -> Iterator[Form]:
        first = self.first
        while first < self.first + self.count:
            place = self.place(first)
            yield from itertools.repeat(place.form, place.first + len(place.labels) - first)
            first = place.first + len(place.labels)

    def bounds(self, image_id: int) -> tuple[int, int]:
        """First id of the block of this image, and of the next block; where all images have one form."""
        first = image_id - (image_id - self.first) % self.per_block
        return first, min(first + self.per_block, self.first + self.count)

    def fault(self, message: str, image_id: int) -> CorruptStoreError:
        return CorruptStoreError(self.path, message, image_id)


def _room(count: int, form: Form) -> Array:
    """An array for a block; where it is one image, that is what owns the memory."""
    return np.empty(*form)[np.newaxis] if count == 1 else np.empty((count, *form[0]), form[1])


def checksums_of(block: Block) -> tuple[Checksums, int]:
    """The checksums to store beside a block: of each image, and its own."""
    ids = np.arange(len(block.labels)) + block.first
    checksums = image_checksums(block.images, ids, block.labels)
    return checksums, block_checksum(block, checksums)
