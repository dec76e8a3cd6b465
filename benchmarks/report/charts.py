"""The charts of a report, with matplotlib: one picture each, as SVG that follows the page's colours, and as PNG.

A backend has one colour, marker and name on every chart. The colours are those of Okabe and Ito, which
colour-blind readers can tell apart; the floor is dashed in the colour of the text, other formats are grey.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure.floor import FLOOR
from benchmarks.measure.order import rank
from benchmarks.report.drawing import (
    DISK,
    IMAGES,
    MULTIPLE,
    RATE,
    READERS,
    SIZE,
    STYLE,
    TEXT,
    TIME,
    WIDE,
    Chart,
    Line,
    Scale,
    draw,
    in_words,
    legend,
    line_chart,
    scaled,
    slug,
    style_of,
)
from benchmarks.report.runs import Cell, Place, Spread, in_seconds

MOST_TICKS, MOST_LETTERS = 8, 36  # of a history, along its axis


Figures = Callable[[Cell], Spread | None]


def lines_through(points: Iterable[tuple[str, float, Spread | None]]) -> list[Line]:
    """A line for each backend through its points, of which some may be unknown."""
    found: dict[str, dict[float, Spread]] = {}
    for backend, at, spread in points:
        if spread:
            found.setdefault(backend, {})[at] = spread
    return [Line(backend, found[backend]) for backend in sorted(found, key=rank)]


def lines_of(operation: str, cells: Mapping[Place, Cell], figure: Figures) -> list[Line]:
    """A line for each backend over the number of images, of one operation."""
    chosen = ((place, cell) for place, cell in cells.items() if place.operation == operation)
    return lines_through((place.backend, place.cutoff, figure(cell)) for place, cell in chosen)


def over_floor(cells: Mapping[Place, Cell]) -> Figures:
    """How many times the floor's median a cell takes, where the floor was measured."""

    def figure(cell: Cell) -> Spread | None:
        floor = cells.get(cell.place._replace(backend=FLOOR))
        return cell.seconds.times(1 / floor.seconds.median) if floor else None

    return figure


def operation_charts(operation: str, cells: Mapping[Place, Cell], mark: str) -> list[Chart]:
    """Time, rate and multiples of the floor over the number of images; `mark` tells its names from another's."""
    kinds: tuple[tuple[str, Scale, Figures], ...] = (
        ("time", TIME, lambda cell: cell.seconds),
        ("images per second", RATE, lambda cell: cell.rate),
        ("times the floor", MULTIPLE, over_floor(cells)),
    )
    charts = (
        line_chart(
            slug(operation, kind, mark), f"{operation}: {kind}", lines_of(operation, cells, figure), IMAGES, scale
        )
        for kind, scale, figure in kinds
    )
    return [chart for chart in charts if chart]


def disk_chart(cells: Iterable[Cell], mark: str) -> Chart | None:
    """Bytes on disk for an image; all operations of a backend share its store."""
    known = [(cell.place, cell.disk_bytes) for cell in cells if cell.disk_bytes]
    lines = lines_through((place.backend, place.cutoff, Spread(size, size, size)) for place, size in known)
    return line_chart(slug("bytes on disk", mark), "bytes on disk", lines, IMAGES, DISK)


def readers_chart(operation: str, cells: Iterable[Cell], mark: str) -> Chart | None:
    """Images a second over the number of reading processes, at the most images; None for one number."""
    chosen = [cell for cell in cells if cell.place.operation == operation]
    most = max((cell.place.cutoff for cell in chosen), default=0)
    largest = [cell for cell in chosen if cell.place.cutoff == most]
    if len({cell.setting.readers for cell in largest}) < 2:
        return None
    lines = lines_through((cell.place.backend, cell.setting.readers, cell.rate) for cell in largest)
    return line_chart(
        slug(operation, "readers", mark), f"{operation}: processes, {most:,} images", lines, READERS, RATE
    )


@matplotlib.rc_context(STYLE)
def cache_chart(operation: str, warm: Mapping[Place, Cell], cold: Mapping[Place, Cell], mark: str) -> Chart | None:
    """Time of a call with warm and with cold cache side by side, at the most images that have both."""
    both = [place for place in warm.keys() & cold.keys() if place.operation == operation]
    most = max((place.cutoff for place in both), default=0)
    places = sorted((place for place in both if place.cutoff == most), key=lambda place: rank(place.backend))
    if not places:
        return None
    title = f"{operation}: warm and cold cache, {most:,} images"
    pairs = [(place.backend, warm[place].seconds, cold[place].seconds) for place in places]
    figure = Figure((SIZE[0], 1.5 + 0.28 * len(places)), layout="constrained")
    draw_pairs(figure.add_subplot(), pairs, title)
    words = (f"{name} {in_seconds(one.median)} warm, {in_seconds(two.median)} cold" for name, one, two in pairs)
    return Chart(slug(operation, "cache", mark), title, f"{'; '.join(words)}.", figure)


def draw_pairs(axes: Axes, pairs: Sequence[tuple[str, Spread, Spread]], title: str) -> None:
    """A row for each backend: a full mark for the warm cache, a hollow one for the cold."""
    for at, (backend, warm, cold) in enumerate(pairs):
        color = style_of(backend)["color"]
        axes.plot([warm.median, cold.median], [at, at], color=color, linewidth=1)
        for spread, face in ((warm, color), (cold, "none")):
            axes.plot([spread.low, spread.high], [at, at], color=color, linewidth=2.5, alpha=0.5)
            axes.plot(spread.median, at, "o", color=color, markerfacecolor=face, markersize=6)
    spreads = [spread for _, *both in pairs for spread in both]
    scaled(axes, "x", TIME.axis, [min(s.low for s in spreads), max(s.high for s in spreads)])
    axes.set_yticks(range(len(pairs)), [backend for backend, *_ in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.grid(axis="x", color=TEXT, alpha=0.15, linewidth=0.6)
    axes.set_title(f"{title}\nfull mark: warm, hollow: cold", loc="left")


@matplotlib.rc_context(STYLE)
def overview(panels: Sequence[tuple[str, str, Mapping[Place, Cell]]], title: str, note: str) -> Chart:
    """Images a second of every operation in one picture, for a README or a talk. panels: operation, setting, cells."""
    drawn = {name: (setting, lines_of(name, cells, lambda cell: cell.rate)) for name, setting, cells in panels}
    figure, columns = Figure(WIDE, layout="constrained"), min(3, len(drawn))
    for at, (operation, (setting, lines)) in enumerate(drawn.items(), 1):
        axes = figure.add_subplot(-(-len(drawn) // columns), columns, at)
        draw(axes, lines, IMAGES, RATE)
        axes.set_title("\n".join(filter(None, (operation, setting))), loc="left")
    legend(figure, "outside upper right")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8)
    words = (f"{operation}: {in_words(lines, IMAGES, RATE)}" for operation, (_, lines) in drawn.items())
    return Chart("overview", title, " ".join(words), figure)
