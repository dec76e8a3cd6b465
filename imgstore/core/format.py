"""What a format gives: how its files are written, and what it opened."""

import collections
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from imgstore.core.blocks import Array, Block, Form, Labels, form_of, is_block
from imgstore.core.files import NewFile, new_file
from imgstore.core.generations import Generation
from imgstore.core.singles import listing, single_name
from imgstore.errors import CorruptStoreError

Pair = tuple[Array, int]


class Contents(NamedTuple):
    """What DESCRIPTION tells of the many, whatever the backend."""

    total: int
    form: Form | None  # of every image where they agree
    per_block: int  # images in each block but the last, where `form` is not None; else 0


class Many:
    """What one store_many wrote, open for reading: ids 0 to `count` - 1. The base is a generation without any.

    `form` is the shape and dtype of every image where they agree, else None. A Many holds what it opened
    until the last reference to it is gone, so a thread that reads is safe from another that closes.
    """

    count: int = 0
    form: Form | None = None

    def read(self, image_id: int) -> Pair:
        """One image, in memory of its own, and its label."""
        raise NotImplementedError

    def gather(self, ids: Labels) -> tuple[Array | list[Array], Labels]:
        """The images and labels of these ids, in their order; asked only where `form` is not None."""
        raise NotImplementedError

    def read_blocks(self, images: Array | None = None) -> Iterator[Block]:
        """All images, in ascending order: into the rows of `images`, or each block into memory of its own."""
        return iter(())

    def forms(self) -> Iterator[Form]:
        """Shape and dtype of each image; a format that can tells them without reading pixels."""
        for _, images, _ in self.read_blocks():
            yield from itertools.repeat((images.shape[1:], images.dtype), len(images))


class Format(ABC):
    """How the files of a format are written and read. A subclass gives the first five; the rest follows from them."""

    name: ClassVar[str]
    suffix: ClassVar[str]  # of the file that a single is

    def refusal(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
        """Why the format cannot hold such an image without loss, or None."""
        return None

    @abstractmethod
    def write_many(self, generation: str, blocks: Iterator[Block]) -> dict[str, Any]:
        """Write at least one block to files in the directory; gives what DESCRIPTION keeps for the format."""

    @abstractmethod
    def open_many(self, generation: Generation, contents: Contents, verify: bool) -> Many:
        """Open what `write_many` wrote, of one image or more."""

    @abstractmethod
    def write_single(self, file: NewFile, block: Block) -> None:
        """Write a block of one image to a new file."""

    @abstractmethod
    def open_single(self, path: str, image_id: int, verify: bool) -> Many:
        """Open what `write_single` wrote. Raises FileNotFoundError where there is no such file."""

    def verified(self, generation: Generation) -> Iterator[Block]:
        """What `write_many` wrote, read and checked block by block."""
        many, seen = self.open_all(generation, True), 0
        for block in many.read_blocks():
            seen += len(block.labels)
            yield block
        if seen != many.count:
            raise CorruptStoreError(generation.path(), f"holds {seen} images, not {many.count}")

    def write_singly(self, generation: str, block: Block) -> None:
        """Write a single to a generation that is not live yet."""
        os.makedirs(f"{generation}/singles", exist_ok=True)
        with (
            listing(generation, block.first),
            new_file(f"{generation}/{single_name(block.first, self.suffix)}") as file,
        ):
            self.write_single(file, block)

    def open_all(self, generation: Generation, verify: bool) -> Many:
        """`open_many` of what DESCRIPTION tells, whose numbers are checked here."""
        entry = generation.description
        count, per_block = numbers = entry.get("count"), entry.get("per_block", 0)
        form = form_of(entry.get("shape"), entry.get("dtype"))
        sound = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        if not sound or per_block > count or bool(form) != bool(per_block) or (form and not is_block(per_block, form)):
            raise CorruptStoreError(generation.path("DESCRIPTION"), "describes no images that could be stored")
        return self.open_many(generation, Contents(count, form, per_block), verify) if count else Many()

    def read_stored_singly(self, path: str, image_id: int, verify: bool) -> Pair:
        """What `write_single` wrote. Raises FileNotFoundError where there is no such file."""
        return self.open_single(path, image_id, verify).read(image_id)

    def verify_generation(self, generation: Generation) -> None:
        """Read everything in it and check it."""
        collections.deque(self.verified(generation), maxlen=0)
        for image_id in generation.singles(self.suffix).tolist():
            self.checked_single(generation, image_id, True).read(image_id)

    def checked_single(self, generation: Generation, image_id: int, verify: bool) -> Many:
        """`open_single` of one that must be there: never an older image of this id from the many."""
        path = generation.path(single_name(image_id, self.suffix))
        try:
            return self.open_single(path, image_id, verify)
        except FileNotFoundError:
            raise generation.fault(path, "is missing from the store", image_id) from None
