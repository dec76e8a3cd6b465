"""Generations: what one `store_many` writes, beside the live one, until CURRENT names it.

    root/LOCK               held by the one writer
    root/CURRENT            format, backend, live generation, whether it was synced, checksums
    root/000007-3f9a1c/     a generation; once named it never changes, singles/ aside
        DESCRIPTION         JSON: count, shape and dtype where all agree, and what the backend notes
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
from dataclasses import dataclass
from typing import Any, TypeVar

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
_FEW = 8  # files that are synced one by one
_LARGEST_CURRENT = 4096
_LARGEST_DESCRIPTION = 1 << 30
_GENERATION = re.compile(r"(\d{6,18})-[0-9a-f]{6}")
_CURRENT = re.compile(
    rb"(imgstore 1 (?P<backend>\w+) (?P<name>\d{6,18}-[0-9a-f]{6}) (?P<synced>synced|unsynced)"
    rb" (?P<description>[0-9a-f]{16})) (?P<checksum>[0-9a-f]{16})\n"
)
_SINGLE = re.compile(r"[0-9]{8,19}")


@dataclass(frozen=True)
class Generation:
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
            if not _SINGLE.fullmatch(stem) or f"{int(stem):08d}" != stem or int(stem) >= 2**63:
                raise CorruptStoreError(folder, f"holds {stem}{suffix}, which is not the name of a single")
        return sorted(map(int, stems))

    def is_live(self) -> bool:
        """Whether CURRENT still names it."""
        return _live_name(self.root) == self.name

    def fault(self, path: str, message: str, image_id: int | None = None) -> OSError:
        """The error for what cannot be read: damage, or a store that was replaced meanwhile."""
        if self.is_live():
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
        current = _read_current(root)
        try:
            result = open_generation(_generation(root, current))
        except (OSError, ImgstoreError) as error:
            if _read_current(root) != current:
                continue
            if type(error) is FileNotFoundError:
                raise CorruptStoreError(error.filename, "is missing from the store") from None
            raise
        if _read_current(root) == current:
            return result
    raise StoreReplacedError(root, "the store was replaced again and again while it was being opened")


@contextlib.contextmanager
def writing(root: Root) -> Iterator[str]:
    """Make `root` where it is missing and hold it as its only writer; else raise StoreBusyError."""
    path = os.fspath(root)
    if os.path.exists(path) and not os.path.isdir(path):
        raise InvalidArgumentError("root", f"{path} is a file; give a directory")
    os.makedirs(path, exist_ok=True)
    descriptor = os.open(os.path.join(path, "LOCK"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreBusyError(path, "another writer is at work; try again when it is done") from None
        try:
            yield path
        finally:
            # Unlocked by name: a child forked meanwhile holds the same lock open.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def replace_generation(root: str, backend: str, durable: bool, write: Callable[[str], dict[str, Any]]) -> None:
    """Let `write` fill the next generation, make it the live one, and remove all others.

    `write` gets the directory and returns the DESCRIPTION. Whatever fails before CURRENT is replaced leaves
    the store as it was. The caller holds the writer's lock.
    """
    before = _live_name(root)
    if before:
        _remove_generations(root, before)
    name = f"{max(_generations(root).values(), default=0) + 1:06d}-{secrets.token_hex(3)}"
    path = os.path.join(root, name)
    descriptor = os.open(root, os.O_RDONLY | os.O_CLOEXEC)  # before the first write: syncfs tells of its errors
    try:
        os.makedirs(os.path.join(path, "singles"))
        text = json.dumps(write(path), separators=(",", ":")).encode()
        _write_file(os.path.join(path, "DESCRIPTION"), text)
        if durable:
            _sync_generation(path, descriptor)
        _replace_current(root, backend, name, durable, f"{checksum(text):016x}")
    except BaseException:
        if _live_name(root) != name:  # an interrupt may arrive when CURRENT was just replaced
            shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)
    _remove_generations(root, name)


def make_durable(generation: Generation) -> None:
    """Sync a generation that was written with durable=False, so that a durable single can rely on it."""
    descriptor = os.open(generation.root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _sync_file_system(descriptor)
    finally:
        os.close(descriptor)
    _replace_current(generation.root, generation.backend, generation.name, True, generation.checksum)


def replace_single(generation: Generation, name: str, durable: bool, write: Callable[[str], None]) -> None:
    """Let `write` make the file of a single under another name, then rename it to `name`."""
    new = generation.path("singles", ".new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    try:
        write(new)
        if durable:
            _sync(new)
        os.replace(new, generation.path(name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    if durable:
        _sync(generation.path("singles"))


def read_file(path: str, largest: int) -> bytes:
    """The bytes of a file of the store; never through a symbolic link, never more than `largest`."""
    descriptor, size = open_file(path)
    try:
        if size > largest:
            raise CorruptStoreError(path, f"has {size} bytes, more than the {largest} that it can have")
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def open_file(path: str) -> tuple[int, int]:
    """Descriptor and size of a regular file of the store; CorruptStoreError for a link or another kind."""
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
    return descriptor, status.st_size


def descriptor_path(descriptor: int) -> str:
    """A path to the very file that is open, for a library: by now its own path may name another."""
    return f"/proc/self/fd/{descriptor}"


def require_directory(path: str) -> None:
    """CorruptStoreError for anything else, a symbolic link too: it could lead out of the store."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise CorruptStoreError(path, "is not a directory of the store's own")


