"""Every backend keeps the one contract: verbs, errors, writers beside writers, readers across processes and threads."""

import contextlib
import inspect
import itertools
import multiprocessing
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import imgstore
from imgstore import BACKENDS, Reader
from imgstore.errors import ImgstoreError, ReaderClosedError, StoreBusyError, StoreNotFoundError, StoreReplacedError
from imgstore.tests.checks import (
    A_MINUTE,
    Record,
    blocks_of,
    current,
    fill,
    in_child,
    read_back,
    record,
    records,
)
from imgstore.tests.strategies import Array, Stored, pixels
from imgstore.tests.test_refusals import BAD_CALLS

BYTE = np.dtype(np.uint8)
IMAGES = pixels(1, (40, 6, 5, 3), BYTE)
OTHERS = pixels(2, (30, 7, 4), BYTE)
LABELS = list(range(-10, 30))
STORED = Stored(IMAGES, LABELS, [(OTHERS[0], 5, 50), (OTHERS[1], 2**62, 51)])
LARGE = pixels(3, (300, 300), BYTE)
BLOCKS = pixels(4, (3, 1100, 1000), BYTE)  # more than 1 MiB each
THREADS = 3
READS = 300

VERBS: dict[str, str] = dict(re.findall(r"^    (\w+)(\(.*?\))  ", imgstore.__doc__ or "", re.MULTILINE))


def test_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks_of("README.md", "python")[0], names)
    assert names["label"] == -1 and names["labels"].tolist() == [7, 7, -1] and names["batch"].shape == (3, 32, 32, 3)


def test_the_contract_names_every_verb() -> None:
    assert list(VERBS) == ["store_single", "store_many", "read_single", "read_many", "open_reader", "verify"]


@pytest.mark.parametrize("verb", VERBS)
def test_signatures_are_those_of_the_contract(backend: ModuleType, verb: str) -> None:
    signature = inspect.signature(getattr(backend, verb))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == VERBS[verb]
    assert {inspect.signature(getattr(other, verb)) for other in BACKENDS.values()} == {signature}


@pytest.mark.parametrize("verb", ["open_reader", "verify"])
def test_the_package_has_the_verbs_that_fit_every_store(verb: str) -> None:
    parameters = [inspect.signature(getattr(module, verb)).parameters for module in (imgstore, *BACKENDS.values())]
    assert all(list(one.values()) == list(parameters[0].values()) for one in parameters)


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_a_bad_argument_gives_the_same_error(bad: str, tmp_path: Path) -> None:
    caught = []
    for backend in BACKENDS.values():
        backend.store_many(tmp_path, IMAGES, LABELS, durable=False)
        with pytest.raises(ImgstoreError) as info:
            BAD_CALLS[bad].call(backend, tmp_path)
        caught.append((type(info.value), str(info.value), vars(info.value)))
    assert all(one == caught[0] for one in caught)


def test_any_store_opens_and_is_verified(backend: ModuleType, tmp_path: Path) -> None:
    expected = fill(backend, tmp_path, STORED)
    imgstore.verify(str(tmp_path))
    with imgstore.open_reader(tmp_path) as reader:
        assert isinstance(reader, Reader)
        assert contents(reader) == list(expected.values())


