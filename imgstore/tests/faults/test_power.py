"""Power cuts: the order of writes, syncs and renames on a trace of system calls, and cuts of a real file system."""

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

from imgstore.tests.checks import record, records
from imgstore.tests.faults.changes import (
    SIDE,
    Aftermath,
    Case,
    Change,
    MakeCase,
    State,
    Store,
    aftermath,
    ours,
    pictures,
)
from imgstore.tests.faults.children import Child, calls_of, forked, injected, traced
from imgstore.tests.faults.mounts import Disk, disk
from imgstore.tests.faults.tally import Tally, Tries
from imgstore.tests.faults.trace import RETURNED, UNNEEDED, Event, Ledger, events

CUTS = Tries(300, 4, 100, 2)
CALLS = 5  # before a power cut, at most
LONGEST_WAIT = 0.02  # seconds from an acknowledgement to the cut: as long as a call takes
SYNCS = frozenset({"fsync", "fdatasync", "syncfs"})

strace = pytest.mark.usefixtures("strace")


class Traced:
    """A change under strace. Its root lies in a folder that the change may have to make."""

    def __init__(self, case: Case, log: Path, **terms: bool) -> None:
        self._case, self._log = case, log
        self._call = partial(case.make, **terms)

    def events(self) -> list[Event]:
        """What the call does."""
        self._lay()
        assert traced(self._call, self._log) is None
        return events(self._log)

    def left_out(self) -> Iterator[list[Event]]:
        """What it does where the system only says that it synced: once for each of the call's syncs."""
        self._lay()
        for call in calls_of(self._call, self._log):
            if call[0] in SYNCS:
                self._lay()
                injected(self._call, self._log, call, "retval=0")
                yield events(self._log)

    def _lay(self) -> None:
        shutil.rmtree(self._case.root.parent, ignore_errors=True)
        self._case.lay()


@pytest.fixture
def root(in_memory: Path) -> Path:
    return in_memory / "new" / "store"


@strace
def test_order(case: MakeCase, root: Path, in_memory: Path, tally: Tally) -> None:
    of = case(root)
    faults = Ledger(root).read(Traced(of, in_memory / "log").events())
    tally.add("the order of syncs", of.store, "wrong" if faults else "right")
    assert not (of.store.ours and faults)


@ours
@strace
def test_every_sync_is_needed(case: MakeCase, root: Path, in_memory: Path, name: str) -> None:
    of = case(root)
    # folders that were there before are synced because a call that was killed may have made them, or what is in them
    there = set(map(str, root.parents if of.change.before else in_memory.parents))
    seen = list(Traced(of, in_memory / "log").left_out())
    if of.change.before and "store_single" in name:
        there |= {str(root), *map(str, root.glob("imgstore-*"))}
    harmless = [each for each in seen if not Ledger(root).read(each)]
    left_out = [event.path for each in harmless for event in each if event.verb == "left_out"]
    # the names that were made before syncfs are safe with it
    spare = [root, root.parent, in_memory] if "sync_all" in {event.verb for event in seen[-1]} else []
    spare += [root] if of.change.before else []  # where a killed writer may have left CURRENT unsynced
    needed = (path for path in left_out if path not in there and os.path.basename(path) not in UNNEEDED)
    assert Counter(needed) <= Counter(map(str, spare))


@ours
@strace
@pytest.mark.parametrize("name", ["first store_many", "first store_single"])
def test_folders_that_a_killed_call_made(case: MakeCase, root: Path, in_memory: Path) -> None:
    (in_memory / "empty").mkdir()
    of = case(root)
    of = of._replace(template=in_memory / "empty", change=of.change._replace(before=[]))
    assert not Ledger(root, {str(root), str(root.parent)}).read(Traced(of, in_memory / "log").events())


@ours
@strace
@pytest.mark.parametrize("name", ["store_single, new id", "store_single, replaced"])
def test_durable_after_not_durable(case: MakeCase, root: Path, in_memory: Path) -> None:
    of = case(root, durable=False)
    unsynced = {str(root / path.relative_to(of.template)) for path in of.template.rglob("*")}
    assert not Ledger(root, unsynced).read(Traced(of, in_memory / "log").events())


@ours
@strace
def test_not_durable(case: MakeCase, root: Path, in_memory: Path) -> None:
    seen = Traced(case(root), in_memory / "log", durable=False).events()
    assert not {event.verb for event in seen} & {"sync", "sync_all"}


ROOT = Path("/new/of/store")
SOUND = [
    Event("make", "/new/of/store/2"),
    Event("make", "/new/of/store/2/images"),
    Event("write", "/new/of/store/2/images"),
    Event("sync", "/new/of/store/2/images"),
    Event("sync", "/new/of/store/2"),
    Event("sync", "/new/of/store"),
    Event("make", "/new/of/store/CURRENT.new"),
    Event("write", "/new/of/store/CURRENT.new"),
    Event("sync", "/new/of/store/CURRENT.new"),
    Event("rename", "/new/of/store/CURRENT.new", "/new/of/store/CURRENT"),
    Event("sync", "/new/of/store"),
    Event("remove", "/new/of/store/1/images"),
    Event("remove", "/new/of/store/1"),
    Event("sync", "/new/of/store"),
    RETURNED,
]


