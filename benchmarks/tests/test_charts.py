"""Tests of the charts: what is drawn, in whose colour, and that a picture is whole and safe in a page."""

import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from benchmarks.measure.floor import FLOOR
from benchmarks.report import charts, drawing, history_charts
from benchmarks.report.drawing import MUTED, PALETTE, Chart, style_of
from benchmarks.report.history import History
from benchmarks.report.runs import Setting
from benchmarks.tests.saved import cell, document, grid, runs
from imgstore import BACKENDS

SVG = "{http://www.w3.org/2000/svg}"
WARM, COLD = Setting("warm", 1, 0), Setting("cold", 1, 0)


def drawn(tmp_path: Path, cells: list[dict[str, Any]], operation: str = "read_many") -> list[Chart]:
    (run,) = runs(tmp_path, document(cells))
    return charts.operation_charts(operation, run.at(WARM), "")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Chart]:
    """Time, rate and multiples of the floor, drawn once."""
    return drawn(tmp_path_factory.mktemp("three"), grid())


@pytest.fixture
def chart(three: list[Chart]) -> Chart:
    return three[0]


def texts(chart: Chart) -> str:
    """What can be selected in it."""
    return "\n".join(
        "".join(element.itertext()).strip() for element in ElementTree.fromstring(chart.svg).iter(f"{SVG}text")
    )


def ends(chart: Chart) -> dict[str, list[float]]:
    """The figures of each line, by its label."""
    (axes,) = chart.figure.axes
    return {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}


def test_time_rate_and_multiples_are_drawn_from_the_medians(tmp_path: Path) -> None:
    cells = [cell("read_many", "floor", n, 1e-6 * n) for n in (10, 1000)]
    cells += [cell("read_many", "hdf5", n, 4e-6 * n) for n in (10, 1000)]
    time, rate, multiple = drawn(tmp_path, cells)
    assert ends(time) == {"floor": [pytest.approx(1e-5), 1e-3], "hdf5": [pytest.approx(4e-5), 4e-3]}
    assert ends(rate)["hdf5"] == pytest.approx([250_000, 250_000])
    assert ends(multiple) == {"floor": pytest.approx([1, 1]), "hdf5": pytest.approx([4, 4])}
    assert [chart.name for chart in (time, rate, multiple)] == [
        "read-many-time",
        "read-many-images-per-second",
        "read-many-times-the-floor",
    ]


def test_axes_are_logarithmic_and_have_units(three: list[Chart]) -> None:
    labels = [("images in the store", unit) for unit in ("time of a call", "images/s", "times the floor's time")]
    for chart, (x, y) in zip(three, labels, strict=True):
        (axes,) = chart.figure.axes
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert (axes.get_xlabel(), axes.get_ylabel()) == (x, y)
    assert "1,000" in texts(three[0]) and re.search(r"\b\d+ [mµ]?s\b", texts(three[0]))


def test_the_spread_of_rounds_is_drawn(tmp_path: Path) -> None:
    (axes,) = drawn(tmp_path, [cell("read_many", "hdf5", median=0.5, interval=(0.8, 1.4))])[0].figure.axes
    (strokes,) = axes.collections
    ((low, high),) = (segment[:, 1] for segment in strokes.get_segments())  # type: ignore[attr-defined]
    assert (low, high) == (pytest.approx(0.4), pytest.approx(0.7))


def test_a_backend_has_one_colour_that_no_other_has() -> None:
    styles = [style_of(name) for name in BACKENDS]
    assert len({style["color"] for style in styles}) == len({style["marker"] for style in styles}) == len(BACKENDS)
    assert {style["color"] for style in styles} <= set(PALETTE) and len(set(PALETTE)) == len(PALETTE)
    assert style_of("zarr") == style_of("unheard of") and style_of("zarr")["color"] == MUTED
    assert style_of(FLOOR)["color"] not in {*PALETTE, MUTED}


