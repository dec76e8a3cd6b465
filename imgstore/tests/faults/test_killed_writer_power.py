"""A writer is killed when CURRENT has its name, before the folder is synced: the next call does not rely on it."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest

import imgstore
from imgstore.tests.checks import record, records
from imgstore.tests.faults.changes import SIDE, State, Store, found, ours, pictures
from imgstore.tests.faults.children import Ended, forked, traced
from imgstore.tests.faults.mounts import Disk, disk
from imgstore.tests.faults.tally import Tally, Tries
from imgstore.tests.faults.trace import Event, Ledger, events

FAULT = "power cut after a killed writer"
CASES, TIMES = Tries(100, 2, 0, 0), Tries(30, 1, 0, 0)
OLD, KILLED, NEW = (pictures(number, 10 + number, SIDE) for number in range(3))
SINGLE = pictures(9, 1, SIDE)
SHARDS = 2

strace = pytest.mark.usefixtures("strace")
Call = Callable[[Store, Path], None]


class Kill(NamedTuple):
    """A first call, if any; that which is killed when CURRENT is in its place; what the store then holds."""

    first: Call | None
    killed: Call
    state: State


def many(store: Store, root: Path, pictures: Any, **terms: bool) -> None:
    store.verbs.store_many(root, *pictures, **terms)


def single(store: Store, root: Path, image_id: int, **terms: bool) -> None:
    store.verbs.store_single(root, SINGLE.images[0], image_id, SINGLE.labels[0], **terms)


def old(store: Store, root: Path) -> None:
    many(store, root, OLD)
    single(store, root, 3)


KILLS = {
    "the first store_many": Kill(None, partial(many, pictures=KILLED), records(*KILLED)),
    "store_many again": Kill(old, partial(many, pictures=KILLED), records(*KILLED)),
    "store_many again, not durable": Kill(old, partial(many, pictures=KILLED, durable=False), records(*KILLED)),
    "the first store_single": Kill(None, partial(single, image_id=0), [record(SINGLE.images[0], SINGLE.labels[0])]),
}


def added(store: Store, root: Path) -> None:
    single(store, root, len(found(store, root) or ()))


NEXT: dict[str, tuple[Call, Callable[[State], State]]] = {
    "store_many": (partial(many, pictures=NEW), lambda _: records(*NEW)),
    "store_single, new id": (added, lambda state: [*state, one()]),
    "store_single, replaced": (partial(single, image_id=0), lambda state: [one(), *state[1:]]),
}


def one() -> Any:
    return record(SINGLE.images[0], SINGLE.labels[0])


def killed_after_the_rename(call: Callable[[], object]) -> None:
    """Make the call in a child that is killed when a CURRENT has got its name."""
    assert forked(partial(killing, call)) == Ended(-signal.SIGKILL)


def killing(call: Callable[[], object]) -> None:
    with mock.patch("os.replace", partial(last, os.replace)), mock.patch("os.rename", partial(last, os.rename)):
        call()


def last(rename: Callable[..., None], source: Any, to: Any, **where: Any) -> None:
    rename(source, to, **where)
    if os.path.basename(os.fsdecode(to)) == "CURRENT":
        os.kill(os.getpid(), signal.SIGKILL)


def laid(store: Store, kill: Kill, root: Path) -> None:
    if kill.first:
        assert forked(partial(kill.first, store, root)) is None
    killed_after_the_rename(partial(kill.killed, store, root))


@pytest.fixture(params=["journal", "no journal"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path / "machine", "ext4", request.param == "journal") as machine:
        yield machine


@ours
def test_a_durable_call_is_kept(
    store: Store, machine: Disk, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    cases = [(kill, following) for kill in KILLS for following in NEXT]
    for number in random.choice(len(cases), CASES.of(store, is_long)):
        name, following = cases[number]
        root, (call, after) = machine.path / "folder" / "store", NEXT[following]
        laid(store, KILLS[name], root)
        assert forked(partial(call, store, root)) is None
        machine.cut()
        machine.restart()
        promised = [after(KILLS[name].state)]
        judged(store, tally, forked(partial(found, store, root)), promised, f"{following}, after {name}")
        shutil.rmtree(root.parent)


def judged(store: Store, tally: Tally, state: Any, promised: list[State], name: str) -> None:
    is_kept = state in promised
    tally.add(FAULT, store, "kept" if is_kept else "LOST")
    assert is_kept, f"{name}: {state if not isinstance(state, list) else f'{len(state)} images, but others'}"


@ours
def test_a_store_that_is_being_replaced_is_kept(store: Store, machine: Disk, tally: Tally, is_long: bool) -> None:
    """The power is cut while the next store_many draws its images."""
    promised = [[*records(*OLD)[:3], one(), *records(*OLD)[4:]], records(*KILLED)]
    for number in range(TIMES.of(store, is_long)):
        root = machine.path / f"{number}" / "store"
        laid(store, KILLS["store_many again"], root)
        assert forked(partial(cut_while_drawn, store, root, machine)) == Ended(1)
        machine.restart()
        judged(store, tally, forked(partial(found, store, root)), promised, "the next store_many")
        shutil.rmtree(root.parent)


def cut_while_drawn(store: Store, root: Path, machine: Disk) -> None:
    def drawn() -> Iterator[Any]:
        yield NEW.images[0]
        yield NEW.images[1][:-1]  # of another form: the first has gone into the store
        os.sync()  # what was removed is removed on the disk, too
        machine.cut()
        os._exit(1)

    store.verbs.store_many(root, drawn(), NEW.labels)


def stored_in_shards(store: Store, root: Path) -> None:
    imgstore.shards.store(root, [part, part], backend=store.format, fingerprint="these")


def part() -> Iterator[tuple[Any, int]]:
    return iter(list(zip(KILLED.images, KILLED.labels.tolist(), strict=True)))


@ours
def test_a_shard_on_another_disk_is_kept(
    store: Store, machine: Disk, tally: Tally, is_long: bool, tmp_path: Path
) -> None:
    for number in range(TIMES.of(store, is_long)):
        root, there = tmp_path / "root", machine.path / f"{number}"
        root.mkdir()
        there.mkdir()
        os.sync()
        (root / "shard-000000").symlink_to(there)
        killed_after_the_rename(partial(stored_in_shards, store, root))
        assert forked(partial(stored_in_shards, store, root)) is None
        machine.cut()
        machine.restart()
        judged(store, tally, forked(partial(sharded_state, root)), [records(*KILLED) * SHARDS], "shards.store")
        shutil.rmtree(root)


def sharded_state(root: Path) -> State:
    imgstore.verify(root)
    with imgstore.open_reader(root) as reader:
        return records(*reader.read_many())


class AfterKill(Ledger):
    """A root whose CURRENT has its name, but in a folder that was not synced since."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.names.add(self.current)
        self.made.add(self.current)  # once it is synced, what it replaced may be removed

    def rename(self, path: str, to: str) -> None:
        if to == self.current:
            self.names.discard(to)  # it is replaced itself
        if os.path.basename(to) == "SHARDS" and self.current in self.names:
            self.faults.append(f"{self.current} is not synced when SHARDS relies on it")
        super().rename(path, to)


