"""Reading: one image from a closed and from an open store, all of them, and a random batch."""

from typing import Any

from benchmarks.measure.cell import Cell, Rounds
from benchmarks.measure.operations import measure
from benchmarks.measure.processes import reading
from benchmarks.measure.reading import ReadBatch, ReadMany, ReadOne, ReadSingle


def test_read_single(benchmark: Any, cell: Cell, rounds: Rounds | None) -> None:
    measure(benchmark, ReadSingle(cell), rounds)


def test_read_one(benchmark: Any, cell: Cell, rounds: Rounds | None) -> None:
    measure(benchmark, ReadOne(cell), rounds)


def test_read_many(benchmark: Any, cell: Cell, rounds: Rounds | None, readers: int | None) -> None:
    measure(benchmark, reading(ReadMany, cell, readers), rounds)


def test_read_batch(benchmark: Any, cell: Cell, rounds: Rounds | None, readers: int | None) -> None:
    measure(benchmark, reading(ReadBatch, cell, readers), rounds)
