"""The charts of a report, with matplotlib: one picture each, as SVG that follows the page's colours, and as PNG.

A backend has one colour, marker and name on every chart. The colours are those of Okabe and Ito, which
colour-blind readers can tell apart; the floor is dashed in the colour of the text, other formats are grey.
"""

import html
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    Formatter,
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from benchmarks.floor import FLOOR
from benchmarks.history import History, Key
from benchmarks.runs import Cell, Place, Spread, digits, in_seconds, names, rank
from benchmarks.workloads import stores
from imgstore import BACKENDS

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MUTED = "#8a8f98"
OTHERS = "other formats"
TEXT = "#010203"  # in a picture; becomes the colour of the text around it
SIZE, WIDE = (4.6, 3.4), (10.0, 6.4)  # inches
DOTS_PER_INCH = 200
MOST_TICKS, MOST_LETTERS = 8, 36  # of a history, along its axis
LEAST_RANGE = 1.25  # of a history, up and down, so that noise looks small
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "imgstore",
    "text.parse_math": False,  # a name may hold a $
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT),
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
FOLLOW_THE_READER = "<style>svg{color:#1b1f24}@media(prefers-color-scheme:dark){svg{color:#e6e8eb}}</style>"


def in_counts() -> Formatter:
    return FuncFormatter(lambda value, _: f"{value:,.0f}")


def in_times() -> Formatter:
    return FuncFormatter(lambda value, _: f"{value:g} x")


class Axis(NamedTuple):
    """What an axis says, and what writes its figures."""

    label: str
    form: Callable[[], Formatter]
    log: bool = True


class Scale(NamedTuple):
    """What is drawn upwards: its axis, a figure of it in words, and which of two is better."""

    axis: Axis
    say: Callable[[float], str]
    best: Callable[..., float] = min


TIME = Scale(Axis("time of a call", partial(EngFormatter, "s")), in_seconds)
RATE = Scale(Axis("images/s", EngFormatter), lambda value: f"{value:,.0f}", max)
MULTIPLE = Scale(Axis("times the floor's time", in_times), lambda value: f"{digits(value)} times")
DISK = Scale(Axis("bytes on disk for an image", in_counts, log=False), lambda value: f"{value:,.0f} bytes")
IMAGES = Axis("images in the store", in_counts)
READERS = Axis("reading processes", in_counts)


class Line(NamedTuple):
    """A backend's figures, by what stands on the horizontal axis."""

    backend: str
    points: Mapping[float, Spread]


@dataclass(frozen=True)
class Chart:
    """A picture with its name in files, its title, and what it shows in words."""

    name: str
    title: str
    words: str
    figure: Figure

    @cached_property
    def svg(self) -> str:
        """For a page: the colour of text is the page's; identifiers begin with the chart's name."""
        text = _drawn(self.figure, "svg").decode()
        text = text[text.index("<svg") :].replace(TEXT, "currentColor")
        in_a_tag = r"(?=[^<>]*>)"  # a name may look like an identifier
        text = re.sub(rf'(\bid="|url\(#|href="#){in_a_tag}', rf"\g<1>{self.name}-", text)
        label = html.escape(f"{self.title}. {self.words}")
        return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)

    def write(self, directory: Path) -> None:
        """The files NAME.svg, light or dark as its reader is, and NAME.png, on white."""
        opening, rest = self.svg.split(">", 1)
        (directory / f"{self.name}.svg").write_text(f"{opening}>{FOLLOW_THE_READER}{rest}", encoding="utf-8")
        (directory / f"{self.name}.png").write_bytes(_drawn(self.figure, "png"))


@matplotlib.rc_context(STYLE)
def _drawn(figure: Figure, kind: str) -> bytes:
    look: dict[str, Any] = {"transparent": True, "metadata": NO_METADATA}
    if kind == "png":
        look = {"dpi": DOTS_PER_INCH, "facecolor": "white"}
    layout = figure.get_layout_engine()
    if layout:  # once: it is half the time of drawing
        layout.execute(figure)
        figure.set_layout_engine("none")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **look)
    return buffer.getvalue()


