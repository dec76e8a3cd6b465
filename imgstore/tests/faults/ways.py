"""Small stores of every kind, every way to read one, and a fault while it is read."""

import errno
import io
import pickle
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

import imgstore
from imgstore import Reader
from imgstore.command import main as __main__
from imgstore.core import blocks as _images
from imgstore.errors import CorruptStoreError
from imgstore.tests.checks import Record, record
from imgstore.tests.faults.changes import Store
from imgstore.tests.faults.children import Ended, Raised, forked
from imgstore.tests.faults.damage import READ, REFUSED, ended_by, image
from imgstore.tests.faults.moments import Moment, moments

IMAGES = 40
BLOCK_BYTES = 6000
SINGLES = [(3, 0), (IMAGES, 1), (IMAGES + 300, 2)]  # id and form
SHARDS = 2
SOME = [5, 37, 3, 0, 28, 5, 39, 20]  # positions

Held = list[Record]  # in the order of ids
Ids = list[int]


class Contents(NamedTuple):
    """How many forms the many have in turn, the singles, and whether it is a sharded store."""

    forms: int
    singles: list[tuple[int, int]]
    sharded: bool = False


CONTENTS = {
    "one form": Contents(1, []),
    "singles": Contents(1, SINGLES),
    "mixed forms": Contents(3, SINGLES),
    "shards": Contents(1, SINGLES[:1], sharded=True),
    "shards of mixed forms": Contents(3, SINGLES[:1], sharded=True),
}


class Sample(NamedTuple):
    """A store and what it holds."""

    store: Store
    root: Path
    ids: Ids
    held: Held


def made(store: Store, contents: Contents, root: Path) -> Sample:
    pairs = {number: (image(number, number % contents.forms), 3 * number - 7) for number in range(IMAGES)}
    singles = [(image(-number, form), number, -number) for number, form in contents.singles]
    with mock.patch.object(_images, "_BLOCK_BYTES", BLOCK_BYTES):
        if contents.sharded:
            parts = [list(pairs.values())[part::SHARDS] for part in range(SHARDS)]
            pairs = dict(enumerate(pair for part in parts for pair in part))
            imgstore.shards.store(root, parts, backend=store.format)
        else:
            images, labels = zip(*pairs.values(), strict=True)
            many = np.array(images) if contents.forms == 1 else list(images)
            store.verbs.store_many(root, many, np.array(labels), **terms(store))
        for single in singles:
            store.verbs.store_single(root / "shard-000000" if contents.sharded else root, *single, **terms(store))
    held = pairs | {number: (pixels, label) for pixels, number, label in singles}
    return Sample(store, root, sorted(held), [record(*held[number]) for number in sorted(held)])


def terms(store: Store) -> dict[str, bool]:
    return {"durable": False} if store.ours else {}


Read = Callable[[Sample, Any], tuple[list[int], Any]]  # positions, and the pairs that were read for them


def one_by_one(sample: Sample, reader: Reader) -> tuple[list[int], Any]:
    return SOME, [reader[position] for position in SOME]


def batch(sample: Sample, reader: Reader) -> tuple[list[int], Any]:
    return SOME, reader.__getitems__(SOME)


def by_ids(sample: Sample, reader: Reader) -> tuple[list[int], Any]:
    return SOME, zip(*reader.read_many([sample.ids[position] for position in SOME]), strict=True)


def everything(sample: Sample, reader: Reader) -> tuple[list[int], Any]:
    return list(range(len(sample.ids))), zip(*reader.read_many(), strict=True)


def pickled(sample: Sample, reader: Reader) -> tuple[list[int], Any]:
    return batch(sample, pickle.loads(pickle.dumps(reader)))


def in_a_fork(sample: Sample, reader: Reader) -> tuple[list[int], Any]:
    return SOME, forked(partial(reader.__getitems__, SOME))


def forms(sample: Sample, reader: Reader) -> tuple[list[int], Any]:
    assert sum(reader.forms().values()) == len(sample.ids)
    return [], []


def read_singly(sample: Sample, verify: bool) -> tuple[list[int], Any]:
    verb = partial(sample.store.verbs.read_single, sample.root, **{"verify": verify} if sample.store.ours else {})
    return SOME[:2], [verb(sample.ids[position]) for position in SOME[:2]]


