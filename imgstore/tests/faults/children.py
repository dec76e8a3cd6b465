"""A call in a forked process, and how it ended: it answers, or is killed at a moment or at a system call."""

import contextlib
import faulthandler
import multiprocessing
import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from imgstore.tests.checks import A_MINUTE

# What changes files, or maps them. A name that not every processor has stands with "?".
_CHANGING = (
    "openat,?open,?creat,write,writev,pwrite64,pwritev,?pwritev2,ftruncate,?truncate,fallocate,mmap,?sendfile,"
    "?copy_file_range,?mkdir,mkdirat,?rename,?renameat,renameat2,?link,linkat,?symlink,symlinkat,?unlink,unlinkat,"
    "?rmdir,fsync,fdatasync,syncfs,sync"
)


class Raised(NamedTuple):
    """An exception of the child: its classes, the nearest first, and what it carries."""

    kinds: tuple[str, ...]
    errno: int | None
    message: str


class Ended(NamedTuple):
    """The child did not answer: minus the number of the signal that ended it, or its exit code."""

    code: int


class Child:
    """A forked process that has everything imported, and calls `function` when it is told to."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._here, there = multiprocessing.Pipe()
        self.pid = os.fork()
        if not self.pid:
            _be(there, function)
        there.close()

    def go(self) -> None:
        """Let it call."""
        self._here.send_bytes(b"go")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def answer(self) -> Any:
        """What the function returned, `Raised` or `Ended`. AssertionError where the child hangs."""
        hangs = not self._here.poll(A_MINUTE)
        if hangs:
            self.kill()
        answers = list(self._received())
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert not hangs, "the child hangs"
        return answers[0] if answers else Ended(code)

    def _received(self) -> Iterator[Any]:
        with self._here, contextlib.suppress(EOFError, ConnectionResetError):
            yield self._here.recv()


def _be(there: Connection, function: Callable[[], Any]) -> NoReturn:
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        there.recv_bytes()
        try:
            answer = function()
        except Exception as error:
            kinds = tuple(kind.__name__ for kind in type(error).__mro__)
            answer = Raised(kinds, getattr(error, "errno", None), str(error))
        there.send(answer)
        os._exit(0)
    finally:
        os._exit(1)


def forked(function: Callable[[], Any]) -> Any:
    """The answer of a child that is let go at once."""
    child = Child(function)
    child.go()
    return child.answer()


def traced(function: Callable[[], Any], log: Path, *options: str) -> Any:
    """The answer of a child whose calls that change files go to `log`, from before its first step."""
    child = Child(function)
    command = ["strace", "-f", "-y", "-s0", "-e", f"trace={_CHANGING}", *options, "-o", str(log), "-p", str(child.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr
        said = tracer.stderr.readline()
        if b"attached" in said:
            child.go()
        else:
            child.kill()
        answer = child.answer()
    assert b"attached" in said, said
    return answer


def calls_of(function: Callable[[], Any], log: Path) -> list[tuple[str, int]]:
    """The system calls of the function: the name, and that it is its n-th of this name."""
    traced(function, log)
    *names, _ = re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE)  # the last is the child's answer
    return [(name, names[: index + 1].count(name)) for index, name in enumerate(names)]


def injected(function: Callable[[], Any], log: Path, call: tuple[str, int], what: str) -> Any:
    """The answer of a child that meets `what` at one of `calls_of`."""
    return traced(function, log, "-e", f"inject={call[0]}:{what}:when={call[1]}")
