"""Readers go on while a store is replaced: each read is wholly the old or wholly the new, or says that it is gone."""

import contextlib
import gc
import itertools
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest

import imgstore
from imgstore import Reader
from imgstore.core import removing
from imgstore.errors import StoreBusyError, StoreReplacedError
from imgstore.tests.checks import A_MINUTE, Record, in_child, record
from imgstore.tests.faults.changes import OURS, STORES, Store
from imgstore.tests.faults.damage import in_children
from imgstore.tests.faults.tally import Tally
from imgstore.tests.strategies import Array

FORMS: list[tuple[tuple[int, ...], Any]] = [((8, 9, 3), np.uint8), ((7, 5), np.uint16), ((40, 30), np.uint8)]
COUNTS = [6, 9, 7]
SINGLES = ADDED, OVERRIDDEN = 400, 3  # in the order in which they are stored
LABELS = 1000  # of a version
READERS, THREADS = 2, 2
SECONDS, LONG_SECONDS = 1.5, 60.0
FORKS, LONG_FORKS = 10, 200
OPENINGS, LONG_OPENINGS = 10, 300
EXITING = 2  # processes
HANGS = 20  # seconds after which a child is taken to hang
LINES, LONG_LINES = 6, 200  # of those that a read passes
FORK: Any = multiprocessing.get_context("fork")
REPLACED = "replaced"

Pair = tuple[Array, int]
State = dict[int, Record]


class Version(NamedTuple):
    """What a store holds at a time; every pixel and label tells of the version, and form and number change with it."""

    number: int

    def image(self, image_id: int, single: bool = False) -> Pair:
        shape, dtype = FORMS[(self.number + single) % len(FORMS)]
        label = self.number * LABELS + image_id % LABELS + LABELS // 2 * single
        return np.full(shape, (self.number + image_id) % 251, dtype), label

    def many(self) -> tuple[list[Array], list[int]]:
        images, labels = zip(*map(self.image, range(COUNTS[self.number % len(COUNTS)])), strict=True)
        return list(images), list(labels)

    def state(self, singles: tuple[int, ...] = SINGLES) -> State:
        pairs = {number: self.image(number) for number in range(len(self.many()[0]))}
        pairs |= {number: self.image(number, single=True) for number in singles}
        return {number: record(*pair) for number, pair in pairs.items()}

    def store(self, backend: ModuleType, root: Path) -> None:
        backend.store_many(root, *self.many(), durable=False)
        self.store_singles(backend, root)

    def store_singles(self, backend: ModuleType, root: Path) -> None:
        for image_id in SINGLES:
            image, label = self.image(image_id, single=True)
            backend.store_single(root, image, image_id, label, durable=False)


@contextlib.contextmanager
def removing_half() -> Iterator[None]:
    """Generations lose their singles, and all else only by the writer after the next."""
    whole = removing.remove_generation

    def remove(path: str) -> None:
        singles = os.path.join(path, "singles")
        if os.path.exists(singles):
            shutil.rmtree(singles)
        else:
            whole(path)

    with mock.patch.object(removing, "remove_generation", remove):
        yield


class Moving:
    """A store that a change moves from version to version."""

    def __init__(self, backend: ModuleType, root: Path, half: bool) -> None:
        self.backend, self.root, self._half = backend, root, half
        self.version = Version(0)
        self.version.store(backend, root)
        self.before = self.after = self.version.state()
        self.singles_only = False

    def replace(self) -> None:
        """All of it."""
        self.version = Version(self.version.number + 1)
        with removing_half() if self._half else contextlib.nullcontext():
            self.version.store(self.backend, self.root)
        self.before, self.after = self.after, self.version.state()

    def replace_singles(self) -> None:
        """Another image and label, of another form, for the same ids."""
        self.version = Version(self.version.number + 1)
        self.version.store_singles(self.backend, self.root)
        self.singles_only = True
        singles = {number: record(*self.version.image(number, single=True)) for number in SINGLES}
        self.before, self.after = self.after, self.after | singles


