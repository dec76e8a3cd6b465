"""PyTorch's DataLoader reads a store as it is, however its workers are started."""

import itertools
import multiprocessing
import pickle
import threading
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import imgstore
from imgstore import shards
from imgstore.tests.checks import blocks_of, record, records
from imgstore.tests.strategies import pixels

COUNT, BATCH, WORKERS, EPOCHS = 70, 16, 2, 2
FORKED = {"multiprocessing_context": "fork"}
BYTE = np.dtype(np.uint8)
IMAGES = pixels(1, (COUNT, 6, 5, 3), BYTE)
LABELS = list(range(-20, COUNT - 20))
FORMS = [((6, 5), "u1"), ((6, 5, 1), "u1"), ((6, 5, 3), "u1"), ((6, 5), "u2"), ((6, 5), "?")]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    """Else each worker would take seconds to import PyTorch."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "imgstore"])


def read(epoch: Any) -> list[Any]:
    """What comes out of an epoch, in ascending order of labels, which are all different."""
    pairs = [pair for images, labels in epoch for pair in zip(images.numpy(), labels.tolist(), strict=True)]
    return [record(*pair) for pair in sorted(pairs, key=lambda pair: pair[1])]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_loader_reads_every_image_of_each_epoch(
    backend: ModuleType, method: str, tmp_path: Path, torch: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whole and in another order each time; what is collated may be written to, of which PyTorch would warn."""
    backend.store_many(tmp_path, IMAGES, LABELS, durable=False)
    loader = torch.utils.data.DataLoader(
        imgstore.open_reader(tmp_path),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context=method,
    )
    orders = []
    for _ in range(EPOCHS):
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [16, 16, 16, 16, 6]
        assert all(images.dtype == torch.uint8 and labels.dtype == torch.int64 for images, labels in batches)
        assert read(batches) == records(IMAGES, LABELS)
        orders.append([label for _, labels in batches for label in labels.tolist()])
    assert orders[0] != orders[1] != sorted(orders[1])
    assert capfd.readouterr().err == ""


def test_the_readme(backend: ModuleType, tmp_path: Path, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line as it is, then images of mixed sizes with a collate function; forked, as that has no module."""
    mixed = [pixels(i, (4 + i % 5, 5, 3), BYTE) for i in range(COUNT)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.utils.data, "DataLoader", partial(torch.utils.data.DataLoader, **FORKED))
    names: dict[str, Any] = {}
    one_size, many_sizes, *_ = blocks_of("imgstore/README.md", "python")
    backend.store_many("photos", IMAGES, LABELS, durable=False)
    exec(one_size, names)
    assert read([(names["images"], names["labels"])]) == records(IMAGES, LABELS)
    backend.store_many("photos", mixed, LABELS, durable=False)
    exec(many_sizes, names)
    ((images, labels),) = names["loader"]
    assert records(images, labels) == records(mixed, LABELS)


def test_an_error_in_a_worker_tells_what_ours_does(tmp_path: Path, torch: Any) -> None:
    imgstore.disk.store_many(tmp_path, IMAGES, LABELS, durable=False)
    (path,) = tmp_path.glob("*/00000003.png")
    path.write_bytes(b"")
    loader = torch.utils.data.DataLoader(imgstore.open_reader(tmp_path), BATCH, num_workers=1, **FORKED)
    with pytest.raises(RuntimeError, match=f"CorruptStoreError: {path}: image 3: is not the PNG that was stored"):
        list(loader)


def test_a_sharded_store_is_read_like_any_other(backend: ModuleType, tmp_path: Path, torch: Any) -> None:
    pairs = list(zip(IMAGES, LABELS, strict=True))
    shards.store(tmp_path, [pairs[:30], pairs[30:31], pairs[31:]], backend=backend.BACKEND.name)
    loader = torch.utils.data.DataLoader(imgstore.open_reader(tmp_path), BATCH, shuffle=True, num_workers=WORKERS)
    assert read(loader) == records(IMAGES, LABELS)


@pytest.mark.parametrize(("shape", "code"), FORMS)
def test_a_batch_has_the_form_of_its_images(
    backend: ModuleType, shape: tuple[int, ...], code: str, tmp_path: Path, torch: Any, recwarn: Any
) -> None:
    images = pixels(2, (5, *shape), np.dtype(code))
    backend.store_many(tmp_path, images, range(5), durable=False)
    ((batch, labels),) = torch.utils.data.DataLoader(imgstore.open_reader(tmp_path), batch_size=5)
    np.testing.assert_array_equal(batch.numpy(), images)
    assert batch.numpy().dtype == images.dtype and labels.tolist() == list(range(5))
    assert not recwarn.list


def test_workers_are_forked_while_threads_read(backend: ModuleType, tmp_path: Path, torch: Any) -> None:
    """None of them waits for a lock that a thread held, also where it opens the file of a single."""
    backend.store_many(tmp_path, IMAGES, LABELS, durable=False)
    backend.store_single(tmp_path, IMAGES[3], 3, LABELS[3], durable=False)
    reader, done = imgstore.open_reader(tmp_path), threading.Event()

    def read_on() -> None:
        for position in itertools.cycle(range(COUNT)):
            reader[position]
            backend.read_single(tmp_path, position)
            if done.is_set():
                return

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            loader = torch.utils.data.DataLoader(reader, BATCH, num_workers=WORKERS, timeout=60, **FORKED)
            assert read(loader) == records(IMAGES, LABELS)
    finally:
        done.set()
        for thread in threads:
            thread.join()


class Calls:
    """How often each of these methods of the many was called."""

    def __init__(self, many: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = {"read": 0, "gather": 0}
        for name in self.counts:
            monkeypatch.setattr(many, name, self._counting(name, getattr(many, name)))

    def _counting(self, name: str, method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.counts[name] += 1
            return method(*arguments)

        return call


@pytest.mark.parametrize("singles", [[], [3], [COUNT + 5]], ids=["none", "one replaced", "one behind a gap"])
def test_a_batch_is_gathered_at_once(
    backend: ModuleType, singles: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.store_many(tmp_path, IMAGES, LABELS, durable=False)
    for image_id in singles:
        backend.store_single(tmp_path, IMAGES[0] ^ 255, image_id, 1000, durable=False)
    with imgstore.open_reader(tmp_path) as reader:
        expected = [record(*pair) for pair in reader]
        many = reader._open()
        gathered = Calls(many, monkeypatch)
        positions: list[Any] = [5, -1, 0, 5, 3, np.int64(7)]
        batch = reader.__getitems__(positions)
        assert [record(*pair) for pair in batch] == [expected[position] for position in positions]
        assert all(image.flags.writeable and type(label) is int for image, label in batch)
        assert gathered.counts["gather"] == 1
        assert gathered.counts["read"] == 0 or backend is imgstore.disk
        assert reader.__getitems__([]) == []
        for beyond in (len(reader), -len(reader) - 1):
            with pytest.raises(IndexError, match=f"position {beyond} is not in a reader of {len(reader)} images"):
                reader.__getitems__([0, beyond])


def test_a_pickled_reader_gathers_too(backend: ModuleType, tmp_path: Path) -> None:
    backend.store_many(tmp_path, IMAGES, LABELS, durable=False)
    reader = pickle.loads(pickle.dumps(imgstore.open_reader(tmp_path)))
    assert [record(*pair) for pair in reader.__getitems__(range(COUNT))] == records(IMAGES, LABELS)
