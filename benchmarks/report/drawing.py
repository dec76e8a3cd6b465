"""Charts: their style, axes and lines."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
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

from benchmarks.measure.floor import FLOOR
from benchmarks.report.runs import Spread, digits, in_seconds
from imgstore import BACKENDS

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MUTED = "#8a8f98"
OTHERS = "other formats"
TEXT = "#010203"  # in a picture; becomes the colour of the text around it
SIZE, WIDE = (4.6, 3.4), (10.0, 6.4)  # inches
DOTS_PER_INCH = 200
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