class Interruption:
    """Runs an action before a certain line of the package, or of lmdb's verifier, in what is called under it."""

    PLACES = (os.path.dirname(imgstore.__file__) + os.sep, os.path.join("lmdb", "verify.py"))

    def __init__(self, line: int, action: Callable[[], None]) -> None:
        self.passed, self._line, self._action = 0, line, action

    def __enter__(self) -> "Interruption":
        sys.settrace(self._traced)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _traced(self, frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if "tests" in name or not any(place in name for place in self.PLACES):
            return None
        self.passed += event == "line"
        if event == "line" and self.passed == self._line:
            self._action()
        return self._traced


def read_one(moving: Moving, reader: Reader, image_id: int) -> State:
    return {image_id: record(*moving.backend.read_single(moving.root, image_id))}


def read_all(moving: Moving, reader: Reader) -> State:
    with imgstore.open_reader(moving.root) as found:
        return dict(zip(found.ids.tolist(), map(record, *found.read_many()), strict=True))


def read_open(moving: Moving, reader: Reader) -> State:
    return dict(zip(reader.ids.tolist(), map(record, *reader.read_many()), strict=True))


def read_batch(moving: Moving, reader: Reader) -> State:
    return dict(
        zip(reader.ids.tolist(), (record(*pair) for pair in reader.__getitems__(range(len(reader)))), strict=True)
    )


def read_pickled(moving: Moving, reader: Reader) -> State:
    with pickle.loads(pickle.dumps(reader)) as other:
        return read_open(moving, other)


def verified(moving: Moving, reader: Reader) -> State:
    imgstore.verify(moving.root)
    return {}


FRESH: dict[str, Callable[[Moving, Reader], State]] = {
    "read_single": partial(read_one, image_id=0),
    "read_single of one replaced": partial(read_one, image_id=OVERRIDDEN),
    "read_single of one added": partial(read_one, image_id=ADDED),
    "read_many": read_all,
    "verify": verified,
}
OPEN: dict[str, Callable[[Moving, Reader], State]] = {
    "reader": read_open,
    "batch of a reader": read_batch,
    "reader, pickled": read_pickled,
}


ALWAYS = ["read_single", "read_single of one replaced", "read_single of one added", "verify"]
CHANGES = ["replaced", "replaced and half removed", "singles replaced"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FRESH | OPEN)
def test_change_at_a_line(
    backend: ModuleType, name: str, change: str, is_long: bool, random: np.random.Generator, tmp_path: Path
) -> None:
    moving = Moving(backend, tmp_path / "store", "half" in change)
    action = moving.replace_singles if "singles" in change else moving.replace
    seen: Counter[str] = Counter()
    for line in lines(moving, name, LONG_LINES if is_long else LINES, random):
        with imgstore.open_reader(moving.root) as reader, Interruption(line, action) as interruption:
            found = read_beside(moving, reader, name)
        if interruption.passed >= line:  # else nothing was replaced: not every read passes equally many lines
            seen[found] += 1
        moving.before = moving.after
    # read_many, too, opens a reader, whose singles may be gone before it reads them
    assert seen.keys() <= {"old", "new", "new" if name in ALWAYS else REPLACED}
    assert name in FRESH or "singles" in change or not seen["new"], "an open reader reads its own generation"


def lines(moving: Moving, name: str, most: int, random: np.random.Generator) -> list[int]:
    """Those that a read passes, numbered, or so many of them."""
    with imgstore.open_reader(moving.root) as reader, Interruption(sys.maxsize, moving.replace) as interruption:
        read_beside(moving, reader, name)
    passed = interruption.passed
    return sorted(random.choice(passed, min(passed, most), replace=False) + 1)


def read_beside(moving: Moving, reader: Reader, name: str) -> str:
    """Which state was read."""
    try:
        got = (FRESH | OPEN)[name](moving, reader)
    except StoreReplacedError:
        return REPLACED
    for state, kind in ((moving.after, "new"), (moving.before, "old")):
        if got == {number: state.get(number) for number in (got if len(got) < 2 else state)}:
            return kind
    both = all(got[number] in (moving.before[number], moving.after[number]) for number in got)
    return "old" if both and moving.singles_only else f"neither the old nor the new: {got}"


@pytest.mark.parametrize("name", FRESH)
def test_reader_collected_at_a_line(
    backend: ModuleType, name: str, is_long: bool, random: np.random.Generator, tmp_path: Path
) -> None:
    """The last other reader of the same files is let go of meanwhile, by the collector of garbage."""
    moving = Moving(backend, tmp_path / "store", half=False)
    with imgstore.open_reader(moving.root) as closed:
        pass
    for line in lines(moving, name, LONG_LINES if is_long else LINES, random):
        garbage(moving.root)
        with Interruption(line, collect):
            assert read_beside(moving, closed, name) == "new"


def collect() -> None:
    gc.collect()


def garbage(root: Path) -> None:
    """A reader in use that only the collector can find."""
    reader = imgstore.open_reader(root)
    cycle: list[Any] = [reader, reader[0]]
    cycle.append(cycle)


class Seen(NamedTuple):
    """What a reader beside a writer answers."""

    reads: int
    replaced: int
    versions: int
    problem: str


class Observer:
    """Holds that what is read is of one version, and never older than what was read before."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._backend = imgstore.BACKENDS[(root / "CURRENT").read_text().split()[2]]
        self._newest = 0, 0  # version and how many of its singles were stored
        self.reads = self.replaced = 0
        self.versions: set[int] = set()

    def observe(self, seconds: float) -> Seen:
        problem, end = "", time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                try:
                    self._read()
                except StoreReplacedError:
                    self.replaced += 1
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        return Seen(self.reads, self.replaced, len(self.versions), problem)

    def _read(self) -> None:
        image, label = self._backend.read_single(self._root, OVERRIDDEN)
        version = Version(label // LABELS)
        is_single = record(image, label) == record(*version.image(OVERRIDDEN, single=True))
        assert is_single or record(image, label) == record(*version.image(OVERRIDDEN)), "a mixture in one image"
        self._saw(version, *((2, 2) if is_single else (0, 1)))
        with imgstore.open_reader(self._root) as reader:
            state = dict(zip(reader.ids.tolist(), map(record, *reader.read_many()), strict=True))
            version = Version(state[0][-1] // LABELS)
            stored = tuple(number for number in SINGLES if state.get(number) == record(*version.image(number, True)))
            assert state == version.state(stored), "a mixture"
            self._saw(version, len(stored), len(stored))
            again = [record(*pair) for pair in reader]
            assert again == list(state.values()), "an open reader read something else"

    def _saw(self, version: Version, least: int, most: int) -> None:
        assert (version.number, most) >= self._newest, "an older image"
        self._newest = max(self._newest, (version.number, least))
        self.versions.add(version.number)
        self.reads += 1


def observed(root: Path, seconds: float) -> list[Seen]:
    """By so many threads at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda _: Observer(root).observe(seconds), range(THREADS)))


