"""What training does beside reading batches; measured where a number of --readers is asked for."""

import importlib.util
from typing import Any

import pytest

from benchmarks.loader import LoadEpoch
from benchmarks.readers import ReadWhileReplaced
from benchmarks.workloads import Cell, Rounds, measure


def test_read_while_replaced(benchmark: Any, cell: Cell, rounds: Rounds | None, readers: int) -> None:
    measure(benchmark, ReadWhileReplaced(cell, readers), rounds)


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: pip install torch==2.13.0"
)
def test_load_epoch(benchmark: Any, cell: Cell, rounds: Rounds | None, readers: int) -> None:
    measure(benchmark, LoadEpoch(cell, readers), rounds)