@ours
@strace
@pytest.mark.parametrize("following", NEXT)
def test_folder_is_synced_first(
    store: Store, following: str, in_memory: Path, is_long: bool, random: np.random.Generator
) -> None:
    durable = [name for name in KILLS if "not durable" not in name]  # what is not may be removed at any time
    for name in durable if is_long else random.choice(durable, 1):
        root, log = in_memory / name / "store", in_memory / "log"
        laid(store, KILLS[name], root)
        assert traced(partial(NEXT[following][0], store, root), log) is None
        assert not AfterKill(root).read(events(log)), name


@ours
@strace
def test_folder_of_a_shard_is_synced_first(store: Store, in_memory: Path) -> None:
    root, log = in_memory / "new" / "store", in_memory / "log"
    killed_after_the_rename(partial(stored_in_shards, store, root))
    assert traced(partial(stored_in_shards, store, root), log) is None
    assert not AfterKill(root / "shard-000000").read(events(log))


@ours
@strace
@pytest.mark.parametrize("durable", [True, False])
def test_folder_of_singles_that_another_call_made_is_synced(store: Store, durable: bool, in_memory: Path) -> None:
    """It was killed when it had made the folder, or was not asked to sync it."""
    root, log = in_memory / "new" / "store", in_memory / "log"
    many(store, root, OLD)
    if durable:
        assert forked(partial(killed_when_made, partial(single, store, root, 5))) == Ended(-signal.SIGKILL)
    else:
        single(store, root, 5, durable=False)
    made = {str(path) for path in root.glob("*/singles")}
    assert traced(partial(single, store, root, 6), log) is None
    assert made and not Ledger(root, made).read(events(log))


def killed_when_made(call: Callable[[], object]) -> None:
    with mock.patch("os.mkdir", partial(made_last, os.mkdir)):
        call()


def made_last(mkdir: Callable[..., None], path: Any, *mode: int, **where: Any) -> None:
    mkdir(path, *mode, **where)
    os.kill(os.getpid(), signal.SIGKILL)


ROOT = Path("/new/of/store")
SOUND = [
    Event("sync", "/new/of/store"),
    Event("remove", "/new/of/store/1/images"),
    Event("remove", "/new/of/store/1"),
    Event("returned", ""),
]


def test_ledger_passes_what_is_sound() -> None:
    assert not AfterKill(ROOT).read(SOUND)


@pytest.mark.parametrize("wrong", [SOUND[1:], [SOUND[1], SOUND[0], *SOUND[2:]], SOUND[3:]])
def test_ledger_misses_no_fault(wrong: list[Event]) -> None:
    assert AfterKill(ROOT).read(wrong)
