"""Tests of the figures: from known medians, known rates."""

from typing import Any

import pytest

from benchmarks.report.terminal import add_figures, summary


class Measured:
    """A benchmark of pytest-benchmark's, as far as a report looks at it."""

    def __init__(self, median: float, spread: float = 0.1, rounds: int = 10, **extra_info: Any) -> None:
        self.statistics = {
            "min": median * (1 - 2 * spread),
            "q1": median * (1 - spread),
            "median": median,
            "q3": median * (1 + spread),
            "max": median * (1 + 2 * spread),
            "rounds": rounds,
        }
        self.extra_info = extra_info

    def __getitem__(self, statistic: str) -> float:
        return self.statistics[statistic]


def measured(
    operation: str, backend: str, median: float, cutoff: int = 1000, images: int = 1000, **facts: Any
) -> Measured:
    return Measured(
        median,
        operation=operation,
        backend=backend,
        cutoff=cutoff,
        images_per_call=images,
        pixel_bytes_per_call=3000.0 * images,
        disk_bytes_per_image=4096.4,
        **facts,
    )


def figures(benchmark: Measured) -> dict[str, Any]:
    names = ("images_per_second", "megabytes_per_second", "times_floor")
    return {name: benchmark.extra_info[name] for name in names if name in benchmark.extra_info}


def rows(benchmarks: list[Measured]) -> list[list[str]]:
    """The words of each line below the titles, once the figures are known."""
    add_figures(benchmarks)
    return [line.split() for line in list(summary(benchmarks))[3:]]


def test_figures_come_from_the_median_and_the_floor() -> None:
    floor, lmdb = measured("read_many", "floor", 0.25), measured("read_many", "lmdb", 0.5)
    add_figures([lmdb, floor])
    assert figures(floor) == {"images_per_second": 4000, "megabytes_per_second": 12, "times_floor": 1}
    assert figures(lmdb) == {"images_per_second": 2000, "megabytes_per_second": 6, "times_floor": 2}


def test_what_one_call_moves_counts() -> None:
    batch = measured("read_batch", "lmdb", 0.001, images=256)
    add_figures([batch])
    assert figures(batch) == pytest.approx({"images_per_second": 256_000, "megabytes_per_second": 768})


@pytest.mark.parametrize(("operation", "cutoff"), [("read_many", 100), ("read_one", 1000), ("store_many", 10)])
def test_only_the_floor_of_the_same_cell_counts(operation: str, cutoff: int) -> None:
    lmdb = measured("read_many", "lmdb", 0.5)
    add_figures([measured(operation, "floor", 0.25, cutoff), lmdb])
    assert figures(lmdb) == {"images_per_second": 2000, "megabytes_per_second": 6}


def test_without_a_floor_no_multiple_is_shown() -> None:
    assert rows([measured("read_many", "lmdb", 0.5)]) == [["read_many", "1000", "lmdb", "2,000", "6.0", "-", "4,096"]]


def test_a_benchmark_of_another_suite_is_left_alone() -> None:
    other = Measured(0.5, note="mine")
    add_figures([other])
    assert other.extra_info == {"note": "mine"}
    assert rows([other, measured("read_many", "lmdb", 0.5)]) == rows([measured("read_many", "lmdb", 0.5)])


@pytest.mark.parametrize("benchmarks", [[], [Measured(0.5)], [measured("read_many", "lmdb", 0.5)]])
def test_no_figures_no_summary(benchmarks: list[Measured]) -> None:
    assert list(summary(benchmarks)) == []


def test_the_summary_has_titles() -> None:
    benchmarks = [measured("read_many", "lmdb", 0.5)]
    add_figures(benchmarks)
    blank, title, titles, _ = summary(benchmarks)
    assert blank == "" and title.strip("-") == " imgstore: medians, all on the same terms "
    columns = ("operation", "cutoff", "backend", "images/s", "MB/s", "x floor", "bytes on disk/image", "peak MiB")
    assert titles.split() == " ".join(columns).split()


def test_the_summary_has_a_line_for_each_cell() -> None:
    benchmarks = [measured("read_many", "floor", 0.25), measured("read_many", "lmdb", 0.5, peak_bytes=5 << 30)]
    assert rows(benchmarks) == [
        ["read_many", "1000", "floor", "4,000", "12.0", "1.00", "4,096"],
        ["lmdb", "2,000", "6.0", "2.00", "4,096", "5,120"],
    ]


def test_columns_line_up() -> None:
    benchmarks = [
        measured("store_single", "floor", 2e-5, peak_bytes=0),
        measured("read_one", "lmdb", 50.0, cutoff=100_000, peak_bytes=900 << 30),
    ]
    add_figures(benchmarks)
    _, _, titles, first, _, second = summary(benchmarks)
    for line in (first, second):
        assert len(line) == len(titles)
        assert line.index("4,096") + 5 == titles.index("disk/image") + len("disk/image")
        assert line[titles.index("backend") :].split()[0] in ("floor", "lmdb")


