"""Tests of the history: which runs compare, and which steps stand out, on planted changes."""

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure.floor import FLOOR
from benchmarks.report.history import History
from benchmarks.tests.saved import document, grid, runs
from imgstore import BACKENDS


def run_of(
    day: int,
    slower: dict[tuple[str, str], float] | None = None,
    everywhere: float = 1.0,
    noise: float = 0.0,
    calm: str = "",
) -> Any:
    """A run in which some operations of a backend take times as long, all of them `everywhere` times.

    The backend `calm` wavers by a tenth of the noise.
    """
    drawn = random.Random(day)
    cells = grid()
    for cell in cells:
        facts, stats = cell["extra_info"], cell["stats"]
        factor = everywhere * (slower or {}).get((facts["operation"], facts["backend"]), 1.0)
        factor *= 1 + drawn.uniform(-noise, noise) * (0.1 if facts["backend"] == calm else 1.0)
        for name in ("min", "q1", "median", "q3", "max"):
            stats[name] *= factor
    return document(cells, day)


def found(tmp_path: Path, *documents: Any) -> list[tuple[int, str, str, float]]:
    """Each step as the number of the run, operation, backend and ratio, of the larger cutoff."""
    return [
        (step.after, step.key.place.operation, step.key.place.backend, round(step.ratio, 2))
        for step in History.of(runs(tmp_path, *documents)).steps
        if step.key.place.cutoff == 1000
    ]


def test_a_step_is_found_where_it_was_planted(tmp_path: Path) -> None:
    slow = {("read_many", "hdf5"): 1.3}
    documents = [run_of(1), run_of(2), run_of(3, slow), run_of(4, slow)]
    assert found(tmp_path, *documents) == [(2, "read_many", "hdf5", 1.3)]


def test_a_step_to_faster_counts_too_and_the_last_run_needs_no_other(tmp_path: Path) -> None:
    assert found(tmp_path, run_of(1), run_of(2, {("store_many", "lmdb"): 0.5})) == [(1, "store_many", "lmdb", 0.5)]


def test_the_largest_step_of_a_run_stands_first(tmp_path: Path) -> None:
    changed = {("store_many", "lmdb"): 1.4, ("read_many", "hdf5"): 0.5}
    assert [step[1:] for step in found(tmp_path, run_of(1), run_of(2, changed))] == [
        ("read_many", "hdf5", 0.5),
        ("store_many", "lmdb", 1.4),
    ]


def test_what_the_floor_does_too_is_the_machine(tmp_path: Path) -> None:
    slow = {("read_many", "hdf5"): 1.3}
    assert found(tmp_path, run_of(1), run_of(2, everywhere=3.0)) == []
    for everywhere in (3.0, 1 / 1.3):  # with the second, the cell itself takes as long as before
        assert found(tmp_path, run_of(1), run_of(2, slow, everywhere)) == [(1, "read_many", "hdf5", 1.3)]


def test_storing_and_reading_have_floors_of_their_own(tmp_path: Path) -> None:
    busy_disk = {
        (name, backend): 2.0 for name in ("store_many", "store_single") for backend in (FLOOR, "disk", "lmdb", "hdf5")
    }
    assert found(tmp_path, run_of(1), run_of(2, busy_disk)) == []


@pytest.mark.parametrize("ratio", [1.09, 0.92])
def test_less_than_a_tenth_is_no_step(tmp_path: Path, ratio: float) -> None:
    assert found(tmp_path, run_of(1), run_of(2, {("read_many", "hdf5"): ratio})) == []


def test_within_the_floors_noise_is_no_step(tmp_path: Path) -> None:
    unsteady = {("read_many", FLOOR): 1.4, ("read_batch", FLOOR): 0.7, ("read_one", FLOOR): 1.3}
    assert found(tmp_path, run_of(1), run_of(2, {**unsteady, ("read_many", "hdf5"): 1.3})) == []


@pytest.mark.parametrize("factors", [(1, 3), (1, 1, 3), (1, 3, 3)])
def test_what_all_formats_do_together_is_a_step_however_few_the_runs(
    tmp_path: Path, factors: tuple[float, ...]
) -> None:
    """As a slower checksum makes it."""
    operations = ("read_many", "read_batch", "read_one", "read_single")
    reading = [(operation, backend) for operation in operations for backend in BACKENDS]
    documents = [run_of(day, dict.fromkeys(reading, of), noise=0.02) for day, of in enumerate(factors, 1)]
    assert {step[:3] for step in found(tmp_path, *documents)} == {(factors.index(3), *cell) for cell in reading}


