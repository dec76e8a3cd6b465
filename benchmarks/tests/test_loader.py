"""Tests of the DataLoader's workload: what an epoch reads, and that its check finds out who lies."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers
from benchmarks.measure.cell import Cell, Rounds, Terms
from benchmarks.measure.checks import WrongResultError
from benchmarks.measure.images import Repeated
from benchmarks.measure.loader import LoadEpoch
from benchmarks.measure.operations import measure
from benchmarks.tests.test_workloads import BACKENDS, COUNT, LABELS, MIXED, ONCE, PIXELS, FakeBenchmark

pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")

MODULES: dict[str, Any] = {**BACKENDS, "pillow": peers.load("pillow")}


def cell_of(folder: Path, backend: str, images: Any = PIXELS) -> Cell:
    cell = Cell(backend, MODULES[backend], images, LABELS, str(folder), Terms())
    cell.store()
    return cell


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two, and no waiting for what else the machine is writing."""
    monkeypatch.setattr("benchmarks.measure.loader.BATCH", 2)
    monkeypatch.setattr(os, "sync", lambda: None)


CASES = [
    *((name, PIXELS) for name in MODULES),
    *((name, MIXED) for name in ("floor", "hdf5", "pillow")),
    ("hdf5", Repeated(PIXELS[:2], COUNT)),
]


@pytest.mark.parametrize(("backend", "images"), CASES)
def test_an_epoch_is_measured(tmp_path: Path, backend: str, images: Any) -> None:
    if backend == "pillow" and images is MIXED:
        images = [image for image in MIXED if image.shape[2:] != (1,)] + [PIXELS[2]]
    workload, benchmark = LoadEpoch(cell_of(tmp_path, backend, images), 2), FakeBenchmark()
    measure(benchmark, workload, Rounds(2, 0))
    facts = benchmark.extra_info
    assert (facts["operation"], facts["readers"], facts["images_per_call"]) == ("load_epoch", 2, COUNT)
    assert benchmark.rounds == 2 and not benchmark.has_error
    assert workload.loader is None and os.listdir(tmp_path) == ["stored"]


def test_epochs_are_shuffled_and_the_workers_stay(tmp_path: Path) -> None:
    workload = LoadEpoch(cell_of(tmp_path, "lmdb"), 2)
    orders, workers = set(), set()
    for _ in range(6):
        workload.prepare()
        workload.check(workload.call())
        orders.add(tuple(workload.order))
        workers.add(tuple(worker.pid for worker in workload.loader._iterator._workers))
    processes = workload.loader._iterator._workers
    workload.finish()
    assert len(orders) > 1 and all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len(workers) == 1 and not any(process.is_alive() for process in processes)


def test_what_is_loaded_is_checked(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, "hdf5")
    for images, labels in ((PIXELS ^ 1, LABELS), (PIXELS, LABELS + 1)):
        with pytest.raises(WrongResultError):
            measure(FakeBenchmark(), LoadEpoch(dataclasses.replace(cell, images=images, labels=labels), 2), ONCE)


def test_a_short_epoch_is_found_out(tmp_path: Path) -> None:
    workload = LoadEpoch(cell_of(tmp_path, "hdf5"), 2)
    workload.prepare()
    seen, batch = workload.call()
    with pytest.raises(WrongResultError, match="4 images in an epoch of 5"):
        workload.check((seen - 1, batch))
    workload.finish()
