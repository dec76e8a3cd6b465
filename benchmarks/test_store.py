"""Storing: one image more, and all of them into a new store."""

from typing import Any

from benchmarks.measure.cell import Cell, Rounds
from benchmarks.measure.operations import measure
from benchmarks.measure.storing import StoreMany, StoreSingle


def test_store_single(benchmark: Any, cell: Cell, rounds: Rounds | None) -> None:
    measure(benchmark, StoreSingle(cell), rounds)


def test_store_many(benchmark: Any, cell: Cell, rounds: Rounds | None) -> None:
    measure(benchmark, StoreMany(cell), rounds)
