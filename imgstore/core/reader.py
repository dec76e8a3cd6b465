"""A store kept open."""

import itertools
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, overload

import numpy as np

from imgstore.core.blocks import Array, Form, Labels, checked_integers
from imgstore.core.format import Format, Many, Pair
from imgstore.core.generations import Generation, open_live
from imgstore.errors import ImageNotFoundError, ReaderClosedError, StoreReplacedError


class Reader(Sequence[Pair]):
    """A store kept open: a sequence of (image, label), by position in ascending order of ids.

    It reads the generation, and of singles the ids, that it found when it was opened: open another to see
    later ones. A single that is replaced meanwhile is read as it was or as it is, whole in either case. When the
    store is replaced, what is read is still the old, or StoreReplacedError says so. Threads may share it. It
    pickles, and goes on in a forked or spawned process without harm to this one.
    """

    def __init__(self, backend: Format, generation: Generation, verify: bool, singles: Labels | None = None) -> None:
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

    @overload  # type: ignore[override]  # a slice gives arrays, as in NumPy, and no sequence of pairs
    def __getitem__(self, position: int) -> Pair: ...

    @overload
    def __getitem__(self, position: slice | list[int] | Labels) -> tuple[Array | list[Array], Labels]: ...

    def __getitem__(self, position: Any) -> Any:
        """The pair at a position; of a slice, a list or an array of positions `(images, labels)` as `read_many` does.

        Positions count as in NumPy: negative ones from the end. Raises IndexError beyond the end, and
        InvalidArgumentError for anything else than integers, such as a boolean mask.
        """
        many = self._many
        if many and type(position) is int and 0 <= position < many.count and not self._replaced:  # as most are
            return many.read(position)
        if isinstance(position, slice | list) or (isinstance(position, np.ndarray) and position.ndim):
            return self._read_these(self._open(), self._ids_at(position))
        return self._read(self._open(), position)

    def __getitems__(self, positions: Iterable[int]) -> list[Pair]:
        """The pairs at these positions, read at once; PyTorch's DataLoader calls it with a whole batch.

        Where all images have one form, they are rows of one array.
        """
        many = self._open()
        images, labels = self.read_many([self._id_at(many, position) for position in positions])
        return list(zip(images, labels.tolist(), strict=True))

    def __repr__(self) -> str:
        many, at = self._many, f"{type(self).__name__} of {self.generation.root}"
        if many is None:
            return f"<{at}, closed>"
        shown = [f"{len(self):,} images"]
        if many.count:
            shape, dtype = many.form or ((), None)
            shown.append(f"{'x'.join(map(str, shape))} {dtype}" if dtype else "several shapes or dtypes")
        if self._singles.size:
            shown.append(f"{self._singles.size:,} stored singly")
        return f"<{at}: {self.generation.backend}, {', '.join(shown)}>"

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

    def id_at(self, position: int) -> int:
        """The id at a position, without a list of all. Raises IndexError."""
        return self._id_at(self._open(), position)

    def _id_at(self, many: Many, position: int) -> int:
        index = operator.index(position)
        length = many.count + len(self._added)
        if not -length <= index < length:
            raise IndexError(f"position {index} is not in a reader of {length} images")
        index %= length
        return index if index < many.count else int(self._added[index - many.count])

    def _ids_at(self, positions: slice | list[int] | Labels) -> Labels:
        length = len(self)
        if isinstance(positions, slice):
            indices = np.arange(*positions.indices(length))
        else:
            indices = checked_integers(positions, "positions")
        for index in indices[(indices < -length) | (indices >= length)].tolist():
            raise IndexError(f"position {index} is not in a reader of {length} images")
        return self.ids[indices]

    def _read_single(self, image_id: int) -> Pair:
        return self._backend.checked_single(self.generation, image_id, self._verify).read(image_id)


def _reopened(backend: Format, root: str, name: str, verify: bool, singles: Labels) -> Reader:
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
