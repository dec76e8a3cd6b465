"""What a run says: the figures of each cell, and the summary below pytest-benchmark's tables."""

import math
from collections.abc import Iterator
from statistics import linear_regression
from typing import Any

from benchmarks.peers import PEERS
from imgstore import BACKENDS

FLOOR = "floor"
TITLES = ("operation", "cutoff", "backend", "images/s", "MB/s", "x floor", "bytes on disk/image", "peak MiB")
WIDTHS = (13, 8, 8, 12, 10, 9, 20, 10)
GROWTH_FROM = 1000  # images; below, what a call costs once hides what an image costs


def add_figures(benchmarks: list[Any]) -> None:
    """Put each cell's rates into its `extra_info`, and how many times the floor's median its own is."""
    cells = [benchmark for benchmark in benchmarks if "operation" in benchmark.extra_info]
    floors = {cell_of(cell): cell["median"] for cell in cells if cell.extra_info["backend"] == FLOOR}
    for cell in cells:
        facts, seconds = cell.extra_info, cell["median"]
        facts["images_per_second"] = facts["images_per_call"] / seconds
        facts["megabytes_per_second"] = facts["pixel_bytes_per_call"] / seconds / 1e6
        if cell_of(cell) in floors:
            facts["times_floor"] = seconds / floors[cell_of(cell)]


def cell_of(benchmark: Any) -> tuple[str, int]:
    return benchmark.extra_info["operation"], benchmark.extra_info["cutoff"]


def summary(benchmarks: list[Any]) -> Iterator[str]:
    """The lines of one table: operation, cutoff and backend with the figures of each, from medians."""
    cells = [benchmark for benchmark in benchmarks if "images_per_second" in benchmark.extra_info]
    cells.sort(key=lambda benchmark: order(benchmark.extra_info))
    facts = [benchmark.extra_info for benchmark in cells]
    if not facts:
        return
    yield ""
    yield " imgstore: medians, all on the same terms ".center(sum(WIDTHS), "-")
    yield line_of(TITLES)
    previous = None
    for fact in facts:
        cell = fact["operation"], fact["cutoff"]
        if previous not in (None, cell):
            yield ""
        yield line_of((*cell, *figures(fact)) if previous != cell else ("", "", *figures(fact)))
        previous = cell
    remarks = [*growth(facts), *ranking(cells)]
    yield from ["", *remarks] if remarks else []


def growth(facts: list[dict[str, Any]]) -> Iterator[str]:
    """How the time of a call grows with the number of images n: as n to the power of the slope, log on log."""
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for fact in facts:
        if fact["cutoff"] >= GROWTH_FROM:
            seconds = fact["images_per_call"] / fact["images_per_second"]
            point = math.log(fact["cutoff"]), math.log(seconds)
            rows.setdefault((fact["operation"], fact["backend"]), []).append(point)
    powers = {key: linear_regression(*zip(*points, strict=True)).slope for key, points in rows.items() if points[1:]}
    for operation in dict.fromkeys(operation for operation, _ in powers):
        texts = [f"{backend} {power:.2f}" for (name, backend), power in powers.items() if name == operation]
        yield f"from {GROWTH_FROM} images on, the time of {operation} grows as n to the power of: {', '.join(texts)}"


def ranking(benchmarks: list[Any]) -> Iterator[str]:
    """Beside peers: the fastest of each operation and cutoff but the floor."""
    cells: dict[tuple[str, int], dict[str, Any]] = {}
    for benchmark in benchmarks:
        if benchmark.extra_info["backend"] != FLOOR:
            cells.setdefault(cell_of(benchmark), {})[benchmark.extra_info["backend"]] = benchmark
    for (operation, cutoff), cell in cells.items():
        if cell.keys() - BACKENDS.keys() and cell.keys() & BACKENDS.keys():
            yield f"fastest {operation} of {cutoff}: {fastest(cell)}"


def fastest(cell: dict[str, Any]) -> str:
    """Those with checksums that none is clearly faster than: their rounds' quartiles reach into those of the fastest.

    Then how many times as long the rest of ours takes, and each that reads unchecked in less time.
    """
    checked = [name for name in cell if name in BACKENDS or PEERS[name].checked]
    times = {name: cell[name]["median"] / cell[checked[0]]["median"] for name in cell}
    tied = [name for name in checked if cell[name]["q1"] <= cell[checked[0]]["q3"]]
    parts = [", ".join(tied)]
    parts += [f"{name} {times[name]:.2f} x" for name in checked if name in BACKENDS and name not in tied]
    quicker = [f"{name} {times[name]:.2f} x" for name in cell if name not in checked and times[name] < 1]
    return "; ".join([*parts, f"unchecked {', '.join(quicker)}"] if quicker else parts)


def order(fact: dict[str, Any]) -> tuple[Any, ...]:
    """Operations by what they do, cutoffs ascending, the floor first, then the fastest."""
    operation = fact["operation"]
    speed = fact["backend"] != FLOOR, -fact["images_per_second"]
    return not operation.startswith("store"), operation, fact["cutoff"], *speed


def figures(fact: dict[str, Any]) -> tuple[str, ...]:
    times = f"{fact['times_floor']:.2f}" if "times_floor" in fact else "-"
    rates = f"{fact['images_per_second']:,.0f}", f"{fact['megabytes_per_second']:,.1f}"
    peak = f"{fact['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in fact else ""
    return fact["backend"], *rates, times, f"{fact['disk_bytes_per_image']:,.0f}", peak


def line_of(entries: tuple[Any, ...]) -> str:
    texts = [str(entry).rjust(width) for entry, width in zip(entries, WIDTHS, strict=True)]
    texts[0] = str(entries[0]).ljust(WIDTHS[0])
    texts[2] = " " + str(entries[2]).ljust(WIDTHS[2] - 1)
    return "".join(texts).rstrip()