def test_a_store_of_an_unknown_backend_is_named(
    backend: ModuleType, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(BACKENDS, backend.BACKEND.name)
    for verb in (imgstore.open_reader, imgstore.verify):
        with pytest.raises(StoreNotFoundError, match=f"{store}: .*{backend.BACKEND.name}"):
            verb(store)


def test_store_many_replaces_another_backends_store(backend: ModuleType, tmp_path: Path) -> None:
    for other in BACKENDS.values():
        fill(other, tmp_path, STORED)
        backend.store_many(tmp_path, OTHERS, range(30))
        assert current(tmp_path)[2] == backend.BACKEND.name
        assert read_back(*backend.read_many(tmp_path)) == records(OTHERS, range(30))


def test_two_readers_of_one_store(backend: ModuleType, tmp_path: Path) -> None:
    """Also by way of a link to it; one goes on when the other is closed."""
    store, link = tmp_path / "store", tmp_path / "link"
    expected = list(fill(backend, store, STORED).values())
    link.symlink_to(store)
    with backend.open_reader(store) as first:
        with backend.open_reader(store) as second, backend.open_reader(link) as third:
            assert contents(first) == contents(second) == contents(third) == expected
        assert contents(first) == expected
        assert read_back(*backend.read_many(store)) == expected


@pytest.mark.parametrize("move", [True, False])
def test_a_relative_root_and_a_change_of_folder(
    backend: ModuleType, move: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = list(fill(backend, "store", STORED).values())
    with backend.open_reader("store") as reader:
        monkeypatch.chdir("/" if move else tmp_path)
        assert contents(reader) == contents(pickle.loads(pickle.dumps(reader))) == expected


def test_a_reader_does_not_see_later_singles(backend: ModuleType, tmp_path: Path) -> None:
    expected = list(fill(backend, tmp_path, STORED).items())
    with backend.open_reader(tmp_path) as opened:
        backend.store_single(tmp_path, OTHERS[2], 7, 70)
        backend.store_single(tmp_path, OTHERS[2], 41, 70)
        for reader in (opened, pickle.loads(pickle.dumps(opened))):
            assert list(zip(reader.ids, contents(reader), strict=True)) == expected
    assert records(*backend.read_many(tmp_path, [7, 41])) == records([OTHERS[2]] * 2, [70, 70])


@pytest.mark.parametrize("replacement", BACKENDS.values(), ids=BACKENDS)
def test_a_reader_of_a_replaced_store_gives_the_old_or_says_so(
    backend: ModuleType, replacement: ModuleType, tmp_path: Path
) -> None:
    expected = list(fill(backend, tmp_path, STORED).values())
    with backend.open_reader(tmp_path) as reader:
        pickled = pickle.dumps(reader)
        fill(replacement, tmp_path, Stored(OTHERS, [0] * 30, [(IMAGES[0], 5, 0), (IMAGES[0], 2**62, 0)]))
        assert list(reader.ids) == list(STORED.pairs())
        for position, old in enumerate(expected):
            assert old_or_replaced(reader.__getitems__, [position]) in ([old], None)
            assert old_or_replaced(read_some, reader, [reader.ids[position]]) in ([old], None)
        assert old_or_replaced(read_some, reader, None) in (expected, None)
        with pytest.raises(StoreReplacedError, match=str(tmp_path)):
            pickle.loads(pickled)


def old_or_replaced(read: Callable[..., Any], *arguments: Any) -> list[Record] | None:
    try:
        return [record(*pair) for pair in read(*arguments)]
    except StoreReplacedError:
        return None


def read_some(reader: Reader, ids: list[int] | None) -> Iterator[tuple[Array, int]]:
    return zip(*reader.read_many(ids), strict=True)


WRITES: dict[str, Callable[[ModuleType, Path], None]] = {
    "store_single": lambda backend, root: backend.store_single(root, OTHERS[0], 0, 0),
    "store_many": lambda backend, root: backend.store_many(root, OTHERS, range(30)),
}


def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *arguments).result(A_MINUTE)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "elsewhere",
    [lambda call, *arguments: call(*arguments), in_thread, partial(in_child, "fork")],
    ids=["here", "thread", "process"],
)
def test_a_second_writer_is_refused(backend: ModuleType, elsewhere: Any, write: str, store: Path) -> None:
    """While the images of the first come in; readers go on."""
    before = read_back(*backend.read_many(store))

    def images() -> Iterator[Array]:
        yield from BLOCKS[:2]  # the first goes to disk when the second is there
        with pytest.raises(StoreBusyError, match=f"{store}: another writer"):
            elsewhere(WRITES[write], backend, store)
        assert read_back(*backend.read_many(store)) == before
        yield BLOCKS[2]

    backend.store_many(store, images(), range(3))
    assert read_back(*backend.read_many(store)) == records(BLOCKS, range(3))
    elsewhere(WRITES[write], backend, store)


def test_a_child_that_lives_on_holds_no_lock(backend: ModuleType, store: Path) -> None:
    """Though it was forked while the writer held it."""
    context = multiprocessing.get_context("fork")
    done = context.Event()
    child = context.Process(target=done.wait, args=(A_MINUTE,), daemon=True)

    def images() -> Iterator[Array]:
        yield from BLOCKS[:2]
        child.start()
        yield BLOCKS[2]

    backend.store_many(store, images(), range(3))
    backend.store_single(store, IMAGES[1], 1, 1)
    assert child.is_alive()
    done.set()
    child.join(A_MINUTE)


def contents(reader: Reader) -> list[Record]:
    """All that it holds, however it is read."""
    one_by_one = [record(*pair) for pair in reader]
    assert read_back(*reader.read_many()) == one_by_one
    assert read_back(*reader.read_many(reader.ids)) == one_by_one
    return one_by_one


def contents_in_a_child(reader: Reader, root: Path) -> list[Record]:
    """By the parent's reader, which the child then closes, and by one of its own."""
    with reader, imgstore.open_reader(root) as own:
        assert contents(reader) == contents(own)
        return contents(reader)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_uses_the_parents_reader(backend: ModuleType, method: str, tmp_path: Path) -> None:
    expected = list(fill(backend, tmp_path, STORED).values())
    with backend.open_reader(tmp_path) as reader:
        for _ in range(2):
            assert in_child(method, contents_in_a_child, reader, tmp_path) == expected
            assert contents(reader) == expected
        assert read_back(*backend.read_many(tmp_path)) == expected


