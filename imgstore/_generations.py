"""Generations: what one `store_many` writes, beside the live one, until CURRENT names it.

    root/LOCK               held by the one writer
    root/CURRENT            format, backend, live generation, whether it was synced, checksums
    root/000007-3f9a1c/     a generation; once named it never changes, singles/ aside
        DESCRIPTION         JSON: count; where all agree, shape, dtype and the number of images in each
                            block but the last; and what the backend notes
        singles/            a file for each image that store_single added or replaced since

LevelDB and RocksDB switch versions with a CURRENT for the same reason: readers need no locks.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from imgstore._checksums import checksum
from imgstore.errors import (
    CorruptStoreError,
    ImgstoreError,
    InvalidArgumentError,
    StoreBusyError,
    StoreNotFoundError,
    StoreReplacedError,
)

Root = str | os.PathLike[str]
T = TypeVar("T")

_ATTEMPTS = 100
SHARDS, PLAN = "SHARDS", "PLAN"  # of a sharded store: see imgstore/_shards.py
_FEW = 8  # files that are synced one by one
_LARGEST_CURRENT = 4096
_LARGEST_DESCRIPTION = 1 << 30
_GENERATION = re.compile(r"\d{6,18}-[0-9a-f]{6}")
FORMAT = 2  # the version of all that lies in a store
_CURRENT = re.compile(
    rb"(imgstore %d (?P<backend>\w+) (?P<name>\d{6,18}-[0-9a-f]{6}) (?P<synced>synced|unsynced)"
    rb" (?P<description>[0-9a-f]{16})) (?P<checksum>[0-9a-f]{16})\n" % FORMAT
)


class Generation(NamedTuple):
    """A generation as CURRENT named it and as its DESCRIPTION tells."""

    root: str
    backend: str
    name: str
    synced: bool
    checksum: str  # of DESCRIPTION
    description: dict[str, Any]

    def path(self, *names: str) -> str:
        """The path of a file in it."""
        return "/".join((self.root, self.name, *names))

    def singles(self, suffix: str) -> list[int]:
        """The ids in singles/, ascending."""
        folder = self.path("singles")
        stems = [name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix)]
        for stem in stems:
            if not (stem.isdecimal() and f"{int(stem):08d}" == stem and int(stem) < 2**63):
                raise CorruptStoreError(folder, f"holds {stem}{suffix}, which is not the name of a single")
        return sorted(map(int, stems))

    def fault(self, path: str, message: str, image_id: int | None = None) -> OSError:
        """The error for what cannot be read: damage, or a store that was replaced meanwhile."""
        if _live_name(self.root) == self.name:
            return CorruptStoreError(path, message, image_id)
        return StoreReplacedError(self.root, "the store was replaced since it was opened; open it again")


def single_name(image_id: int, suffix: str) -> str:
    """Where a single lies in a generation, whether it exists or not."""
    return f"singles/{image_id:08d}{suffix}"


def open_live(root: Root, open_generation: Callable[[Generation], T]) -> T:
    """`open_generation` of the generation that CURRENT names, again when CURRENT changed meanwhile.

    While a generation is being removed, its files are a mixture: what was opened counts only when CURRENT
    is the same afterwards. Raises StoreNotFoundError where there is no store, CorruptStoreError for damage.
    """
    root = os.fspath(root)
    for _ in range(_ATTEMPTS):
        descriptor, status = _open_current(root)
        try:
            result = open_generation(_generation(root, os.read(descriptor, _LARGEST_CURRENT)))
        except (OSError, ImgstoreError) as error:
            if not _is_current(root, status):
                continue
            if type(error) is FileNotFoundError:
                raise CorruptStoreError(error.filename, "is missing from the store") from None
            raise
        else:
            if _is_current(root, status):
                return result
        finally:
            os.close(descriptor)  # only now: while it is open, no other CURRENT is given its inode
    raise StoreReplacedError(root, "the store was replaced again and again while it was being opened")


def is_store(root: str) -> bool:
    """Whether a store is there, also a damaged one; LevelDB and RocksDB have a CURRENT and a LOCK, too."""
    try:
        ours = read_file(f"{root}/CURRENT", _LARGEST_CURRENT).startswith(b"imgstore ")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except CorruptStoreError:
        ours = False
    return ours or bool(generations(root))


@contextlib.contextmanager
def writing(root: Root) -> Iterator[str]:
    """Make `root` where it is missing and hold it as its only writer; else raise StoreBusyError."""
    path = os.fspath(root)
    if os.path.exists(path) and not os.path.isdir(path):
        raise InvalidArgumentError("root", f"{path} is a file; give a directory")
    os.makedirs(path, exist_ok=True)
    with _opened(os.path.join(path, "LOCK"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreBusyError(path, "another writer is at work; try again when it is done") from None
        try:
            yield path
        finally:
            # Unlocked by name: a child forked meanwhile holds the same lock open.
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def replace_generation(root: str, backend: str, durable: bool, write: Callable[[str], dict[str, Any]]) -> None:
    """Let `write` fill the next generation, make it the live one, and remove all others.

    `write` gets the directory and returns the DESCRIPTION. Whatever fails before CURRENT is replaced leaves
    the store as it was. The caller holds the writer's lock.
    """
    if reason := sharded(root):
        raise InvalidArgumentError("root", reason)
    if before := _live_name(root):
        _remove_generations(root, before)
    number = max((int(name.partition("-")[0]) for name in generations(root)), default=0) + 1
    name = f"{number % 10**18:06d}-{secrets.token_hex(3)}"
    path = os.path.join(root, name)
    try:
        with _opened(root) as file_system:  # before the first write: syncfs tells of its errors
            os.makedirs(os.path.join(path, "singles"))
            text = json.dumps(write(path), separators=(",", ":")).encode()
            write_file(os.path.join(path, "DESCRIPTION"), text)
            if durable:
                _sync_generation(root, path, file_system)
            _replace_current(root, backend, name, durable, f"{checksum(text):016x}")
    except BaseException:
        if _live_name(root) != name:  # an interrupt may arrive when CURRENT was just replaced
            shutil.rmtree(path, ignore_errors=True)
        raise
    _remove_generations(root, name)


def sharded(root: str) -> str | None:
    """Why no ordinary store can be made at `root`: a sharded one is there, or what was stored of it. Else None."""
    if os.path.lexists(os.path.join(root, SHARDS)):
        return f"{root} is a sharded store; give another folder"
    if os.path.lexists(os.path.join(root, PLAN)):
        return f"{root} holds a part of another sharded store; remove it, or give another folder"
    return None


def make_durable(generation: Generation) -> None:
    """Sync a generation that was written with durable=False, so that a durable single can rely on it."""
    with _opened(generation.root) as file_system:
        _sync_file_system(file_system)
    _replace_current(generation.root, generation.backend, generation.name, True, generation.checksum)


def replace_single(generation: Generation, name: str, durable: bool, write: Callable[[str], None]) -> None:
    """Let `write` make the file of a single under another name, then rename it to `name`."""
    _replace_file(generation.path(name), generation.path("singles", ".new"), durable, write)
    if durable:
        _sync(generation.path("singles"))


def read_file(path: str, largest: int) -> bytes:
    """The bytes of a file of the store; never through a symbolic link, never more than `largest`."""
    descriptor, status = open_file(path)
    try:
        if status.st_size > largest:
            raise CorruptStoreError(path, f"has {status.st_size} bytes, more than the {largest} that it can have")
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def replace_text(root: str, name: str, text: str, durable: bool = True) -> None:
    """Let a file directly in `root` have this text, all or nothing."""
    path = os.path.join(root, name)
    _replace_file(path, f"{path}.new", durable, lambda new: write_file(new, text.encode()))
    if durable:
        _sync_with_parents(root)


def write_file(path: str, data: bytes) -> None:
    """Write a new file. Python's `open` would take a third of the time that one of a few kilobytes takes."""
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        written = os.write(descriptor, data)
        while written < len(data):
            written += os.write(descriptor, data[written:])


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


