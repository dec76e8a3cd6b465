"""Tests of the answers: from known figures, the known format."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.answers import USES, Answer, answer
from benchmarks.report.runs import Setting
from benchmarks.tests.saved import cell, document, grid, runs

STORE_AND_READ, BATCHES, NOW_AND_THEN, DISK, READABLE = USES


def found(tmp_path: Path, cells: list[dict[str, Any]]) -> Any:
    (run,) = runs(tmp_path, document(cells))
    return run.at(Setting("warm", 1, 0))


def batches(tmp_path: Path, medians: dict[str, float], cutoff: int = 1000, **facts: Any) -> Answer | None:
    cells = [cell("read_batch", backend, cutoff, median, **facts) for backend, median in medians.items()]
    return answer(BATCHES, found(tmp_path, cells))


def test_each_use_has_an_answer(tmp_path: Path) -> None:
    cells = found(tmp_path, grid())
    assert [list(given.best) for use in USES if (given := answer(use, cells))] == [
        ["hdf5"],
        ["hdf5"],
        ["hdf5"],
        ["disk", "lmdb", "hdf5"],
        ["hdf5"],
    ]


def test_the_fastest_is_best_and_the_next_is_told(tmp_path: Path) -> None:
    given = batches(tmp_path, {"disk": 2.0, "lmdb": 0.2, "hdf5": 0.5})
    assert given and given.best == {"lmdb": 0.2 / 256} and given.cutoff == 1000
    assert given.after and given.after[0] == "hdf5" and given.after[1] == pytest.approx(2.5)
    assert given.beaten_by is None and not given.elsewhere


def test_the_floor_is_no_format(tmp_path: Path) -> None:
    given = batches(tmp_path, {"floor": 0.001, "lmdb": 0.2, "hdf5": 0.5})
    assert given and list(given.best) == ["lmdb"] and given.beaten_by is None


@pytest.mark.parametrize(
    ("interval", "best"), [((0.98, 1.02), ["lmdb"]), ((0.9, 1.1), ["lmdb", "hdf5"]), ((0.5, 1.6), ["lmdb", "hdf5"])]
)
def test_where_intervals_overlap_there_is_no_difference(
    tmp_path: Path, interval: tuple[float, float], best: list[str]
) -> None:
    given = batches(tmp_path, {"lmdb": 0.2, "hdf5": 0.22, "disk": 9.0}, interval=interval)
    assert given and list(given.best) == best
    assert given.after and given.after[0] == ("disk" if len(best) > 1 else "hdf5")


def test_times_of_storing_and_reading_add_up(tmp_path: Path) -> None:
    medians = {("store_many", "lmdb"): 1.0, ("read_many", "lmdb"): 5.0, ("store_many", "hdf5"): 4.0}
    medians |= {("read_many", "hdf5"): 1.0}
    cells = [cell(operation, backend, median=median) for (operation, backend), median in medians.items()]
    given = answer(STORE_AND_READ, found(tmp_path, cells))
    assert given and given.best == {"hdf5": pytest.approx(0.005)}
    assert given.after and given.after[0] == "lmdb" and given.after[1] == pytest.approx(6 / 5)


@pytest.mark.parametrize(("lmdb", "best"), [(3100.0, ["hdf5"]), (3090.0, ["hdf5", "lmdb"])])
def test_bytes_are_counted_and_a_hundredth_is_no_difference(tmp_path: Path, lmdb: float, best: list[str]) -> None:
    cells = [cell("read_one", "hdf5", disk=3060.0), cell("read_one", "lmdb", disk=lmdb)]
    given = answer(DISK, found(tmp_path, cells))
    assert given and list(given.best) == best


def test_readable_by_other_tools_leaves_lmdb_out(tmp_path: Path) -> None:
    cells = [cell("read_many", name, median=median) for name, median in {"lmdb": 0.1, "hdf5": 0.3, "disk": 0.5}.items()]
    given = answer(READABLE, found(tmp_path, cells))
    assert given and list(given.best) == ["hdf5"] and given.after and given.after[0] == "disk"


@pytest.mark.parametrize(("peer", "told"), [(0.1, ("zarr", 2.0)), (0.199, None), (0.5, None)])
def test_another_format_is_named_where_it_is_faster(
    tmp_path: Path, peer: float, told: tuple[str, float] | None
) -> None:
    given = batches(tmp_path, {"lmdb": 0.2, "hdf5": 0.5, "zarr": peer, "parquet": 0.15 if told else 0.6})
    assert given and list(given.best) == ["lmdb"]
    assert (given.beaten_by or (None,))[0] == (told or (None,))[0]
    assert not (told and given.beaten_by) or given.beaten_by[1] == pytest.approx(told[1])


def test_the_answer_is_of_the_most_images_that_most_formats_have(tmp_path: Path) -> None:
    cells = [
        cell("read_batch", backend, cutoff, median)
        for cutoff, medians in {
            10: {"disk": 0.1, "lmdb": 0.2, "hdf5": 0.3},
            100: {"disk": 0.5, "lmdb": 0.2, "hdf5": 0.3},
            1000: {"disk": 0.9, "lmdb": 0.2, "hdf5": 0.3},
            9000: {"lmdb": 0.9, "hdf5": 0.3},  # disk had no room
        }.items()
        for backend, median in medians.items()
    ]
    given = answer(BATCHES, found(tmp_path, cells))
    assert given and given.cutoff == 1000 and list(given.best) == ["lmdb"]
    assert given.elsewhere == {10: ("disk",)}


def test_one_format_alone_is_no_answer(tmp_path: Path) -> None:
    assert batches(tmp_path, {"floor": 0.1, "lmdb": 0.2}) is None
    cells = found(tmp_path, [cell("read_one", "lmdb")])
    assert not any(answer(use, cells) for use in USES)