def read_all(sample: Sample, verify: bool) -> tuple[list[int], Any]:
    verb = partial(sample.store.verbs.read_many, sample.root, **{"verify": verify} if sample.store.ours else {})
    return list(range(len(sample.ids))), zip(*verb(), strict=True)


def read_by_ids(sample: Sample, verify: bool) -> tuple[list[int], Any]:
    ids = [sample.ids[position] for position in SOME]
    return SOME, zip(*sample.store.verbs.read_many(sample.root, ids, verify=verify), strict=True)


def opened_anew(sample: Sample, verify: bool) -> tuple[list[int], Any]:
    with imgstore.open_reader(sample.root, verify=verify) as reader:
        return batch(sample, reader)


def verified(sample: Sample, verify: bool) -> tuple[list[int], Any]:
    imgstore.verify(sample.root)
    return [], []


def commanded(name: str, sample: Sample, verify: bool) -> tuple[list[int], Any]:
    """The command says on one line what is wrong, and ends with 1."""
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        status = __main__.main([name, str(sample.root)])
    if status:
        assert status == 1 and "Traceback" not in said.getvalue()
        raise CorruptStoreError(sample.root, said.getvalue())
    return [], []


OPEN: dict[str, Read] = {
    "reader[i]": one_by_one,
    "__getitems__": batch,
    "read_many by ids": by_ids,
    "read_many": everything,
    "pickled": pickled,
    "forked": in_a_fork,
    "forms": forms,
}
FRESH: dict[str, Read] = {
    "open_reader": opened_anew,
    "verify": verified,
    "command verify": partial(commanded, "verify"),
    "command info": partial(commanded, "info"),
}
UNSHARDED: dict[str, Read] = {
    "read_single": read_singly,
    "backend.read_many": read_all,
    "backend.read_many by ids": read_by_ids,
}


def outcome(sample: Sample, read: Callable[[], tuple[list[int], Any]]) -> str:
    """As stored, refused with an error that names the damage, or what must not be."""
    try:
        positions, pairs = read()
        if isinstance(pairs, Ended):
            return ended_by(pairs.code)
        if isinstance(pairs, Raised):
            raise CorruptStoreError("", "") if "CorruptStoreError" in pairs.kinds else OSError(pairs.errno, str(pairs))
        return READ if [record(*pair) for pair in pairs] == [sample.held[at] for at in positions] else "OTHER PIXELS"
    except Exception as error:
        refused = isinstance(error, CorruptStoreError) or (type(error) is OSError and error.errno == errno.EIO)
        return REFUSED if refused else f"raised {type(error).__name__}: {error}"


class Attempt(NamedTuple):
    """A way to read, whether it verifies, and when the fault happens."""

    way: str
    verify: bool
    when: str  # opened, read: after the reader was opened, or has read; at once: before all; meanwhile

    def made(self, sample: Sample, random: Random, fault: Callable[[], None]) -> str:
        if self.way in OPEN:
            return self._of_a_reader(sample, random, fault)
        read = partial((FRESH | UNSHARDED)[self.way], sample, self.verify)
        if self.when == "at once":
            fault()
            return outcome(sample, read)
        with Moment(random.randint(1, moments(read)), fault):
            return outcome(sample, read)

    def _of_a_reader(self, sample: Sample, random: Random, fault: Callable[[], None]) -> str:
        reader = imgstore.open_reader(sample.root, verify=self.verify)
        if self.when == "read":
            reader[0], reader.__getitems__(SOME[:3])
        read = partial(OPEN[self.way], sample, reader)
        if self.when != "meanwhile" or self.way == "forked":  # which meets no moment in this process
            fault()
            return outcome(sample, read)
        with Moment(random.randint(1, moments(read)), fault):
            return outcome(sample, read)


def attempts(contents: Contents, whens: dict[str, list[str]], count: int, random: Random) -> list[Attempt]:
    """So many of all, each as often as any other."""
    ways = OPEN | FRESH | ({} if contents.sharded else UNSHARDED)
    whens_of = {way: whens["open"] if way in OPEN else whens["fresh"] for way in ways}
    every = [Attempt(way, verify, when) for way in ways for verify in (True, False) for when in whens_of[way]]
    rounds, rest = divmod(count, len(every))
    return every * rounds + random.sample(every, rest)