def descriptor_path(descriptor: int) -> str:
    """A path to the very file that is open, for a library: by now its own path may name another."""
    return f"/proc/self/fd/{descriptor}"


def _open_current(root: str) -> tuple[int, os.stat_result]:
    try:
        return open_file(f"{root}/CURRENT")
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(root, "there is no imgstore store here") from None


def _is_current(root: str, status: os.stat_result) -> bool:
    """Whether this is the status of CURRENT: each is a new file, under the name of the last."""
    try:
        return os.path.samestat(os.lstat(f"{root}/CURRENT"), status)
    except FileNotFoundError:
        return False


def _entry(root: str, current: bytes) -> re.Match[bytes]:
    entry = _CURRENT.fullmatch(current)
    if re.match(rb"imgstore (?!%d )\d+ " % FORMAT, current):
        message = f"is of another version of the format, which is {FORMAT} here; store anew"
        raise CorruptStoreError(f"{root}/CURRENT", message)
    if not entry or b"%016x" % checksum(entry[1]) != entry["checksum"]:
        raise CorruptStoreError(f"{root}/CURRENT", "does not match its own checksum")
    return entry


def _generation(root: str, current: bytes) -> Generation:
    backend, name, synced, digest = _entry(root, current).group("backend", "name", "synced", "description")
    path = f"{root}/{name.decode()}"
    for folder in (path, f"{path}/singles"):
        if not stat.S_ISDIR(os.lstat(folder).st_mode):  # a symbolic link, say, that could lead out of the store
            raise CorruptStoreError(folder, "is not a directory of the store's own")
    text = read_file(f"{path}/DESCRIPTION", _LARGEST_DESCRIPTION)
    try:
        description = json.loads(text)
    except (ValueError, RecursionError):
        description = None
    if b"%016x" % checksum(text) != digest or not isinstance(description, dict):
        raise CorruptStoreError(f"{path}/DESCRIPTION", "is not what CURRENT tells of it")
    return Generation(root, backend.decode(), name.decode(), synced == b"synced", digest.decode(), description)


