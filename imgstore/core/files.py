"""Files of a store: opened as what they are, made new, replaced all or nothing, synced."""

import contextlib
import ctypes
import errno
import functools
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from imgstore.errors import CorruptStoreError

Root = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_NO_SYNC = frozenset({errno.EINVAL, errno.EOPNOTSUPP})  # of a folder, where the file system has no such call


class NewFile(NamedTuple):
    """A file that was made new, to be written through its descriptor: by now its path may name another."""

    path: str
    descriptor: int

    def write(self, data: bytes) -> None:
        """At the end. Python's `open` would take a third of the time that a file of a few kilobytes takes."""
        with naming(self.path):
            written = os.write(self.descriptor, data)
            while written < len(data):
                written += os.write(self.descriptor, data[written:])

    def write_at(self, offset: int, data: Any) -> None:
        """Bytes, or an array of one dimension. Nothing is kept back, that a forked child could write once more."""
        with naming(self.path):
            view = memoryview(data).cast("B")
            while view:
                written = os.pwrite(self.descriptor, view, offset)
                view, offset = view[written:], offset + written

    def name_for_library(self) -> str:
        """To the very file that is open; where there is no /proc, the path that it was opened by."""
        name = _name_in_proc(self.descriptor)
        return name if os.path.exists(name) else self.path


def open_file(path: str) -> tuple[int, os.stat_result]:
    """Descriptor and status of a regular file of the store; CorruptStoreError for a link or another kind."""
    try:
        # O_NONBLOCK: to open a FIFO would otherwise wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise CorruptStoreError(path, "is a symbolic link or a socket; a store holds none") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CorruptStoreError(path, "is not a regular file")
    return descriptor, status


def read_file(path: str, largest: int) -> bytes:
    """The bytes of a file of the store; never through a symbolic link, never more than `largest`."""
    descriptor, status = open_file(path)
    try:
        if status.st_size > largest:
            raise _too_large(path, status, largest)
        return os.read(descriptor, status.st_size)
    except OSError as error:
        name_path(error, path)
        raise
    finally:
        os.close(descriptor)


def read_parts(path: str, largest: int, part: int) -> Iterator[bytes]:
    """As `read_file`, so many bytes at a time."""
    descriptor, status = open_file(path)
    try:
        if status.st_size > largest:
            raise _too_large(path, status, largest)
        with naming(path):
            for offset in range(0, status.st_size, part):
                yield os.read(descriptor, min(part, status.st_size - offset))
    finally:
        os.close(descriptor)


def _too_large(path: str, status: os.stat_result, largest: int) -> CorruptStoreError:
    return CorruptStoreError(path, f"has {status.st_size} bytes, more than the {largest} that it can have")


@contextlib.contextmanager
def new_file(path: str) -> Iterator[NewFile]:
    """A file that is not there yet, and no link."""
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
        yield NewFile(path, descriptor)


def write_file(path: str, data: bytes) -> None:
    """Write a new file."""
    with new_file(path) as file:
        file.write(data)


def replace_file(path: str, new: str, durable: bool, write: Callable[[NewFile], None]) -> None:
    """Let `write` make the file `new`, which then takes the name `path`. The caller syncs the folder."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # of a killed writer
    writer = os.getpid()
    try:
        with new_file(new) as file:
            write(file)
            if durable:
                with naming(new):
                    os.fsync(file.descriptor)
        os.replace(new, path)
    except BaseException:
        if os.getpid() == writer:  # a forked child removes nothing
            with passing_over_errors():
                os.unlink(new)
        raise


@contextlib.contextmanager
def memory_file(of: str, size: int, pieces: Iterable[tuple[int, bytes]]) -> Iterator[NewFile]:
    """A file in memory that holds only these pieces at their offsets, for a library to open by its path.

    So the library sees nothing that was not looked at, and no disk can fail it. Where there is no /proc, it is a
    temporary file. `of`: what errors name.
    """
    with naming(of):
        descriptor, path = os.memfd_create("imgstore"), ""
        if not os.path.exists(_name_in_proc(descriptor)):
            os.close(descriptor)
            descriptor, path = tempfile.mkstemp(prefix="imgstore-")
    try:
        with naming(of):
            os.ftruncate(descriptor, size)
            for offset, content in pieces:
                os.pwrite(descriptor, content, offset)
        yield NewFile(path or _name_in_proc(descriptor), descriptor)
    finally:
        os.close(descriptor)
        if path:
            os.unlink(path)


def _name_in_proc(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def sync_folder(path: str) -> None:
    """Have the names in a folder on the disk, where the file system can be asked for it."""
    with opened(path) as descriptor, naming(path):
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise


def sync_file(path: str) -> None:
    with opened(path) as descriptor, naming(path):
        os.fsync(descriptor)


def sync_with_parents(root: str) -> None:
    """Sync `root` and what it lies in: an earlier call may have made the folders and been killed."""
    path = os.path.realpath(root)
    sync_folder(path)
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        with contextlib.suppress(PermissionError):  # one that we may not read is none that we made
            sync_folder(path)


@functools.lru_cache(maxsize=256)
def sync_once(folder: str, *mark: object) -> None:
    """Sync a folder in which a call that was killed may have made what bears this mark, and its parents.

    Once in a process for each mark: to sync what is synced costs half a `store_single`.
    """
    sync_with_parents(folder)


@functools.lru_cache(maxsize=256)
def sync_folder_once(folder: str, *mark: object) -> None:
    """As `sync_once`, without its parents."""
    sync_folder(folder)


def sync_file_system(path: str, descriptor: int) -> None:
    """Sync the file system on which `path` lies, open as `descriptor` since before the first write."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)


@contextlib.contextmanager
def opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """The system's errors name this path where they name none, as those about a descriptor do."""
    try:
        yield
    except OSError as error:
        name_path(error, path)
        raise


def name_path(error: OSError, path: str) -> None:
    """Have an error of the system name this path where it names none."""
    if error.errno is not None and error.filename is None:
        error.filename = path


@contextlib.contextmanager
def passing_over_errors() -> Iterator[None]:
    """Of the system. What a handler of signals raises may be an OSError, too, but has no number."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
