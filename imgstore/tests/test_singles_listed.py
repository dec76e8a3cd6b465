"""SINGLES: a single counts when it is in place, and its loss is missed whatever became of an earlier writer."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import imgstore
from imgstore.core.files import NewFile
from imgstore.errors import CorruptStoreError
from imgstore.tests.checks import current, record

IMAGE = np.full((4, 5), 9, np.uint8)


def listed(store: Path) -> Path:
    return store / current(store)[3] / "SINGLES"


def single(store: Path, image_id: int, backend: ModuleType) -> Path:
    return store / current(store)[3] / f"singles/{image_id:08d}{backend.BACKEND.suffix}"


def must_be_missed(store: Path, image_id: int, backend: ModuleType) -> None:
    single(store, image_id, backend).unlink()
    with pytest.raises(CorruptStoreError, match="is missing from the store"):
        backend.read_single(store, image_id)
    with pytest.raises(CorruptStoreError, match="is missing from the store"):
        imgstore.verify(store)


def test_one_that_cannot_be_listed_is_not_stored(
    backend: ModuleType, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, whole = record(*backend.read_single(store, 1)), NewFile.write_at

    def full(file: NewFile, offset: int, data: Any) -> None:
        if file.path.endswith("SINGLES"):
            raise OSError(28, "No space left on device", file.path)
        whole(file, offset, data)

    monkeypatch.setattr(NewFile, "write_at", full)
    with pytest.raises(OSError, match=r"No space left on device: .*SINGLES"):
        backend.store_single(store, IMAGE, 1, 5, durable=False)
    monkeypatch.undo()
    assert record(*backend.read_single(store, 1)) == before
    assert not single(store, 1, backend).exists() and not listed(store).exists()


def test_one_that_a_killed_writer_did_not_list_is_listed_when_it_is_stored_again(
    backend: ModuleType, store: Path
) -> None:
    backend.store_single(store, IMAGE, 1, 5, durable=False)
    listed(store).unlink()
    assert record(*backend.read_single(store, 1)) == record(IMAGE, 5)
    backend.store_single(store, IMAGE, 1, 6, durable=False)
    must_be_missed(store, 1, backend)


def test_what_is_left_of_a_record_does_not_shift_the_next(backend: ModuleType, store: Path) -> None:
    backend.store_single(store, IMAGE, 7, 5, durable=False)
    with open(listed(store), "ab") as file:
        file.write(b"half")
    backend.store_single(store, IMAGE, 1, 5, durable=False)
    assert listed(store).stat().st_size == 32
    must_be_missed(store, 1, backend)


def test_one_more_than_can_be_listed_is_refused(backend: ModuleType, store: Path) -> None:
    listed(store).touch()
    os.truncate(listed(store), 1 << 26)
    with pytest.raises(imgstore.errors.InvalidArgumentError, match="store all with store_many"):
        backend.store_single(store, IMAGE, 1, 5, durable=False)
    imgstore.verify(store)
