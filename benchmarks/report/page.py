"""The page of a report: one HTML file with all its charts in it, from `page.html`.

Jinja2 escapes every text; the charts, which are our own, are the only markup that it is given.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from benchmarks.measure.floor import FLOOR
from benchmarks.measure.operations import OPERATIONS, stores
from benchmarks.measure.order import rank
from benchmarks.peers import PEERS
from benchmarks.report import answers, charts, drawing, history, history_charts
from benchmarks.report.answers import Answer, Use
from benchmarks.report.drawing import Chart
from benchmarks.report.runs import QUARTILES_FROM, Cell, Place, Run, Setting, digits, in_order, in_seconds, names

PAGE, CHARTS = "index.html", "charts"
PNG = b"\x89PNG\r\n\x1a\n"


def write(runs: Sequence[Run], out: Path) -> Path:
    """Write the page of the last of these runs, with the history of all, and each chart as SVG and PNG.

    Below the folder `out`, which is made: index.html, overview.svg and .png, and the others in charts/. Gives
    the path of the page.
    """
    (out / CHARTS).mkdir(parents=True, exist_ok=True)
    runs = in_order(runs)
    sections, past = [section(runs[-1], size) for size in sizes(runs[-1])], history_of(runs)
    for chart in (*(chart for each in sections for chart in each["charts"]), *past["charts"]):
        chart.write(out / CHARTS)
    overview(runs[-1]).write(out)
    page = out / PAGE
    page.write_text(rendered(runs[-1], sections, past), encoding="utf-8")
    return page


def rendered(run: Run, sections: list[dict[str, Any]], past: dict[str, Any]) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = lambda chart: Markup(chart.svg)
    environment.globals["color_of"] = lambda backend: drawing.style_of(backend)["color"].replace(
        drawing.TEXT, "currentColor"
    )
    return environment.get_template("page.html").render(
        title=title_of(run),
        when=f"{run.when:%d %B %Y, %H:%M} UTC",
        run=run,
        sections=sections,
        past=past,
        facts=facts(run),
        sheet=contact_sheet(run),
        answers=answers,
        history=history,
        quartiles_from=QUARTILES_FROM,
    )


def sizes(run: Run) -> list[int]:
    """Edges of the images, of which most runs have one, which is then 0."""
    return sorted({setting.image_size for setting in run.settings})


def section(run: Run, size: int) -> dict[str, Any]:
    """All that is said of images of one size: answers for each state of the cache, and the parts of the operations."""
    settings, mark = settings_of(run, size), f"{size}px" if size else ""
    parts = [operation_part(run, operation, size, mark) for operation in operations(run, size)]
    disk = charts.disk_chart((cell for cell in run.cells if cell.setting.image_size == size), mark)
    return {
        "heading": f"Images of {size}x{size}" if size else "",
        "answers": told(run, settings),
        "parts": parts,
        "disk": disk,
        "charts": [*(chart for part in parts for chart in part["charts"]), *filter(None, [disk])],
    }


def settings_of(run: Run, size: int) -> list[Setting]:
    return [setting for setting in run.settings if setting.image_size == size]


def operations(run: Run, size: int) -> list[str]:
    found = {cell.place.operation for cell in run.cells if cell.setting.image_size == size}
    return [name for name in OPERATIONS if name in found] + sorted(found - OPERATIONS.keys())


def drawn(run: Run, operation: str, size: int) -> Setting:
    """Of which setting an operation's charts are: the first that has it, as not all operations have all settings."""
    has = (each for each in settings_of(run, size) if any(place.operation == operation for place in run.at(each)))
    return next(has)


