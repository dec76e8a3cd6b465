"""The calls that faults interrupt, what a store holds before and after each, and what a fault has left of it."""

import os
import re
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from imgstore import BACKENDS
from imgstore.core.blocks import Array, Labels
from imgstore.errors import StoreNotFoundError
from imgstore.tests.checks import Record, record, records
from imgstore.tests.faults.plain import PLAIN

State = list[Record]  # in ascending order of ids, which are 0 to N - 1

OLD_COUNT, NEW_COUNT = 20, 24  # images
SIDE = 16  # pixels, of a small store's images
WHOLE = frozenset({"old", "new", "none", "kept"})  # what a fault may leave

_GENERATION = re.compile(r"imgstore-\d{6}-[0-9a-f]{12}")
_OWN_FILE = re.compile(r"LOCK|CURRENT|generation(/(DESCRIPTION|labels\.csv|images\.mdb|images\.h5|\d{8}\.png))?")


class Store(NamedTuple):
    """A column of the table: a backend, or what tutorials do with its format."""

    format: str
    verbs: Any
    ours: bool

    def __str__(self) -> str:
        return self.format if self.ours else f"plain-{self.format}"


OURS = [Store(name, backend, True) for name, backend in BACKENDS.items()]
STORES = [*OURS, *(Store(name, plain, False) for name, plain in PLAIN.items())]


ours = pytest.mark.parametrize("store", OURS, ids=str)  # for a test of what only ours promises


class Pictures(NamedTuple):
    """What store_many takes."""

    images: Array
    labels: Labels


class Change(NamedTuple):
    """One call, and the state before and after it; None where there is no store."""

    before: State | None
    after: State
    verb: str
    arguments: tuple[Any, ...]

    def make(self, store: Store, root: Path, **terms: bool) -> None:
        """The call; `terms` are for ours."""
        getattr(store.verbs, self.verb)(root, *self.arguments, **(terms if store.ours else {}))

    def outcome(self, state: State | None) -> str:
        """What was found after a fault, in a word: one of `WHOLE`, or what is wrong."""
        if state == self.after:
            return "new"
        if state == self.before:
            return "old" if state else "none"
        if not state:
            return "lost" if state is None else "empty"
        return "partial" if self.before is None else "mixed"


CHANGES = (
    "first store_many",
    "store_many again",
    "first store_single",
    "store_single, new id",
    "store_single, replaced",
)


def pictures(seed: int, count: int, side: int) -> Pictures:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, side, side, 3), np.uint8)
    return Pictures(images, random.integers(-(2**63), 2**63 - 1, count))


@lru_cache
def changes(side: int) -> dict[str, Change]:
    """`CHANGES` with images of `side` pixels; the store before them has singles beside the many."""
    new = pictures(2, NEW_COUNT, side)
    (image, *_), (label, *_) = pictures(3, 1, side)
    before, single = [record(*pair) for pair in _pairs(side)], record(image, label)
    replaced = [*before[:5], single, *before[6:]]
    calls: list[tuple[State | None, State, str, tuple[Any, ...]]] = [
        (None, records(*new), "store_many", new),
        (before, records(*new), "store_many", new),
        (None, [single], "store_single", (image, 0, label)),
        (before, [*before, single], "store_single", (image, len(before), label)),
        (before, replaced, "store_single", (image, 5, label)),
    ]
    return dict(zip(CHANGES, (Change(*call) for call in calls), strict=True))


def stand(store: Store, root: Path, side: int, durable: bool) -> None:
    """Make the store that `changes` start from: many, one of them replaced, and one beside them."""
    pairs, terms = _pairs(side), {"durable": durable} if store.ours else {}
    old = pictures(1, OLD_COUNT, side)
    store.verbs.store_many(root, old.images, old.labels, **terms)
    for image_id in (3, OLD_COUNT):
        store.verbs.store_single(root, pairs[image_id][0], image_id, pairs[image_id][1], **terms)


def _pairs(side: int) -> list[tuple[Array, int]]:
    pairs = list(zip(*pictures(1, OLD_COUNT, side), strict=True))
    pairs[3], added = zip(*pictures(4, 2, side), strict=True)
    return [*pairs, added]


def found(store: Store, root: Path) -> State | None:
    """What a reader finds, every way of reading compared; None where there is no store."""
    try:
        store.verbs.verify(root)
        state = records(*store.verbs.read_many(root))
    except FileNotFoundError as error:
        if store.ours and not isinstance(error, StoreNotFoundError):
            raise
        return None
    for image_id in {0, len(state) - 1} if state else ():
        if record(*store.verbs.read_single(root, image_id)) != state[image_id]:
            raise ValueError(f"read_single and read_many do not agree on image {image_id}")
    return state


def litter(root: Path) -> list[str]:
    """What does not belong to a store that store_many has just left."""
    generations = [name for name in os.listdir(root) if _GENERATION.fullmatch(name)]
    names = [str(path.relative_to(root)) for path in root.rglob("*")]
    return generations[1:] + [name for name in names if not _OWN_FILE.fullmatch(_GENERATION.sub("generation", name))]


class Aftermath(NamedTuple):
    """What a fault has left, and for ours the litter that the next store_many leaves."""

    outcome: str
    litter: list[str]


def aftermath(
    store: Store, root: Path, outcome: Callable[[State | None], str], again: Change | None = None
) -> Aftermath:
    """The outcome of what a reader finds; for ours the same call follows, and another store_many."""
    try:
        seen = outcome(found(store, root))
    except Exception:
        seen = "unreadable"
    if not store.ours:
        return Aftermath(seen, [])
    if again:
        again.make(store, root, durable=False)
        assert found(store, root) == again.after, "the same call stored something else"
    third = pictures(5, 3, 8)
    store.verbs.store_many(root, *third, durable=False)
    assert found(store, root) == records(*third), "the next store_many stored something else"
    return Aftermath(seen, litter(root))


class Case(NamedTuple):
    """A change of a store at `root`, which starts as a copy of the store at `template`."""

    store: Store
    change: Change
    template: Path
    root: Path

    def lay(self) -> Path:
        """Put the store there, or nothing where the change starts from nothing."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self.change.before is not None:
            shutil.copytree(self.template, self.root)
        return self.root

    def make(self, **terms: bool) -> None:
        """The call."""
        self.change.make(self.store, self.root, **terms)

    def aftermath(self) -> Aftermath:
        """What an interrupted call has left."""
        return aftermath(self.store, self.root, self.change.outcome, self.change)


MakeCase = Callable[..., Case]  # root, and the side of the images and whether the store is durable
