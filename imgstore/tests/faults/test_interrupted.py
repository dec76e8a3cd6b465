"""An exception at any bytecode of any verb is the caller's: it comes out as it is, and the process goes on."""

import collections
import contextlib
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest

import imgstore
from imgstore.tests.checks import record, records
from imgstore.tests.faults.changes import State, Store, found, ours, pictures
from imgstore.tests.faults.children import forked
from imgstore.tests.faults.damage import in_children
from imgstore.tests.faults.moments import WITH_CONTEXTS, Bytecodes, Moment
from imgstore.tests.faults.tally import Tally, Tries

SIDE = 8
FAULT = "exceptions at every bytecode"
TRIES = Tries(0, 5, 0, 0)  # of each call, in the short form
HANGS = 20  # seconds after which a child or a thread is taken to hang
REPEATS = 1  # of a bytecode that a call meets again and again
WHOLE = 8  # exceptions from one fork and store_many to the next, in the long form: what a lock's holder lost stays lost
KEPT = 3  # exceptions, with all that their tracebacks hold
SECONDS, LONG_SECONDS = 0.6, 20.0
STEP, STEPS = 0.00013, 40  # seconds until a signal: so many times the step, in turns
PLACES = WITH_CONTEXTS  # where exceptions are raised: in the package, and in contextlib between two of its functions
AS_RAISED, SWALLOWED, NOT_MET = "raised as it was", "raised where Python cannot pass it on", "not met"


class Interrupted(Exception):
    """The caller's own, from a signal handler say."""


KINDS: list[type[Exception]] = [Interrupted, TimeoutError]


OLD, SINGLE, NEW = pictures(1, 3, SIDE), pictures(2, 2, SIDE), pictures(3, 3, SIDE)
BEFORE = [*records(*OLD)[:2], *records(*SINGLE)]  # of the singles one takes the place of the last of the many
AFTER_SINGLE = [records(*NEW)[0], *BEFORE[1:]]


def stand(store: Store, root: Path) -> None:
    store.verbs.store_many(root, *OLD)
    for number, (image, label) in enumerate(zip(*SINGLE, strict=True), 2):
        store.verbs.store_single(root, image, number, label)


class Verb(NamedTuple):
    """A call, and what the store may hold after it besides what it held before."""

    call: Callable[[Store, Path], object]
    after: State = BEFORE


def store_many(store: Store, root: Path) -> None:
    store.verbs.store_many(root, *NEW)


def store_single(store: Store, root: Path) -> None:
    store.verbs.store_single(root, NEW.images[0], 0, NEW.labels[0])


def read_one(store: Store, root: Path) -> None:
    store.verbs.read_single(root, 1)


def read_one_single(store: Store, root: Path) -> None:
    store.verbs.read_single(root, 2)


def read_all(store: Store, root: Path) -> None:
    store.verbs.read_many(root)


def read_open(store: Store, root: Path) -> None:
    reader = imgstore.open_reader(root)
    reader[0], reader[-1]
    reader.__getitems__([3, 1])
    reader.read_many([1, 0])
    del reader


def read_pickled(store: Store, root: Path) -> None:
    with imgstore.open_reader(root) as reader, pickle.loads(pickle.dumps(reader)) as other:
        other[1]


VERBS = {
    "store_many": Verb(store_many, records(*NEW)),
    "store_single": Verb(store_single, AFTER_SINGLE),
    "read_single": Verb(read_one),
    "read_single of a single": Verb(read_one_single),
    "read_many": Verb(read_all),
    "reader": Verb(read_open),
    "reader, pickled": Verb(read_pickled),
    "verify": Verb(lambda store, root: imgstore.verify(root)),
}


class Scene:
    """A store that a call is interrupted at, again and again, in one process."""

    def __init__(self, store: Store, verb: Verb, folder: Path) -> None:
        self._store, self._verb, self._template, self._root = store, verb, folder / "template", folder / "store"
        self._kept: collections.deque[BaseException] = collections.deque(maxlen=KEPT)
        self._unraisable: list[BaseException | None] = []

    def prepare(self) -> None:
        if not self._template.exists():
            stand(self._store, self._template)
        sys.unraisablehook = lambda told: self._unraisable.append(told.exc_value)
        self._call()  # what is kept for the next call is made

    def bytecodes(self) -> list[int]:
        """The numbers of those that the call meets, each the first few times."""
        self.prepare()
        met = Bytecodes(PLACES, REPEATS)
        self._call(met)
        return met.numbers

    def interrupted(self, number: int, error: Exception, is_whole: bool) -> str:
        """What comes of an exception at this bytecode, in a line; `is_whole`: all that follows is tried."""
        self._unraisable.clear()
        outcome = self._raised(number, error)
        if outcome in (AS_RAISED, SWALLOWED):
            self._kept.append(error)
        wrong = self._gone_on(is_whole)
        return f"{outcome}, {place_of(error)}, but then {wrong}" if wrong else outcome

    def _raised(self, number: int, error: Exception) -> str:
        try:
            self._call(Moment(number, partial(throw, error), True, PLACES))
        except BaseException as other:
            return AS_RAISED if other is error else f"came as {type(other).__name__}: {other}, {place_of(error)}"
        if error.__traceback__ is None:
            return NOT_MET
        return SWALLOWED if error in self._unraisable else f"swallowed, {place_of(error)}"

    def _call(self, moment: contextlib.AbstractContextManager[Any] | None = None) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.copytree(self._template, self._root)
        with moment or contextlib.nullcontext():
            self._verb.call(self._store, self._root)

    def _gone_on(self, is_whole: bool) -> str:
        """What does not work afterwards."""
        state = found(self._store, self._root)
        if not state or state not in (BEFORE, self._verb.after):
            return "the store is neither the old nor the new"
        if not in_thread(partial(self._reads_one, state)):
            return "another thread cannot read it"
        if is_whole and not in_fork(partial(self._reads_one, state)):
            return "a forked child cannot read it"
        self._store.verbs.store_single(self._root, NEW.images[0], 7, NEW.labels[0], durable=False)
        if record(*self._store.verbs.read_single(self._root, 7)) != records(*NEW)[0]:
            return "store_single stored something else"
        return self._stored_again() if is_whole else ""

    def _reads_one(self, state: State) -> bool:
        return record(*self._store.verbs.read_single(self._root, 1)) == state[1]

    def _stored_again(self) -> str:
        self._store.verbs.store_many(self._root, *NEW, durable=False)
        return "" if found(self._store, self._root) == records(*NEW) else "store_many stored something else"


