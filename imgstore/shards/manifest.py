"""SHARDS: the list of the shards of a store, and each shard opened as it is listed there."""

import os
import re
import socket
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from imgstore.core.blocks import Form, Labels, form_of
from imgstore.core.checksums import checksum
from imgstore.core.files import read_file
from imgstore.core.generations import GENERATION_NAME, SHARDS, Generation, open_live
from imgstore.core.verbs import Backend
from imgstore.errors import CorruptStoreError, StoreNotFoundError, StoreReplacedError
from imgstore.formats import backend_of

T = TypeVar("T")

SHARDS_FORMAT = 1
_TITLE = f"imgstore-shards {SHARDS_FORMAT}"
_LARGEST_MANIFEST = 4 << 20
MOST_SHARDS = 1 << 15
_SHARD = re.compile(
    r"(shard-\d{6,9}) (\d{1,19}) (?:(\d{1,15}(?:x\d{1,15}){1,2}) ([<|]\w\d{1,2})|mixed) "
    rf"({GENERATION_NAME}) ([0-9a-f]{{16}})"
)


class Shard(NamedTuple):
    """What SHARDS tells of a shard."""

    name: str
    images: int
    form: Form | None  # of all its images, where they agree
    generation: str
    checksum: str  # of its DESCRIPTION

    @classmethod
    def of(cls, generation: Generation) -> "Shard":
        """What SHARDS is to tell of a shard that has this generation."""
        told, name = generation.description, os.path.basename(generation.root)
        form = form_of(told.get("shape"), told.get("dtype"))
        return cls(name, told.get("count", -1), form, generation.name, generation.checksum)

    def line(self) -> str:
        form = f"{'x'.join(map(str, self.form[0]))} {self.form[1].str}" if self.form else "mixed"
        return f"{self.name} {self.images} {form} {self.generation} {self.checksum}"


class Manifest(NamedTuple):
    """SHARDS, as read."""

    root: str
    shards: list[Shard]
    checksum: str


def shard_name(number: int) -> str:
    """The folder of a shard."""
    return f"shard-{number:06d}"


def manifest_text(shards: list[Shard]) -> str:
    text = "".join(f"{line}\n" for line in (_TITLE, *(shard.line() for shard in shards)))
    return f"{text}{checksum(text.encode()):016x}\n"


def is_sharded(root: str) -> bool:
    """Whether `root` holds SHARDS, so that it is a sharded store."""
    return os.path.lexists(f"{root}/{SHARDS}")


def read_manifest(root: str) -> Manifest:
    """Raises StoreNotFoundError where there is no SHARDS, CorruptStoreError where it is not what was written."""
    path = f"{root}/{SHARDS}"
    try:
        content = read_file(path, _LARGEST_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(root, "there is no sharded store here") from None
    body, digest = content[:-17], content[-17:]
    if digest != b"%016x\n" % checksum(body):
        raise CorruptStoreError(path, "does not match its own checksum")
    title, *lines = body.decode("ascii", "replace").splitlines() or [""]
    if title != _TITLE:
        raise CorruptStoreError(path, f"is of another version of the format, which is {SHARDS_FORMAT} here")
    shards = [_shard(line, number, path) for number, line in enumerate(lines)]
    if sum(shard.images for shard in shards) >= 2**63:
        raise CorruptStoreError(path, "lists more images than there are ids")
    return Manifest(root, shards, digest[:-1].decode())


def _shard(line: str, number: int, path: str) -> Shard:
    told = _SHARD.fullmatch(line)
    if not told or told[1] != shard_name(number):
        raise CorruptStoreError(path, f"does not list {shard_name(number)} as it should")
    form = form_of(tuple(map(int, told[3].split("x"))), told[4]) if told[3] else None
    return Shard(told[1], int(told[2]), form, told[5], told[6])


def open_shard(root: str, shard: Shard, open_generation: Callable[[Backend, Generation, Labels], T]) -> T:
    """`open_generation` of the shard and its singles, if it is the one that SHARDS lists.

    Raises StoreReplacedError where it is another, CorruptStoreError where it is missing or damaged.
    """
    path = f"{root}/{shard.name}"

    def listed(generation: Generation) -> T:
        backend = backend_of(generation)
        singles = generation.singles(backend.suffix)
        if Shard.of(generation) != shard or (singles >= shard.images).any():
            message = "is not as SHARDS lists it: it was replaced, restored or added to on its own"
            raise StoreReplacedError(path, f"{message}; put back the one that was there, or store all anew")
        return open_generation(backend, generation, singles)

    if not os.path.lexists(f"{path}/CURRENT"):
        unseen = f"{socket.gethostname()} sees no store here, though SHARDS lists it"  # which another host may see
        raise CorruptStoreError(path, f"{unseen}; put it back, or store all anew")
    return open_live(path, listed)


def verify_shard(root: str, shard: Shard) -> None:
    """Read everything in it and check it."""
    open_shard(root, shard, lambda backend, generation, _: backend.verify_generation(generation))
