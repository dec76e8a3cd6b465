"""Tests of the floor: a limit counts only if what it reads is what was stored."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measure import floor
from benchmarks.measure.floor import Array
from imgstore import hdf5

LABELS = np.array([7, -1, 0, 2**63 - 1, -(2**63)])


def noise(*shape: int, dtype: Any = np.uint8) -> Array:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(dtype)


UNIFORM = {
    "colour": noise(5, 4, 3, 3),
    "grey": noise(5, 4, 3),
    "one channel": noise(5, 4, 3, 1),
    "uint16": noise(5, 4, 3, dtype=np.uint16) * 257,
    "big-endian": noise(5, 4, 3, dtype=">u2"),
    "bool": noise(5, 4, 3) > 99,
    "Fortran": np.asfortranarray(noise(5, 4, 3, 3)),
    "strided": noise(10, 8, 3, 3)[::2, ::2],
    "one image": noise(1, 4, 3, 3),
}
MIXED = {
    "sizes": [noise(4, 3, 3), noise(1, 1, 3), noise(2, 9, 3)],
    "H,W beside H,W,1": [noise(4, 3), noise(4, 3, 1), noise(4, 3)],
    "dtypes": [noise(3, 3), noise(3, 3, dtype=np.uint16) * 257, noise(3, 3)],
    "strided": [noise(4, 3), noise(8, 6)[::2, ::2], noise(3, 5).T],
    "list of one form": [noise(4, 3), noise(4, 3) + 1],
    "list of one": [noise(4, 3, 1)],
}
STORED = [
    pytest.param(images, id=name)
    for name, images in {**UNIFORM, **{f"mixed: {k}": v for k, v in MIXED.items()}}.items()
]


def same(read: Any, expected: Any) -> bool:
    """Whether pixels, shape and dtype agree."""
    return read.shape == expected.shape and read.dtype == expected.dtype and np.array_equal(read, expected)


@pytest.fixture(params=STORED)
def images(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def labels(images: Any) -> Array:
    return LABELS[: len(images)]


@pytest.fixture
def root(tmp_path: Path, images: Any, labels: Array) -> str:
    path = str(tmp_path / "store")
    floor.store_many(path, images, labels)
    return path


def test_read_many_gives_all(root: str, images: Any, labels: Array) -> None:
    read, read_labels = floor.read_many(root)
    assert same(read_labels, labels)
    assert len(read) == len(images)
    assert all(same(*pair) for pair in zip(read, images, strict=True))


def test_read_many_gives_an_array_where_forms_agree(root: str, images: Any) -> None:
    agree = len({(image.shape, image.dtype) for image in images}) == 1
    assert isinstance(floor.read_many(root)[0], np.ndarray if agree else list)


def test_read_single_gives_each(root: str, images: Any, labels: Array) -> None:
    for image_id, expected in enumerate(images):
        image, label = floor.read_single(root, image_id)
        assert same(image, expected)
        assert label == labels[image_id]


@pytest.mark.parametrize("count", [1, 5, 4000])
def test_pixels_are_read_to_the_beginning_of_a_page(count: int, tmp_path: Path) -> None:
    floor.store_many(str(tmp_path), np.ones((count, 9, 7), np.uint8), range(count))
    images, _ = floor.read_many(str(tmp_path))
    assert isinstance(images, np.ndarray) and images.ctypes.data % mmap.PAGESIZE == 0


def test_a_reader_is_a_sequence_of_pairs(root: str, images: Any, labels: Array) -> None:
    with floor.open_reader(root) as reader:
        assert len(reader) == len(images)
        pairs = list(reader)
    assert all(same(*pair) for pair in zip([image for image, _ in pairs], images, strict=True))
    assert [label for _, label in pairs] == labels.tolist()


def test_a_reader_gathers_a_batch(root: str, images: Any, labels: Array) -> None:
    batch = np.random.default_rng(0).integers(len(images), size=20)
    with floor.open_reader(root) as reader:
        read, read_labels = reader.read_many(batch)
    assert same(read_labels, labels[batch])
    assert len(read) == 20
    assert all(same(image, images[image_id]) for image, image_id in zip(read, batch, strict=True))


def test_what_was_read_outlives_the_reader_and_the_file(root: str, images: Any) -> None:
    with floor.open_reader(root) as reader:
        image, batch = reader[0][0], reader.read_many(np.array([0]))[0]
    whole = floor.read_many(root)[0]
    Path(root, "flat").write_bytes(bytes(os.path.getsize(os.path.join(root, "flat"))))
    for read in (image, batch[0], whole[0]):
        assert same(read, images[0])


def test_store_single_adds_and_replaces(root: str, images: Any, labels: Array) -> None:
    for image, image_id in ((noise(2, 7, dtype=np.uint16), len(images)), (noise(6, 2, 1), 0), (noise(5, 2), 0)):
        floor.store_single(root, image, image_id, -3)
        read, label = floor.read_single(root, image_id)
        assert same(read, image)
        assert label == -3
    read, label = floor.read_single(root, len(images) - 1) if len(images) > 1 else (images[0], labels[0])
    assert same(read, images[-1])
    assert label == labels[-1]


def test_store_many_replaces_what_was_there(root: str) -> None:
    floor.store_many(root, noise(2, 3, 3), [4, 5])
    read, labels = floor.read_many(root)
    assert same(read, noise(2, 3, 3))
    assert labels.tolist() == [4, 5]


@pytest.mark.parametrize("images", STORED[:1], indirect=True)
def test_store_many_takes_an_iterator(tmp_path: Path, images: Any, labels: Array) -> None:
    floor.store_many(str(tmp_path), iter(images), labels.tolist())
    read, read_labels = floor.read_many(str(tmp_path))
    assert same(read, images)
    assert same(read_labels, labels)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths given to fsync, in order."""
    paths: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return paths


STORING: dict[str, Callable[..., None]] = {
    "flat": lambda root, **terms: floor.store_many(root, noise(2, 3, 3), [0, 1], **terms),
    "7": lambda root, **terms: floor.store_single(root, noise(3, 3), 7, 1, **terms),
}


@pytest.mark.parametrize("name", STORING)
def test_durable_syncs_the_file_then_its_folder(tmp_path: Path, synced: list[str], name: str) -> None:
    STORING[name](str(tmp_path))
    assert synced[0] in {str(tmp_path / name), str(tmp_path / f"{name}.new")}
    assert synced[1] == str(tmp_path)


@pytest.mark.parametrize("name", STORING)
def test_without_durable_nothing_is_synced(tmp_path: Path, synced: list[str], name: str) -> None:
    STORING[name](str(tmp_path), durable=False)
    assert not synced


@pytest.mark.parametrize("backend", [floor, hdf5])
def test_a_new_folder_is_synced_with_the_one_it_lies_in(tmp_path: Path, synced: list[str], backend: Any) -> None:
    backend.store_many(str(tmp_path / "store"), noise(2, 3, 3), [0, 1])
    assert str(tmp_path) in synced
