"""Threads open, read and drop readers while their process forks: each child can read, and ends."""

import contextlib
import gc
import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import imgstore
from imgstore.tests.checks import A_MINUTE, record, records
from imgstore.tests.faults.changes import SIDE, Store, ours, pictures
from imgstore.tests.faults.children import forked
from imgstore.tests.faults.tally import Tries

FORKS = Tries(200, 8, 0, 0)
THREADS = 4
HANGS = 20  # seconds after which a child is taken to hang
MANY = pictures(1, 20, SIDE)
SINGLE = pictures(2, 1, SIDE)
HELD = [*records(*MANY), *records(*SINGLE)]


def open_read_and_drop(root: Path, number: int) -> None:
    reader = imgstore.open_reader(root, verify=bool(number % 2))
    assert record(*reader[number % len(HELD)]) == HELD[number % len(HELD)]
    if number % 3:
        assert [record(*pair) for pair in reader.__getitems__([0, -1, 5])] == [HELD[0], HELD[-1], HELD[5]]
    if number % 5 == 0:
        assert records(*reader.read_many()) == HELD
    if number % 7 == 0:
        reader.close()
    if number % 11 == 0:
        cycle = [reader]
        cycle.append(cycle)  # type: ignore[arg-type]  # for the collector of garbage to find


def until(stop: threading.Event, root: Path, start: int) -> int:
    for number in itertools.count(start):
        open_read_and_drop(root, number)
        if stop.is_set():
            return number - start
    raise AssertionError


def child_reads(store: Store, root: Path, held: imgstore.Reader) -> int:
    """The exit code of a child that reads from its parent's reader, opens others, drops all and forks again."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANGS)
            assert records(*held.read_many()) == HELD
            for number in range(8):
                open_read_and_drop(root, number)
            gc.collect()
            grandchild = os.fork()
            if not grandchild:
                signal.alarm(HANGS)
                os._exit(record(*store.verbs.read_single(root, 3)) != HELD[3])
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_again_and_again(store: Store, root: Path, times: int) -> list[int]:
    """The exit codes of the children, and how often each thread has read."""
    stop, held = threading.Event(), imgstore.open_reader(root)
    with ThreadPoolExecutor(THREADS) as pool:
        threads = [pool.submit(until, stop, root, 1000 * number) for number in range(THREADS)]
        try:
            codes = [child_reads(store, root, held) for _ in range(times)]
        finally:
            stop.set()
        assert all(thread.result(A_MINUTE) for thread in threads)
    assert records(*held.read_many()) == HELD
    return codes


@ours
@pytest.mark.parametrize("unused", ["other readers", "no other reader"])
def test_forks_while_threads_open_and_drop(store: Store, unused: str, in_memory: Path, is_long: bool) -> None:
    root = in_memory / "store"
    store.verbs.store_many(root, *MANY, durable=False)
    store.verbs.store_single(root, SINGLE.images[0], len(MANY.images), SINGLE.labels[0], durable=False)
    times = FORKS.of(store, is_long)
    if unused == "no other reader":
        codes = [0] * times
        assert forked(partial(only_drop, store, root, times)) == codes
    else:
        for _ in range(times // 8):  # `forked` waits a minute
            assert forked(partial(fork_again_and_again, store, root, 8)) == [0] * 8


def only_drop(store: Store, root: Path, times: int) -> list[int]:
    """Nothing holds the store open but what the threads drop at the moment of the fork."""
    stop = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        threads = [pool.submit(until, stop, root, 1000 * number) for number in range(THREADS)]
        try:
            return [fresh_child(store, root) for _ in range(times)]
        finally:
            stop.set()
            [thread.result(A_MINUTE) for thread in threads]


def fresh_child(store: Store, root: Path) -> int:
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANGS)
            os._exit(records(*store.verbs.read_many(root)) != HELD)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
