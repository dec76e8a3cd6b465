"""Stores that travel: without empty folders, under any name, to machines that lack something; and what got lost."""

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imgstore
from imgstore import BACKENDS, shards
from imgstore.errors import CorruptStoreError
from imgstore.tests.checks import A_MINUTE, Record, current, record, records
from imgstore.tests.faults import damage
from imgstore.tests.faults.children import Raised, forked
from imgstore.tests.strategies import pixels

BYTE = np.dtype(np.uint8)
IMAGES, LABELS = pixels(1, (7, 6, 4), BYTE), [7, 6, 5, 4, 3, 2, 1]
MIXED = [pixels(number, (3 + number % 2, 5), BYTE) for number in range(8)]
SINGLES = {3: (pixels(2, (6, 4), BYTE), -3), 400: (pixels(3, (6, 4), BYTE), -400)}
NOT_UTF8 = os.fsdecode(b"caf\xe9")
MOST_BYTES = 16  # of memory for each image of a reader that was opened


@pytest.fixture
def root(backend: ModuleType, tmp_path: Path) -> Path:
    """A store of many, and of singles: one that replaced an image, and one beside them."""
    root = tmp_path / "store"
    backend.store_many(root, IMAGES, LABELS, durable=False)
    for image_id, (image, label) in SINGLES.items():
        backend.store_single(root, image, image_id, label, durable=False)
    return root


def held() -> dict[int, Record]:
    """What `root` holds."""
    pairs = dict(enumerate(zip(IMAGES, LABELS, strict=True))) | SINGLES
    return {image_id: record(*pair) for image_id, pair in sorted(pairs.items())}


def read(root: Any) -> dict[int, Record]:
    """All that a store holds, read in each way."""
    imgstore.verify(root)
    with imgstore.open_reader(root) as reader:
        ids, module = reader.ids.tolist(), BACKENDS[reader.generation.backend]
        everything = records(*reader.read_many())
        assert everything == [record(*pair) for pair in reader]
        assert everything == [record(*pair) for pair in reader.__getitems__(range(len(reader)))]
        assert reader.forms().total() == len(ids)
    assert everything == [record(*module.read_single(root, image_id)) for image_id in ids]
    return dict(zip(ids, everything, strict=True))


def drop_empty_folders(root: Path) -> int:
    """As git, `zip -D` and object stores do."""
    empty = [path for path in sorted(root.rglob("*"), reverse=True) if path.is_dir() and not list(path.iterdir())]
    for path in empty:
        path.rmdir()
    return len(empty)


def test_a_store_needs_no_empty_folder(backend: ModuleType, tmp_path: Path) -> None:
    backend.store_many(tmp_path, IMAGES, LABELS, durable=False)
    drop_empty_folders(tmp_path)
    assert list(read(tmp_path).values()) == records(IMAGES, LABELS)
    for image_id, (image, label) in SINGLES.items():
        backend.store_single(tmp_path, image, image_id, label)
    assert read(tmp_path) == held()


def test_a_store_of_singles_travels_without_empty_folders(backend: ModuleType, root: Path, tmp_path: Path) -> None:
    assert drop_empty_folders(root) == 0
    shutil.make_archive(str(tmp_path / "packed"), "tar", root)
    shutil.unpack_archive(tmp_path / "packed.tar", tmp_path / "unpacked")
    assert read(tmp_path / "unpacked") == held()


def test_holes_count_as_data(backend: ModuleType, tmp_path: Path) -> None:
    """As copies of zeros have them, of the many and of a single."""
    zeros = np.zeros((2, 6000, 6000), np.uint8)
    backend.store_many(tmp_path, zeros, [1, 2], durable=False)
    backend.store_single(tmp_path, zeros[0], 7, 3, durable=False)
    for path in tmp_path.rglob("imgstore-*/**/*.*"):
        damage.make_sparse(path)
    imgstore.verify(tmp_path)
    for image_id, label in ((0, 1), (1, 2), (7, 3)):
        image, found = backend.read_single(tmp_path, image_id)
        assert (image.shape, image.any(), found) == ((6000, 6000), False, label)


# a single that is lost


def lose_folder(singles: Path) -> set[int]:
    shutil.rmtree(singles)
    return set(SINGLES)


