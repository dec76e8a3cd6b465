"""A store made of images from elsewhere: streamed, all or nothing, and compared before it counts."""

import itertools
import os
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from imgstore._checksums import image_checksum
from imgstore._generations import Generation, generations, is_store, replace_generation, sharded, single_name
from imgstore._images import Block, Labels, Refusal, block_of_one
from imgstore._store import Backend, Pair, Reader
from imgstore.errors import CorruptStoreError, InvalidArgumentError

Lock = AbstractContextManager[object]
Show = Callable[[Iterable[Pair], str], Iterable[Pair]]


def convert(
    pairs: Iterable[Pair], ids: Labels, root: str, backend: Backend, replace: bool, show: Show, lock: Lock
) -> None:
    """Make the store at `root` hold these pairs under these ids, which ascend: all or nothing.

    Ids from 0 on without a gap are stored as the many, the rest singly. What was written is read back and compared,
    see `compared_writer`, before it takes the place of a store at `root`, of which `must_be_free` was asked before.
    `lock`: makes and holds `root` once the first images are drawn, or does nothing where the caller holds it, as it
    must where they come from there.

    Raises InvalidArgumentError where there is a store at `root` meanwhile, and not `replace`; CorruptStoreError where
    other images are read back; and what `store_many` raises.
    """
    write = compared_writer(pairs, ids, backend, show)
    with lock:
        must_be_free(root, replace)  # again: now nobody else can make a store there
        replace_generation(root, backend.name, True, write)


def compared_writer(
    pairs: Iterable[Pair], ids: Labels | None, backend: Backend, show: Show
) -> Callable[[str], dict[str, Any]]:
    """As `Backend.writer`; what was written is read back and compared with a checksum of what was given.

    `ids`: None for so many from 0 on as there are pairs. `show`: told of all pairs as they are stored and as they are
    read back.
    """
    given = _Given(show(pairs, "storing"), ids, backend.refusal)
    many = None if ids is None else int(np.count_nonzero(ids == np.arange(len(ids))))
    blocks = iter(given)
    images = (block.images[0] for block in itertools.islice(blocks, many))
    write_many = backend.writer(images, given.labels_of(many))

    def write(generation: str) -> dict[str, Any]:
        description = write_many(generation)
        for block in blocks:
            backend.write_single(f"{generation}/{single_name(block.first, backend.suffix)}", block)
        folder, name = os.path.split(generation)
        with Reader(backend, Generation(folder, backend.name, name, False, "", description), True) as reader:
            given.must_equal(generation, reader.ids, show(reader, "comparing"))
        return description

    return write


def must_be_free(root: str, replace: bool) -> None:
    """Raise InvalidArgumentError where a store, or anything else, is in the way at `root`."""
    if reason := sharded(root):
        raise InvalidArgumentError("DEST", reason)
    if is_store(root):
        if not replace:
            raise InvalidArgumentError("DEST", f"there is a store at {root} already; replace it with --replace")
    elif os.path.isdir(root) and set(os.listdir(root)) - {"LOCK", "CURRENT.new", *generations(root)}:
        raise InvalidArgumentError("DEST", f"{root} holds other files; give a folder that is new or empty")


def must_be_usable(root: str) -> None:
    """Raise InvalidArgumentError where no folder can be made at `root`, or the one there not used. Leaves nothing."""
    made = list[Path]()
    try:
        for folder in reversed((Path(root), *Path(root).parents)):
            if not os.path.lexists(folder):
                folder.mkdir()
                made.append(folder)
        with os.scandir(root), tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        message = f"{root} cannot be made or written to ({error.strerror}); give another folder"
        raise InvalidArgumentError("DEST", message) from None
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # somebody else may have stored something there meanwhile
                folder.rmdir()


class _Given:
    """Images to store, each a block; of those that were drawn, labels and checksums."""

    def __init__(self, pairs: Iterable[Pair], ids: Labels | None, refusal: Refusal) -> None:
        self.pairs, self.ids, self.refusal, self.ended = pairs, ids, refusal, False
        self.labels, self.checksums = array("q"), array("Q")

    def __iter__(self) -> Iterator[Block]:
        ids = itertools.count() if self.ids is None else map(int, self.ids)
        for image_id, (image, label) in zip(ids, self.pairs, strict=self.ids is not None):
            block = block_of_one(image, image_id, label, self.refusal)
            pixels = block.images[0]
            if pixels.dtype.kind == "b":  # one byte for True, as every format gives it back
                block = block._replace(images=(pixels.view(np.uint8) != 0)[np.newaxis])
            number = int(block.labels[0])
            self.labels.append(number)
            self.checksums.append(image_checksum(block.images[0], image_id, number))
            yield block
        self.ended = True

    def labels_of(self, count: int | None) -> Labels:
        """The labels of the first `count`, or of all, that can be asked for when their images were drawn."""
        return cast(Labels, _Labels(self, count))

    def must_equal(self, path: str, ids: Labels, pairs: Iterable[Pair]) -> None:
        """Raise CorruptStoreError unless these pairs, read back from `path`, are those that were given."""
        given = range(len(self.labels)) if self.ids is None else self.ids.tolist()
        read = zip(ids.tolist(), pairs, strict=True)
        checksums = (image_checksum(image, image_id, label) for image_id, (image, label) in read)
        for image_id, now, then in itertools.zip_longest(given, checksums, self.checksums):
            if now != then:
                raise CorruptStoreError(path, "what is read back is not what was given to store", image_id)


class _Labels:
    """What `Backend.writer` needs of an array. Until all came of a number that nobody knows, there are more to come."""

    def __init__(self, given: _Given, count: int | None) -> None:
        self.given, self.count = given, count

    def __len__(self) -> int:
        if self.count is not None:
            return self.count
        return len(self.given.labels) if self.given.ended else sys.maxsize

    def __getitem__(self, rows: slice) -> Labels:
        return np.array(self.given.labels[rows], np.int64)
