"""Sharded stores on a cluster of processes: workers killed, the scheduler lost, a disk full, hosts of their own."""

import asyncio
import contextlib
import ctypes
import errno
import functools
import importlib
import io
import multiprocessing
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imgstore
from imgstore import shards
from imgstore.command.cluster import connected
from imgstore.command.main import main
from imgstore.core.writing import writing
from imgstore.errors import ClusterError, CorruptStoreError, InvalidArgumentError, StoreBusyError
from imgstore.tests.checks import A_MINUTE, current, records
from imgstore.tests.faults.mounts import memory, run
from imgstore.tests.strategies import Array

distributed = pytest.importorskip(
    "distributed", reason="Dask is not installed: pip install -r imgstore/requirements-dask.txt"
)

SIDE, COUNT = 32, 800  # of a shard; a block of lmdb and hdf5 has some 340 of them
LOCAL = "127.0.0.1"
CLONE_NEWNS = 0x20000  # as unshare(2) counts it; `os.unshare` is there from Python 3.12 on


def pair(image_id: int) -> tuple[Array, int]:
    return np.random.default_rng(image_id).integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8), -image_id


class Part:
    """A partition; with a `folder`, one that waits in its middle, where it tells who it is, for a file `go`."""

    def __init__(self, first: int, count: int = COUNT, folder: Path | None = None) -> None:
        self.first, self.count, self.folder = first, count, folder

    def __call__(self) -> Iterator[tuple[Array, int]]:
        for i in range(self.count):
            if self.folder and i == 5 * self.count // 8:
                (self.folder / f"{os.getpid()}.pid").touch()
                until((self.folder / "go").exists)
            yield pair(self.first + i)


def until(condition: Callable[[], Any]) -> Any:
    """What is true at last. AssertionError after a minute."""
    deadline = time.monotonic() + A_MINUTE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it takes more than a minute"
        time.sleep(0.01)
    return found


def inside(folder: Path, host: str, hidden: Path | None, function: Callable[..., Any], *arguments: Any) -> None:
    """In a process of its own, on this host, with what it prints in a file; `hidden` is an empty folder there."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if host:
        with open(f"/run/netns/{host}") as namespace:
            ctypes.CDLL(None).setns(namespace.fileno(), 0)
    if hidden:
        hide(hidden)
    function(*arguments)


def hide(folder: Path) -> None:
    """From this process alone, which gets mounts of its own; only where `memory` can mount, too."""
    assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "tmpfs", folder)


def serve(sending: Connection, address: str, folder: Path, options: dict[str, Any]) -> None:
    """A scheduler, which says its address."""

    async def serve() -> None:
        options_ = {"local_directory": str(folder), "dashboard": False} | options
        async with distributed.Scheduler(host=address, **options_) as scheduler:
            sending.send(scheduler.address)
            await scheduler.finished()

    asyncio.run(serve())


def work(address: str, folder: Path) -> None:
    """A worker for one task at a time."""

    async def work() -> None:
        async with distributed.Worker(address, nthreads=1, local_directory=str(folder), dashboard=False) as worker:
            await worker.finished()

    asyncio.run(work())


def answer(sending: Connection, arguments: list[str]) -> None:
    """What a command prints to stderr, and its exit status."""
    with contextlib.redirect_stderr(io.StringIO()) as told:
        status = main(arguments)
    sending.send((status, told.getvalue()))


class Cluster:
    """A scheduler and workers, each a process; on hosts of their own where two are given."""

    def __init__(
        self, folder: Path, hosts: tuple[str, str] = ("", ""), host: str = "127.0.0.1", **options: Any
    ) -> None:
        self.folder, self.hosts, self.host = folder, hosts, host
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["distributed", "imgstore.shards.storing", "pytest"]
        )  # a process then starts at once
        self.processes: list[Any] = []
        self.start_scheduler(**options)

    def start_scheduler(self, **options: Any) -> None:
        receiving, sending = self.context.Pipe(duplex=False)
        self.scheduler = self._start(self.hosts[0], serve, sending, self.host, self.folder, options)
        self.address = str(self._told(receiving))

    def start_worker(self, hidden: Path | None = None) -> None:
        self._start(self.hosts[1], work, self.address, self.folder, hidden=hidden)

    def command(self, *arguments: str) -> Callable[[], Any]:
        """A command on the scheduler's host; what is given waits for its exit status and errors."""
        receiving, sending = self.context.Pipe(duplex=False)
        self._start(self.hosts[0], answer, sending, [*arguments, f"--scheduler={self.address}"])
        return functools.partial(self._told, receiving)

    def kill(self, pid: int) -> None:
        (process,) = (process for process in self.processes if process.pid == pid)
        process.kill()
        process.join()

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def _start(self, host: str, *call: Any, hidden: Path | None = None) -> Any:
        process: Any = self.context.Process(target=inside, args=(self.folder, host, hidden, *call), daemon=True)
        process.start()
        self.processes.append(process)
        return process

    def _told(self, receiving: Connection) -> Any:
        assert receiving.poll(A_MINUTE), (self.folder / "log").read_text()
        return receiving.recv()