def operation_part(run: Run, operation: str, size: int, mark: str) -> dict[str, Any]:
    settings, first = settings_of(run, size), drawn(run, operation, size)
    cells, cold = run.at(first), first._replace(cache="cold")
    found = charts.operation_charts(operation, cells, mark)
    if not stores(operation):
        of_cache = (cell for cell in run.cells if cell.setting._replace(readers=first.readers) == first)
        more = (
            charts.readers_chart(operation, of_cache, mark),
            charts.cache_chart(operation, cells, run.at(cold), mark) if cold != first else None,
        )
        found += [chart for chart in more if chart]
    does = (OPERATIONS[operation].__doc__ or "").partition("\n")[0] if operation in OPERATIONS else ""
    words = "" if stores(operation) else first.within(settings)
    return {"name": operation, "does": does, "drawn": words, "charts": found, "rows": rows(run, settings, operation)}


def rows(run: Run, settings: Sequence[Setting], operation: str) -> list[dict[str, Any]]:
    """The cells of an operation in all settings of one size; those that store, once."""
    shown = []
    for setting in settings[:1] if stores(operation) else settings:
        cells = run.at(setting)
        chosen = [cell for place, cell in cells.items() if place.operation == operation]
        chosen.sort(key=lambda cell: (rank(cell.place.backend)[0], cell.seconds.median))
        shown += [row(cell, cells, "" if stores(operation) else setting.within(settings)) for cell in chosen]
    return sorted(shown, key=lambda row: row["cutoff"])


def row(cell: Cell, cells: Mapping[Place, Cell], note: str) -> dict[str, Any]:
    floor = cells.get(cell.place._replace(backend=FLOOR))
    low, median, high = cell.seconds
    return {
        "cutoff": cell.place.cutoff,
        "backend": cell.place.backend,
        "note": note,
        "seconds": median,
        "time": in_seconds(median),
        "interval": between(in_seconds(low), in_seconds(high)),
        "rate": cell.rate.median,
        "megabytes": cell.pixel_bytes / median / 1e6,
        "floor": median / floor.seconds.median if floor else None,
        "disk": cell.disk_bytes,
        "peak": None if cell.peak_bytes is None else cell.peak_bytes / 2**20,
        "rounds": cell.rounds,
    }


def between(low: str, high: str) -> str:
    """Two figures with their units, or with the one that both have."""
    number, _, unit = low.partition(" ")
    return f"{number if high.endswith(f' {unit}') else low} to {high}"


def told(run: Run, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """The answers in words, for each state of the cache, of the first setting that has one; of disk space one."""
    found: dict[tuple[Use, str], dict[str, Any]] = {}
    for use, cache in product(answers.USES, dict.fromkeys(setting.cache for setting in settings)):
        key = use, cache if use.operations else ""
        for setting in settings:
            answer = answers.answer(use, run.at(setting)) if setting.cache == cache and key not in found else None
            if answer:
                found[key] = {"note": setting.within(settings) if use.operations else "", **in_words(answer)}
    return list(found.values())


def in_words(answer: Answer) -> dict[str, Any]:
    unit = answer.use.unit
    more = "times as much" if unit == "bytes/image" else "times as long"
    after = answer.after and f"{answer.after[0]}, the next, takes {digits(answer.after[1])} {more}"
    beaten, peer = answer.beaten_by, PEERS.get(answer.beaten_by[0]) if answer.beaten_by else None
    checks = "" if peer is None or peer.checked else ", which checks nothing"
    return {
        "use": answer.use,
        "count": answer.cutoff,
        "best": list(answer.best),
        "figures": priced(list(answer.best.values()), unit),
        "after": after or "",
        "beaten": f"{digits(beaten[1])} {more} as {beaten[0]}, the best of the other formats{checks}" if beaten else "",
        "elsewhere": [f"{count:,}: {' or '.join(names)}" for count, names in answer.elsewhere.items()],
    }


def priced(prices: Sequence[float], unit: str) -> str:
    if unit == "s":
        return " and ".join(map(in_seconds, prices))
    figures = (1 / price if unit == "images/s" else price for price in prices)
    return f"{' and '.join(f'{figure:,.0f}' for figure in figures)} {unit}"


def overview(run: Run) -> Chart:
    size = sizes(run)[0]
    first = {operation: drawn(run, operation, size) for operation in operations(run, size)}
    read = [setting for operation, setting in first.items() if not stores(operation)] or run.settings
    panels = [
        (operation, "" if stores(operation) else setting.within(read), run.at(setting))
        for operation, setting in first.items()
    ]
    of_size = f"images of {size}x{size}, of " if sizes(run)[1:] else ""
    note = f"{of_size}{title_of(run)}; {machine_of(run)}; {terms_of(run, read)}; {run.when:%d %B %Y}"
    return charts.overview(panels, "Images a second, more is better", note)


def title_of(run: Run) -> str:
    return f"{run.made_of['images'].get('name')} on {run.made_of['file system'].get('type')}"


def machine_of(run: Run) -> str:
    cpu = run.machine.get("cpu") or {}
    return f"{cpu.get('brand_raw', 'unknown processor')}, {cpu.get('count', '?')} cores"


def facts(run: Run) -> list[tuple[str, str]]:
    """What was measured and where, as pairs of a name and a text."""
    made_of, machine = run.made_of, run.machine
    images, files = made_of["images"], made_of["file system"]
    memory = f", {float(made_of['memory_bytes']) / 2**30:,.0f} GiB of memory" if "memory_bytes" in made_of else ""
    number = f"{int(images['count']):,} different ones of {images.get('sizes')}" if "count" in images else ""
    left_out = f"{int(images['left out']):,} files left out" if images.get("left out") else ""
    others = f"not looked at: {images['not looked at']}" if images.get("not looked at") else ""
    return [
        ("Command", made_of["command"]),
        ("Commit", run.commit),
        ("Date", f"{run.when:%Y-%m-%d %H:%M} UTC"),
        ("Images", ", ".join(filter(None, (str(images.get("name")), number, left_out, others)))),
        ("Terms", terms_of(run, run.settings)),
        ("Stores on", f"{files.get('type')} on {files.get('device')}"),
        ("Machine", machine_of(run) + memory),
        ("System", f"{machine.get('system')} {made_of.get('kernel', '')}, Python {machine.get('python_version')}"),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions(run).items())),
    ]


