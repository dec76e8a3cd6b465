"""What a run says: the figures of each cell, and the summary below pytest-benchmark's tables.

`python -m benchmarks.report FILE.json ... --out DIR` makes the page and the charts of saved runs.
"""

import math
from collections.abc import Callable, Iterator
from statistics import linear_regression
from typing import Any

from benchmarks.measure.floor import FLOOR
from benchmarks.measure.operations import stores
from benchmarks.peers import PEERS
from benchmarks.report.runs import Spread
from imgstore import BACKENDS

TITLES = ("operation", "cutoff", "backend", "images/s", "MB/s", "x floor", "bytes on disk/image", "peak MiB")
WIDTHS = (13, 8, 8, 12, 10, 9, 20, 10)
GROWTH_FROM = 1000  # images; below, what a call costs once hides what an image costs


def add_figures(benchmarks: list[Any]) -> None:
    """Put each cell's rates into its `extra_info`, and how many times the floor's median its own is."""
    cells = [benchmark for benchmark in benchmarks if "operation" in benchmark.extra_info]
    for cell in cells:
        facts, seconds = cell.extra_info, cell["median"]
        facts["images_per_second"] = facts["images_per_call"] / seconds
        facts["megabytes_per_second"] = facts["pixel_bytes_per_call"] / seconds / 1e6
    add_times_floor([cell.extra_info for cell in cells])
    add_efficiency([cell.extra_info for cell in cells])


def add_times_floor(facts: list[dict[str, Any]]) -> None:
    floors = {cell_of(fact): fact["images_per_second"] for fact in facts if fact["backend"] == FLOOR}
    for fact in facts:
        if cell_of(fact) in floors:
            fact["times_floor"] = floors[cell_of(fact)] / fact["images_per_second"]


def add_efficiency(facts: list[dict[str, Any]]) -> None:
    """What part of their number times one reader's rate several readers reach together."""
    alone = {(cell_of(fact), fact["backend"]): fact["images_per_second"] for fact in facts}
    for fact in facts:
        one = (*cell_of(fact)[:3], 1, cell_of(fact)[4]), fact["backend"]
        if fact.get("readers", 1) > 1 and one in alone:
            fact["efficiency"] = fact["images_per_second"] / (fact["readers"] * alone[one])


def cell_of(fact: dict[str, Any]) -> tuple[str, int, int, int, str]:
    """What a backend is compared with others in: operation, cutoff, pixels a side, readers and cache."""
    more = fact.get("image_size", 0), fact.get("readers", 1), fact.get("cache", "warm")
    return fact["operation"], fact["cutoff"], *more


def summary(benchmarks: list[Any]) -> Iterator[str]:
    """The lines of one table: operation, cutoff and backend with the figures of each, from medians."""
    cells = [benchmark for benchmark in benchmarks if "images_per_second" in benchmark.extra_info]
    cells.sort(key=lambda benchmark: order(benchmark.extra_info))
    facts = [benchmark.extra_info for benchmark in cells]
    if not facts:
        return
    rows = sorted(beside_cold(facts), key=order)
    more = more_columns(rows)
    widths = max(WIDTHS[0], *(len(row["operation"]) + 1 for row in rows)), *WIDTHS[1:]
    yield ""
    yield " imgstore: medians, all on the same terms ".center(sum(widths), "-")
    yield line_of(TITLES, widths) + "".join(f"  {title}" for title in more)
    previous = None
    for row in rows:
        cell = cell_of(row)
        if previous not in (None, cell):
            yield ""
        texts = (row["operation"], row["cutoff"]) if previous != cell else ("", "")
        line = line_of((*texts, *figures(row)), widths).ljust(sum(widths))
        yield (line + "".join(f"  {text(row).rjust(len(title))}" for title, text in more.items())).rstrip()
        previous = cell
    remarks = [*growth(rows), *ranking(cells)]
    yield from ["", *remarks] if remarks else []