def test_wide_intervals_hide_a_step(tmp_path: Path) -> None:
    documents = [run_of(1), run_of(2, {("read_many", "hdf5"): 1.3})]
    for content in documents:
        for cell in content["benchmarks"]:
            cell["stats"]["q3"] = cell["stats"]["median"] * 1.5
    assert found(tmp_path, *documents) == []


def test_a_single_slow_run_is_no_step(tmp_path: Path) -> None:
    slow = {("read_many", "hdf5"): 1.5}
    assert found(tmp_path, run_of(1), run_of(2), run_of(3, slow), run_of(4), run_of(5)) == []


def test_a_step_is_found_in_noise_and_where_it_is(tmp_path: Path) -> None:
    """Of a quarter, where two runs differ by as much as a tenth; five on a side tell, and its neighbours are none."""
    slow = {("read_many", "hdf5"): 1.25}
    documents = [run_of(day, slow if day > 5 else None, noise=0.06) for day in range(1, 11)]
    ((after, operation, backend, ratio),) = found(tmp_path, *documents)
    assert (after, operation, backend) == (5, "read_many", "hdf5") and 1.15 < ratio < 1.35


def test_two_steps_of_a_cell_are_both_found(tmp_path: Path) -> None:
    ratios = (1, 1, 1, 1.5, 1.5, 1.5, 3, 3, 3)
    documents = [run_of(day, {("read_many", "hdf5"): ratio}) for day, ratio in enumerate(ratios, 1)]
    assert found(tmp_path, *documents) == [(3, "read_many", "hdf5", 1.5), (6, "read_many", "hdf5", 2.0)]


def test_a_cell_that_wavers_by_itself_takes_no_step(tmp_path: Path) -> None:
    ratios = (1, 1.4, 0.9, 1.5, 1.6, 1.2, 1.9, 1.5)
    documents = [run_of(day, {("read_many", "hdf5"): ratio}) for day, ratio in enumerate(ratios, 1)]
    assert found(tmp_path, *documents) == []


def test_the_last_run_may_be_a_stray(tmp_path: Path) -> None:
    """What would be a step between many runs is none of one run after many, when runs differ."""
    slow = {("read_many", "hdf5"): 1.6}
    documents = [run_of(day, slow if day > 5 else None, noise=0.06) for day in range(1, 11)]
    assert found(tmp_path, *documents) and not found(tmp_path, *documents[:6])


def test_noise_alone_gives_no_step(tmp_path: Path) -> None:
    assert found(tmp_path, *(run_of(day, noise=0.04) for day in range(1, 8))) == []


@pytest.mark.parametrize("days", [range(1, 3), range(1, 4), range(8, 18)])
def test_noise_of_the_cells_alone_gives_no_step(tmp_path: Path, days: range) -> None:
    """However steady the floor is, and however few the runs."""
    assert found(tmp_path, *(run_of(day, noise=0.2, calm=FLOOR) for day in days)) == []


@pytest.mark.parametrize(
    "parts",
    [
        {"file system": {"type": "xfs", "device": "/dev/sda1"}},
        {"terms": {"durable": False, "cold": False, "verify": True}},
        {"images": {"name": "others", "fingerprint": "01"}},
    ],
)
def test_runs_that_are_not_comparable_are_not_joined(tmp_path: Path, parts: dict[str, Any]) -> None:
    odd = document(grid(slower=2.0), 2, **parts)
    documents = [run_of(1), odd, run_of(3)]
    assert History.of(runs(tmp_path, *documents)).comparable == [[0, 2], [1]]
    assert found(tmp_path, *documents) == []


def test_another_machine_is_not_comparable(tmp_path: Path) -> None:
    other = run_of(2)
    other["machine_info"]["cpu"]["count"] = 4
    assert History.of(runs(tmp_path, run_of(1), other)).comparable == [[0], [1]]


@pytest.mark.parametrize("floors", [(), ("test_read_one[10-floor]",)])
def test_without_floors_nothing_is_claimed(tmp_path: Path, floors: tuple[str, ...]) -> None:
    """One alone does not tell how unsteady it is."""
    documents = [run_of(1), run_of(2, {("read_many", "hdf5"): 3.0})]
    for content in documents:
        content["benchmarks"] = [
            cell for cell in content["benchmarks"] if cell["extra_info"]["backend"] != FLOOR or cell["name"] in floors
        ]
    assert found(tmp_path, *documents) == []


def test_the_floor_itself_takes_no_step(tmp_path: Path) -> None:
    assert found(tmp_path, run_of(1), run_of(2, {("read_many", FLOOR): 3.0})) == []
