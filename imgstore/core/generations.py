"""Generations: what one `store_many` writes, beside the live one, until CURRENT names it.

    root/LOCK                           held by the one writer
    root/CURRENT                        format, backend, live generation, whether it was synced, checksums
    root/imgstore-000007-3f9a1c5e7b20/  a generation; once named it never changes, its singles aside
        DESCRIPTION                     JSON: count; where all agree, shape, dtype and the number of images in
                                        each block but the last; what the backend notes; needs: names of what a
                                        reader has to know beyond this, none so far
        singles/                        a file for each image that store_single added or replaced since
        SINGLES                         their ids, so that one that is lost is missed: records of an id and a check

LevelDB and RocksDB switch versions with a CURRENT for the same reason: readers need no locks. Only what bears names
that no person gives is ever removed. A line is added to SINGLES when its single is in place and synced; it is not
synced itself, which would cost `store_single` two fifths more, and reaches the disk when the system writes it back.
"""

import json
import os
import re
import stat
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from imgstore.core.blocks import Labels
from imgstore.core.checksums import checksum
from imgstore.core.files import Root, open_file, read_file
from imgstore.core.singles import listed_ids, parts_of_the_list
from imgstore.errors import (
    CorruptStoreError,
    ImgstoreError,
    InvalidArgumentError,
    StoreNotFoundError,
    StoreReplacedError,
)

T = TypeVar("T")

FORMAT = 3  # the version of all that lies in a store
_READS_OLDER = {2: "409e50d"}  # the last commits that read them
SHARDS, PLAN = "SHARDS", "PLAN"  # of a sharded store: see imgstore/shards/reader.py

_ATTEMPTS = 100
_LARGEST_CURRENT = 4096
_LARGEST_DESCRIPTION = 1 << 20
GENERATION_NAME = r"imgstore-[0-9]{6,18}-[0-9a-f]{12}"
_GENERATION = re.compile(GENERATION_NAME)
_CURRENT = re.compile(
    rb"(imgstore (?P<format>\d{1,9}) (?P<backend>\w+) (?P<name>\S{1,99}) (?P<synced>synced|unsynced)"
    rb" (?P<description>[0-9a-f]{16})) (?P<checksum>[0-9a-f]{16})\n"
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

    def singles(self, suffix: str) -> Labels:
        """The ids of the images that were stored singly, ascending: also of those whose file was lost."""
        return np.union1d(self._there(suffix), listed_ids(self.path("SINGLES")))

    def is_listed(self, image_id: int) -> bool:
        """Whether an image of this id was stored singly, though its file may be lost."""
        return any((ids == image_id).any() for ids in parts_of_the_list(self.path("SINGLES")))

    def _there(self, suffix: str) -> Labels:
        folder = self.path("singles")
        try:
            stems = [name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix)]
        except FileNotFoundError:  # it is made with the first one
            return np.empty(0, np.int64)
        for stem in stems:
            if not (stem.isdecimal() and f"{int(stem):08d}" == stem and int(stem) < 2**63):
                raise CorruptStoreError(folder, f"holds {stem}{suffix}, which is not the name of a single")
        return np.fromiter(map(int, stems), np.int64, len(stems))

    def fault(self, path: str, message: str, image_id: int | None = None) -> OSError:
        """The error for what cannot be read: damage, or a store that was replaced meanwhile."""
        if live_name(self.root) == self.name:
            return CorruptStoreError(path, message, image_id)
        return StoreReplacedError(self.root, "the store was replaced since it was opened; open it again")


def open_live(root: Root, open_generation: Callable[[Generation], T]) -> T:
    """`open_generation` of the generation that CURRENT names, again when CURRENT changed meanwhile.

    While a generation is being removed, its files are a mixture: what was opened counts only when CURRENT
    is the same afterwards. Raises StoreNotFoundError where there is no store, CorruptStoreError for damage.
    """
    root = os.fsdecode(root)
    for _ in range(_ATTEMPTS):
        descriptor, status = _open_current(root)
        try:
            result = open_generation(_generation(root, os.read(descriptor, _LARGEST_CURRENT)))
        except (FileNotFoundError, NotADirectoryError, ImgstoreError) as error:
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