def test_ledger_passes_what_is_sound() -> None:
    assert not Ledger(ROOT).read(SOUND)


@pytest.mark.parametrize("index", [index for index, event in enumerate(SOUND[:-2]) if event.verb == "sync"])
def test_ledger_misses_no_sync(index: int) -> None:
    assert Ledger(ROOT).read(SOUND[:index] + SOUND[index + 1 :])


@pytest.mark.parametrize(
    ("index", "event"),
    [
        (8, Event("remove", "/new/of/store/1")),
        (10, Event("remove", "/new/of/store/1")),
        (9, Event("write", "/new/of/store/CURRENT.new")),
        (6, Event("write", "/new/of/store/2/images")),
        (14, Event("make", "/new/of/store/3")),
        (2, Event("map", "/new/of/store/2/images")),
        (2, Event("make", "/new/of/store/CURRENT")),
    ],
)
def test_ledger_sees_what_comes_too_early_or_too_late(index: int, event: Event) -> None:
    assert Ledger(ROOT).read([*SOUND[:index], event, *SOUND[index:]])


@pytest.fixture(params=["ext4", "xfs"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path / "machine", request.param) as machine:
        yield machine


def test_cut(store: Store, machine: Disk, tally: Tally, is_long: bool, random: np.random.Generator) -> None:
    for number in range(CUTS.of(store, is_long)):
        root, plan = machine.path / f"{number}" / "store", list(drawn(random))
        tally.judge(f"power cut, {machine.kind}", store, cut(store, machine, root, plan, random))
        shutil.rmtree(root.parent, ignore_errors=True)


@ours
def test_cut_without_durable(
    store: Store, machine: Disk, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    for number in range(CUTS.of(store, is_long)):
        root, plan = machine.path / f"{number}" / "store", list(drawn(random))
        left = cut(store, machine, root, plan, random, durable=False)
        tally.add(f"power cut, {machine.kind}, durable=False", store, left.outcome)
        assert left.outcome in {"kept", "lost", "unreadable"} and not left.litter
        shutil.rmtree(root.parent, ignore_errors=True)


def drawn(random: np.random.Generator) -> Iterator[Change]:
    """Calls that follow one another."""
    state: State | None = None
    for _ in range(CALLS):
        change = following(state, random)
        yield change
        state = change.after


def following(state: State | None, random: np.random.Generator) -> Change:
    """Another store_many, or an image more, or one replaced."""
    seed, before = int(random.integers(2**32)), state or []
    if random.integers(2):
        new = pictures(seed, int(random.integers(1, 25)), SIDE)
        return Change(state, records(*new), "store_many", new)
    (image,), (label,) = pictures(seed, 1, SIDE)
    image_id = int(random.integers(len(before) + 1))
    after = [*before[:image_id], record(image, label), *before[image_id + 1 :]]
    return Change(state, after, "store_single", (image, image_id, label))


def cut(
    store: Store, machine: Disk, root: Path, plan: list[Change], random: np.random.Generator, **terms: bool
) -> Aftermath:
    """What a power cut at a random moment leaves of a store that a child has been working on."""
    reading, writing = os.pipe()
    child = Child(partial(acknowledging, store, root, plan, writing, terms))
    os.close(writing)
    child.go()
    with open(reading, "rb", 0) as acknowledgements:
        before = acknowledged(acknowledgements, random)
        if terms:  # else hardly anything is on the disk
            sync_one(root, random)
        machine.cut()
        child.kill()
        child.answer()
        after = before + len(acknowledgements.read(CALLS) or b"")
    machine.restart()
    outcome = partial(kept, [None, *(change.after for change in plan)], before, after)
    left: Aftermath = forked(partial(aftermath, store, root, outcome))
    return left


def acknowledged(acknowledgements: FileIO, random: np.random.Generator) -> int:
    """Wait for a random moment: until some of the calls are acknowledged, and perhaps into the next."""
    wanted = int(random.integers(CALLS + 1))
    seen = len(b"".join(acknowledgements.read(1) for _ in range(wanted)))
    assert seen == wanted, "a call failed before the cut"
    time.sleep(random.choice([0, random.uniform(0, LONGEST_WAIT)]))
    os.set_blocking(acknowledgements.fileno(), False)
    return seen + len(acknowledgements.read(CALLS) or b"")


def sync_one(root: Path, random: np.random.Generator) -> None:
    """Sync one file, or folder, of those that are there: with it the journal is committed."""
    walk = os.walk(root.parents[1])
    paths = [os.path.join(folder, name) for folder, _, names in walk for name in ["", *names]]
    with contextlib.suppress(OSError):  # it may be gone already
        descriptor = os.open(paths[random.integers(len(paths))], os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def acknowledging(store: Store, root: Path, plan: list[Change], writing: int, terms: dict[str, bool]) -> None:
    for change in plan:
        change.make(store, root, **terms)
        os.write(writing, b".")


def kept(states: list[State | None], acknowledged: int, done: int, state: State | None) -> str:
    """The outcome: what was acknowledged, or the call after it, or what is wrong."""
    if state in states[acknowledged : done + 2]:
        return "kept"
    if state in states[:acknowledged]:
        return "lost"
    return "mixed" if state else "empty"
