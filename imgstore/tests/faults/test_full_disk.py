"""Nothing left to write with: free pages, free files, a file's size, open files, permission; calls that fail."""

import errno
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from imgstore.tests.checks import files
from imgstore.tests.faults.changes import Case, MakeCase, State, found, ours
from imgstore.tests.faults.children import Raised, calls_of, forked, injected
from imgstore.tests.faults.mounts import memory
from imgstore.tests.faults.tally import Tally, Tries

STEP = Tries(1, 4, 1, 8)  # from one try to the next: of what is left
FAILURE_STEP = Tries(1, 8, 1, 8)  # of the system calls
MOST = 400  # more of anything than a call needs
PAGE = os.sysconf("SC_PAGE_SIZE")
NOBODY = 65534

# What a device that breaks, and a system that has run out of something, answers.
FAILURES = dict.fromkeys(("fsync", "fdatasync", "syncfs", "unlink", "unlinkat", "rmdir"), errno.EIO)
FAILURES |= dict.fromkeys(("write", "writev", "pwrite64", "pwritev", "ftruncate", "mkdir", "rename"), errno.ENOSPC)
FAILURES |= {"openat": errno.EMFILE}


class Limit(NamedTuple):
    """Leaves a process so many of something to write with, until it is lifted."""

    what: str
    root: Path
    errors: set[int]
    leave: Callable[[int], None]
    lift: Callable[[], object]


@pytest.fixture(params=["free pages", "free files", "pages of a file", "open files"])
def limit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Limit]:
    root, what = tmp_path / "mounted" / "store", request.param
    if what == "pages of a file":
        # ENOSPC: what LMDB makes of a short write
        errors, set_limit = {errno.EFBIG, errno.ENOSPC}, lambda left: limit_process(resource.RLIMIT_FSIZE, left * PAGE)
        yield Limit(what, root, errors, set_limit, os.getpid)
    elif what == "open files":
        yield Limit(what, root, {errno.EMFILE}, partial(limit_process, resource.RLIMIT_NOFILE), os.getpid)
    else:
        with memory(root.parent) as mounted:
            of = what.removeprefix("free ")
            yield Limit(what, root, {errno.ENOSPC}, lambda left: mounted.leave(**{of: left}), mounted.leave)


def limit_process(what: int, limit: int) -> None:
    resource.setrlimit(what, (limit, limit))


def test_too_little(case: MakeCase, limit: Limit, tally: Tally, is_long: bool, random: np.random.Generator) -> None:
    of = case(limit.root)
    step = STEP.of(of.store, is_long)
    for left in range(int(random.integers(step)), MOST, step):
        before = files(of.lay())
        answer = forked(partial(limited, limit, left, of.make))
        limit.lift()
        if answer is None:
            return
        if isinstance(answer, Raised):
            refused(of, answer, limit.errors)
            if limit.what != "open files":  # without one no folder can be emptied: the next store_many does
                untouched(of, before)
            answer = forked(of.aftermath)
        tally.judge(f"too few {limit.what}", of.store, answer)
    pytest.fail(f"{MOST} {limit.what} are not enough")


def limited(limit: Limit, left: int, call: Callable[[], None]) -> None:
    limit.leave(left)
    call()


def refused(case: Case, answer: Any, errors: set[int]) -> None:
    """Ours raised the system's own error."""
    if case.store.ours:
        assert answer.errno in errors and "OSError" in answer.kinds and "ImgstoreError" not in answer.kinds, answer


def untouched(case: Case, before: dict[str, bytes | None]) -> None:
    """Ours has changed nothing and left nothing behind."""
    if case.store.ours:
        assert {**files(case.root), "LOCK": b""} == {**before, "LOCK": b""}


@ours
@pytest.mark.usefixtures("strace")
def test_each_call_that_fails(
    case: MakeCase, in_memory: Path, name: str, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    of, log = case(in_memory / "store"), in_memory / "log"
    step = FAILURE_STEP.of(of.store, is_long)
    of.lay()
    for call in calls_of(of.make, log)[int(random.integers(step)) :: step]:
        if call[0] in FAILURES:
            number = FAILURES[call[0]]
            before = files(of.lay())
            answer = injected(of.make, log, call, f"error={errno.errorcode[number]}")
            if answer is not None:
                refused(of, answer, {number})
            if answer is not None and number == errno.ENOSPC:
                untouched(of, before)
            tally.judge("a system call fails", of.store, forked(of.aftermath))


@ours
@pytest.mark.parametrize("name", ["store_many again"])
def test_too_few_open_files_are_no_damage(case: MakeCase, in_memory: Path) -> None:
    of = case(in_memory / "store")
    of.lay()
    for left in range(MOST):
        answer = forked(partial(reading, of, left))
        if isinstance(answer, list):
            break
        assert answer.errno == errno.EMFILE and "ImgstoreError" not in answer.kinds, answer
    assert answer == of.change.before


def reading(case: Case, left: int) -> State | None:
    limit_process(resource.RLIMIT_NOFILE, left)
    return found(case.store, case.root)


@ours
def test_folder_that_cannot_be_written(case: MakeCase, tally: Tally, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        of = case(Path(folder) / "store")
        before = files(of.lay())
        folders = [Path(folder), *(path for path in Path(folder).rglob("*") if path.is_dir())]
        for path in folders:
            path.chmod(0o555)
        for path in Path(folder).rglob("LOCK"):
            path.chmod(0o666)  # or else a call would get no further
        answer = forked(partial(as_nobody, of.make))
        for path in folders:
            path.chmod(0o755)
        refused(of, answer, {errno.EACCES})
        untouched(of, before)
        tally.judge("no permission", of.store, forked(of.aftermath))


def as_nobody(call: Callable[[], None]) -> None:
    """The call of a user whom permissions bind."""
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    call()


@ours
def test_read_only_file_system(case: MakeCase, tmp_path: Path, tally: Tally, name: str) -> None:
    with memory(tmp_path / "mounted") as mounted:
        of = case(mounted.path / "store")
        before = files(of.lay())
        mounted.forbid_writing()
        answer = forked(of.make)
        mounted.leave()
        refused(of, answer, {errno.EROFS})
        untouched(of, before)
        tally.judge("read-only file system", of.store, forked(of.aftermath))
