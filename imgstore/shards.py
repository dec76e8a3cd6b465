"""Sharded stores, for more images than one disk holds or one process stores in time: made and verified.

How one lies on disk is in `imgstore/_shards.py`; `imgstore.open_reader` reads it. With a `client` of Dask distributed
(`pip install -r imgstore/requirements-dask.txt`) each shard is a task, and Dask chooses the worker. Scheduler and
workers import imgstore, and all see `root` under the same path, on one file system that knows locks (flock).

A task that is run twice, or that died half-way, does no harm: a shard is stored all or nothing, and one that is whole
is verified and kept.
"""

import contextlib
import importlib
import itertools
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from imgstore import BACKENDS, _backend
from imgstore._checksums import checksum
from imgstore._convert import convert
from imgstore._generations import PLAN, SHARDS, Generation, Root, open_live, read_file, replace_text, sharded, writing
from imgstore._shards import Shard, manifest_text, read_manifest, shard_name, verify_shard
from imgstore._store import Pair
from imgstore.errors import (
    ClusterError,
    CorruptStoreError,
    InvalidArgumentError,
    StoreBusyError,
    UnsupportedImageError,
)
from imgstore.sources import reason_of

Partition = Iterable[Pair] | Callable[[], Iterable[Pair]]
Show = Callable[[Iterable[Any]], Iterable[Any]]

REQUIREMENTS = "imgstore/requirements-dask.txt"
_LARGEST_PLAN = 4096
_WAIT = 1.0  # seconds, for a task that is at work on the same shard elsewhere
_CONNECT = 10  # seconds


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

    A partition is an iterable of (image, label), or a callable that gives one, which it must be to go to a `client`.
    Each shard is compared with what was given, and synced, before it counts. SHARDS is written last: until then there
    is no store. `fingerprint`: names what the partitions give; the same call then goes on from the shards that are
    whole when it was stopped. `show` is told of the shards, as they are done.

    Raises InvalidArgumentError where `root` holds anything else; UnsupportedImageError, with its shard; ClusterError;
    and what `store_many` raises.
    """
    if backend not in BACKENDS:
        raise InvalidArgumentError("backend", f"{backend!r} is none of {', '.join(BACKENDS)}")
    path, parts = os.path.abspath(root), list(partitions)
    if client is not None and not all(map(callable, parts)):
        raise InvalidArgumentError("partitions", "give callables, which can be sent to a worker and called again there")
    mark = secrets.token_hex(8) if fingerprint is None else f"{checksum(fingerprint.encode()):016x}"
    plan = f"imgstore-plan {backend} {len(parts)} {mark}\n"
    _must_be_free(path, plan)
    with writing(path):
        _must_be_free(path, plan)
        replace_text(path, PLAN, plan)
        tasks = ((path, plan, number, part, backend) for number, part in enumerate(parts))
        shards = sorted(show(_run(_store_shard, tasks, client)), key=lambda shard: shard.name)
        for shard in shards:
            _must_be_seen(path, shard)
        replace_text(path, SHARDS, manifest_text(shards))
        os.unlink(f"{path}/{PLAN}")


def verify(root: Root, client: Any = None, show: Show = iter) -> None:
    """Read everything in a sharded store and check it. Raises CorruptStoreError, StoreReplacedError, ClusterError."""
    path = os.path.abspath(root)
    tasks = ((path, shard, _backend) for shard in read_manifest(path).shards)
    for _ in show(_run(verify_shard, tasks, client)):
        pass


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """A client of the scheduler at this address; None for none. Raises InvalidArgumentError where it is not there."""
    if address is None:
        yield None
        return
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        message = f"Dask is not installed; pip install -r {REQUIREMENTS}"
        raise InvalidArgumentError("--scheduler", message) from None
    try:
        client = distributed.Client(address, timeout=_CONNECT)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError("--scheduler", f"{address}: {reason_of(error)}") from None
    with client:
        yield client


def _must_be_free(root: str, plan: str) -> None:
    """Raise InvalidArgumentError unless `root` is new or empty, or holds what was stored for this very plan."""
    if not os.path.lexists(f"{root}/{SHARDS}") and _read_plan(root) == plan.encode():
        return
    reason = sharded(root)
    if not reason and os.path.isdir(root) and set(os.listdir(root)) - {"LOCK", f"{PLAN}.new"}:
        reason = f"{root} holds other files; give a folder that is new or empty"
    if reason:
        raise InvalidArgumentError("root", reason)


def _read_plan(root: str) -> bytes | None:
    try:
        return read_file(f"{root}/{PLAN}", _LARGEST_PLAN)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _run(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], client: Any) -> Iterator[Any]:
    """What the function gives for each task: here, one after the other, or as Dask has them done."""
    if client is None:
        yield from itertools.starmap(function, tasks)
        return
    distributed = importlib.import_module("distributed")
    futures = [client.submit(function, *task, pure=False) for task in tasks]
    try:
        for future in distributed.as_completed(futures):
            if future.cancelled():
                message = "the scheduler was lost, or cancelled a task; start it, and give the same command again"
                raise ClusterError(f"{message}: it goes on from the shards that are whole")
            yield future.result()
    except distributed.KilledWorker as error:
        message = f"a task ended {error.allowed_failures + 1} workers, the last at {error.last_worker.address}"
        raise ClusterError(f"{message}; look there for the reason") from None
    finally:
        if client.status == "running":  # else the scheduler is gone, and with it the tasks
            client.cancel(futures)


def _store_shard(root: str, plan: str, number: int, partition: Partition, backend: str) -> Shard:
    """Have this shard whole: also where another task is storing it, did so before, or was killed while it did."""
    if _read_plan(root) != plan.encode():
        message = f"{root} on {socket.gethostname()} is not the folder of this run; give one that all workers share"
        raise InvalidArgumentError("root", message)
    path, replace = f"{root}/{shard_name(number)}", False
    while True:
        if os.path.lexists(f"{path}/CURRENT") and not replace:
            try:
                return open_live(path, _verified)
            except CorruptStoreError:
                replace = True
        try:
            pairs = partition() if callable(partition) else partition
            convert(pairs, None, path, BACKENDS[backend].BACKEND, replace, lambda pairs, _: pairs)
            return open_live(path, Shard.of)
        except UnsupportedImageError as error:
            raise UnsupportedImageError(error.image_id, error.reason, number) from None
        except StoreBusyError:
            if not callable(partition):  # what was drawn of it is gone
                raise
            time.sleep(_WAIT)
            replace = False
        except InvalidArgumentError as error:
            if error.argument != "DEST" or not os.path.lexists(f"{path}/CURRENT"):
                raise  # else another task has just stored it


def _verified(generation: Generation) -> Shard:
    _backend(generation).verify_generation(generation)
    return Shard.of(generation)


def _must_be_seen(root: str, shard: Shard) -> None:
    """Raise CorruptStoreError unless this process, too, finds the shard as it was stored."""
    path = f"{root}/{shard.name}"
    if open_live(path, Shard.of) != shard:
        raise CorruptStoreError(path, "is not what a worker stored; let nothing else write there, and start again")