def _live_name(root: str) -> str | None:
    try:
        return _entry(root, read_file(f"{root}/CURRENT", _LARGEST_CURRENT))["name"].decode()
    except (FileNotFoundError, CorruptStoreError):
        return None


def _replace_current(root: str, backend: str, name: str, durable: bool, description: str) -> None:
    line = f"imgstore {FORMAT} {backend} {name} {'synced' if durable else 'unsynced'} {description}"
    replace_text(root, "CURRENT", f"{line} {checksum(line.encode()):016x}\n", durable)


def _replace_file(path: str, new: str, durable: bool, write: Callable[[str], None]) -> None:
    """Let `write` make the file `new`, which then takes the name `path`. The caller syncs the directory."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # of a killed writer; or a link, that could lead out of the store
    try:
        write(new)
        if durable:
            _sync(new)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def generations(root: str) -> list[str]:
    """The names of all that lie there, also of those that a killed writer left."""
    return [name for name in os.listdir(root) if _GENERATION.fullmatch(name)]


def _remove_generations(root: str, keep: str) -> None:
    for name in generations(root):
        if name != keep:
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)


def _sync_generation(root: str, path: str, file_system: int) -> None:
    """Sync what was written to `path`, and its name: a few files one by one, many with their file system."""
    names = [*os.listdir(path), *(f"singles/{name}" for name in os.listdir(f"{path}/singles"))]
    if len(names) > _FEW:
        _sync_file_system(file_system)
        return
    for each in (*(f"{path}/{name}" for name in names), path, root):
        _sync(each)


def _sync_with_parents(root: str) -> None:
    """Sync `root` and what it lies in: an earlier call may have made the folders and been killed."""
    path = os.path.realpath(root)
    _sync(path)
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        with contextlib.suppress(PermissionError):  # one that we may not read is none that we made
            _sync(path)


def _sync(path: str) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_file_system(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
