"""Charts of a history of runs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.measure.operations import stores
from benchmarks.measure.order import rank
from benchmarks.report.charts import MOST_LETTERS, MOST_TICKS
from benchmarks.report.drawing import SIZE, STYLE, TEXT, Chart, in_times, legend, slug, style_of, ticks
from benchmarks.report.history import History, Key
from benchmarks.report.runs import names

LEAST_RANGE = 1.25  # of a history, up and down, so that noise looks small


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
