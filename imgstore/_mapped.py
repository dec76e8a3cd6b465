"""What lmdb and hdf5 share: blocks of images that are read where they lie in a memory map."""

import ctypes
import itertools
import mmap
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from imgstore._checksums import Checksums, block_checksum, image_checksum, image_checksums
from imgstore._images import Array, Block, Form, Labels, image_bytes
from imgstore._store import Contents, Many, Pair
from imgstore.errors import CorruptStoreError


class View(NamedTuple):
    """A block in the map, and the checksums stored beside it."""

    block: Block
    checksums: Checksums  # (k,)
    checksum: int  # of the block


SINGLE = Contents(1, None, 1)
_MOST_BYTES = 2**63 - 1  # of an array, as NumPy counts them
_LIBC = ctypes.CDLL(None)


class Mapped(Many):
    """A file of blocks. `first` is the id of its first image."""

    labels: Labels  # (count,) where `form` is not None; of the images that `view` or `take` was asked for
    checksums: Checksums  # likewise
    addresses: Labels  # likewise: where the pixels of each block lie, 0 for a block that no `view` met yet

    def __init__(self, path: str, first: int, contents: Contents, verify: bool) -> None:
        self.path, self.first, self.verify = path, first, verify
        self.count, self.form, self.per_block = contents

    @abstractmethod
    def view(self, image_id: int) -> View:
        """Consecutive images that hold this one; their own bounds are checked."""

    @abstractmethod
    def block(self, first: int) -> View:
        """The block of this image."""

    @abstractmethod
    def take(self, ids: Labels) -> Array:
        """The images of these ids, copied; asked only where `form` is not None."""

    def copy(self, mapped: Array, images: Array) -> None:
        """Fill `images` with a block's."""
        np.copyto(images, mapped)

    def read(self, image_id: int) -> Pair:
        (first, images, labels), checksums, _ = self.view(image_id)
        row = image_id - first
        image, label = images[row].copy(), int(labels[row])
        if self.verify and image_checksum(image, image_id, label) != checksums[row]:
            raise self.fault("does not match its checksum", image_id)
        return image, label

    def gather(self, ids: Labels) -> tuple[Array, Labels]:
        images = self.take(ids)
        labels = self.labels[ids]
        if self.verify:
            for image_id in ids[image_checksums(images, ids, labels) != self.checksums[ids]]:
                raise self.fault("does not match its checksum", int(image_id))
        return images, labels

    def read_blocks(self, images: Array | None = None, once: bool = False) -> Iterator[Block]:
        first = self.first
        while first < self.first + self.count:
            (found, mapped, labels), checksums, checksum = self.block(first)
            if found != first:
                raise self.fault("the blocks do not follow one another", first)
            last = first + len(mapped)
            read = Block(first, _room(mapped) if images is None else images[first:last], labels.copy())
            self.copy(mapped, read.images)
            if once:
                _let_go(mapped)
            if self.verify and block_checksum(read, checksums) != checksum:
                raise self.fault(f"the block of {len(mapped)} images does not match its checksum", first)
            yield read
            first = last

    def forms(self) -> Iterator[Form]:
        first = self.first
        while first < self.first + self.count:
            images = self.block(first).block.images
            yield from itertools.repeat((images.shape[1:], images.dtype), len(images))
            first += len(images)

    def bounds(self, image_id: int) -> tuple[int, int]:
        """First id of the block of this image, and of the next block; where all images have one form."""
        first = image_id - (image_id - self.first) % self.per_block
        return first, min(first + self.per_block, self.first + self.count)

    def fault(self, message: str, image_id: int) -> CorruptStoreError:
        return CorruptStoreError(self.path, message, image_id)


def _room(images: Array) -> Array:
    """An array for a block; where it is one image, that is what owns the memory."""
    return np.empty_like(images[0])[np.newaxis] if len(images) == 1 else np.empty_like(images)


def _let_go(mapped: Array) -> None:
    """Of the pages that lie in it: else a cluster, say, which counts them as the process's, ends it as too large."""
    first, end = (
        -(-at // mmap.PAGESIZE) * mmap.PAGESIZE for at in (mapped.ctypes.data, mapped.ctypes.data + mapped.nbytes)
    )
    _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)


class _Memory:
    """What NumPy takes for an array at an address."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str, strides: tuple[int, ...] | None = None) -> None:
        told: dict[str, Any] = {"version": 3, "data": (address, True), "shape": shape, "typestr": kind}
        self.__array_interface__ = told | {"strides": strides}


def copies(addresses: Labels, form: Form) -> Array:
    """The images of this form at these addresses, one at least, copied; the caller holds what is mapped there."""
    shape, dtype = form
    lowest = int(addresses.min())
    span = int(addresses.max()) - lowest + 1
    if span * image_bytes(form) > _MOST_BYTES:
        return np.stack([np.asarray(_Memory(address, shape, dtype.str)) for address in addresses.tolist()])
    strides = 1, *np.empty(shape, dtype).strides
    # an image at every byte, of which NumPy gathers those that are asked for in one call
    everywhere = np.asarray(_Memory(lowest, (span, *shape), dtype.str, strides))
    return np.asarray(everywhere[addresses - lowest])


def checksums_of(block: Block) -> tuple[Checksums, int]:
    """The checksums to store beside a block: of each image, and its own."""
    ids = np.arange(len(block.labels)) + block.first
    checksums = image_checksums(block.images, ids, block.labels)
    return checksums, block_checksum(block, checksums)
