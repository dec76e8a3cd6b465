"""Sharded stores, for more images than one disk holds or one process stores in time: made and verified.

How one lies on disk is in `manifest.py` beside this; `imgstore.open_reader` reads it. With a `client` of Dask
distributed (`pip install -r imgstore/requirements-dask.txt`) each shard is a task, and Dask chooses the worker. Workers
import imgstore and see `root` under the same path, on one file system that knows locks (flock); the scheduler needs
neither.

A task that is run twice, or that died half-way, does no harm: a shard is stored all or nothing, and one that is whole
is verified and kept.
"""

import contextlib
import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from typing import Any

import numpy as np

from imgstore.core.checksums import checksum
from imgstore.core.compared import compared_writer, must_be_new
from imgstore.core.files import Root, read_file
from imgstore.core.format import Pair
from imgstore.core.generations import PLAN, SHARDS, Generation, open_live
from imgstore.core.writing import make_durable, new_name, replace_generation, replace_text, writing
from imgstore.errors import (
    CorruptStoreError,
    InvalidArgumentError,
    StoreBusyError,
    StoreNotFoundError,
    StoreReplacedError,
    UnsupportedImageError,
)
from imgstore.formats import BACKENDS, backend_of
from imgstore.shards.cluster import log, run_all
from imgstore.shards.manifest import (
    MOST_SHARDS,
    Shard,
    manifest_text,
    open_shard,
    read_manifest,
    shard_name,
    verify_shard,
)

Partition = Iterable[Pair] | Callable[[], Iterable[Pair]]
Show = Callable[[Iterable[Any]], Iterable[Any]]
_LARGEST_PLAN = 4096
_WAIT = 1.0  # seconds, for a task that is at work on the same shard elsewhere


def store(
    root: Root,
    partitions: Iterable[Partition],
    *,
    backend: str,
    client: Any = None,
    fingerprint: str | None = None,
    show: Show = iter,
) -> None:
    """Make a sharded store at `root`, a folder that is new or empty: a shard of each partition, in their order.

    Links to empty folders on other disks may stand there for shards, as shard-000017.

    A partition is an iterable of (image, label), or a callable that gives one at each call, which it must be with a
    `client` or a `fingerprint`: it may be called elsewhere, again, or not at all.
    Each shard is compared with what was given, and synced, before it counts. SHARDS is written last: until then there
    is no store. `fingerprint`: names what the partitions give; the same call then goes on from the shards that are
    whole when it was stopped. `show` is told of the shards, as they are done.

    Raises InvalidArgumentError where `root` holds anything else; UnsupportedImageError, with its shard; ClusterError;
    and what `store_many` raises.
    """
    if backend not in BACKENDS:
        raise InvalidArgumentError("backend", f"{backend!r} is none of {', '.join(BACKENDS)}")
    path, parts = os.path.abspath(os.fsdecode(root)), list(partitions)
    if not (client is None and fingerprint is None) and not all(map(callable, parts)):
        raise InvalidArgumentError("partitions", "give callables, as some may be called again, and others not at all")
    if len(parts) > MOST_SHARDS:
        raise InvalidArgumentError("partitions", f"are {len(parts)}, more than {MOST_SHARDS}; put more into each")
    mark = secrets.token_hex(8) if fingerprint is None else f"{checksum(fingerprint.encode()):016x}"
    plan = f"imgstore-plan {backend} {len(parts)} {mark}\n"
    must_be_free(path, plan)
    with writing(path):
        must_be_free(path, plan)
        replace_text(path, PLAN, plan)
        tasks = ((path, plan, number, part, backend) for number, part in enumerate(parts))
        shards = sorted(show(run_all(_store_shard, tasks, client)), key=lambda shard: int(shard.name.partition("-")[2]))
        for shard in shards:
            _must_be_seen(path, shard)
        replace_text(path, SHARDS, manifest_text(shards))
        os.unlink(f"{path}/{PLAN}")


def verify(root: Root, client: Any = None, show: Show = iter) -> None:
    """Read everything in a sharded store and check it. Raises CorruptStoreError, StoreReplacedError, ClusterError."""
    path = os.path.abspath(os.fsdecode(root))
    tasks = ((path, shard) for shard in read_manifest(path).shards)
    for _ in show(run_all(verify_shard, tasks, client)):
        pass


