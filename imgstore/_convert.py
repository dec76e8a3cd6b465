"""A store made of images from elsewhere: streamed, all or nothing, and compared before it counts."""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from imgstore._checksums import image_checksum
from imgstore._generations import Generation, generations, is_store, replace_generation, single_name
from imgstore._images import Array, Labels, block_of_one
from imgstore._store import Backend, Pair, Reader
from imgstore.errors import CorruptStoreError, InvalidArgumentError

Lock = AbstractContextManager[object]
Show = Callable[[Iterable[Pair], str], Iterable[Pair]]


def convert(
    pairs: Iterable[Pair], ids: Labels, root: str, backend: Backend, replace: bool, show: Show, lock: Lock
) -> None:
    """Make the store at `root` hold these pairs under these ids, which ascend: all or nothing.

    Ids from 0 on without a gap are stored as the many, the rest singly. What was written is read back and compared
    with a checksum of what was given, before it takes the place of a store at `root`, of which `must_be_free` was asked
    before. `show`: told of all pairs as they are stored and as they are read back. `lock`: makes and holds `root`
    once the first images are drawn, or does nothing where the caller holds it, as it must where they come from there.

    Raises InvalidArgumentError where there is a store at `root` meanwhile, and not `replace`; CorruptStoreError where
    other images are read back; and what `store_many` raises.
    """
    given = _Given(show(pairs, "storing"), ids)
    many = int(np.count_nonzero(ids == np.arange(len(ids))))
    images = iter(given)
    write_many = backend.writer(itertools.islice(images, many), given.labels[:many])

    def write(generation: str) -> dict[str, Any]:
        description = write_many(generation)
        for row, image in enumerate(images, many):
            block = block_of_one(image, int(ids[row]), int(given.labels[row]), backend.refusal)
            backend.write_single(f"{generation}/{single_name(block.first, backend.suffix)}", block)
        folder, name = os.path.split(generation)
        with Reader(backend, Generation(folder, backend.name, name, False, "", description), True) as reader:
            given.must_equal(generation, reader.ids, show(reader, "comparing"))
        return description

    with lock:
        must_be_free(root, replace)  # again: now nobody else can make a store there
        replace_generation(root, backend.name, True, write)


def must_be_free(root: str, replace: bool) -> None:
    """Raise InvalidArgumentError where a store, or anything else, is in the way at `root`."""
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
    """Images to store; of each that was drawn, its label and checksum."""

    def __init__(self, pairs: Iterable[Pair], ids: Labels) -> None:
        self.pairs, self.ids = pairs, ids
        self.labels, self.checksums = np.empty(len(ids), np.int64), np.empty(len(ids), np.uint64)

    def __iter__(self) -> Iterator[Array]:
        for row, (image, label) in enumerate(self.pairs):
            # one byte for True, as every format gives it back
            pixels = image.view(np.uint8) != 0 if image.dtype.kind == "b" else image
            self.labels[row], self.checksums[row] = label, image_checksum(pixels, int(self.ids[row]), label)
            yield pixels

    def must_equal(self, path: str, ids: Labels, pairs: Iterable[Pair]) -> None:
        """Raise CorruptStoreError unless these pairs, read back from `path`, are those that were given."""
        read = zip(ids.tolist(), pairs, strict=True)
        checksums = (image_checksum(image, image_id, label) for image_id, (image, label) in read)
        for image_id, now, then in itertools.zip_longest(self.ids.tolist(), checksums, self.checksums.tolist()):
            if now != then:
                raise CorruptStoreError(path, "what is read back is not what was given to store", image_id)