FAULT = "replaced under readers"


@pytest.mark.parametrize("store", OURS, ids=str)
def test_readers_beside_a_writer(store: Store, tally: Tally, is_long: bool, tmp_path: Path) -> None:
    root, version = tmp_path / "store", Version(0)
    version.store(store.verbs, root)
    with FORK.Pool(READERS, as_a_worker) as pool:
        answers = pool.map_async(partial(observed, root), [LONG_SECONDS if is_long else SECONDS] * READERS)
        while not answers.ready():
            version = Version(version.number + 1)
            version.store(store.verbs, root)
        seen = list(itertools.chain(*answers.get(A_MINUTE)))
    for outcome, times in (("whole", sum(one.reads for one in seen)), (REPLACED, sum(one.replaced for one in seen))):
        for _ in range(times):
            tally.add(FAULT, store, outcome)
    assert not [one.problem for one in seen if one.problem]
    assert min(one.versions for one in seen) > 2 and version.number > 2


PLAIN_READS, LONG_PLAIN_READS = 100, 2000


@pytest.mark.parametrize("store", [store for store in STORES if not store.ours], ids=str)
def test_plain_beside_a_writer(store: Store, tally: Tally, is_long: bool, tmp_path: Path) -> None:
    write_plain(store, tmp_path / "store", 0)
    writer = FORK.Process(target=write_plain_again_and_again, args=(store, tmp_path / "store"), daemon=True)
    writer.start()
    try:
        count = LONG_PLAIN_READS if is_long else PLAIN_READS
        for outcome in in_children(lambda: lambda number: read_plain(store, tmp_path / "store"), count):
            tally.add(FAULT, store, outcome)
    finally:
        writer.kill()
        writer.join()