def lose_contents(singles: Path) -> set[int]:
    for path in singles.iterdir():
        path.unlink()
    return set(SINGLES)


def lose_one(image_id: int, singles: Path) -> set[int]:
    (path,) = singles.glob(f"{image_id:08d}.*")
    path.unlink()
    return {image_id}


LOSSES: dict[str, Callable[[Path], set[int]]] = {
    "the folder": lose_folder,
    "all files": lose_contents,
    "one that replaced an image": partial(lose_one, 3),
    "one beside the many": partial(lose_one, 400),
}
each_loss = pytest.mark.parametrize("loss", LOSSES)


@each_loss
def test_a_lost_single_is_missed(backend: ModuleType, root: Path, loss: str) -> None:
    """And the image that it replaced does not come back; all others are there."""
    suffix, singles = backend.BACKEND.suffix, root / current(root)[3] / "singles"
    lost = LOSSES[loss](singles)
    paths = {image_id: str(singles / f"{image_id:08d}{suffix}") for image_id in lost}
    with imgstore.open_reader(root) as reader:
        assert reader.ids.tolist() == list(held())
        for position, (image_id, expected) in enumerate(held().items()):
            calls: list[Callable[[], Any]] = [
                partial(backend.read_single, root, image_id),
                partial(backend.read_single, root, image_id, verify=False),
                partial(backend.read_many, root, [image_id]),
                partial(reader.read_many, [image_id]),
                partial(reader.__getitem__, position),
                partial(reader.__getitems__, [position]),
            ]
            for call in calls:
                if image_id in lost:
                    with pytest.raises(CorruptStoreError) as raised:
                        call()
                    assert (raised.value.path, raised.value.image_id) == (paths[image_id], image_id)
            if image_id not in lost:
                assert record(*backend.read_single(root, image_id)) == record(*reader[position]) == expected
    for whole in (partial(imgstore.verify, root), partial(backend.verify, root), partial(backend.read_many, root)):
        with pytest.raises(CorruptStoreError) as raised:
            whole()
        assert (raised.value.path, raised.value.image_id) in [(path, image_id) for image_id, path in paths.items()]


@each_loss
def test_a_lost_single_can_be_stored_again(backend: ModuleType, root: Path, loss: str) -> None:
    lost = LOSSES[loss](root / current(root)[3] / "singles")
    for image_id in lost:
        backend.store_single(root, *SINGLES[image_id][:1], image_id, SINGLES[image_id][1])
    assert read(root) == held()


def test_the_list_of_singles_can_be_lost(backend: ModuleType, root: Path) -> None:
    """What is in the folder is there all the same."""
    (root / current(root)[3] / "SINGLES").unlink()
    assert read(root) == held()
    backend.store_single(root, IMAGES[0], 9, 9)
    assert list(read(root)) == [*list(held())[:7], 9, 400]


def test_store_many_forgets_lost_singles(backend: ModuleType, root: Path) -> None:
    lose_folder(root / current(root)[3] / "singles")
    backend.store_many(root, IMAGES, LABELS, durable=False)
    assert list(read(root).values()) == records(IMAGES, LABELS)


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_lost_single_of_a_shard_is_missed(name: str, tmp_path: Path) -> None:
    shards.store(tmp_path, [zip(IMAGES, LABELS, strict=True)], backend=name)
    shard = tmp_path / "shard-000000"
    BACKENDS[name].store_single(shard, *SINGLES[3][:1], 3, SINGLES[3][1], durable=False)
    lose_folder(shard / current(shard)[3] / "singles")
    with imgstore.open_reader(tmp_path) as reader:
        assert record(*reader[2]) == record(IMAGES[2], LABELS[2])
        for call in (partial(reader.__getitem__, 3), reader.read_many, partial(imgstore.verify, tmp_path)):
            with pytest.raises(CorruptStoreError):
                call()


# paths


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_path_may_be_no_utf8(backend: ModuleType, as_bytes: bool, tmp_path: Path) -> None:
    path = os.path.join(tmp_path, NOT_UTF8)
    root: Any = os.fsencode(path) if as_bytes else path
    backend.store_many(root, IMAGES, LABELS)
    for image_id, (image, label) in SINGLES.items():
        backend.store_single(root, image, image_id, label)
    assert read(root) == held()
    backend.store_many(root, MIXED, range(8))
    assert list(read(root).values()) == records(MIXED, range(8))
    assert os.listdir(tmp_path) == [NOT_UTF8]


