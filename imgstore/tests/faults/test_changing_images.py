"""An array that somebody changes while it is stored: what is written has the checksum of what is written."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from imgstore.tests.faults.changes import Store, found, ours
from imgstore.tests.faults.moments import Moment, moments
from imgstore.tests.faults.tally import Tally, Tries
from imgstore.tests.strategies import Array

FAULT = "images that change while they are stored"
LINES, TIMES = Tries(100, 5, 0, 0), Tries(20, 2, 0, 0)
SMALL, LARGE = (30, 32, 32, 3), (2, 700, 600, 3)  # of the large ones, each is a block of its own


class Way(NamedTuple):
    """What is stored, and how."""

    shape: tuple[int, ...]
    store: Callable[[Store, Path, Array], None]


def as_array(store: Store, root: Path, images: Array) -> None:
    store.verbs.store_many(root, images, range(len(images)), durable=False)


def as_list(store: Store, root: Path, images: Array) -> None:
    store.verbs.store_many(root, list(images), range(len(images)), durable=False)


def as_generator(store: Store, root: Path, images: Array) -> None:
    def drawn() -> Iterator[Array]:
        yield from images

    store.verbs.store_many(root, drawn(), range(len(images)), durable=False)


def mixed(store: Store, root: Path, images: Array) -> None:
    store.verbs.store_many(root, [images[0], images[1][1:], *images[2:]], range(len(images)), durable=False)


def singly(store: Store, root: Path, images: Array) -> None:
    store.verbs.store_single(root, images[0], 0, 7, durable=False)


WAYS = {
    "array": Way(SMALL, as_array),
    "large array": Way(LARGE, as_array),
    "list": Way(SMALL, as_list),
    "large list": Way(LARGE, as_list),
    "generator": Way(SMALL, as_generator),
    "large generator": Way(LARGE, as_generator),
    "mixed forms": Way(LARGE, mixed),
    "single": Way(SMALL, singly),
    "large single": Way(LARGE, singly),
}


def pixels(shape: tuple[int, ...]) -> Array:
    images = np.zeros(shape, np.uint8)
    images[:, ::2] = 7
    return images


def changed(images: Array) -> None:
    images += 1


def judged(store: Store, root: Path, tally: Tally, where: Any) -> None:
    try:
        outcome = "whole" if found(store, root) else "LOST"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    tally.add(FAULT, store, "whole" if outcome == "whole" else "WRONG")
    assert outcome == "whole", where


@ours
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_changed_at_a_line(
    store: Store, way: Way, in_memory: Path, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    root, images = in_memory / "store", pixels(way.shape)
    passed = moments(partial(way.store, store, root, images))
    for line in random.choice(passed, min(passed, LINES.of(store, is_long)), replace=False) + 1:
        with Moment(line, partial(changed, images)):
            way.store(store, root, images)
        judged(store, root, tally, f"changed at line {line} of {passed}")


@ours
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_changed_by_a_thread(store: Store, way: Way, in_memory: Path, tally: Tally, is_long: bool) -> None:
    root, images, stop = in_memory / "store", pixels(way.shape), threading.Event()

    def change() -> None:
        while not stop.is_set():
            changed(images)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for number in range(TIMES.of(store, is_long)):
            way.store(store, root, images)
            judged(store, root, tally, f"the store of turn {number}")
    finally:
        stop.set()
        thread.join()