def _read_current(root: str) -> bytes:
    try:
        return read_file(f"{root}/CURRENT", _LARGEST_CURRENT)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(root, "there is no imgstore store here") from None


def _entry(root: str, current: bytes) -> re.Match[bytes]:
    entry = _CURRENT.fullmatch(current)
    if not entry or b"%016x" % checksum(entry[1]) != entry["checksum"]:
        raise CorruptStoreError(f"{root}/CURRENT", "does not match its own checksum")
    return entry


def _generation(root: str, current: bytes) -> Generation:
    backend, name, synced, digest = _entry(root, current).group("backend", "name", "synced", "description")
    path = f"{root}/{name.decode()}"
    require_directory(path)
    require_directory(f"{path}/singles")
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
        return _entry(root, _read_current(root))["name"].decode()
    except (StoreNotFoundError, CorruptStoreError):
        return None


def _replace_current(root: str, backend: str, name: str, durable: bool, description: str) -> None:
    line = f"imgstore 1 {backend} {name} {'synced' if durable else 'unsynced'} {description}"
    new = os.path.join(root, "CURRENT.new")
    try:
        _write_file(new, f"{line} {checksum(line.encode()):016x}\n".encode())
        if durable:
            _sync(new)
            _sync(root)  # what CURRENT is about to name must be there when it is
        os.replace(new, os.path.join(root, "CURRENT"))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    if durable:
        _sync_with_parents(root)


def _generations(root: str) -> dict[str, int]:
    matches = [_GENERATION.fullmatch(name) for name in os.listdir(root)]
    return {match[0]: int(match[1]) for match in matches if match}


def _remove_generations(root: str, keep: str) -> None:
    for name in _generations(root):
        if name != keep:
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)


def _write_file(path: str, data: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with open(path, "xb") as file:  # a new file: an old link could lead out of the store
        file.write(data)


def _sync_generation(path: str, descriptor: int) -> None:
    """Sync what was written to `path`: a few files one by one, many through their file system's `descriptor`."""
    names = [*os.listdir(path), *(f"singles/{name}" for name in os.listdir(f"{path}/singles"))]
    if len(names) > _FEW:
        _sync_file_system(descriptor)
        return
    for name in names:
        _sync(f"{path}/{name}")
    _sync(path)


def _sync_with_parents(root: str) -> None:
    """Sync `root` and what it lies in: an earlier call may have made the folders and been killed."""
    path = os.path.realpath(root)
    _sync(path)
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        with contextlib.suppress(PermissionError):  # one that we may not read is none that we made
            _sync(path)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file_system(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