def test_other_formats_share_a_muted_line_and_the_best_is_named(tmp_path: Path) -> None:
    cells = [
        cell("read_many", name, n, factor * n)
        for name, factor in (("hdf5", 1), ("zarr", 3), ("lance", 2))
        for n in (10, 100)
    ]
    time, rate, _ = [*drawn(tmp_path, cells), None]
    for chart in (time, rate):
        assert chart and "lance" in texts(chart) and "zarr" not in texts(chart)
        assert texts(chart).count("other formats") == 1
        assert [line.get_color() for line in chart.figure.axes[0].lines].count(MUTED) == 2


def test_nothing_measured_nothing_drawn(tmp_path: Path) -> None:
    assert drawn(tmp_path, grid(), "read_all") == []
    assert len(drawn(tmp_path, [cell("read_many", "lmdb")])) == 2  # no floor, no multiples of it


def test_svg_follows_the_colours_of_its_page_and_keeps_text(chart: Chart) -> None:
    text = chart.svg
    assert text.startswith("<svg") and "currentColor" in text and drawing.TEXT not in text
    assert "read_many: time" in texts(chart) and all(name in texts(chart) for name in (FLOOR, *BACKENDS))
    assert ElementTree.fromstring(text).get("viewBox")
    background = re.findall(r"fill: #ffffff", text)
    assert not background


def test_nothing_is_cut_off_or_overlaps(chart: Chart) -> None:
    assert chart.svg
    (axes,), (legend,) = chart.figure.axes, chart.figure.legends
    drawn = axes.get_tightbbox()
    assert drawn and 0 <= drawn.x0 < drawn.x1 <= chart.figure.bbox.x1
    assert 0 <= drawn.y0 < drawn.y1 <= legend.get_window_extent().y0


def test_identifiers_are_the_charts_own(three: list[Chart]) -> None:
    found = [chart.svg for chart in three]
    names = [set(re.findall(r'\bid="([^"]+)"', text)) for text in found]
    assert all(names) and not names[0] & names[1] and not names[1] & names[2]
    for text, own in zip(found, names, strict=True):
        assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', text)) <= own


def test_what_it_shows_stands_in_words(chart: Chart) -> None:
    label = ElementTree.fromstring(chart.svg).get("aria-label") or ""
    assert label.startswith(
        "read_many: time. time of a call, at 1,000 images in the store: floor 1.00 ms, disk 40.0 ms"
    )


@pytest.mark.parametrize("name", ['"><script>alert(1)</script>', "a$b$c", "-->", "id=\"x\" 'y' &amp;", "\\frac"])
def test_any_name_is_only_text(tmp_path: Path, name: str) -> None:
    found = drawn(tmp_path, [cell("read_many", name, n, 1e-3 * n) for n in (10, 100)])
    root = ElementTree.fromstring(found[0].svg)
    assert not list(root.iter(f"{SVG}script"))
    assert name in (root.get("aria-label") or "") and name in texts(found[0])


def test_names_of_files_hold_nothing_else(tmp_path: Path) -> None:
    (first, *_) = drawn(tmp_path, [cell("../../x", "lmdb", n, 0.1) for n in (10, 100)], "../../x")
    first.write(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("x-time.*")) == ["x-time.png", "x-time.svg"]


