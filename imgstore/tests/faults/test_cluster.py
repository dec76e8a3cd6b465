"""Sharded stores on a cluster of processes: workers killed, the scheduler lost, a disk full, hosts of their own."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import imgstore
from imgstore import shards
from imgstore._generations import writing
from imgstore.errors import ClusterError, InvalidArgumentError
from imgstore.tests.checks import A_MINUTE, current, records
from imgstore.tests.faults.mounts import memory, run
from imgstore.tests.strategies import Array

distributed = pytest.importorskip(
    "distributed", reason="Dask is not installed: pip install -r imgstore/requirements-dask.txt"
)

SIDE, COUNT = 32, 800  # of a shard; a block of lmdb and hdf5 has some 340 of them
LOCAL = "127.0.0.1"


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


class Cluster:
    """A scheduler and workers, each a process. `hosts` are what commands there begin with."""

    def __init__(
        self, folder: Path, address: str = LOCAL, hosts: tuple[Sequence[str], Sequence[str]] = ((), ())
    ) -> None:
        self.folder, self.host, self.hosts = folder, address, hosts
        self.workers: list[subprocess.Popen[bytes]] = []
        self.start_scheduler()

    def start_scheduler(self) -> None:
        self.file = self.folder / f"scheduler-{time.monotonic_ns()}.json"
        options = ["--host", self.host, "--port", "0", "--scheduler-file", str(self.file)]
        self.scheduler = self._start(self.hosts[0], "dask_scheduler", *options)
        until(lambda: self.file.exists() and self.file.read_text())
        self.address = str(json.loads(self.file.read_text())["address"])

    def start_worker(self) -> None:
        options = ["--nthreads", "1", "--no-nanny", "--local-directory", str(self.folder)]
        self.workers.append(self._start(self.hosts[1], "dask_worker", self.address, *options))

    def kill_worker(self, pid: int) -> None:
        (worker,) = (worker for worker in self.workers if worker.pid == pid)
        worker.kill()
        worker.wait()
        self.workers.remove(worker)

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()

    def _start(self, host: Sequence[str], name: str, *options: str) -> "subprocess.Popen[bytes]":
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                [*host, sys.executable, "-m", f"distributed.cli.{name}", "--no-dashboard", *options],
                cwd=Path(__file__).parents[3],
                stdout=log,
                stderr=log,
            )


@contextlib.contextmanager
def started(folder: Path, workers: int, *host: Any) -> Iterator[Cluster]:
    folder.mkdir()
    cluster = Cluster(folder, *host)
    try:
        for _ in range(workers):
            cluster.start_worker()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with started(tmp_path / "cluster", 2) as cluster:
        yield cluster


class Storing(threading.Thread):
    """`shards.store` meanwhile; `error` is what it raised."""

    def __init__(self, cluster: Cluster, root: Path, parts: list[Part], **options: Any) -> None:
        super().__init__(daemon=True)
        self.arguments: Any = cluster.address, root, parts, options
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        address, root, parts, options = self.arguments
        try:
            with shards.connected(address) as client:
                shards.store(root, parts, backend="lmdb", client=client, **options)
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self.join(2 * A_MINUTE)
        assert not self.is_alive(), "it hangs"
        return self.error


def must_hold(root: Path, count: int) -> None:
    imgstore.verify(root)
    with imgstore.open_reader(root) as reader:
        images, labels = reader.read_many()
    assert records(images, labels) == records(*zip(*map(pair, range(count)), strict=True))


def test_shards_are_stored_and_verified_by_workers(cluster: Cluster, tmp_path: Path) -> None:
    root, parts = tmp_path / "root", [Part(first, 30) for first in range(0, 150, 30)]
    assert Storing(cluster, root, parts).end() is None
    must_hold(root, 150)
    with shards.connected(cluster.address) as client:
        shards.verify(root, client)
        (root / "shard-000002/CURRENT").unlink()
        with pytest.raises(imgstore.errors.CorruptStoreError, match="shard-000002: is missing"):
            shards.verify(root, client)


def test_a_worker_is_killed_in_the_middle_of_a_shard_twice(cluster: Cluster, tmp_path: Path) -> None:
    root, seen = tmp_path / "root", set[str]()
    storing = Storing(cluster, root, [Part(0, folder=tmp_path), Part(COUNT)])
    for _ in range(2):
        (path,) = until(lambda: set(tmp_path.glob("*.pid")) - seen)
        seen.add(path)
        assert list(root.glob("shard-000000/0*")) and not (root / "shard-000000/CURRENT").exists()
        cluster.kill_worker(int(path.stem))
        cluster.start_worker()
    until(lambda: len(set(tmp_path.glob("*.pid")) - seen))
    (tmp_path / "go").touch()
    assert storing.end() is None
    must_hold(root, 2 * COUNT)
    assert len(list(root.glob("shard-000000/0*"))) == 1  # what the killed left is gone


def test_the_scheduler_is_restarted(cluster: Cluster, tmp_path: Path) -> None:
    root, parts = tmp_path / "root", [Part(0, 30), Part(30, 30), Part(60, folder=tmp_path)]
    storing = Storing(cluster, root, parts, fingerprint="these")
    whole = [root / f"shard-00000{i}" for i in range(2)]
    until(lambda: list(tmp_path.glob("*.pid")) and all((shard / "CURRENT").exists() for shard in whole))
    generations = [current(shard)[3] for shard in whole]
    cluster.scheduler.kill()
    cluster.scheduler.wait()
    error = storing.end()
    assert isinstance(error, ClusterError) and str(error).startswith("the scheduler was lost"), error
    assert not (root / "SHARDS").exists()
    (tmp_path / "go").touch()
    cluster.start_scheduler()
    cluster.start_worker()
    assert Storing(cluster, root, parts, fingerprint="these").end() is None
    must_hold(root, 60 + COUNT)
    assert [current(shard)[3] for shard in whole] == generations


def test_the_disk_is_full(cluster: Cluster, tmp_path: Path) -> None:
    """For one of the workers; what the other one stored stays."""
    with memory(tmp_path / "mounted") as disk:
        root, parts = disk.path / "root", [Part(0), Part(COUNT)]
        disk.leave(pages=900)  # a shard needs 600
        error = Storing(cluster, root, parts, fingerprint="these").end()
        assert isinstance(error, OSError) and error.errno == errno.ENOSPC, error
        assert not (root / "SHARDS").exists()
        until(lambda: not any(busy(root / f"shard-00000{i}") for i in range(2)))
        disk.leave()
        assert Storing(cluster, root, parts, fingerprint="these").end() is None
        must_hold(root, 2 * COUNT)


def busy(root: Path) -> bool:
    """Whether a task is still at work there."""
    try:
        with writing(root):
            return False
    except imgstore.errors.StoreBusyError:
        return True


def test_no_scheduler_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_CONNECT", 0.3)
    for address in ("tcp://127.0.0.1:1", "nonsense://"):
        with pytest.raises(InvalidArgumentError, match=f"^--scheduler: {address}: "), shards.connected(address):
            pass


@pytest.fixture
def hosts() -> Iterator[tuple[list[str], list[str]]]:
    """What begins a command on each of two hosts, which see one another and nothing else: 10.99.0.1 and 10.99.0.2."""
    names = [f"imgstore-{os.getpid()}-{i}" for i in range(2)]
    try:
        try:
            for name in names:
                run("ip", "netns", "add", name)
            run(
                "ip",
                "link",
                "add",
                "link0",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                "link1",
                "netns",
                names[1],
            )
            for i, name in enumerate(names):
                run("ip", "-n", name, "addr", "add", f"10.99.0.{i + 1}/24", "dev", f"link{i}")
                run("ip", "-n", name, "link", "set", f"link{i}", "up")
                run("ip", "-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces can be made: {error}")
        yield ["ip", "netns", "exec", names[0]], ["ip", "netns", "exec", names[1]]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_scheduler_and_workers_on_hosts_of_their_own(hosts: Any, tmp_path: Path) -> None:
    """The commands, over one folder."""
    source, root = tmp_path / "source", tmp_path / "root"
    imgstore.hdf5.store_many(source, *map(list, zip(*map(pair, range(70)), strict=True)), durable=False)
    with started(tmp_path / "cluster", 2, "10.99.0.1", hosts) as cluster:
        scheduler = f"--scheduler={cluster.address}"
        convert = ["convert", str(source), str(root), "--backend=disk", "--shard-images=10", scheduler]
        for arguments in (convert, ["verify", str(root), scheduler]):
            command = [*hosts[0], sys.executable, "-m", "imgstore", *arguments]
            ended = subprocess.run(
                command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=A_MINUTE, check=False
            )
            assert ended.returncode == 0, ended.stderr
    must_hold(root, 70)