def terms_of(run: Run, settings: Iterable[Setting]) -> str:
    """In words; the state of the cache is that of these settings, and stands at each cell where they have both."""
    kept = run.made_of["terms"]
    durable = "stored durably" if kept.get("durable") else "stored without waiting for the disk"
    verify = "checksums verified" if kept.get("verify") else "checksums not verified"
    caches = " and ".join(dict.fromkeys(setting.cache for setting in settings))
    return f"{durable}, {verify}, {caches} cache"


def versions(run: Run) -> dict[str, str]:
    return {str(name): str(number) for name, number in run.made_of["versions"].items()}


def contact_sheet(run: Run) -> str:
    """The recorded PNG in base 64, or nothing where there is none."""
    text = run.made_of.get("contact sheet", "")
    try:
        return text if base64.b64decode(text, validate=True).startswith(PNG) else ""
    except (binascii.Error, TypeError, ValueError):
        return ""


def history_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Empty parts for a single run."""
    if len(runs) < 2:
        return {"runs": [], "steps": [], "charts": []}
    past, named = history.History.of(runs), names(runs)
    groups = {number: group for group, numbers in enumerate(past.comparable, 1) for number in numbers}
    shown = [
        {
            "run": run,
            "group": groups[number],
            "made_of": f"{title_of(run)}; {terms_of(run, run.settings)}; {machine_of(run)}",
            "changed": changed(runs, number),
        }
        for number, run in enumerate(runs)
    ]
    settings = {key.setting for cells in past.cells for key in cells}
    steps = [
        {
            "step": step,
            "note": step.key.within(settings),
            "before": named[step.before],
            "after": named[step.after],
        }
        for step in past.steps
    ]
    return {"runs": shown, "steps": steps, "charts": history_charts.history_charts(past)}


def changed(runs: Sequence[Run], number: int) -> str:
    """The versions that differ from those of the run before."""
    if not number:
        return ""
    before, after = versions(runs[number - 1]), versions(runs[number])
    return ", ".join(f"{name} {before.get(name)} to {now}" for name, now in after.items() if before.get(name) != now)