def test_storing_stands_before_reading_and_small_cutoffs_before_large_ones() -> None:
    cells = [("read_many", 1000), ("read_many", 200), ("store_single", 30), ("read_many", 30), ("store_many", 200)]
    lines = rows([measured(operation, "lmdb", 0.5, cutoff) for operation, cutoff in cells])
    expected = [("store_many", 200), ("store_single", 30), ("read_many", 30), ("read_many", 200), ("read_many", 1000)]
    assert [(line[0], int(line[1])) for line in lines if line] == expected
    assert lines[1::2] == [[]] * 4  # a blank line between cells


@pytest.mark.parametrize("floor", [0.1, 0.4, 0.9], ids=["fastest", "between", "slowest"])
def test_the_floor_stands_first_then_the_fastest(floor: float) -> None:
    medians = {"disk": 0.8, "lmdb": 0.2, "floor": floor, "hdf5": 0.5}
    lines = rows([measured("read_many", name, median) for name, median in medians.items()])
    assert [line[-5] for line in lines] == ["floor", "lmdb", "hdf5", "disk"]


def shown(benchmarks: list[Measured]) -> tuple[str, list[str]]:
    """The titles, and each line with figures."""
    add_figures(benchmarks)
    _, _, titles, *lines = summary(benchmarks)
    return titles, [line for line in lines if line and not line.startswith("from ")]


def column(titles: str, line: str, title: str) -> str:
    """What stands below a title, in columns that are aligned to its end."""
    end = titles.index(title) + len(title)
    return line[titles.index(title) : end].strip()


def test_a_plain_run_has_no_more_columns() -> None:
    titles, _ = shown([measured("read_many", "lmdb", 0.5, readers=1, cache="warm")])
    assert titles.endswith("peak MiB")


def test_cold_stands_beside_warm() -> None:
    titles, lines = shown(
        [
            measured("read_many", name, seconds * slower, cache=cache)
            for cache, slower in (("cold", 10), ("warm", 1))
            for name, seconds in (("lmdb", 0.5), ("floor", 0.25))
        ]
        + [measured("store_many", "lmdb", 0.5, cache="warm")]
    )
    assert [line.split()[-2:] for line in lines[1:]] == [["400", "1.00"], ["200", "2.00"]]
    assert [column(titles, line, "cold images/s") for line in lines] == ["", "400", "200"]
    assert [column(titles, line, "cache") for line in lines] == ["", "warm", "warm"]
    assert lines[2].split()[:4] == ["lmdb", "2,000", "6.0", "2.00"]


def test_what_was_measured_in_one_cache_only_says_in_which() -> None:
    """As where the warm cell failed, and what is always warm in a run of cold ones."""
    titles, lines = shown(
        [
            measured("load_epoch", "lmdb", 0.25, cache="warm", readers=2),
            measured("read_many", "lmdb", 0.5, cache="cold"),
            measured("store_many", "lmdb", 0.5, cache="warm"),
        ]
    )
    assert [column(titles, line, "cache") for line in lines] == ["", "warm", "cold"]
    assert "cold images/s" not in titles and lines[2].split()[2:4] == ["lmdb", "2,000"]


def test_cells_with_and_without_processes_are_kept_apart() -> None:
    """The floor of two readers is that of two; the efficiency is what each of them reaches of one alone."""
    cells = [
        measured("read_batch", name, seconds, images=256 * readers * calls, readers=readers)
        for name, readers, calls, seconds in (
            ("floor", 1, 8, 1.0),
            ("lmdb", 1, 4, 1.0),
            ("floor", 2, 8, 1.0),
            ("lmdb", 2, 2, 1.0),
        )
    ]
    titles, lines = shown(cells)
    assert [column(titles, line, "x floor") for line in lines] == ["1.00", "2.00", "1.00", "4.00"]
    assert [column(titles, line, "readers") for line in lines] == ["1", "1", "2", "2"]
    assert [column(titles, line, "efficiency") for line in lines] == ["", "", "1.00", "0.50"]
    assert [cell.extra_info.get("efficiency") for cell in cells] == [None, None, 1.0, 0.5]


def test_an_efficiency_needs_one_reader() -> None:
    titles, lines = shown([measured("read_batch", "lmdb", 0.5, readers=readers) for readers in (2, 4)])
    assert [column(titles, line, "efficiency") for line in lines] == ["", ""]


def test_sizes_stand_in_ascending_order() -> None:
    sizes = (512, 32, 224)
    titles, lines = shown([measured("read_many", "lmdb", 0.5, image_size=size) for size in sizes])
    assert [column(titles, line, "pixels a side") for line in lines] == ["32", "224", "512"]


def test_a_long_operation_leaves_the_columns_in_line() -> None:
    titles, lines = shown([measured(name, "lmdb", 0.5) for name in ("read_while_replaced", "read_one")])
    assert {line.index("lmdb") for line in lines} == {titles.index("backend")}