def slug(*texts: str) -> str:
    """A name for files and identifiers, whatever the texts hold."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(texts).lower()).strip("-")


def style_of(backend: str) -> dict[str, Any]:
    """How a backend's line looks on every chart."""
    if backend == FLOOR:
        return {"color": TEXT, "linestyle": "--", "marker": "_", "linewidth": 1.2, "zorder": 2, "label": FLOOR}
    if backend in BACKENDS:
        at = list(BACKENDS).index(backend) % len(PALETTE)
        return {"color": PALETTE[at], "marker": MARKERS[at], "linewidth": 1.8, "zorder": 3, "label": backend}
    return {"color": MUTED, "marker": ".", "linewidth": 0.7, "alpha": 0.7, "zorder": 1, "label": OTHERS}


@matplotlib.rc_context(STYLE)
def line_chart(name: str, title: str, lines: Sequence[Line], x: Axis, scale: Scale) -> Chart | None:
    """One chart of lines with the spread of each point; None where there is nothing to draw."""
    if not lines:
        return None
    figure = Figure(SIZE, layout="constrained")
    axes = figure.add_subplot()
    draw(axes, lines, x, scale)
    axes.set_title(title, loc="left")
    legend(figure)
    return Chart(name, title, in_words(lines, x, scale), figure)


