"""The verbs of the contract, written once over what a backend knows of its format."""

import collections
import contextlib
import itertools
import operator
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from imgstore._files import NewFile, Root, new_file
from imgstore._generations import (
    Generation,
    listing,
    make_durable,
    must_be_ours,
    must_be_writer,
    open_live,
    replace_generation,
    replace_single,
    single_name,
    writing,
)
from imgstore._images import (
    Array,
    Block,
    Form,
    Labels,
    block_of_one,
    blocks,
    checked_integer,
    checked_integers,
    form_of,
    is_block,
)
from imgstore.errors import (
    CorruptStoreError,
    ImageNotFoundError,
    InvalidArgumentError,
    ReaderClosedError,
    StoreNotFoundError,
    StoreReplacedError,
)

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


class Backend(ABC):
    """A format. A subclass tells how its files are written and read; the verbs are the same for all."""

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

    def write_singly(self, generation: str, block: Block) -> None:
        """Write a single to a generation that is not live yet."""
        os.makedirs(f"{generation}/singles", exist_ok=True)
        with (
            listing(generation, block.first),
            new_file(f"{generation}/{single_name(block.first, self.suffix)}") as file,
        ):
            self.write_single(file, block)

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


class Reader(Sequence[Pair]):
    """A store kept open: a sequence of (image, label), by position in ascending order of ids.

    It reads the generation, and of singles the ids, that it found when it was opened: open another to see
    later ones. A single that is replaced meanwhile is read as it was or as it is, whole in either case. When the
    store is replaced, what is read is still the old, or StoreReplacedError says so. Threads may share it. It
    pickles, and goes on in a forked or spawned process without harm to this one.
    """

    def __init__(self, backend: Backend, generation: Generation, verify: bool, singles: Labels | None = None) -> None:
        self._backend = backend
        self.generation = generation  # that it reads
        self._verify = verify
        if singles is None:
            singles = generation.singles(backend.suffix)
        self._hold(backend.open_all(generation, verify), singles)

    def _hold(self, many: Many, singles: Labels) -> None:
        self._many: Many | None = many
        self._singles = singles
        self._added = singles[singles >= many.count]
        self._replaced = frozenset(singles[: len(singles) - len(self._added)].tolist())

    @property
    def ids(self) -> Labels:
        """The id at each position: int64 `(N,)`, ascending."""
        return np.concatenate([np.arange(self._open().count), self._added])

    def read_many(self, image_ids: Iterable[int] | None = None) -> tuple[Array | list[Array], Labels]:
        """As `read_many` of the backend, from the open store.

        For None whole blocks are read and checked, so damage of an image that a single replaced is found, too.
        """
        if image_ids is None:
            return self._read_all(self._open())
        lazy = isinstance(image_ids, Iterable) and not hasattr(image_ids, "__len__")
        return self._read_these(self._open(), checked_integers(list(image_ids) if lazy else image_ids, "image_ids"))

    def _read_these(self, many: Many, ids: Labels) -> tuple[Array | list[Array], Labels]:
        if not self._singles.size and many.form and len(ids) and ids.min() >= 0 and ids.max() < many.count:
            return many.gather(ids)  # as most are
        single = np.isin(ids, self._singles) if self._singles.size else np.zeros(len(ids), bool)
        for missing in ids[~single & ((ids < 0) | (ids >= many.count))]:
            raise ImageNotFoundError(int(missing), self.generation.root)
        if many.form and len(ids):
            images, labels = np.empty((len(ids), *many.form[0]), many.form[1]), np.empty(len(ids), np.int64)
            if self._fill_singles(images, labels, np.flatnonzero(single).tolist(), ids):
                if not single.all():
                    images[~single], labels[~single] = many.gather(ids[~single])
                return images, labels
        read = (self._read_single if is_single else many.read for is_single in single.tolist())
        return stacked([each(image_id) for each, image_id in zip(read, ids.tolist(), strict=True)])

    def _read_all(self, many: Many) -> tuple[Array | list[Array], Labels]:
        """By whole blocks, so without a list of ids, which a store may claim many of."""
        count = many.count + len(self._added)
        if many.form:
            images, labels = np.empty((count, *many.form[0]), many.form[1]), np.empty(count, np.int64)
            for first, _, read in many.read_blocks(images):
                labels[first : first + len(read)] = read
            replaced = self._singles[: len(self._replaced)]
            rows = [*replaced.tolist(), *range(many.count, count)]  # their ids, and places behind the last
            if self._fill_singles(images, labels, rows, None):
                return images, labels
            del images
        pairs = (self._read_single(row) if row in self._replaced else pair for row, pair in enumerate(_pairs(many)))
        return stacked([*pairs, *map(self._read_single, self._added.tolist())])

    def _fill_singles(self, images: Array, labels: Labels, rows: list[int], ids: Labels | None) -> bool:
        """Whether all singles at these rows have the form of the others, so that they could be put there."""
        for row, image_id in zip(rows, self._singles.tolist() if ids is None else ids[rows].tolist(), strict=True):
            image, label = self._read_single(image_id)
            if (image.shape, image.dtype) != (images.shape[1:], images.dtype):
                return False
            images[row], labels[row] = image, label
        return True

    def forms(self) -> Counter[Form]:
        """How many images have each shape and dtype, for which no pixels are read."""
        many = self._open()
        forms = itertools.repeat(many.form, many.count) if many.form else many.forms()
        counted = Counter(form for image_id, form in enumerate(forms) if image_id not in self._replaced)
        for image_id in self._singles.tolist():
            counted.update(self._backend.checked_single(self.generation, image_id, self._verify).forms())
        return counted

    def readers(self) -> Iterator["Reader"]:
        """Of the stores that it reads: itself, or of a sharded one each shard's, good until the next one is drawn."""
        self._open()
        return iter([self])

    def unreplaced(self) -> Many | None:
        """What one store_many wrote, where no single was added to it or takes the place of one of its images."""
        many = self._open()
        return None if self._singles.size else many

    def close(self) -> None:
        """Let go of the store. Reading then raises ReaderClosedError; closing again does nothing."""
        self._many = None

    def __len__(self) -> int:
        return self._open().count + len(self._added)

    def __getitem__(self, position: int) -> Pair:  # type: ignore[override]  # no slices
        many = self._many
        if many and type(position) is int and 0 <= position < many.count and not self._replaced:  # as most are
            return many.read(position)
        return self._read(self._open(), position)

    def __getitems__(self, positions: Iterable[int]) -> list[Pair]:
        """The pairs at these positions, read at once; PyTorch's DataLoader calls it with a whole batch.

        Where all images have one form, they are rows of one array.
        """
        many = self._open()
        images, labels = self.read_many([self._id_at(many, position) for position in positions])
        return list(zip(images, labels.tolist(), strict=True))

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self._open()
        generation = self.generation
        return _reopened, (self._backend, generation.root, generation.name, self._verify, self._singles)

    def _open(self) -> Many:
        if self._many is None:
            raise ReaderClosedError("this reader was closed; open another")
        return self._many

    def _read(self, many: Many, position: int) -> Pair:
        image_id = self._id_at(many, position)
        if image_id >= many.count or image_id in self._replaced:
            return self._read_single(image_id)
        return many.read(image_id)

    def _id_at(self, many: Many, position: int) -> int:
        index = operator.index(position)
        length = many.count + len(self._added)
        if not -length <= index < length:
            raise IndexError(f"position {index} is not in a reader of {length} images")
        index %= length
        return index if index < many.count else int(self._added[index - many.count])

    def _read_single(self, image_id: int) -> Pair:
        return self._backend.checked_single(self.generation, image_id, self._verify).read(image_id)


