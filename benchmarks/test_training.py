"""What training does beside reading batches; measured where a number of --readers is asked for."""

import importlib.util
from typing import Any

import pytest

from benchmarks.measure.cell import Cell, Rounds
from benchmarks.measure.loader import LoadEpoch
from benchmarks.measure.operations import measure
from benchmarks.measure.processes import ReadWhileReplaced


def test_read_while_replaced(benchmark: Any, cell: Cell, rounds: Rounds | None, readers: int) -> None:
    measure(benchmark, ReadWhileReplaced(cell, readers), rounds)


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: pip install torch==2.13.0"
)
def test_load_epoch(benchmark: Any, cell: Cell, rounds: Rounds | None, readers: int) -> None:
    measure(benchmark, LoadEpoch(cell, readers), rounds)
