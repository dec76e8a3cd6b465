"""Alternating two callables, and the two tables that are made with it."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.measure import floor
from benchmarks.measure.cell import Cell, Terms
from benchmarks.measure.checks import WrongResultError
from benchmarks.measure.reading import ReadMany
from benchmarks.sources import open_source
from benchmarks.studies import pairs, prices
from benchmarks.studies.pairs import Bench, Goal, Ratio, alternate, timed
from imgstore import BACKENDS
from imgstore.errors import CorruptStoreError

COUNT = 12  # images

backends = pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(open_source(None, COUNT), COUNT, str(tmp_path))


def cell_of(backend: Any, folder: Path, terms: Terms | None = None) -> Cell:
    images, labels = open_source(None, COUNT).take(COUNT)
    folder.mkdir()
    cell = Cell(folder.name, backend, images, labels, str(folder), terms or Terms(durable=False))
    cell.store()
    return cell


def spoil(cell: Cell) -> None:
    """From now on the cell expects another image than it has stored."""
    assert isinstance(cell.images, np.ndarray)
    cell.images[3] += 1


def test_a_ratio_is_of_each_pair() -> None:
    ratio = Ratio.of([(2.0, 1.0), (30.0, 10.0), (4.0, 1.0)])
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.5, 3.5)
    assert (ratio.first, ratio.second, ratio.pairs) == (4.0, 1.0, 3)


def test_both_come_first_in_turn_and_keep_their_times() -> None:
    calls: list[str] = []
    times = {"one": 1.0, "other": 2.0}

    def call(name: str) -> float:
        calls.append(name)
        return times[name]

    got = alternate(lambda: call("one"), lambda: call("other"), 0, at_least=20)
    assert got == [(1.0, 2.0)] * 20
    assert {tuple(calls[number : number + 2]) for number in range(0, 40, 2)} == {("one", "other"), ("other", "one")}


def test_a_wrong_result_is_not_timed(tmp_path: Path) -> None:
    cell = cell_of(floor, tmp_path / "floor")
    spoil(cell)
    with pytest.raises(WrongResultError):
        timed(ReadMany(cell))


@pytest.mark.parametrize(("median", "met"), [(1.5, "yes"), (1.51, "no")])
def test_a_goal_is_met_up_to_its_figure(median: float, met: str) -> None:
    line = pairs.row(Goal("read_many", "hdf5", "floor", 1.5), 1000, Ratio(median, 1.0, 2.0, 7, 3.0, 2.0))
    assert line == f"| read_many | 1,000 | hdf5 | on | floor | {median:.2f} (1.00 to 2.00) | 1.50 | {met} | 7 |"


@pytest.mark.parametrize(("first", "measured"), [(7e-6, "+5.0 us | +5 us | yes"), (8e-6, "+6.0 us | +5 us | no")])
def test_read_one_has_a_goal_in_microseconds(first: float, measured: str) -> None:
    line = pairs.row(Goal("read_one", "lmdb", "floor", 5e-6, verify=False), 10, Ratio(9.0, 9.0, 9.0, 7, first, 2e-6))
    assert line == f"| read_one | 10 | lmdb | off | floor | {measured} | 7 |"


def test_a_line_for_each_goal(bench: Bench) -> None:
    goals = [goal for goal in (*pairs.GOALS, *pairs.GOALS_OF_FILES) if goal.reference in ("floor", pairs.UNVERIFIED)]
    lines = list(pairs.lines(bench, goals, seconds=0))
    assert [line.split(" | ")[:3] for line in lines] == [[f"| {goal.operation}", "12", goal.ours] for goal in goals]
    assert {line.count("|") for line in lines} == {len(pairs.HEADINGS) + 1}


def test_a_reference_that_is_not_installed_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing", lambda: {"opencv": "cv2 is not installed"})
    (line,) = pairs.lines(bench, [Goal("store_many", "disk", "opencv", 1)], seconds=0)
    assert "cv2 is not installed" in line


@backends
def test_each_mechanism_has_a_price(backend: ModuleType, tmp_path: Path) -> None:
    cell, other = (cell_of(backend, tmp_path / name) for name in ("with", "without"))
    lines = list(prices.rows(cell, other, seconds=0))
    assert [line.split(" | ")[0] for line in lines] == [
        f"| {mechanism.name}" for mechanism in prices.mechanisms(backend)
    ]


@backends
def test_without_checksums_none_is_stored(backend: ModuleType, tmp_path: Path) -> None:
    with prices.without_checksums(backend):
        backend.store_many(tmp_path, np.ones((3, 4, 5), np.uint8), [1, 2, 3], durable=False)
    with pytest.raises(CorruptStoreError):
        backend.read_many(tmp_path)


@backends
def test_bare_files_make_no_store(backend: ModuleType, tmp_path: Path) -> None:
    workload = prices.StoreBare(cell_of(backend, tmp_path / "bare"))
    workload.call(*workload.prepare())
    workload.check(None)
    assert not (Path(workload.root) / "CURRENT").exists()
    spoil(workload.cell)
    with pytest.raises(WrongResultError):
        workload.check(None)


@backends
def test_known_files_are_read_without_looking_up(backend: ModuleType, tmp_path: Path) -> None:
    workload = prices.ReadKnown(cell_of(backend, tmp_path / "known"))
    (Path(workload.cell.stored) / "CURRENT").unlink()
    workload.check(workload.call(*workload.prepare()))