def must_be_free(root: str, plan: str | None = None, argument: str = "root") -> None:
    """Raise InvalidArgumentError unless `root` is new or empty, or holds what was stored for this plan, or any."""
    stored = _read_plan(root)
    if os.path.lexists(f"{root}/{SHARDS}") or stored is None or (plan is not None and stored != plan.encode()):
        must_be_new(
            root,
            argument,
            lambda name: name in ("LOCK", os.path.basename(new_name(root, PLAN))) or _is_place(root, name),
        )


def _is_place(root: str, name: str) -> bool:
    """Whether it is an empty folder, or a link to one, on another disk perhaps, that was made for a shard."""
    path = f"{root}/{name}"
    return bool(re.fullmatch(r"shard-\d{6,9}", name)) and os.path.isdir(path) and not os.listdir(path)


def _read_plan(root: str) -> bytes | None:
    try:
        return read_file(f"{root}/{PLAN}", _LARGEST_PLAN)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _store_shard(root: str, plan: str, number: int, partition: Partition, backend: str) -> Shard:
    """Have this shard whole: also where another task is storing it, did so before, or was killed while it did."""
    told = {"plan": plan, "shard": number}  # in DESCRIPTION
    _must_be_planned(root, plan)
    path = f"{root}/{shard_name(number)}"
    with _writing_next(path), _named(path, number):
        _must_be_planned(root, plan)  # again: during the wait another run may have begun here
        if whole := _stored_before(path, told):
            return whole
        pairs = partition() if callable(partition) else partition
        write = compared_writer(pairs, None, np.empty(0, np.int64), BACKENDS[backend].BACKEND, lambda pairs, _: pairs)

        def write_planned(generation: str) -> dict[str, Any]:
            description = write(generation)
            _must_be_planned(root, plan)
            return description | told

        replace_generation(path, backend, True, write_planned)
        return open_live(path, Shard.of)


@contextlib.contextmanager
def _named(path: str, number: int) -> Iterator[None]:
    """Errors about an image name the shard; those about a full disk name its folder."""
    try:
        yield
    except UnsupportedImageError as error:
        raise UnsupportedImageError(error.image_id, error.reason, number) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # the system does not always say where
            error.filename = path
        raise


def _must_be_planned(root: str, plan: str) -> None:
    """Raise InvalidArgumentError unless `root` is the folder of this run."""
    if _read_plan(root) != plan.encode():
        message = f"{root} on {socket.gethostname()} is not the folder of this run; give one that all workers share"
        raise InvalidArgumentError("root", message)


def _writing_next(path: str) -> FileIO:
    """As `writing`, once no other task is at work there."""
    told = False
    while True:
        try:
            return writing(path)
        except StoreBusyError as error:
            if not told:
                log.warning("%s; waiting", error)
            told = True
            time.sleep(_WAIT)


def _stored_before(path: str, told: dict[str, Any]) -> Shard | None:
    """The shard at `path` if it is whole, None if there is none. Raises InvalidArgumentError for any other store."""

    def kept(generation: Generation) -> Shard:
        backend, shard = backend_of(generation), Shard.of(generation)
        added = bool((generation.singles(backend.suffix) >= shard.images).any())
        if added or not told.items() <= generation.description.items():
            message = f"{path} is a store that is not this shard of this run, or was added to; remove it"
            raise InvalidArgumentError("root", f"{message}, and do the same again")
        backend.verify_generation(generation)
        make_durable(generation)  # its writer may have been killed before it was
        return shard

    with contextlib.suppress(StoreNotFoundError, CorruptStoreError):
        return open_live(path, kept)
    return None


def _must_be_seen(root: str, shard: Shard) -> None:
    """Raise CorruptStoreError unless this process, too, finds the shard as it was stored."""
    try:
        open_shard(root, shard, lambda *found: None)
    except (CorruptStoreError, StoreReplacedError):
        message = "is not what was stored there; let nothing else write there, and do the same again"
        raise CorruptStoreError(f"{root}/{shard.name}", message) from None