@contextlib.contextmanager
def started(folder: Path, *hosts: Any, workers: int = 2, **options: Any) -> Iterator[Cluster]:
    folder.mkdir()
    cluster = Cluster(folder, *hosts, **options)
    try:
        for _ in range(workers):
            cluster.start_worker()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with started(tmp_path / "cluster") as cluster:
        yield cluster


class Storing(threading.Thread):
    """`shards.store` meanwhile; `error` is what it raised."""

    def __init__(self, cluster: Cluster, root: Path, parts: list[Any]) -> None:
        super().__init__(daemon=True)
        self.arguments = cluster.address, root, parts
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        address, root, parts = self.arguments
        try:
            with distributed.Client(address) as client:
                shards.store(root, parts, backend="lmdb", client=client, fingerprint="these")
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self.join(2 * A_MINUTE)
        assert not self.is_alive(), "it hangs"
        return self.error


def must_say(error: object, kind: type[Exception], begins: str) -> None:
    """In one sentence."""
    text = str(error)
    assert isinstance(error, kind) and text.startswith(begins) and not re.search(r"\n|\. ", text), text


def must_hold(root: Path, count: int) -> None:
    imgstore.verify(root)
    with imgstore.open_reader(root) as reader:
        images, labels = reader.read_many()
    assert records(images, labels) == records(*zip(*map(pair, range(count)), strict=True))


def test_shards_are_stored_and_verified_by_workers(cluster: Cluster, tmp_path: Path) -> None:
    """And one that is damaged or removed afterwards is found."""
    root, parts = tmp_path / "root", [Part(first, 30) for first in range(0, 150, 30)]
    assert Storing(cluster, root, parts).end() is None
    must_hold(root, 150)
    with distributed.Client(cluster.address) as client:
        shards.verify(root, client)
        (path,) = root.glob("shard-000003/imgstore-*/images.mdb")
        whole = path.read_bytes()
        path.write_bytes(whole.replace(pair(95)[0].tobytes(), pair(96)[0].tobytes(), 1))
        with pytest.raises(CorruptStoreError) as info:
            shards.verify(root, client)
        must_say(info.value, CorruptStoreError, f"{path}: image 0: the block of 30 images does not match its checksum")
        path.write_bytes(whole)
        (root / "shard-000002/CURRENT").unlink()
        with pytest.raises(CorruptStoreError) as info:
            shards.verify(root, client)
        unseen = f"{root}/shard-000002: {socket.gethostname()} sees no store here, though SHARDS lists it; put it back"
        must_say(info.value, CorruptStoreError, unseen)


def test_a_worker_is_killed_in_the_middle_of_a_shard_twice(tmp_path: Path) -> None:
    """What it had done before is not done again, which here would wait for the lock."""
    root, seen = tmp_path / "root", set[Path]()
    with started(tmp_path / "cluster", workers=1) as cluster:
        storing = Storing(cluster, root, [Part(0), Part(COUNT, folder=tmp_path)])
        for _ in range(2):
            (path,) = until(lambda: set(tmp_path.glob("*.pid")) - seen)
            seen.add(path)
            assert list(root.glob("shard-000001/imgstore-*")) and not (root / "shard-000001/CURRENT").exists()
            with writing(str(root / "shard-000000")):
                cluster.kill(int(path.stem))
                cluster.start_worker()
                until(lambda: set(tmp_path.glob("*.pid")) - seen)
        (tmp_path / "go").touch()
        assert storing.end() is None
    must_hold(root, 2 * COUNT)
    assert len(list(root.glob("shard-000001/imgstore-*"))) == 1  # what the killed left is gone