def draw(axes: Axes, lines: Sequence[Line], x: Axis, scale: Scale) -> None:
    for line in lines:
        at = sorted(line.points)
        figures = [line.points[value] for value in at]
        style = style_of(line.backend)
        axes.plot(at, [figure.median for figure in figures], markersize=5, **style)
        if not is_other(line.backend):  # many grey strokes would hide the others
            axes.vlines(at, [f.low for f in figures], [f.high for f in figures], colors=style["color"], linewidth=1)
    spreads = [spread for line in lines for spread in line.points.values()]
    places = sorted({value for line in lines for value in line.points})
    scaled(axes, "x", x, places)
    scaled(axes, "y", scale.axis, [min(s.low for s in spreads), max(s.high for s in spreads)])
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.grid(color=TEXT, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    name_the_best_other(axes, lines, scale.best)


def scaled(axes: Axes, which: str, what: Axis, values: Sequence[float]) -> None:
    """Set up one axis for values from the first to the last."""
    axis, least, most = getattr(axes, f"{which}axis"), values[0], values[-1]
    room = max(1.2, (most / least) ** 0.06)
    if what.log:
        getattr(axes, f"set_{which}scale")("log")
        axis.set_major_locator(ticks(most / least))
        axis.set_minor_locator(NullLocator())
        getattr(axes, f"set_{which}lim")(least / room, most * room)
    else:
        getattr(axes, f"set_{which}lim")(0, most * room)
    axis.set_major_formatter(what.form())
    axis.set_label_text(what.label)


def ticks(ratio: float) -> Locator:
    """For a logarithmic axis from something to `ratio` times as much: a handful."""
    if ratio < 10:
        return MaxNLocator(4)
    return LogLocator(subs=(1, 2, 5) if ratio < 50 else (1, 3) if ratio < 1000 else (1,))


def name_the_best_other(axes: Axes, lines: Sequence[Line], best: Callable[..., float]) -> None:
    """Grey lines share a colour; the best of them at the right end has its name beside it."""
    last = max(value for line in lines for value in line.points)
    ends = {line.points[last].median: line.backend for line in lines if last in line.points and is_other(line.backend)}
    if ends:
        at = best(ends)
        axes.annotate(ends[at], (last, at), (5, 0), textcoords="offset points", va="center", color=MUTED, fontsize=8)


def is_other(backend: str) -> bool:
    return backend != FLOOR and backend not in BACKENDS


def legend(figure: Figure, where: Any = "outside upper left") -> None:
    """A handle for each name, above the charts."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    look = {"ncols": 5, "frameon": False, "columnspacing": 1.2, "handlelength": 1.8, "borderpad": 0.1}
    figure.legend(list(handles.values()), list(handles), loc=where, **look)


def in_words(lines: Sequence[Line], x: Axis, scale: Scale) -> str:
    """The figures at the right end, for who cannot see the chart."""
    last = max(value for line in lines for value in line.points)
    ends = [f"{line.backend} {scale.say(line.points[last].median)}" for line in lines if last in line.points]
    return f"{scale.axis.label}, at {last:,.0f} {x.label}: {', '.join(ends)}."


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


def history_charts(history: History) -> list[Chart]:
    """For each operation, number of images and setting a chart over the runs, with a line for each backend.

    Of cells that more than one run has.
    """
    count = Counter(key for cells in history.cells for key in cells)
    keys = [key for key, runs in count.items() if runs > 1]
    settings = {key.setting for key in keys}
    groups: dict[str, list[Key]] = {}
    for key in sorted(keys, key=lambda key: (*place_in_order(key), key.setting.order)):
        words = key.within(settings)
        title = f"{key.place.operation} of {key.place.cutoff:,}" + (f", {words}" if words else "")
        groups.setdefault(title, []).append(key)
    return [history_chart(title, of, history) for title, of in groups.items()]


def place_in_order(key: Key) -> tuple[bool, str, int]:
    """What stores first, and the most images."""
    return not stores(key.place.operation), key.place.operation, -key.place.cutoff


@matplotlib.rc_context(STYLE)
def history_chart(title: str, keys: Sequence[Key], history: History) -> Chart:
    """Times as multiples of the first of their line; a line goes through runs that compare, and no others."""
    figure = Figure(SIZE, layout="constrained")
    axes = figure.add_subplot()
    for key in sorted(keys, key=lambda key: rank(key.place.backend)):
        for numbers in history.comparable:
            draw_history(axes, key, numbers, history)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    low, high = min(low, 1 / LEAST_RANGE), max(high, LEAST_RANGE)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(ticks(high / low))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(in_times())
    axes.set_ylabel("times the first run's time")
    runs = names(history.runs)
    name_the_runs(axes, runs)
    axes.grid(color=TEXT, alpha=0.15, linewidth=0.6)
    axes.set_title(title, loc="left")
    legend(figure)
    steps = [step for step in history.steps if step.key in keys]
    words = [f"{step.key.place.backend} {step.ratio:.2f} times at {runs[step.after]}" for step in steps]
    return Chart(slug("history", title), title, f"Steps: {', '.join(words) or 'none'}.", figure)


def name_the_runs(axes: Axes, runs: Sequence[str]) -> None:
    """A handful of them, aslant where they would not fit side by side."""
    some = range(0, len(runs), -(-len(runs) // MOST_TICKS))
    aslant = sum(len(runs[number]) for number in some) > MOST_LETTERS
    look: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if aslant else {}
    axes.set_xticks(some, [runs[number].replace(" ", "\n", 1) for number in some], **look)
    axes.set_xlim(-0.4, len(runs) - 0.6)


def draw_history(axes: Axes, key: Key, numbers: Sequence[int], history: History) -> None:
    """One line of one cell, with a ring and its ratio at each step."""
    spreads = {number: cell.seconds for number in numbers if (cell := history.cells[number].get(key))}
    if not spreads:
        return
    style, first = style_of(key.place.backend), next(iter(spreads.values())).median
    figures = {number: spread.times(1 / first) for number, spread in spreads.items()}
    axes.plot(list(figures), [figure.median for figure in figures.values()], markersize=5, **style)
    for number, figure in figures.items():
        axes.vlines(number, figure.low, figure.high, colors=style["color"], linewidth=1)
    for step in history.steps:
        if step.key == key and step.after in figures:
            point = step.after, figures[step.after].median
            axes.plot(*point, "o", markersize=12, markerfacecolor="none", color=style["color"])
            axes.annotate(f"{step.ratio:.2f} x", point, (8, 6), textcoords="offset points", fontsize=8)
