"""Success is told as success: where folders cannot be synced, and where something fails once CURRENT was replaced."""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import imgstore
from imgstore.command import main as __main__
from imgstore.tests.checks import records
from imgstore.tests.faults.changes import CHANGES, Case, MakeCase, Store, found, ours, pictures
from imgstore.tests.faults.children import Raised, forked

REPLACING = [name for name in CHANGES if name != "store_single, new id" and name != "store_single, replaced"]
MOST = 50  # syncs after CURRENT was replaced
IN_PLACE = "in place"  # what the error says of the new store
NEW = pictures(6, 5, 8)


class Failing:
    """Calls of the system that fail from now on, or once CURRENT is replaced; `met` counts those that failed."""

    def __init__(self, number: int, from_the: int = 1, after_current: bool = False) -> None:
        self.met, self._number, self._from, self._armed = 0, number, from_the, not after_current

    @contextlib.contextmanager
    def syncs(self) -> Iterator["Failing"]:
        """Of folders."""
        with self._noticing(), mock.patch("os.fsync", self._of_folder(os.fsync)):
            yield self

    @contextlib.contextmanager
    def removals(self) -> Iterator["Failing"]:
        with self._noticing(), contextlib.ExitStack() as patched:
            for name in ("unlink", "remove", "rmdir"):
                patched.enter_context(mock.patch(f"os.{name}", self._any(getattr(os, name))))
            yield self

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        def noticing(rename: Callable[..., None], source: Any, to: Any, **where: Any) -> None:
            rename(source, to, **where)
            self._armed |= os.path.basename(os.fsdecode(to)) == "CURRENT"

        replace, rename = os.replace, os.rename
        with (
            mock.patch("os.replace", lambda *names, **where: noticing(replace, *names, **where)),
            mock.patch("os.rename", lambda *names, **where: noticing(rename, *names, **where)),
        ):
            yield

    def _of_folder(self, sync: Callable[[Any], None]) -> Callable[[Any], None]:
        def synced(file: Any) -> None:
            if stat.S_ISDIR(os.fstat(file).st_mode):
                self._fail()
            sync(file)

        return synced

    def _any(self, call: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: Any, **options: Any) -> None:
            self._fail()
            call(*arguments, **options)

        return called

    def _fail(self) -> None:
        if self._armed:
            self.met += 1
            if self.met >= self._from:
                raise OSError(self._number, os.strerror(self._number))


def made_without_syncs_of_folders(call: Callable[[], object]) -> int:
    """How many syncs of folders it tried."""
    with Failing(errno.EINVAL).syncs() as failing:
        call()
    return failing.met


@ours
def test_folders_that_cannot_be_synced(case: MakeCase, name: str, in_memory: Path) -> None:
    of = case(in_memory / "store")
    of.lay()
    answer = forked(lambda: made_without_syncs_of_folders(of.make))
    assert isinstance(answer, int) and answer, answer
    assert forked(of.aftermath).outcome == "new"


@ours
def test_shards_in_folders_that_cannot_be_synced(store: Store, in_memory: Path) -> None:
    def part() -> Iterator[Any]:
        return zip(NEW.images, NEW.labels.tolist(), strict=True)

    root = in_memory / "store"
    answer = forked(
        lambda: made_without_syncs_of_folders(lambda: imgstore.shards.store(root, [part], backend=store.format))
    )
    assert isinstance(answer, int) and answer, answer
    imgstore.verify(root)


def converted(store: Store, root: Path, failing: contextlib.AbstractContextManager[Failing]) -> tuple[int, str]:
    said = io.StringIO()
    with failing, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        source = str(root.parent / "source")
        return __main__.main(["convert", source, str(root), "--backend", store.format, "--replace"]), said.getvalue()


@pytest.fixture
def source(store: Store, in_memory: Path) -> Path:
    """What is converted, and a store in its way."""
    imgstore.BACKENDS["hdf5"].store_many(in_memory / "source", *NEW, durable=False)
    store.verbs.store_many(in_memory / "store", *pictures(7, 4, 8))
    return in_memory / "source"


@ours
def test_convert_into_folders_that_cannot_be_synced(store: Store, source: Path, in_memory: Path) -> None:
    status, said = forked(lambda: converted(store, in_memory / "store", Failing(errno.EINVAL).syncs()))
    assert status == 0, said
    assert forked(lambda: found(store, in_memory / "store")) == records(*NEW)


@ours
@pytest.mark.parametrize("name", REPLACING)
def test_sync_that_fails_after_current_was_replaced(case: MakeCase, name: str, in_memory: Path) -> None:
    """The error says that the new store is in place, and it is."""
    of = case(in_memory / "store")
    for number in range(1, MOST):
        of.lay()
        answer = forked(lambda: made_with(of, Failing(errno.EIO, number, after_current=True).syncs()))  # noqa: B023
        if answer == 0:
            assert number > 1
            return
        assert isinstance(answer, Raised) and answer.errno == errno.EIO and "ImgstoreError" not in answer.kinds, answer
        assert IN_PLACE in answer.message and str(of.root) in answer.message
        assert forked(of.aftermath).outcome == "new"
    pytest.fail(f"more than {MOST} syncs")


def made_with(of: Case, failing: contextlib.AbstractContextManager[Failing]) -> int:
    with failing as counting:
        of.make()
    assert counting.met or of.change.before is None
    return 0


@ours
def test_convert_whose_last_sync_fails(store: Store, source: Path, in_memory: Path) -> None:
    failing = Failing(errno.EIO, after_current=True).syncs()
    status, said = forked(lambda: converted(store, in_memory / "store", failing))
    assert status == 1 and IN_PLACE in said and "Traceback" not in said
    assert forked(lambda: found(store, in_memory / "store")) == records(*NEW)


@ours
@pytest.mark.parametrize("name", REPLACING)
def test_what_cannot_be_removed_afterwards_is_no_failure(case: MakeCase, name: str, in_memory: Path) -> None:
    of = case(in_memory / "store")
    of.lay()
    answer = forked(lambda: made_with(of, Failing(errno.EIO, after_current=True).removals()))
    assert answer == 0, answer
    assert forked(of.aftermath) == ("new", [])