def sharded(root: str) -> str | None:
    """Why no ordinary store can be made at `root`: a sharded one is there, or what was stored of it. Else None."""
    if os.path.lexists(os.path.join(root, SHARDS)):
        return f"{root} is a sharded store; give another folder"
    if os.path.lexists(os.path.join(root, PLAN)):
        return f"{root} holds a part of another sharded store; remove it, or give another folder"
    return None


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


def _whole(current: bytes) -> re.Match[bytes] | None:
    """The entry of a CURRENT of any format that matches its own checksum."""
    entry = _CURRENT.fullmatch(current)
    return entry if entry and b"%016x" % checksum(entry[1]) == entry["checksum"] else None


def _entry(root: str, current: bytes) -> re.Match[bytes]:
    entry = _whole(current)
    if not entry:
        raise CorruptStoreError(f"{root}/CURRENT", "does not match its own checksum")
    if other := _other_format(entry):
        raise CorruptStoreError(f"{root}/CURRENT", other)
    if not _GENERATION.fullmatch(entry["name"].decode("ascii", "replace")):
        raise CorruptStoreError(f"{root}/CURRENT", "names no generation")
    return entry


def _other_format(entry: re.Match[bytes]) -> str | None:
    number = int(entry["format"])
    if number == FORMAT:
        return None
    other = f"commit {_READS_OLDER[number]}" if number in _READS_OLDER else "another version"
    return f"is of format {number}, which {other} of imgstore reads; this one reads {FORMAT}"


def _generation(root: str, current: bytes) -> Generation:
    backend, name, synced, digest = _entry(root, current).group("backend", "name", "synced", "description")
    path = f"{root}/{name.decode()}"
    for folder in (path, f"{path}/singles"):
        # no symbolic link, say, that could lead out of the store
        if not stat.S_ISDIR(_mode(folder, may_lack=folder != path)):
            raise CorruptStoreError(folder, "is not a directory of the store's own")
    text = read_file(f"{path}/DESCRIPTION", _LARGEST_DESCRIPTION)
    try:
        description = json.loads(text)
    except (ValueError, RecursionError):
        description = None
    if b"%016x" % checksum(text) != digest or not isinstance(description, dict):
        raise CorruptStoreError(f"{path}/DESCRIPTION", "is not what CURRENT tells of it")
    if description.get("needs") != []:
        raise StoreNotFoundError(root, f"a newer imgstore is needed to read this store, for {description.get('needs')}")
    return Generation(root, backend.decode(), name.decode(), synced == b"synced", digest.decode(), description)


def _mode(path: str, may_lack: bool) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        if may_lack:
            return stat.S_IFDIR
        raise


def live_name(root: str) -> str | None:
    try:
        return _entry(root, read_file(f"{root}/CURRENT", _LARGEST_CURRENT))["name"].decode()
    except (FileNotFoundError, CorruptStoreError):
        return None


def must_be_ours(root: str) -> None:
    """Raise InvalidArgumentError where something else than a store of this format is at `root`."""
    reason = sharded(root)
    try:
        current = read_file(f"{root}/CURRENT", _LARGEST_CURRENT)
    except FileNotFoundError:
        current = b""
    except CorruptStoreError:
        current = b"a link, a folder or more than we write"
    if entry := _whole(current):
        other = _other_format(entry)
        reason = reason or (f"{root}/CURRENT {other}; give another folder" if other else None)
    elif current and not current.startswith(b"imgstore ") and not generations(root):
        reason = reason or f"{root}/CURRENT is not of imgstore; give another folder"
    if reason:
        raise InvalidArgumentError("root", reason)


def generations(root: str) -> list[str]:
    """The names of all that lie there, also of those that a killed writer left."""
    return [name for name in os.listdir(root) if _GENERATION.fullmatch(name)]