def place_of(error: Exception) -> str:
    """Where it was raised, of the package's functions."""
    frames = traceback.extract_tb(error.__traceback__)[:-2]  # the last two raise it
    places = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames]
    return f"raised at {' '.join(places[-2:])}"


def throw(error: Exception) -> None:
    raise error


def in_thread(reads: Callable[[], bool]) -> bool:
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(reads()), daemon=True)
    thread.start()
    thread.join(HANGS / 2)
    return got == [True]


def in_fork(reads: Callable[[], bool]) -> bool:
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANGS // 2)
            os._exit(not reads())
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@ours
@pytest.mark.parametrize("name", VERBS)
def test_exception_at_a_bytecode(
    store: Store, name: str, in_memory: Path, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    scene = Scene(store, VERBS[name], in_memory)
    met = forked(scene.bytecodes)
    assert isinstance(met, list), met
    numbers = met if is_long else random.choice(met, TRIES.short, replace=False)
    tries = [(int(number), KINDS[random.integers(len(KINDS))]) for number in numbers]
    wrong = []
    came = in_children(partial(attempts, scene, tries, WHOLE if is_long else 1), len(tries))
    for (number, kind), outcome in zip(tries, came, strict=True):
        tally.add(FAULT, store, outcome if outcome in (AS_RAISED, SWALLOWED, NOT_MET) else "WRONG")
        if outcome not in (AS_RAISED, SWALLOWED, NOT_MET):
            wrong.append(f"{kind.__name__} at bytecode {number} of {met[-1]}: {outcome}")
    assert not wrong, f"{len(wrong)} of {len(tries)}, among them {wrong[:10]}"


def attempts(scene: Scene, tries: list[tuple[int, type[Exception]]], step: int) -> Callable[[int], str]:
    scene.prepare()

    def attempt(index: int) -> str:
        number, kind = tries[index]
        try:
            return scene.interrupted(number, kind("of the caller"), index % step == 0)
        except Exception as error:
            return f"bytecode {number}, afterwards: {type(error).__name__}: {error}"

    return attempt


@ours
@pytest.mark.parametrize("signals", [1, 2])
def test_loop_under_a_timer(store: Store, signals: int, in_memory: Path, tally: Tally, is_long: bool) -> None:
    """Readers are opened, read and dropped while signals come, whose handler raises: one, or two in a row."""
    root = in_memory / "store"
    stand(store, root)
    seconds = LONG_SECONDS if is_long else SECONDS
    answer = forked(partial(Alarms(signals).loop, store, root, seconds))
    assert isinstance(answer, int), answer
    for _ in range(answer):
        tally.add("signals whose handler raises", store, AS_RAISED)


class Alarms:
    """Signals whose handler raises, so many in a row."""

    def __init__(self, most: int) -> None:
        self._most, self._come, self._raised = most, 0, 0
        self._kept: collections.deque[Interrupted] = collections.deque(maxlen=KEPT)

    def loop(self, store: Store, root: Path, seconds: float) -> int:
        """How many signals came, while readers were opened, read and dropped."""
        end = time.monotonic() + seconds
        signal.signal(signal.SIGALRM, self._interrupt)
        sys.unraisablehook = lambda told: None
        while time.monotonic() < end:
            self._come = 0
            try:
                self._under_signals(partial(open_and_drop, root))
            except Interrupted as error:  # the second, which found no call of ours any more
                self._kept.append(error)
        assert in_thread(lambda: found(store, root) == BEFORE), "another thread cannot read"
        assert in_fork(lambda: found(store, root) == BEFORE), "a forked child cannot read"
        store_single(store, root)
        return self._raised

    def _under_signals(self, call: Callable[[], None]) -> None:
        until = time.monotonic() + 3 * STEP * STEPS  # an error may be raised where Python cannot pass it on
        after = STEP * (1 + self._raised % STEPS)
        try:
            signal.setitimer(signal.ITIMER_REAL, after, STEP)
            while time.monotonic() < until:
                call()
        except Interrupted as error:
            self._kept.append(error)
        while self._come < self._most and time.monotonic() < until:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._come, self._raised = self._come + 1, self._raised + 1
        if self._come == self._most:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise Interrupted


def open_and_drop(root: Path) -> None:
    reader = imgstore.open_reader(root)
    assert record(*reader[0]) == BEFORE[0]
