"""A process that was forked while images are drawn is not the writer: whatever it does, the parent's store is whole."""

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

from imgstore.core import blocks as _images
from imgstore.errors import InvalidArgumentError, StoreBusyError
from imgstore.tests.checks import files, records
from imgstore.tests.faults.changes import SIDE, Store, found, litter, ours, pictures
from imgstore.tests.faults.children import forked
from imgstore.tests.strategies import Array

OLD, NEW = pictures(1, 5, SIDE), pictures(2, 12, SIDE)
FORK_AT = 7
HANGS = 20  # seconds after which a child is taken to hang
BLOCK_BYTES = 2048  # two images, so that some are in the store's files when the child is forked


class Unwound(Exception):
    """Raised by the child."""


def raises(store: Store, root: Path) -> None:
    raise Unwound


def exits(store: Store, root: Path) -> None:
    sys.exit(3)


def ends(store: Store, root: Path) -> None:
    os._exit(0)


def stores_many(store: Store, root: Path) -> NoReturn:
    store.verbs.store_many(root, *OLD)
    raise AssertionError("two writers at once")


def stores_single(store: Store, root: Path) -> NoReturn:
    store.verbs.store_single(root, OLD.images[0], 0, 0)
    raise AssertionError("two writers at once")


def goes_on(store: Store, root: Path) -> None:
    """It draws the other images, too."""


def draws_no_more(store: Store, root: Path) -> bool:
    return True


Does = Callable[[Store, Path], bool | None]
CHILDREN: dict[str, tuple[Does, type[BaseException] | None]] = {
    "raises": (raises, Unwound),
    "sys.exit": (exits, SystemExit),
    "os._exit": (ends, None),
    "store_many": (stores_many, StoreBusyError),
    "store_single": (stores_single, StoreBusyError),
    "goes on": (goes_on, StoreBusyError),
    "draws no more": (draws_no_more, (InvalidArgumentError, StoreBusyError)),  # type: ignore[dict-item]
}


def stored_around(store: Store, root: Path, name: str, durable: bool) -> None:
    """store_many of a generator that forks such a child and waits for it."""
    does, expected = CHILDREN[name]
    parent = os.getpid()
    try:
        with mock.patch.object(_images, "_BLOCK_BYTES", BLOCK_BYTES):
            store.verbs.store_many(root, drawn(store, root, does), NEW.labels, durable=durable)
    except BaseException as error:
        if os.getpid() != parent:
            os._exit(0 if expected and isinstance(error, expected) else 1)
        raise
    if os.getpid() != parent:
        os._exit(2)  # it believes that it has stored something


def drawn(store: Store, root: Path, does: Does) -> Iterator[Array]:
    for number, image in enumerate(NEW.images):
        if number == FORK_AT:
            before = files(root)
            child = os.fork()
            if not child:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(HANGS)
                if does(store, root):
                    return
            else:
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                assert code == 0, f"the child ended with {code}"
                assert files(root) == before, "the child has changed something"
                assert is_locked(root), "the child has released the lock"
        yield image


def is_locked(root: Path) -> bool:
    descriptor = os.open(root / "LOCK", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@ours
@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("name", CHILDREN)
def test_child_of_a_generator(store: Store, name: str, again: bool, durable: bool, in_memory: Path) -> None:
    root = in_memory / "store"
    if again:
        store.verbs.store_many(root, *OLD, durable=False)
    assert forked(partial(stored_around, store, root, name, durable)) is None
    assert forked(partial(found, store, root)) == records(*NEW)
    assert not litter(root)
    with contextlib.suppress(StoreBusyError):
        store.verbs.store_single(root, OLD.images[0], 0, 0, durable=False)
        return
    pytest.fail("the lock is still held")


@ours
def test_child_outlives_the_call(store: Store, in_memory: Path) -> None:
    """It holds the lock's file open, but not the lock."""
    root, (reading, writing) = in_memory / "store", os.pipe()

    def lingering() -> Iterator[Any]:
        for number, image in enumerate(NEW.images):
            if number == FORK_AT and not os.fork():
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            yield image

    try:
        store.verbs.store_many(root, lingering(), NEW.labels, durable=False)
        store.verbs.store_single(root, OLD.images[0], 0, 0, durable=False)
    finally:
        os.close(writing)
        os.close(reading)
        os.wait()