def test_an_error_of_a_path_that_is_no_utf8_can_be_printed(backend: ModuleType, tmp_path: Path) -> None:
    root = os.path.join(tmp_path, NOT_UTF8)
    backend.store_many(root, IMAGES, LABELS, durable=False)
    for path in Path(root).glob("imgstore-*/*"):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CorruptStoreError) as raised:
        imgstore.verify(root)
    assert raised.value.path.startswith(root)


def test_convert_verify_and_info_take_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    source, dest = tmp_path / "photos", os.path.join(tmp_path, NOT_UTF8)
    (source / "ant").mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(source / "ant" / "1.png")
    for arguments in (["convert", str(source), dest, "--backend", "lmdb"], ["verify", dest], ["info", dest]):
        command = [sys.executable, "-m", "imgstore", *arguments]
        ended = subprocess.run(command, capture_output=True, timeout=A_MINUTE, check=False)
        assert b"Traceback" not in ended.stderr and ended.returncode == 0, ended.stderr
    assert list(read(dest).values()) == [record(IMAGES[0], 0)]


# what the machine lacks


def of_the_system(answer: Any, expected: dict[int, Record], says: str) -> None:
    """It works all the same, or an error says what is missing, which is no damage."""
    if isinstance(answer, Raised):
        assert "ImgstoreError" not in answer.kinds and "OSError" in answer.kinds and says in answer.message, answer
    else:
        assert answer == expected


def test_memory_that_cannot_be_mapped_is_no_damage(backend: ModuleType, root: Path) -> None:
    def unmapped() -> dict[int, Record]:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

        mmap.mmap = refuse  # type: ignore[assignment,misc]
        return read(root)

    of_the_system(forked(unmapped), held(), os.strerror(errno.ENODEV))
    backend.store_many(root, MIXED, range(8), durable=False)
    of_the_system(forked(unmapped), dict(enumerate(records(MIXED, range(8)))), os.strerror(errno.ENODEV))


def without_proc() -> None:
    """From here on /proc is an empty folder, for this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, below = 0x20000, 1 << 18, 0x4000
    done = not libc.unshare(new_namespace) and not libc.mount(None, b"/", None, private | below, None)
    if not done or libc.mount(b"tmpfs", b"/proc", b"tmpfs", 0, None):
        raise PermissionError(ctypes.get_errno(), "no namespace of its own")
    assert not os.listdir("/proc")


@pytest.fixture
def may_hide_proc() -> None:
    answer = forked(without_proc)
    if isinstance(answer, Raised):
        pytest.skip(f"/proc cannot be hidden: {answer.message}")


@pytest.mark.usefixtures("may_hide_proc")
def test_no_proc_is_no_damage(backend: ModuleType, root: Path) -> None:
    def call() -> dict[int, Record]:
        without_proc()
        return read(root)

    of_the_system(forked(call), held(), "/proc")


@pytest.mark.usefixtures("may_hide_proc")
def test_a_store_is_made_without_proc_or_not_at_all(backend: ModuleType, root: Path) -> None:
    before = held()

    def call() -> None:
        without_proc()
        backend.store_many(root, MIXED, range(8))
        backend.store_single(root, MIXED[0], 4, 9)

    answer = forked(call)
    after = dict(enumerate(records(MIXED, range(8)))) | {4: record(MIXED[0], 9)}
    of_the_system(before if isinstance(answer, Raised) else answer or after, after, "/proc")
    assert read(root) == (before if isinstance(answer, Raised) else after)


@pytest.mark.parametrize("name", ["lmdb", "hdf5"])
def test_mixed_sizes_take_no_memory_for_each_image(name: str, tmp_path: Path) -> None:
    backend, count = BACKENDS[name], 10_000
    images = [np.full((1, 1 + number % 2), number % 256, BYTE) for number in range(count)]
    backend.store_many(tmp_path, images, range(count), durable=False)
    with imgstore.open_reader(tmp_path) as warm:
        assert record(*warm[1]) == record(images[1], 1)
    del warm
    tracemalloc.start()
    try:
        with imgstore.open_reader(tmp_path) as reader:
            assert record(*reader[count - 1]) == record(images[-1], count - 1)
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES * count
