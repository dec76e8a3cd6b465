"""Links planted in a store under the names of files that we are about to make lead no write out of it."""

import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from imgstore.errors import ImgstoreError
from imgstore.tests.checks import files
from imgstore.tests.faults.changes import SIDE, Store, ours, pictures
from imgstore.tests.faults.moments import Moment, moments
from imgstore.tests.faults.tally import Tally, Tries

FAULT = "links planted while a file is made"
LINES = Tries(0, 12, 0, 0)  # of each call, in the short form
CALLS = 200
OF_A_GENERATION = ("DESCRIPTION", "SINGLES", "images.mdb", "images.h5", "labels.csv", "00000000.png", "00000001.png")
OLD, NEW = pictures(1, 4, SIDE), pictures(2, 2, SIDE)


class Trap:
    """A store whose folders anybody may write in, and files elsewhere."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.root, self._store, self._elsewhere, self._link = folder / "store", store, folder / "else", folder / "link"
        self._elsewhere.mkdir(parents=True)
        (self._elsewhere / "text").write_bytes(b"somebody else's")
        (self._elsewhere / "empty").touch()
        self._store.verbs.store_many(self.root, *OLD, durable=False)
        for path in self.root.glob("*/images.*"):
            shutil.copy(path, self._elsewhere)  # what its library takes for its own
        self.store_single()
        self._before, self._targets = files(self._elsewhere), itertools.cycle(self._elsewhere.iterdir())
        self._seen = set(os.listdir(self.root))

    def store_many(self) -> None:
        self._store.verbs.store_many(self.root, *NEW, durable=False)

    def store_single(self) -> None:
        self._store.verbs.store_single(self.root, OLD.images[0], 7, OLD.labels[0], durable=False)

    def plant(self) -> None:
        """Put links under every name that may be made next, whatever has it."""
        folders = [path for path in self.root.iterdir() if path.is_dir()]
        for folder in folders:
            for name in OF_A_GENERATION:
                self._put(folder / name)
        self.plant_new()

    def plant_new(self) -> None:
        """Under the names that files have before they take the place of others."""
        for name in (
            "CURRENT.new",
            ".CURRENT.imgstore-new",
            *(f"{folder}/singles/.new" for folder in os.listdir(self.root)),
        ):
            self._put(self.root / name)

    def plant_in_new_folders(self) -> None:
        for folder in set(os.listdir(self.root)) - self._seen:
            for name in OF_A_GENERATION:
                with contextlib.suppress(OSError):
                    os.symlink(next(self._targets), self.root / folder / name)
        self._seen = set(os.listdir(self.root))

    def _put(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # no such folder, or not any more
            os.symlink(next(self._targets), self._link)
        with contextlib.suppress(OSError):
            os.replace(self._link, path)

    def call(self, verb: Callable[[], None]) -> None:
        """It may be refused: who may write in the folders can always stop us."""
        with contextlib.suppress(OSError, ImgstoreError):
            verb()

    def has_caught(self) -> bool:
        return files(self._elsewhere) != self._before

    @contextlib.contextmanager
    def set_by_another(self, plant: Callable[[], None]) -> Iterator[None]:
        """A process plants all the time."""
        child = os.fork()
        if not child:
            signal.alarm(600)
            for _ in itertools.count():
                with contextlib.suppress(OSError):
                    plant()
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def judged(trap: Trap, store: Store, tally: Tally, where: str) -> None:
    tally.add(FAULT, store, "OVERWRITTEN" if trap.has_caught() else "nothing elsewhere")
    assert not trap.has_caught(), where


@ours
@pytest.mark.parametrize("verb", ["store_many", "store_single"])
def test_planted_at_a_line(
    store: Store, verb: str, in_memory: Path, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    passed = moments(partial(getattr(Trap(store, in_memory / "counted"), verb)))
    lines = range(1, passed + 1) if is_long else random.choice(passed, LINES.short, replace=False) + 1
    for line in lines:
        folder = in_memory / f"{line}"
        trap = Trap(store, folder)
        with Moment(line, trap.plant):
            trap.call(getattr(trap, verb))
        judged(trap, store, tally, f"planted at line {line} of {passed}")


@ours
def test_planted_beside_store_single(store: Store, in_memory: Path, tally: Tally) -> None:
    trap = Trap(store, in_memory)
    with trap.set_by_another(trap.plant_new):
        for number in range(CALLS):
            trap.call(trap.store_single)
            judged(trap, store, tally, f"store_single {number}")


@ours
def test_planted_beside_store_many(store: Store, in_memory: Path, tally: Tally) -> None:
    trap = Trap(store, in_memory)
    with trap.set_by_another(trap.plant_in_new_folders):
        for number in range(CALLS):
            trap.call(trap.store_many)
            judged(trap, store, tally, f"store_many {number}")
