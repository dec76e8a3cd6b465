"""What the system refuses is told with a path, and a reader whose store was replaced says so."""

import contextlib
import errno
import resource
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import imgstore
from imgstore.errors import ImgstoreError, StoreReplacedError
from imgstore.tests.faults.children import forked
from imgstore.tests.faults.mounts import memory
from imgstore.tests.strategies import Array, pixels

BYTE = np.dtype(np.uint8)
IMAGES, LABELS = pixels(1, (7, 6, 4), BYTE), [7, 6, 5, 4, 3, 2, 1]
MIXED = [pixels(number, (3 + number % 2, 5), BYTE) for number in range(8)]


@pytest.mark.parametrize("images", [IMAGES, MIXED], ids=["of one form", "mixed"])
def test_the_forms_of_a_replaced_store_are_its_own_or_it_says_so(
    backend: ModuleType, images: list[Array], tmp_path: Path
) -> None:
    backend.store_many(tmp_path, images, range(len(images)), durable=False)
    with imgstore.open_reader(tmp_path) as reader:
        before = reader.forms()
        backend.store_many(tmp_path, [pixels(1, (2, 2), BYTE)], [1], durable=False)
        with contextlib.suppress(StoreReplacedError):
            assert reader.forms() == before == Counter((image.shape, image.dtype) for image in images)


def test_the_forms_of_singles_of_a_replaced_store_are_its_own_or_it_says_so(
    backend: ModuleType, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    backend.store_many(root, IMAGES, LABELS, durable=False)
    backend.store_single(root, MIXED[0], 9, 9, durable=False)
    with imgstore.open_reader(root) as reader:
        backend.store_many(root, IMAGES[:1], [1], durable=False)
        with contextlib.suppress(StoreReplacedError):
            assert reader.forms() == Counter({((6, 4), BYTE): 7, ((3, 5), BYTE): 1})


Call = Callable[[ModuleType, Path], None]
NOISE = pixels(9, (64, 40, 40, 3), BYTE)


def many(backend: ModuleType, root: Path) -> None:
    backend.store_many(root, NOISE, range(len(NOISE)))


def single(backend: ModuleType, root: Path) -> None:
    backend.store_single(root, NOISE.reshape(-1, 40, 3)[:1000], 3, 3)


def new_single(backend: ModuleType, root: Path) -> None:
    backend.store_single(root / "new", NOISE[0], 3, 3)


CALLS: list[Call] = [many, single, new_single]


@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_a_full_disk_has_a_path(backend: ModuleType, call: Call, tmp_path: Path) -> None:
    with memory(tmp_path / "small") as disk:
        root = disk.path / "store"
        for left in (0, 1, 2, 5, 20):
            backend.store_many(root, IMAGES, LABELS, durable=False)
            disk.leave(pages=left)
            told(partial(call, backend, root), root, {errno.ENOSPC})
            disk.leave()
            imgstore.verify(root)


@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_a_file_that_may_not_grow_has_a_path(backend: ModuleType, call: Call, tmp_path: Path) -> None:
    backend.store_many(tmp_path, IMAGES, LABELS, durable=False)

    def limited(left: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, left))
        told(partial(call, backend, tmp_path), tmp_path, {errno.EFBIG, errno.ENOSPC})

    assert [forked(partial(limited, left)) for left in (0, 1, 4000, 40_000)] == [None] * 4


def told(call: Callable[[], None], root: Path, numbers: set[int]) -> None:
    """It succeeds, or says which file of the store could not be written."""
    try:
        call()
    except OSError as error:
        refusal = error
    else:
        return
    assert not isinstance(refusal, ImgstoreError)
    assert refusal.errno in numbers
    assert str(refusal.filename).startswith(str(root)) and str(root) in str(refusal), repr(refusal)