def write_plain(store: Store, root: Path, number: int) -> None:
    images, labels = Version(number * len(FORMS)).many()  # of one form and number, which is all that plain ones can
    store.verbs.store_many(root, np.array(images), np.array(labels))


def write_plain_again_and_again(store: Store, root: Path) -> None:
    for number in itertools.count(1):
        with contextlib.suppress(Exception):  # HDF5 does not open a file to write that is being read
            write_plain(store, root, number)


def read_plain(store: Store, root: Path) -> str:
    try:
        got = [record(*pair) for pair in zip(*store.verbs.read_many(root), strict=True)]
    except Exception:
        return "refused"
    versions = {label // LABELS for _, _, _, label in got}
    whole = len(versions) == 1 and got == list(Version(versions.pop()).state(()).values())
    return "whole" if whole else "TORN"


def test_second_writer_is_refused(backend: ModuleType, tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slowly() -> Iterator[Array]:
        yield Version(1).image(0)[0]
        yield Version(2).image(1)[0]  # of another form: the first has gone into the store
        inside.set()
        assert go_on.wait(A_MINUTE)

    root, (image, label) = tmp_path / "store", Version(2).image(5)
    Version(0).store(backend, root)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(backend.store_many, root, slowly(), [LABELS, 2 * LABELS + 1], durable=False)
        try:
            assert inside.wait(A_MINUTE)
            for call in (
                partial(backend.store_single, root, image, 5, label),
                partial(backend.store_many, root, [image], [label]),
            ):
                for run in (in_this, partial(in_child, "fork")):
                    with pytest.raises(StoreBusyError, match=re.escape(str(root))):
                        run(call)
            assert Version(0).state() == state_of(root)
        finally:
            go_on.set()
        first.result(A_MINUTE)
    backend.store_single(root, image, 5, label)
    expected = [Version(1).image(0), Version(2).image(1), (image, label)]
    assert state_of(root) == {number: record(*pair) for number, pair in zip((0, 1, 5), expected, strict=True)}


def in_this(call: Callable[[], None]) -> None:
    call()


def state_of(root: Path) -> State:
    with imgstore.open_reader(root) as reader:
        return whole_of(reader)


def whole_of(reader: Reader) -> State:
    """Read in bulk, one by one and in a batch."""
    state = dict(zip(reader.ids.tolist(), map(record, *reader.read_many()), strict=True))
    assert list(state.values()) == [record(*pair) for pair in reader]
    assert list(state.values()) == [record(*pair) for pair in reader.__getitems__(range(len(reader)))]
    return state


@pytest.fixture
def reader(backend: ModuleType, tmp_path: Path) -> Iterator[Reader]:
    Version(0).store(backend, tmp_path / "store")
    with imgstore.open_reader(tmp_path / "store") as reader:
        yield reader


@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reader_in_a_child(reader: Reader, method: str, is_used: bool) -> None:
    """And the parent's works on, whether the child closes its own or dies with it."""
    if is_used:
        whole_of(reader)
    for end in (whole_of, whole_and_close, whole_of) if method == "fork" else (whole_and_close,):
        assert in_child(method, end, reader) == Version(0).state()
        assert whole_of(reader) == Version(0).state()


def whole_and_close(reader: Reader) -> State:
    with reader:
        return whole_of(reader)


def test_reader_in_a_pool(reader: Reader) -> None:
    """As a DataLoader does it: workers are forked with the dataset, and asked for batches."""
    with FORK.Pool(READERS, as_a_worker, (reader,)) as pool:
        batches = pool.map_async(batch, [[number % len(reader), 0] for number in range(100)])
        for _ in range(10):
            assert whole_of(reader) == Version(0).state()
        expected = list(Version(0).state().values())
        assert batches.get(A_MINUTE) == [[expected[number % len(reader)], expected[0]] for number in range(100)]


HELD: list[Reader] = []  # a pool's workers hold their dataset in a global


def as_a_worker(*held: Reader) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which ends it; pytest's raises an error, that may be lost
    HELD.extend(held)


def batch(positions: list[int]) -> list[Record]:
    return [record(*pair) for pair in HELD[-1].__getitems__(positions)]


def test_forks_while_threads_read(reader: Reader, is_long: bool, tmp_path: Path) -> None:
    """Nothing that a thread holds at the moment of a fork may be missed in the child."""
    root, stop = tmp_path / "store", threading.Event()
    with ThreadPoolExecutor(2 * THREADS) as pool:
        threads = [pool.submit(read_until, stop, call) for call in (partial(whole_of, reader), partial(state_of, root))]
        try:
            for _ in range(LONG_FORKS if is_long else FORKS):
                assert forked(reader, root) == 0, "a forked child failed, or hung"
        finally:
            stop.set()
        assert all(thread.result(A_MINUTE) for thread in threads)


def read_until(stop: threading.Event, read: Callable[[], State]) -> int:
    for times in itertools.count(1):
        assert read() == Version(0).state()
        if stop.is_set():
            return times
    raise AssertionError


def forked(reader: Reader, root: Path) -> int:
    """The exit code of a child that reads from the parent's reader and from one of its own."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANGS)
            assert whole_of(reader) == state_of(root) == Version(0).state()
            reader.close()
            gc.collect()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


EXITS = """
import atexit, sys, threading, time
atexit.register(lambda: {})  # the last to run: the thread goes on when others have let go of what they hold
from imgstore import open_reader
reader, ends = open_reader(sys.argv[1]), threading.Event()
def read():
    while not ends.is_set():
        list(reader)
thread = threading.Thread(target=read, daemon=True)
thread.start()
time.sleep(0.05)
"""


@pytest.mark.parametrize("handler", ["time.sleep(0.1)", "(ends.set(), thread.join())"])
def test_process_ends_while_a_thread_reads(reader: Reader, handler: str, tmp_path: Path) -> None:
    for _ in range(EXITING):
        command = [sys.executable, "-c", EXITS.format(handler), str(tmp_path / "store")]
        subprocess.run(command, check=True, timeout=HANGS, capture_output=True)


@pytest.mark.parametrize("verb", [imgstore.open_reader, imgstore.verify])
def test_another_backend_at_a_line(verb: Callable[[Path], Any], random: np.random.Generator, tmp_path: Path) -> None:
    root, before, after = tmp_path / "store", imgstore.BACKENDS["hdf5"], imgstore.BACKENDS["lmdb"]
    before.store_many(root, *Version(0).many(), durable=False)
    with Interruption(sys.maxsize, collect) as interruption:
        verb(root)
    for line in random.choice(interruption.passed, LINES, replace=False) + 1:
        before.store_many(root, *Version(0).many(), durable=False)
        with Interruption(line, partial(after.store_many, root, *Version(1).many(), durable=False)):
            verb(root)
        assert state_of(root) == Version(1).state(())


def test_opened_by_many_threads_at_once(backend: ModuleType, is_long: bool, tmp_path: Path) -> None:
    """Readers open and close the same files, which LMDB allows to be open but once in a process."""
    root, times = tmp_path / "store", LONG_OPENINGS if is_long else OPENINGS
    Version(0).store(backend, root)
    start = threading.Barrier(4 * THREADS)

    def open_and_close(number: int) -> None:
        start.wait(A_MINUTE)
        for _ in range(times):
            assert state_of(root) == Version(0).state()
            assert record(*backend.read_single(root, SINGLES[number % 2])) == Version(0).state()[SINGLES[number % 2]]

    with ThreadPoolExecutor(4 * THREADS) as pool:
        list(pool.map(open_and_close, range(4 * THREADS)))


def test_threads_beside_a_writer_of_singles(backend: ModuleType, is_long: bool, tmp_path: Path) -> None:
    """A single that is replaced, each time with another form, is wholly the old or wholly the new."""
    root = tmp_path / "store"
    Version(0).store(backend, root)
    end = time.monotonic() + (LONG_SECONDS if is_long else SECONDS)

    def read(image_id: int) -> int:
        newest = 0
        while time.monotonic() < end:
            image, label = backend.read_single(root, image_id)
            version = Version(label // LABELS)
            assert record(image, label) == record(*version.image(image_id, single=True))
            assert version.number >= newest, "an older image"
            newest = version.number
        return newest

    with ThreadPoolExecutor(2 * THREADS) as pool:
        readers = [pool.submit(read, image_id) for image_id in SINGLES * THREADS]
        for number in itertools.count(1):
            Version(number).store_singles(backend, root)
            if all(reader.done() for reader in readers):
                break
    assert all(reader.result() for reader in readers)