def test_a_fork_while_threads_read(backend: ModuleType, tmp_path: Path) -> None:
    expected = list(fill(backend, tmp_path, STORED).values())
    with backend.open_reader(tmp_path) as reader, meanwhile(lambda _: contents(reader)):
        for _ in range(5):
            assert in_child("fork", contents_in_a_child, reader, tmp_path) == expected


def test_threads_share_a_reader(backend: ModuleType, tmp_path: Path) -> None:
    expected = list(fill(backend, tmp_path, STORED).values())

    def read(seed: int) -> bool:
        positions = np.random.default_rng(seed).integers(0, len(expected), 100).tolist()
        several = read_back(*reader.read_many(reader.ids[positions]))
        return [record(*reader[at]) for at in positions] == several == [expected[at] for at in positions]

    with backend.open_reader(tmp_path) as reader, ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(read, range(4 * THREADS)))


def test_a_reader_that_another_thread_closes(backend: ModuleType, tmp_path: Path) -> None:
    """What is read is right until it is closed, and then refused."""
    expected = list(fill(backend, tmp_path, STORED).values())

    def read(reader: Reader) -> None:
        while True:
            assert contents(reader) == expected

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(10):
            reader = backend.open_reader(tmp_path)
            reading = [pool.submit(read, reader) for _ in range(THREADS)]
            time.sleep(0.005)
            reader.close()
            assert [type(future.exception(A_MINUTE)) for future in reading] == [ReaderClosedError] * THREADS


def test_reading_beside_store_single(backend: ModuleType, store: Path) -> None:
    """A single that is replaced over and over is one or the other."""
    versions = [(IMAGES[0], 0), (LARGE, 1)]
    allowed = [record(*version) for version in versions]
    backend.store_single(store, versions[0][0], 5, versions[0][1])

    def read(number: int) -> bool:
        verify = bool(number % 2)  # without it, nothing but the format's own care keeps the two apart
        with backend.open_reader(store, verify=verify) as reader:
            pairs = backend.read_single(store, 5, verify=verify), reader[-1]
        return all(record(*pair) in allowed for pair in pairs)

    def write(number: int) -> None:
        image, label = versions[number % 2]
        backend.store_single(store, image, 5, label, durable=False)

    with meanwhile(write), ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(read, range(READS)))


def test_reading_beside_store_many(backend: ModuleType, tmp_path: Path) -> None:
    """A store that is replaced over and over is one or the other, or it says so; read_single always reads."""
    versions = [(IMAGES, LABELS), (OTHERS, range(30))]
    allowed = [records(*version) for version in versions]
    backend.store_many(tmp_path, *versions[0])

    def read(_: int) -> bool:
        all_of_it = old_or_replaced(lambda: zip(*backend.read_many(tmp_path), strict=True))
        one = record(*backend.read_single(tmp_path, 7))
        return all_of_it in (*allowed, None) and one in (allowed[0][7], allowed[1][7])

    def write(number: int) -> None:
        backend.store_many(tmp_path, *versions[number % 2], durable=False)

    with meanwhile(write), ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(read, range(READS)))


def test_what_a_single_replaced_does_not_come_back(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its generation is removed, the single may be gone before the image that it replaced."""
    root, aside = tmp_path / "store", tmp_path / "aside"
    fill(backend, root, STORED)
    old, read = root / current(root)[3], backend.BACKEND.open_single

    def replace_and_read(path: str, *arguments: Any) -> Any:
        monkeypatch.undo()
        old.rename(aside)
        backend.store_many(root, OTHERS, range(30))
        aside.rename(old)
        shutil.rmtree(old / "singles")
        return read(path, *arguments)

    monkeypatch.setattr(backend.BACKEND, "open_single", replace_and_read)
    assert record(*backend.read_single(root, 5)) == record(OTHERS[5], 5)


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_single_makes_the_store_durable(backend: ModuleType, durable: bool, tmp_path: Path) -> None:
    """What store_many left to the disk's own time is synced with it, and CURRENT says so."""
    backend.store_many(tmp_path, IMAGES, LABELS, durable=False)
    assert current(tmp_path)[4] == "unsynced"
    backend.store_single(tmp_path, IMAGES[0], 3, 3, durable=durable)
    assert current(tmp_path)[4] == ("synced" if durable else "unsynced")
    imgstore.verify(tmp_path)
    backend.store_many(tmp_path, IMAGES, LABELS, durable=True)
    assert current(tmp_path)[4] == "synced"


@contextlib.contextmanager
def meanwhile(call: Callable[[int], object]) -> Iterator[None]:
    """Repeat a call in another thread, with 0, 1, 2 and so on."""
    stopped = threading.Event()

    def repeat() -> None:
        for number in itertools.count():
            call(number)
            if stopped.is_set():
                return

    with ThreadPoolExecutor(1) as pool:
        repeating = pool.submit(repeat)
        try:
            yield
        finally:
            stopped.set()
        repeating.result(A_MINUTE)
