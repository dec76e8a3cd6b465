"""What a run says: the figures of each cell, and the summary below pytest-benchmark's tables."""

import math
from collections.abc import Iterator
from statistics import linear_regression
from typing import Any

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
    facts = [benchmark.extra_info for benchmark in benchmarks if "images_per_second" in benchmark.extra_info]
    if not facts:
        return
    yield ""
    yield " imgstore: medians, all on the same terms ".center(sum(WIDTHS), "-")
    yield line_of(TITLES)
    previous = None
    for fact in sorted(facts, key=order):
        cell = fact["operation"], fact["cutoff"]
        if previous not in (None, cell):
            yield ""
        yield line_of((*cell, *figures(fact)) if previous != cell else ("", "", *figures(fact)))
        previous = cell
    ordered = sorted(facts, key=order)
    remarks = [*growth(ordered), *ranking(ordered)]
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


def ranking(facts: list[dict[str, Any]]) -> Iterator[str]:
    """With peers: the fastest of each operation and cutoff but the floor, and how many times it ours take."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for fact in facts:
        if fact["backend"] != FLOOR:
            seconds = fact["images_per_call"] / fact["images_per_second"]
            cells.setdefault((fact["operation"], fact["cutoff"]), {})[fact["backend"]] = seconds
    for (operation, cutoff), seconds_of in cells.items():
        if seconds_of.keys() - BACKENDS.keys():
            fastest = min(seconds_of, key=lambda name: seconds_of[name])
            ours = [f"{name} {seconds_of[name] / seconds_of[fastest]:.2f} x" for name in BACKENDS if name in seconds_of]
            yield f"fastest {operation} of {cutoff}: {fastest}; {', '.join(ours)}"


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