def test_files_are_a_png_on_white_and_an_svg_for_light_and_dark(tmp_path: Path, chart: Chart) -> None:
    chart.write(tmp_path)
    with Image.open(tmp_path / "read-many-time.png") as image:
        assert image.size == (920, 680) and image.convert("RGBA").getpixel((0, 0)) == (255,) * 4
    text = (tmp_path / "read-many-time.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme:dark" in text and ElementTree.parse(io.StringIO(text)).getroot().tag == f"{SVG}svg"


def test_bytes_on_disk_are_linear_from_nothing(tmp_path: Path) -> None:
    (run,) = runs(tmp_path, document([cell("read_one", "hdf5", n, disk=3000.0 + n) for n in (10, 100)]))
    found = charts.disk_chart(run.cells, "")
    assert found and ends(found) == {"hdf5": [3010.0, 3100.0]}
    assert found.figure.axes[0].get_yscale() == "linear" and found.figure.axes[0].get_ylim()[0] == 0


def test_cold_stands_beside_warm(tmp_path: Path) -> None:
    cells = grid((10, 1000), cache="warm") + grid((10, 1000), slower=5.0, cache="cold")
    (run,) = runs(tmp_path, document(cells))
    found = charts.cache_chart("read_one", run.at(WARM), run.at(COLD), "")
    assert found and found.title == "read_one: warm and cold cache, 1,000 images"
    assert found.words.startswith("floor 1.00 µs warm, 5.00 µs cold; disk 40.0 µs warm, 200 µs cold")
    assert charts.cache_chart("read_one", run.at(WARM), {}, "") is None


def test_readers_are_drawn_where_there_are_several(tmp_path: Path) -> None:
    cells = [cell("read_batch", "lmdb", median=1.0 / n, readers=n) for n in (1, 2, 4)]
    (run,) = runs(tmp_path, document(cells))
    found = charts.readers_chart("read_batch", run.cells, "")
    assert found and ends(found) == {"lmdb": pytest.approx([256, 512, 1024])}
    assert charts.readers_chart("read_batch", run.cells[:1], "") is None
    assert charts.readers_chart("read_one", run.cells, "") is None


def test_the_overview_has_all_operations_and_its_note(tmp_path: Path) -> None:
    (run,) = runs(tmp_path, document(grid((10,))))
    panels = [(name, "2 readers" if name == "read_many" else "", run.at(WARM)) for name in ("read_one", "read_many")]
    found = charts.overview(panels, "title", "the machine")
    assert [axes.get_title(loc="left") for axes in found.figure.axes] == ["read_one", "read_many\n2 readers"]
    assert "the machine" in texts(found) and found.name == "overview"


def test_history_joins_what_compares_and_rings_steps(tmp_path: Path) -> None:
    slow, other = grid((1000,)), grid((1000,), slower=7.0)
    for each in slow:
        if each["name"] == "test_read_many[1000-hdf5]":
            for name in ("min", "q1", "median", "q3", "max"):
                each["stats"][name] *= 2
    odd = document(other, 2, **{"file system": {"type": "xfs", "device": "x"}})
    all_runs = runs(tmp_path, document(grid((1000,)), 1), odd, document([*slow, *grid((9,))], 3))
    found = {chart.title: chart for chart in history_charts.history_charts(History.of(all_runs))}
    chart = found["read_many of 1,000"]
    lines = [
        (line.get_label(), np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in chart.figure.axes[0].lines
        if line.get_label() in BACKENDS
    ]
    assert ("hdf5", [0, 2], pytest.approx([1, 2])) in lines and ("hdf5", [1], [1]) in lines
    assert "2.00 x" in texts(chart) and chart.words == "Steps: hdf5 2.00 times at 03abcde."
    assert "2.00 x" not in texts(found["read_one of 1,000"]) and len(found) == 6
    assert [title.split("_")[0] for title in found] == ["store"] * 2 + ["read"] * 4


def test_the_axis_of_a_history_says_where_it_begins(tmp_path: Path) -> None:
    cells = [document([cell("read_many", "hdf5", median=day**4)], day) for day in (1, 2)]
    (chart,) = history_charts.history_charts(History.of(runs(tmp_path, *cells)))
    assert "1 x" in texts(chart) and "10 x" in texts(chart)


def test_runs_of_a_long_history_have_names_that_do_not_overlap(tmp_path: Path) -> None:
    cells = [document([cell("read_many", "hdf5")], day) for day in range(1, 26)]
    (chart,) = history_charts.history_charts(History.of(runs(tmp_path, *cells)))
    assert chart.svg
    labels = [label for label in chart.figure.axes[0].get_xticklabels() if label.get_text()]
    ends = [label.get_window_extent().x1 for label in labels]  # where each label, aslant, meets the axis
    height = drawing.STYLE["font.size"] / 72 * chart.figure.dpi
    assert 4 < len(labels) <= 8 and all(b - a > height * 2**0.5 for a, b in pairwise(ends))


@pytest.mark.parametrize("ratio", [2, 4, 6, 10, 49, 60, 900, 1e4, 1e6])
@pytest.mark.parametrize("least", [1, 2.1, 4.5])
def test_a_logarithmic_axis_has_a_handful_of_ticks(least: float, ratio: float) -> None:
    seen = [tick for tick in drawing.ticks(ratio).tick_values(least, least * ratio) if least <= tick <= least * ratio]
    assert 2 < len(seen) < 8
