"""Tests of reading saved runs, which may come from anyone."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.runs import Place, RunError, Setting, Spread, digits, in_order, in_seconds, names, read_run
from benchmarks.tests.saved import cell, document, runs, saved

WARM = Setting("warm", 1, 0)


def only(tmp_path: Path, **facts: Any) -> Any:
    """The one cell of a run with one cell."""
    (run,) = runs(tmp_path, document([cell("read_many", "lmdb", **facts)]))
    return run.cells[0]


def test_a_cell_has_what_was_saved(tmp_path: Path) -> None:
    found = only(tmp_path, cutoff=200, median=0.5, rounds=9, disk=99.5, peak_bytes=2**20)
    assert found.place == Place("read_many", 200, "lmdb") and found.setting == WARM
    assert (found.seconds.median, found.rounds, found.disk_bytes, found.peak_bytes) == (0.5, 9, 99.5, 2**20)
    assert found.rate == pytest.approx((200 / 0.51, 400, 200 / 0.49))
    assert only(tmp_path).peak_bytes is None


def test_what_was_timed_as_one_is_told_by_the_call(tmp_path: Path) -> None:
    """Backends make as many calls in a round as take their time."""
    found = only(tmp_path, cutoff=200, median=0.5, calls=4)
    assert (found.seconds.median, found.images, found.pixel_bytes) == (0.125, 50, 50 * 3072)
    assert found.rate == only(tmp_path, cutoff=200, median=0.5).rate


@pytest.mark.parametrize(("rounds", "interval"), [(3, (0.405, 0.66)), (7, (0.405, 0.66)), (8, (0.45, 0.6))])
def test_the_interval_is_the_middle_half_or_all_of_few_rounds(
    tmp_path: Path, rounds: int, interval: tuple[float, float]
) -> None:
    seconds = only(tmp_path, median=0.5, interval=(0.9, 1.2), rounds=rounds).seconds
    assert (seconds.low, seconds.high) == pytest.approx(interval)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [((1, 2, 3), (3, 4, 5), True), ((1, 2, 3), (3.1, 4, 5), False), ((1, 5, 9), (4, 5, 6), True)],
)
def test_overlap(one: tuple[float, ...], other: tuple[float, ...], overlap: bool) -> None:
    assert Spread(*one).overlaps(Spread(*other)) is Spread(*other).overlaps(Spread(*one)) is overlap


def test_spreads_add_up_and_turn_into_rates() -> None:
    assert Spread.together([Spread(1, 2, 4), Spread(10, 20, 40)]) == (11, 22, 44)
    assert Spread(1, 2, 4).into(8) == (2, 4, 8)


def test_settings_come_from_the_cells_that_read_warm_and_single_first(tmp_path: Path) -> None:
    cells = [
        cell("store_many", "lmdb"),
        cell("read_many", "lmdb", cache="cold", readers=1),
        cell("read_many", "lmdb", cache="warm", readers=4),
        cell("read_many", "lmdb", cache="warm", readers=1),
        cell("read_many", "lmdb", cache="warm", readers=1, image_size=64),
    ]
    (run,) = runs(tmp_path, document(cells))
    assert run.settings == [WARM, Setting("warm", 4, 0), Setting("cold", 1, 0), Setting("warm", 1, 64)]
    assert {place.operation for place in run.at(Setting("cold", 1, 0))} == {"store_many", "read_many"}
    assert {place.operation for place in run.at(Setting("warm", 1, 64))} == {"read_many"}


def test_a_cell_that_does_not_say_is_of_the_runs_cache(tmp_path: Path) -> None:
    terms = {"durable": True, "cold": True, "verify": True}
    (run,) = runs(
        tmp_path, document([cell("read_many", "lmdb"), cell("store_many", "lmdb", cache="warm")], terms=terms)
    )
    assert run.settings == [Setting("cold", 1, 0)]
    assert {place.operation for place in run.at(Setting("cold", 1, 0))} == {"read_many", "store_many"}


def test_words_name_what_differs_alone() -> None:
    cold, four = Setting("cold", 1, 0), Setting("warm", 4, 0)
    assert WARM.within([WARM]) == ""
    assert cold.within([WARM, cold]) == "cold cache"
    assert four.within([WARM, four]) == "4 reading processes"
    assert Setting("warm", 1, 64).within([WARM, Setting("warm", 1, 64)]) == "images of 64x64"
    assert four.within([four]) == "4 reading processes" and WARM.within([WARM, four]) == "1 reading process"


def test_runs_stand_in_the_order_of_their_commits(tmp_path: Path) -> None:
    later, earlier, unknown = (document([cell("read_many", "lmdb")], day=day) for day in (5, 3, 4))
    earlier["datetime"] = "2026-11-20T12:00:00"  # an old commit that was measured late
    unknown["commit_info"]["time"] = None
    found = in_order(runs(tmp_path, later, earlier, unknown))
    assert [run.commit for run in found] == ["03abcde", "04abcde", "05abcde"]
    assert found[0].when == datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_runs_of_one_commit_are_told_apart_by_their_date(tmp_path: Path) -> None:
    again, other, unknown = (document([cell("read_many", "lmdb")], day=day) for day in (1, 2, 3))
    again["datetime"] = "2026-11-20T12:00:05"
    unknown["commit_info"]["id"] = "unversioned"
    found = runs(tmp_path, document([cell("read_many", "lmdb")]), again, other, unknown)
    assert names(found) == ["01abcde 11-01 12:00:00", "01abcde 11-20 12:00:05", "02abcde", "unversioned"]


def test_what_was_not_committed_is_marked(tmp_path: Path) -> None:
    content = document([cell("read_many", "lmdb")])
    content["commit_info"]["dirty"] = True
    assert runs(tmp_path, content)[0].commit == "01abcde+"


def spoiled(**changes: Any) -> dict[str, Any]:
    """A run with one fact of its cell replaced, or one statistic."""
    content = document([cell("read_many", "lmdb")])
    for name, value in changes.items():
        part = content["benchmarks"][0]["stats" if name in content["benchmarks"][0]["stats"] else "extra_info"]
        part[name] = value
    return content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("no JSON", "Expecting value"),
        ("[]", "list indices"),
        ("{}", "it has no 'machine_info'"),
        ({**document([]), "benchmarks": [{"extra_info": {}}]}, "it has no cell"),
        (document([cell("read_many", "lmdb")], images="none"), "'images' is no object"),
        (document([cell("read_many", "lmdb")], memory_bytes="much"), "'much' where a positive number is expected"),
        (document([cell("read_many", "lmdb")], images={"count": "1e3"}), "'1e3' where a positive number is expected"),
        ({**document([]), "machine_info": {"cpu": "x"}}, "'cpu' is no object"),
        ({**document([]), "datetime": "0001-01-01T00:00:00+10:00"}, "out of range"),
        (spoiled(cutoff=10**400), "too large"),
        (spoiled(cutoff=0.5), "0.5 where a whole number is expected"),
        (spoiled(readers=0), "0 where a positive number is expected"),
        (spoiled(median=math.nan), "nan where a positive number is expected"),
        (spoiled(median=0), "0 where a positive number is expected"),
        (spoiled(q1=-1.0), "-1.0 where a positive number is expected"),
        (spoiled(disk_bytes_per_image="<b>"), "'<b>' where a positive number is expected"),
        (spoiled(readers="two"), "'two' where a positive number is expected"),
        (spoiled(images_per_call=None), "None where a positive number is expected"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_what_is_no_run_is_refused_in_one_sentence(tmp_path: Path, content: Any, why: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError) as refused:
        read_run(path)
    text = str(refused.value)
    assert text.startswith(f"{path}: this is no saved run of imgstore's benchmarks (") and why in text
    assert text.endswith("give files of --report, --benchmark-json or --benchmark-autosave") and "\n" not in text


def test_what_is_no_character_is_replaced(tmp_path: Path) -> None:
    """A folder's name may be any bytes; the run of its images has to be shown."""
    (run,) = runs(tmp_path, document([cell("read_many", "lmdb")], images={"name": "photos\udcff"}))
    assert run.made_of["images"]["name"] == "photos?"


def test_a_missing_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere.json: it cannot be read \(No such file or directory\); give files"):
        read_run(tmp_path / "nowhere.json")


def test_cells_of_other_suites_are_passed_over(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, document([{"extra_info": {}, "stats": {}}, cell("read_many", "lmdb")]))
    assert [found.place.backend for found in read_run(path).cells] == ["lmdb"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (123.4, "123 s"),
        (1.0, "1.00 s"),
        (0.0123, "12.3 ms"),
        (5e-6, "5.00 µs"),
        (2e-9, "2.00 ns"),
        (0.9999, "1,000 ms"),
    ],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert in_seconds(seconds) == text


def test_digits() -> None:
    assert [digits(value) for value in (1.234, 12.34, 1234.5)] == ["1.23", "12.3", "1,234"]