def _told(first: Block) -> dict[str, Any]:
    """What DESCRIPTION tells where all images have the form of the first block."""
    images = first.images
    return {"shape": images.shape[1:], "dtype": images.dtype.str, "per_block": len(images)}


def _reopened(backend: Backend, root: str, name: str, verify: bool, singles: Labels) -> Reader:
    """A reader that was pickled: of the same generation, or not at all."""

    def reopen(generation: Generation) -> Reader:
        if generation.name != name:
            raise StoreReplacedError(root, "the store was replaced since the reader was pickled; open it again")
        return Reader(backend, generation, verify, singles)

    return open_live(root, reopen)


def _pairs(many: Many) -> Iterator[Pair]:
    """All of them, each in memory of its own, as that of a block of one is already."""
    for _, images, labels in many.read_blocks():
        owned = [images.base] if len(images) == 1 else [image.copy() for image in images]
        yield from zip(owned, labels.tolist(), strict=True)


def stacked(pairs: list[Pair]) -> tuple[Array | list[Array], Labels]:
    """Images and labels: one array where all have one form, else a list. `pairs` is empty afterwards."""
    labels = np.fromiter((label for _, label in pairs), np.int64, len(pairs))
    if len({(image.shape, image.dtype) for image, _ in pairs}) != 1:
        return [image for image, _ in pairs], labels
    images = np.empty((len(pairs), *pairs[0][0].shape), pairs[0][0].dtype)
    for row in reversed(range(len(pairs))):
        images[row] = pairs.pop()[0]  # one after the other, so that there are never two of all
    return images, labels
