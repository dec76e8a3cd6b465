"""The verbs of the contract, written once over what a backend knows of its format."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from imgstore.core.blocks import (
    Array,
    Block,
    Form,
    Labels,
    block_of_one,
    blocks,
    checked_integer,
    checked_integers,
)
from imgstore.core.files import Root
from imgstore.core.format import Format, Pair
from imgstore.core.generations import Generation, must_be_ours, open_live
from imgstore.core.reader import Reader
from imgstore.core.singles import single_name
from imgstore.core.writing import make_durable, must_be_writer, replace_generation, replace_single, writing
from imgstore.errors import ImageNotFoundError, InvalidArgumentError, StoreNotFoundError


class Backend(Format):
    """The verbs of the contract, the same for all formats."""

    def store_many(self, root: Root, images: Iterable[Array], labels: Sized, *, durable: bool = True) -> None:
        """Make the store at `root` hold exactly these images, with ids 0 to N - 1: all or nothing.

        `images`: an `(N, H, W[, C])` array, a sequence or an iterator of `(H, W[, C])` arrays.
        `labels`: N integers that int64 holds. Until the call returns, readers see what was there before.
        With `durable`, power may fail once it has returned.

        Raises UnsupportedImageError, InvalidArgumentError (also when images and labels are not equally many),
        StoreBusyError, or the OSError of a full disk; the store is then as it was.
        """
        if not hasattr(labels, "__len__"):
            raise InvalidArgumentError("labels", "has no length, which gives N; give a list or an array")
        path = os.path.abspath(os.fsdecode(root))  # as a generator may change the current folder
        write = self.writer(images, checked_integers(labels, "labels"))
        with writing(path):
            replace_generation(path, self.name, durable, write)

    def writer(self, images: Iterable[Array], labels: Labels, owned: bool = False) -> Callable[[str], dict[str, Any]]:
        """What writes these to the files of a new generation, and gives its DESCRIPTION.

        The first block is drawn at once, so that a bad image is refused before anything is made. Labels are looked at
        when their images have been drawn. `owned`: as in `blocks`.
        """
        stream, writer = blocks(images, labels, self.refusal, owned), os.getpid()
        waiting, forms = [*itertools.islice(stream, 1)], set[Form]()
        told = _told(waiting[0]) if waiting else {}

        def noted(block: Block) -> Block:
            must_be_writer(writer, "the store")
            if len(forms) < 2:
                forms.add((block.images.shape[1:], block.images.dtype))
            return block

        def drawn() -> Iterator[Block]:
            while waiting:
                yield noted(waiting.pop())  # kept nowhere, as it may be the only image
            yield from map(noted, stream)

        def write(generation: str) -> dict[str, Any]:
            more = self.write_many(generation, drawn()) if waiting else {}
            return {"count": len(labels), **more, **(told if len(forms) == 1 else {})}

        return write

    def store_single(self, root: Root, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
        """Add one `(H, W[, C])` image to the store at `root`, or replace the one with that id: all or nothing.

        `image_id`: 0 to 2**63 - 1. `label`: an int64. A store that is not there yet is made.

        Raises UnsupportedImageError, InvalidArgumentError, StoreNotFoundError when `root` holds another
        backend's store, StoreBusyError, or the OSError of a full disk; the store is then as it was.
        """
        block = block_of_one(image, image_id, label, self.refusal)

        def write_first(generation: str) -> dict[str, Any]:
            self.write_singly(generation, block)
            return {"count": 0}

        path = os.fsdecode(root)
        with writing(path):
            must_be_ours(path)
            if not os.path.lexists(f"{path}/CURRENT"):
                replace_generation(path, self.name, durable, write_first)
                return
            generation = self._own(open_live(path, lambda generation: generation))
            if durable:
                make_durable(generation)
            replace_single(generation, block.first, self.suffix, durable, lambda new: self.write_single(new, block))

    def read_single(self, root: Root, image_id: int, *, verify: bool = True) -> Pair:
        """One image and its label. With `verify`, both were checked against their checksum.

        Raises StoreNotFoundError, ImageNotFoundError, CorruptStoreError.
        """
        number = checked_integer(image_id, "image_id")
        return open_live(root, lambda generation: self._read_one(self._own(generation), number, verify))

    def read_many(
        self, root: Root, image_ids: Iterable[int] | None = None, *, verify: bool = True
    ) -> tuple[Array | list[Array], Labels]:
        """Images and labels in the order of `image_ids`, which may repeat; all in ascending order for None.

        Gives one `(N, H, W[, C])` array where shapes and dtypes agree, else a list, and int64 `(N,)`.

        Raises StoreNotFoundError, ImageNotFoundError, CorruptStoreError, and StoreReplacedError when a writer
        replaced the store while it was read.
        """
        with self.open_reader(root, verify=verify) as reader:
            return reader.read_many(image_ids)

    def open_reader(self, root: Root, *, verify: bool = True) -> "Reader":
        """Keep the store at `root` open as a sequence of (image, label). See `Reader`.

        Raises StoreNotFoundError, CorruptStoreError.
        """
        return open_live(os.path.abspath(os.fsdecode(root)), lambda found: Reader(self, self._own(found), verify))

    def verify(self, root: Root) -> None:
        """Read everything at `root` and check it. Raises CorruptStoreError for the first fault found."""
        open_live(root, lambda generation: self.verify_generation(self._own(generation)))

    def _own(self, generation: Generation) -> Generation:
        if generation.backend == self.name:
            return generation
        raise StoreNotFoundError(
            generation.root,
            f"this is a store of {generation.backend}, not {self.name}; use imgstore.open_reader",
        )

    def _read_one(self, generation: Generation, image_id: int, verify: bool) -> Pair:
        with contextlib.suppress(FileNotFoundError):
            return self.read_stored_singly(generation.path(single_name(image_id, self.suffix)), image_id, verify)
        if generation.is_listed(image_id):
            return self.checked_single(generation, image_id, verify).read(image_id)
        many = self.open_all(generation, verify)
        if not 0 <= image_id < many.count:
            raise ImageNotFoundError(image_id, generation.root)
        return many.read(image_id)


def _told(first: Block) -> dict[str, Any]:
    """What DESCRIPTION tells where all images have the form of the first block."""
    images = first.images
    return {"shape": images.shape[1:], "dtype": images.dtype.str, "per_block": len(images)}
