"""The tables of sharded stores, on few images."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import imgstore
from benchmarks.measure.cell import Cell, Terms
from benchmarks.measure.checks import WrongResultError
from benchmarks.sources import open_source
from benchmarks.studies import shards
from imgstore import BACKENDS

COUNT = 200


@pytest.fixture
def plain(tmp_path: Path) -> Cell:
    images, labels = open_source(None, COUNT).take(COUNT)
    plain = Cell("lmdb", BACKENDS["lmdb"], images, labels, str(tmp_path), Terms())
    plain.store()
    return plain


def columns(row: str) -> list[str]:
    return [entry.strip() for entry in row.strip("|").split("|")]


def test_batches_of_sharded_stores_are_timed_and_checked(plain: Cell) -> None:
    rows = [columns(row) for row in shards.batch_rows(plain, 0)]
    assert [row[:2] for row in rows] == [[plain.name, "1"], [plain.name, "100"]]
    assert all(float(row[2].split()[0]) > 0 and int(row[4]) >= 5 for row in rows)
    with imgstore.open_reader(Path(plain.directory) / "100-shards/stored") as reader:
        assert len(reader) == COUNT


def test_another_image_than_was_stored_ends_it(plain: Cell) -> None:
    assert isinstance(plain.images, np.ndarray)
    plain.images[:] ^= 1
    with pytest.raises(WrongResultError):
        list(shards.batch_rows(plain, 0))


@pytest.mark.skipif(not importlib.util.find_spec("distributed"), reason="Dask is not installed")
def test_workers_store_and_read(plain: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROUNDS", 1)
    monkeypatch.setattr(shards, "WORKERS", (2,))
    rows: Any = [columns(row) for row in shards.worker_rows(plain, 0.2)]
    assert [row[1:3] for row in rows] == [
        ["plain", "this process"],
        ["10 shards", "this process"],
        ["plain", "2"],
        ["10 shards", "2"],
    ]
    rates = [[entry and float(entry.replace(",", "")) > 0 for entry in row[3:]] for row in rows]
    assert rates == [[True, ""], [True, ""], ["", True], [True, True]]