def test_growth_is_told_of_each_size_and_number_of_readers() -> None:
    cells = [
        measured("read_many", "lmdb", n * 1e-9, n, n, readers=readers, image_size=size)
        for n in (1000, 10_000)
        for readers, size in ((1, 32), (2, 32), (1, 64))
    ]
    assert sorted(line.partition("time of ")[2].partition(" grows")[0] for line in growth_lines(cells)) == [
        "read_many at 32 pixels a side",
        "read_many at 64 pixels a side",
        "read_many by 2 readers at 32 pixels a side",
    ]


@pytest.mark.parametrize(("power", "told"), [(1.0, "1.00"), (0.0, "0.00"), (1.5, "1.50")])
def test_growth_is_the_slope_of_log_on_log(power: float, told: str) -> None:
    cells = [measured("read_many", "lmdb", 1e-9 * n**power, n, n) for n in (1000, 10_000, 100_000)]
    assert growth_lines([*cells, measured("read_many", "lmdb", 9.0, 999, 999)]) == [
        f"from 1000 images on, the time of read_many grows as n to the power of: lmdb {told}"
    ]


def test_growth_is_told_of_each_operation_and_backend() -> None:
    cells = [
        measured(operation, backend, n * factor, n, n)
        for n in (1000, 10_000)
        for operation, factor in (("read_many", 1e-9), ("store_many", 1e-6))
        for backend in ("lmdb", "floor")
    ]
    lines = growth_lines(cells)
    assert [line.partition("time of ")[2].split()[0] for line in sorted(lines)] == ["read_many", "store_many"]
    assert all("lmdb 1.00" in line and "floor 1.00" in line for line in lines)


def test_growth_is_that_of_a_call_where_a_round_is_of_several() -> None:
    """Rounds of several readers take as long whatever the number of images."""
    cells = [measured("read_many", "lmdb", 0.1, n, 2 * 100_000, readers=2, calls=100_000 // n) for n in (1000, 10_000)]
    assert growth_lines(cells)[0].endswith("lmdb 1.00")


@pytest.mark.parametrize("cutoffs", [(10, 100), (10, 1000)])
def test_growth_needs_two_large_cutoffs(cutoffs: tuple[int, int]) -> None:
    assert growth_lines([measured("read_many", "lmdb", 1.0, cutoff, cutoff) for cutoff in cutoffs]) == []


def growth_lines(benchmarks: list[Measured]) -> list[str]:
    """The lines below the summary that tell how time grows."""
    add_figures(benchmarks)
    return [line for line in summary(benchmarks) if line.startswith("from ")]


def ranking_lines(medians: dict[str, float], **facts: Any) -> list[str]:
    """The lines below the summary that name the fastest."""
    benchmarks = [measured("read_many", name, median, **facts) for name, median in medians.items()]
    add_figures(benchmarks)
    return [line for line in summary(benchmarks) if line.startswith("fastest ")]


def test_the_fastest_are_told_only_beside_peers() -> None:
    assert ranking_lines({"floor": 0.1, "lmdb": 1.0, "hdf5": 2.0}) == []
    assert ranking_lines({"floor": 0.1, "zarr": 1.0}) == []


def test_the_fastest_is_told_of_those_that_check_what_they_read() -> None:
    medians = {"floor": 0.1, "disk": 30.0, "lmdb": 2.0, "hdf5": 1.0, "parquet": 3.0, "h5py": 0.5, "zarr": 1.5}
    assert ranking_lines(medians) == [
        "fastest read_many of 1000: hdf5; lmdb 2.00 x; disk 30.00 x; unchecked h5py 0.50 x"
    ]


def test_a_peer_that_checks_can_be_the_fastest() -> None:
    assert ranking_lines({"lmdb": 2.0, "parquet": 1.0}) == ["fastest read_many of 1000: parquet; lmdb 2.00 x"]


def test_those_whose_quartiles_overlap_are_fastest_together() -> None:
    medians = {"hdf5": 1.0, "parquet": 1.2, "lmdb": 1.3}
    assert ranking_lines(medians) == ["fastest read_many of 1000: hdf5, parquet; lmdb 1.30 x"]


def test_of_few_rounds_all_count_as_on_the_page() -> None:
    medians = {"hdf5": 1.0, "parquet": 1.2, "lmdb": 1.3}
    assert ranking_lines(medians, rounds=7) == ["fastest read_many of 1000: hdf5, parquet, lmdb"]


def test_the_fastest_is_the_one_that_takes_least_for_an_image() -> None:
    """Of several readers a call moves as many images as the backend reads in a round."""
    benchmarks = [measured("read_many", "lmdb", 1.0, images=100), measured("read_many", "parquet", 2.0, images=1000)]
    add_figures(benchmarks)
    assert list(summary(benchmarks))[-1] == "fastest read_many of 1000: parquet; lmdb 5.00 x"