def test_a_task_ends_worker_after_worker(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with started(tmp_path / "cluster", workers=1, allowed_failures=0) as cluster:
        storing = Storing(cluster, root, [Part(0, folder=tmp_path)])
        (path,) = until(lambda: list(tmp_path.glob("*.pid")))
        cluster.kill(int(path.stem))
        must_say(storing.end(), ClusterError, "1 workers ended at the same task, the last at tcp://")
    assert not (root / "SHARDS").exists()


def broken() -> Iterator[tuple[Array, int]]:
    raise RuntimeError("the source is broken")


def test_after_a_failure_no_other_shard_is_begun(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with started(tmp_path / "cluster", workers=1) as cluster, distributed.Client(cluster.address) as client:
        with pytest.raises(RuntimeError, match="the source is broken"):
            shards.store(root, [broken, Part(0, folder=tmp_path), Part(COUNT)], backend="lmdb", client=client)
        (tmp_path / "go").touch()
        until(lambda: not any(client.processing().values()))
    assert not (root / "shard-000002").exists() and not (root / "SHARDS").exists()


class Missing:
    """A partition that only this process can import."""

    def __call__(self) -> Iterator[tuple[Array, int]]:
        return iter(())

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("imgstore.nothing",)


def test_a_worker_lacks_a_module(tmp_path: Path) -> None:
    with started(tmp_path / "cluster", workers=1) as cluster:
        error = Storing(cluster, tmp_path / "root", [Missing()]).end()
    must_say(error, ClusterError, "a worker cannot import what it needs (No module named 'imgstore.nothing'); start")


def test_the_scheduler_is_restarted(cluster: Cluster, tmp_path: Path) -> None:
    root, parts = tmp_path / "root", [Part(0, 30), Part(30, 30), Part(60, folder=tmp_path)]
    storing = Storing(cluster, root, parts)
    whole = [root / f"shard-00000{i}" for i in range(2)]
    until(lambda: list(tmp_path.glob("*.pid")) and all((shard / "CURRENT").exists() for shard in whole))
    generations = [current(shard)[3] for shard in whole]
    cluster.kill(cluster.scheduler.pid)
    must_say(
        storing.end(), ClusterError, "the scheduler was lost, or cancelled a task; start it, and do the same again"
    )
    assert not (root / "SHARDS").exists()
    (tmp_path / "go").touch()
    cluster.start_scheduler(port=int(cluster.address.rpartition(":")[2]))
    cluster.start_worker()
    assert Storing(cluster, root, parts).end() is None
    must_hold(root, 60 + COUNT)
    assert [current(shard)[3] for shard in whole] == generations


def test_the_disk_is_full(cluster: Cluster, tmp_path: Path) -> None:
    """For one of the workers; what the other one stored stays."""
    with memory(tmp_path / "mounted") as disk:
        root, parts = disk.path / "root", [Part(0), Part(COUNT)]
        disk.leave(pages=900)  # a shard needs 600
        error = Storing(cluster, root, parts).end()
        must_say(error, OSError, f"[Errno {errno.ENOSPC}] No space left on device: '{root}/shard-00000")
        assert not (root / "SHARDS").exists()
        until(lambda: not any(busy(root / f"shard-00000{i}") for i in range(2)))
        disk.leave()
        assert Storing(cluster, root, parts).end() is None
        must_hold(root, 2 * COUNT)


def busy(root: Path) -> bool:
    """Whether a task is still at work there."""
    try:
        with writing(str(root)):
            return False
    except StoreBusyError:
        return True


@pytest.mark.parametrize(
    "error", [distributed.CancelledError, asyncio.CancelledError, distributed.comm.CommClosedError]
)
def test_a_scheduler_that_is_lost_in_a_call(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def result(future: Any) -> Any:
        raise error

    monkeypatch.setattr(distributed.Future, "result", result)
    must_say(Storing(cluster, tmp_path / "root", [Part(0)]).end(), ClusterError, "the scheduler was lost")


@pytest.mark.parametrize("kind", ["folder", "store", "sharded store"])
def test_a_worker_that_does_not_see_the_source(tmp_path: Path, kind: str) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    pairs = list(map(pair, range(4)))
    unseen = source
    if kind == "folder":
        source.mkdir()
        unseen = source / "0.png"
        Image.fromarray(pairs[0][0]).save(unseen)
    elif kind == "store":
        imgstore.hdf5.store_many(source, *map(list, zip(*pairs, strict=True)), durable=False)
    else:
        shards.store(source, [pairs], backend="hdf5")
    with memory(tmp_path / "mounted"), started(tmp_path / "cluster", workers=0) as cluster:
        cluster.start_worker(hidden=source)
        command = "convert", str(source), str(root), "--backend=disk", "--shard-images=2"
        message = f"a worker does not see {unseen}; have all workers see it under the same path"
        must_end(cluster.command(*command)(), 1, message)


def test_a_file_that_nobody_sees(tmp_path: Path) -> None:
    link = tmp_path / "source" / "0.png"
    link.parent.mkdir()
    link.symlink_to("nowhere")
    with started(tmp_path / "cluster", workers=0) as cluster:
        command = "convert", str(link.parent), str(tmp_path / "root"), "--backend=disk", "--shard-images=2"
        message = "No such file or directory; --skip-unreadable leaves such files out"
        must_end(cluster.command(*command)(), 1, f"{link}: {message}")


def test_a_worker_that_does_not_see_the_store(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shards.store(root, [list(map(pair, range(4)))], backend="hdf5")
    with memory(tmp_path / "mounted"), started(tmp_path / "cluster", workers=0) as cluster:
        cluster.start_worker(hidden=root)
        unseen = f"{root}/shard-000000: {socket.gethostname()} sees no store here, though SHARDS lists it"
        must_end(cluster.command("verify", str(root))(), 1, f"{unseen}; put it back, or store all anew")


def must_end(ended: tuple[int, str], status: int, message: str) -> None:
    """With this last line; it may have had to wait for workers."""
    assert ended[0] == status and ended[1].endswith(f"python -m imgstore: {message}\n"), ended


def test_a_scheduler_that_was_lost_before(cluster: Cluster, tmp_path: Path) -> None:
    with distributed.Client(cluster.address) as client:
        pass
    with pytest.raises(ClusterError) as info:
        shards.store(tmp_path / "root", [Part(0)], backend="lmdb", client=client)
    must_say(info.value, ClusterError, "the scheduler was lost")


def test_no_scheduler_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgstore.command.cluster.CONNECT_SECONDS", 0.3)
    for address in ("tcp://127.0.0.1:1", "nonsense://"):
        with pytest.raises(InvalidArgumentError) as info, connected(address):
            pass
        must_say(info.value, InvalidArgumentError, f"--scheduler: {address}: ")


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two hosts, which see one another and nothing else: 10.99.0.1 and 10.99.0.2."""
    names = f"imgstore-{os.getpid()}-0", f"imgstore-{os.getpid()}-1"
    try:
        try:
            for name in names:
                run("ip", "netns", "add", name)
            run(*"ip link add link0 netns {} type veth peer name link1 netns {}".format(*names).split())
            for i, name in enumerate(names):
                run("ip", "-n", name, "addr", "add", f"10.99.0.{i + 1}/24", "dev", f"link{i}")
                for device in (f"link{i}", "lo"):
                    run("ip", "-n", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces can be made: {error}")
        yield names
    finally:
        for name in names:
            with contextlib.suppress(OSError):  # there is no `ip`
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_scheduler_and_workers_on_hosts_of_their_own(hosts: tuple[str, str], tmp_path: Path) -> None:
    """The commands, over one folder."""
    source, root = tmp_path / "source", tmp_path / "root"
    imgstore.hdf5.store_many(source, *map(list, zip(*map(pair, range(70)), strict=True)), durable=False)
    with started(tmp_path / "cluster", hosts, "10.99.0.1", workers=0) as cluster:
        converted = cluster.command("convert", str(source), str(root), "--backend=disk", "--shard-images=10")
        until((root / "PLAN").exists)
        time.sleep(0.5)
        assert not list(root.glob("shard-*"))  # it is for the workers to do
        for _ in range(2):
            cluster.start_worker()
        assert converted() == (0, f"{cluster.address} has no workers yet; waiting\n")
        assert cluster.command("verify", str(root))() == (0, "")
    must_hold(root, 70)
