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

from imgstore.core.blocks import Array, Labels, block_of_one, checked_integer
from imgstore.core.checksums import image_checksum, image_checksums
from imgstore.core.format import Pair
from imgstore.core.generations import Generation, generations, is_store, sharded
from imgstore.core.singles import single_name
from imgstore.core.verbs import Backend
from imgstore.core.writing import new_name, replace_generation
from imgstore.errors import CorruptStoreError, InvalidArgumentError

Lock = Callable[[], AbstractContextManager[object]]
Show = Callable[[Iterable[Any], str], Iterable[Any]]


def convert(
    pairs: Iterable[Pair],
    many: int,
    behind: Labels,
    root: str,
    backend: Backend,
    replace: bool,
    show: Show,
    lock: Lock,
) -> None:
    """Make the store at `root` hold these pairs, `many` under ids from 0 on, the rest under `behind`: all or nothing.

    Those behind are stored singly. What was written is read back and compared, see `compared_writer`, before it takes
    the place of a store at `root`, of which `must_be_free` was asked before.
    `lock`: makes and holds `root` once the first images are drawn, or does nothing where the caller holds it, as it
    must where they come from there.

    Raises InvalidArgumentError where there is a store at `root` meanwhile, and not `replace`; CorruptStoreError where
    other images are read back; and what `store_many` raises.
    """
    write = compared_writer(pairs, many, behind, backend, show)
    with lock():
        must_be_free(root, replace)  # again: now nobody else can make a store there
        replace_generation(root, backend.name, True, write)


def compared_writer(
    pairs: Iterable[Pair], many: int | None, behind: Labels, backend: Backend, show: Show
) -> Callable[[str], dict[str, Any]]:
    """As `Backend.writer`; what was written is read back and compared with a checksum of what was given.

    `many`: None for as many as there are pairs, with nothing behind. `show`: told of all pairs as they are stored
    and as they are read back.
    """
    given = _Given(show(pairs, "storing"), many, behind)
    images = iter(given)
    write_many = backend.writer(itertools.islice(images, many), given.labels_of(many), owned=True)

    def write(generation: str) -> dict[str, Any]:
        description = write_many(generation)
        # the images first, so that one more is asked for when all are stored: see `_Given`
        for image, row in zip(images, itertools.count(many or 0)):
            backend.write_singly(generation, block_of_one(image, given.id_at(row), given.labels[row], backend.refusal))
        folder, name = os.path.split(generation)
        written = Generation(folder, backend.name, name, False, "", description)
        given.must_equal(generation, show(_checksums_of(backend, written), "comparing"))
        return description

    return write


def must_be_free(root: str, replace: bool) -> None:
    """Raise InvalidArgumentError where a store, or anything else, is in the way at `root`."""
    if is_store(root) and not sharded(root):
        if not replace:
            raise InvalidArgumentError("DEST", f"there is a store at {root} already; replace it with --replace")
    else:
        must_be_new(
            root, "DEST", lambda name: name in ("LOCK", os.path.basename(new_name(root, "CURRENT")), *generations(root))
        )


def must_be_new(root: str, argument: str, may_stand: Callable[[str], bool]) -> None:
    """Raise InvalidArgumentError where there is a sharded store at `root`, or anything but what may stand there."""
    reason = sharded(root)
    if not reason and os.path.isdir(root) and not all(map(may_stand, os.listdir(root))):
        reason = f"{root} holds other files; give a folder that is new or empty"
    if reason:
        raise InvalidArgumentError(argument, reason)


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


def _checksums_of(backend: Backend, generation: Generation) -> Iterator[int]:
    """Of every image that is stored there, as it is read back."""
    for first, images, labels in backend.open_all(generation, True).read_blocks():
        yield from image_checksums(images, np.arange(first, first + len(labels)), labels).tolist()
    for image_id in generation.singles(backend.suffix).tolist():
        path = generation.path(single_name(image_id, backend.suffix))
        image, label = backend.read_stored_singly(path, image_id, True)
        yield image_checksum(image, image_id, label)


class _Given:
    """Images to store; of each, its label, and its checksum once the next one is drawn.

    So who draws checks an image before anything is done with it.
    """

    def __init__(self, pairs: Iterable[Pair], many: int | None, behind: Labels) -> None:
        self.pairs, self.many, self.behind, self.ended = pairs, many, behind, False
        self.labels, self.checksums = array("q"), array("Q")

    def __iter__(self) -> Iterator[Array]:
        ids = itertools.count() if self.many is None else itertools.chain(range(self.many), map(int, self.behind))
        for image_id, (image, label) in zip(ids, self.pairs, strict=self.many is not None):
            self.labels.append(checked_integer(label, "label"))
            if isinstance(image, np.ndarray) and image.dtype.kind == "b":
                image = image.view(np.uint8) != 0  # one byte for True, as every format gives it back
            yield image
            pixels = np.ascontiguousarray(image, image.dtype.newbyteorder("="))
            self.checksums.append(image_checksum(pixels, image_id, self.labels[-1]))
        self.ended = True

    def id_at(self, row: int) -> int:
        return row if self.many is None or row < self.many else int(self.behind[row - self.many])

    def labels_of(self, count: int | None) -> Labels:
        """The labels of the first `count`, or of all, that can be asked for when their images were drawn."""
        return cast(Labels, _Labels(self, count))

    def must_equal(self, path: str, checksums: Iterable[int]) -> None:
        """Raise CorruptStoreError unless what was read back from `path` has these checksums."""
        compared = itertools.zip_longest(checksums, self.checksums)
        for row, (now, then) in enumerate(compared):
            if now != then:
                raise CorruptStoreError(path, "what is read back is not what was given to store", self.id_at(row))


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