def beside_cold(facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell; where both were measured, the warm one has the cold one beside it."""
    cold = {(*cell_of(fact)[:4], fact["backend"]): fact for fact in facts if cell_of(fact)[4] == "cold"}
    warm = [fact for fact in facts if cell_of(fact)[4] == "warm"]
    return [fact | {"cold": cold.pop((*cell_of(fact)[:4], fact["backend"]), {})} for fact in warm] + [*cold.values()]


def more_columns(rows: list[dict[str, Any]]) -> dict[str, Callable[[dict[str, Any]], str]]:
    """Titles and texts of the columns that only some runs need."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {}
    if any(row.get("cold") or row.get("cache") == "cold" for row in rows):
        columns["cache"] = lambda row: "" if stores(row["operation"]) else row.get("cache", "warm")
    if any("image_size" in row for row in rows):
        columns["pixels a side"] = lambda row: str(row.get("image_size", ""))
    if any(row.get("readers", 1) > 1 for row in rows):
        columns["readers"] = lambda row: str(row.get("readers", 1))
        columns["efficiency"] = lambda row: f"{row['efficiency']:.2f}" if "efficiency" in row else ""
    if any(row.get("cold") for row in rows):
        columns["cold images/s"] = lambda row: figures(row["cold"])[1] if row.get("cold") else ""
        columns["cold x floor"] = lambda row: figures(row["cold"])[3] if row.get("cold") else ""
    return columns


def growth(facts: list[dict[str, Any]]) -> Iterator[str]:
    """How the time of a call grows with the number of images n: as n to the power of the slope, log on log."""
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for fact in facts:
        if fact["cutoff"] >= GROWTH_FROM:
            seconds = fact["images_per_call"] / fact["images_per_second"] / fact.get("calls", 1)
            point = math.log(fact["cutoff"]), math.log(seconds)
            rows.setdefault((kind_of(fact), fact["backend"]), []).append(point)
    powers = {key: linear_regression(*zip(*points, strict=True)).slope for key, points in rows.items() if points[1:]}
    for operation in dict.fromkeys(operation for operation, _ in powers):
        texts = [f"{backend} {power:.2f}" for (name, backend), power in powers.items() if name == operation]
        yield f"from {GROWTH_FROM} images on, the time of {operation} grows as n to the power of: {', '.join(texts)}"


def ranking(benchmarks: list[Any]) -> Iterator[str]:
    """Beside peers: the fastest of each operation and cutoff but the floor."""
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    for benchmark in benchmarks:
        fact = benchmark.extra_info
        if fact["backend"] != FLOOR:
            cells.setdefault((kind_of(fact), fact["cutoff"]), {})[fact["backend"]] = benchmark
    for (kind, cutoff), cell in cells.items():
        if cell.keys() - BACKENDS.keys() and cell.keys() & BACKENDS.keys():
            yield f"fastest {kind} of {cutoff}: {fastest(cell)}"


def fastest(cell: dict[str, Any]) -> str:
    """Those with checksums that none is clearly faster than: their intervals overlap that of the fastest.

    Then how many times as long the rest of ours takes, and each that reads unchecked in less time.
    """
    of_an_image = {name: Spread.of(of).times(1 / of.extra_info["images_per_call"]) for name, of in cell.items()}
    checked = [name for name in cell if name in BACKENDS or PEERS[name].checked]
    first = of_an_image[checked[0]]
    times = {name: spread.median / first.median for name, spread in of_an_image.items()}
    tied = [name for name in checked if of_an_image[name].overlaps(first)]
    parts = [", ".join(tied)]
    parts += [f"{name} {times[name]:.2f} x" for name in checked if name in BACKENDS and name not in tied]
    quicker = [f"{name} {times[name]:.2f} x" for name in cell if name not in checked and times[name] < 1]
    return "; ".join([*parts, f"unchecked {', '.join(quicker)}"] if quicker else parts)


def kind_of(fact: dict[str, Any]) -> str:
    """The operation, with its readers, cache and the size of its images where they differ from what is usual."""
    cold = " cold" if fact.get("cache") == "cold" else ""
    readers = f" by {fact['readers']} readers" if fact.get("readers", 1) > 1 else ""
    size = f" at {fact['image_size']} pixels a side" if "image_size" in fact else ""
    return f"{fact['operation']}{cold}{readers}{size}"


def order(fact: dict[str, Any]) -> tuple[Any, ...]:
    """Operations by what they do, then cutoff, size and readers ascending, the floor first, then the fastest."""
    speed = fact["backend"] != FLOOR, -fact["images_per_second"]
    return not stores(fact["operation"]), *cell_of(fact), *speed


def figures(fact: dict[str, Any]) -> tuple[str, ...]:
    times = f"{fact['times_floor']:.2f}" if "times_floor" in fact else "-"
    rates = f"{fact['images_per_second']:,.0f}", f"{fact['megabytes_per_second']:,.1f}"
    peak = f"{fact['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in fact else ""
    return fact["backend"], *rates, times, f"{fact['disk_bytes_per_image']:,.0f}", peak


def line_of(entries: tuple[Any, ...], widths: tuple[int, ...]) -> str:
    texts = [str(entry).rjust(width) for entry, width in zip(entries, widths, strict=True)]
    texts[0] = str(entries[0]).ljust(widths[0])
    texts[2] = " " + str(entries[2]).ljust(widths[2] - 1)
    return "".join(texts).rstrip()
