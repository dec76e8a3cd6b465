"""Tests of the page: what it says of known runs, that texts stay texts, and how it looks in a real browser."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import imgstore
from benchmarks.report import __main__, page
from benchmarks.report.answers import USES, Answer
from benchmarks.tests.saved import cell, document, grid, runs, saved, sheet
from benchmarks.tests.test_run import BACKENDS, ROOT, measure

OPERATIONS = ("store_many", "read_batch")  # one that stores, one that reads: each has charts to draw

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
WIDTHS = (400, 800, 1280)
HOSTILE = '"><script>document.title = "taken"</script><img src=x onerror=alert(1)>'


def everything() -> list[dict[str, Any]]:
    """A run with other formats, a cold cache, several readers, two sizes and names that would be markup."""
    peers = [
        cell(name, peer, cutoff, median)
        for name in OPERATIONS
        for peer in ("zarr", "array_record", "safetensors", HOSTILE)
        for cutoff, median in ((10, 1e-4), (1000, 2e-3))
    ]
    reading = [each for each in grid((1000,), slower=5.0) if each["extra_info"]["operation"] == "read_batch"]
    cold = [{**each, "extra_info": {**each["extra_info"], "cache": "cold"}} for each in reading]
    readers = [{**each, "extra_info": {**each["extra_info"], "readers": 4}} for each in reading]
    larger = cell("read_batch", "lmdb", image_size=64)
    return [*cold, *readers, *peers, *few(*OPERATIONS, peak_bytes=3 << 20), larger]


def few(*operations: str, slower: float = 1.0, **facts: Any) -> list[dict[str, Any]]:
    """A run of these operations, with few charts to draw."""
    return [each for each in grid(slower=slower, **facts) if each["extra_info"]["operation"] in operations]


def written(folder: Path, *documents: dict[str, Any]) -> str:
    return page.write(runs(folder, *documents), folder / "out").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three runs, with everything that can stand on one."""
    folder = tmp_path_factory.mktemp("full")
    made_of = {"contact sheet": base64.b64encode(sheet()).decode(), "command": f"pytest benchmarks --images={HOSTILE}"}
    documents = [document(few(*OPERATIONS, slower=slower), day, **made_of) for day, slower in ((1, 1.0), (2, 1.1))]
    written(folder, *documents, document(everything(), 3, **made_of))
    return folder / "out" / "index.html"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run."""
    folder = tmp_path_factory.mktemp("real")
    chosen = f"-k{' or '.join(OPERATIONS)}"
    run = measure(folder, "--cutoffs=10,20", chosen, f"--report={folder / 'out'}")
    assert run.status == 0 and f"report: {folder / 'out' / 'index.html'}" in run.out
    return folder / "out" / "index.html"


def words(text: str) -> str:
    """What a reader sees, without the markup."""
    return " ".join(unescape(re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)).split())


def test_the_page_of_a_run_has_every_cell(real: Path) -> None:
    text = real.read_text(encoding="utf-8")
    for operation in OPERATIONS:
        table = text.partition(f"<h3>{operation}</h3>")[2].partition("<table")[2].partition("</table>")[0]
        for backend in BACKENDS:
            assert table.count(f"</span>{backend}</td>") == 2
    assert "Random batches" in words(text) and "synthetic 32x32x3" in words(text)
    assert "pytest benchmarks" in words(text) and f"--report={real.parent}" in words(text)


def test_a_report_keeps_its_run_without_the_rounds_and_the_machines_name(real: Path) -> None:
    run = json.loads((real.parent / "run.json").read_text(encoding="utf-8"))
    assert len(run["benchmarks"]) == 2 * len(OPERATIONS) * len(BACKENDS)
    assert run["machine_info"]["node"] == ""
    assert all("data" not in benchmark["stats"] and benchmark["stats"]["q1"] for benchmark in run["benchmarks"])


def command(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    """`python -m benchmarks.report` with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    __main__.main()


@pytest.mark.usefixtures("undrawn")
def test_the_command_gives_the_same_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = written(tmp_path, document(few("read_batch")))
    command(monkeypatch, tmp_path / "0000.json", "--out", tmp_path / "a")
    assert capsys.readouterr().out == f"{tmp_path / 'a' / 'index.html'}\n"
    assert (tmp_path / "a" / "index.html").read_text(encoding="utf-8") == expected


def test_every_chart_is_a_file_in_both_forms(real: Path) -> None:
    names = {
        f"{operation.replace('_', '-')}-{kind}" for operation in OPERATIONS for kind in ("time", "images-per-second")
    }
    found = {path.name for path in (real.parent / "charts").iterdir()}
    assert found >= {f"{name}.{form}" for name in (*names, "bytes-on-disk") for form in ("svg", "png")}
    assert {path.name for path in real.parent.iterdir()} == {
        "index.html",
        "run.json",
        "overview.svg",
        "overview.png",
        "charts",
    }


@pytest.mark.usefixtures("undrawn")
def test_the_answer_stands_first_with_its_figure_and_its_lead(tmp_path: Path) -> None:
    text = words(written(tmp_path, document(few("read_batch"))))
    answer = text.partition("Random batches")[2]
    assert answer.startswith(
        " hdf5 500,000 images/s lmdb, the next, takes 1.50 times as long 1,000 images in the store"
    )
    assert text.index("Random batches") < text.index("The figures") < text.rindex("What was measured")
    assert "Least disk space disk or lmdb or hdf5" in text and "4,096 bytes/image, no difference" in text
    assert "One image now and then" not in text[: text.index("How the answers are found")]
    assert "Random batches: least time for read_batch." in text and "middle half of the rounds" in text


@pytest.mark.usefixtures("undrawn")
def test_a_file_system_that_does_not_tell_what_it_takes(tmp_path: Path) -> None:
    text = words(written(tmp_path, document(few("read_batch", disk=0.0))))
    assert "Random batches hdf5" in text and text.count("Least disk space") == 1 and "Bytes on disk" not in text


@pytest.mark.usefixtures("undrawn")
def test_where_another_format_is_faster_it_is_said(tmp_path: Path) -> None:
    text = words(written(tmp_path, document([*few("read_batch"), cell("read_batch", "zarr", 1000, 256e-6)])))
    assert "2.00 times as long as zarr, the best of the other formats, which checks nothing" in text


def test_answers_of_a_cold_cache_are_told_apart(full: Path) -> None:
    text = words(full.read_text(encoding="utf-8"))
    for cache in ("warm", "cold"):
        assert f"Random batches ({cache} cache, 1 reading process)" in text
    assert text.count("Least disk space") == 2  # an answer and a rule


def test_a_part_says_of_which_setting_its_lines_are_and_has_that_first(full: Path) -> None:
    before, _, part = full.read_text(encoding="utf-8").partition("<h3>read_batch</h3>")
    assert "Lines over the number of images are of warm cache, 1 reading process." in words(part)
    assert "Lines over" not in before
    rows = re.findall(r"1,000 10 rounds (\w+) (warm|cold) cache, (\d) reading process", words(part))
    assert rows[: len(BACKENDS)] == [(name, "warm", "1") for name in ("floor", *imgstore.BACKENDS)]
    assert [rows[-1][1:], rows[-5][1:]] == [("cold", "1"), ("warm", "4")]


def of_readers(cache: str, *readers: int) -> list[dict[str, Any]]:
    """A run with so many reading processes: alone, as all others are read, or beside one; one operation is warm."""
    batches = [each for number in readers for each in few("read_batch", "read_many", readers=number, cache=cache)]
    replaced = [cell("read_while_replaced", name, readers=2, cache="warm") for name in imgstore.BACKENDS]
    return [*few("store_many"), *few("read_single", cache=cache), *batches, *replaced]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("cache", "readers"), [("warm", (2, 4)), ("cold", (1, 2))])
def test_each_operation_and_answer_is_of_the_first_setting_that_has_it(
    tmp_path: Path, cache: str, readers: tuple[int, ...]
) -> None:
    (run,) = runs(tmp_path, document(of_readers(cache, *readers)))
    section = page.section(run, 0)
    assert [answer["use"] for answer in section["answers"]] == list(USES)
    notes = {part["name"]: part["drawn"] for part in section["parts"]}
    assert notes["read_many"].endswith(f"{readers[0]} reading process{'es' * (readers[0] > 1)}")
    assert notes["read_while_replaced"].endswith("2 reading processes") and "1 reading" in notes["read_single"]
    assert all(len(part["charts"]) == 4 for part in section["parts"] if part["name"] in ("read_batch", "read_many"))
    titles = [axes.get_title(loc="left") for axes in page.overview(run).figure.axes]
    assert len(titles) == 5 and f"read_many\n{notes['read_many']}" in titles


def test_the_note_of_the_overview_is_of_what_it_shows(tmp_path: Path) -> None:
    cells = [cell("read_one", "lmdb", image_size=size, cache=cache) for size in (32, 64) for cache in ("warm", "cold")]
    (run,) = runs(tmp_path, document(cells))
    note = page.overview(run).figure.get_supxlabel()
    assert note.startswith("images of 32x32, of synthetic") and "verified, warm cache; 01 November 2026" in note


def test_other_answers_are_told_with_their_number_of_images() -> None:
    answer = Answer(USES[1], 1000, {"hdf5": 1e-6}, None, None, {10: ("lmdb", "disk")})
    assert page.in_words(answer)["elsewhere"] == ["10: lmdb or disk"]


def test_what_was_measured(full: Path) -> None:
    text = words(full.read_text(encoding="utf-8"))
    for fact in ("synthetic 32x32x3, 3 different ones of 32x32x3 uint8", "ext4 on /dev/sda1", "a processor, 2 cores"):
        assert fact in text
    assert "stored durably, checksums verified, warm and cold cache" in text and "numpy 2.4.6" in text
    assert base64.b64encode(sheet()).decode() in full.read_text(encoding="utf-8")


def test_the_history_of_three_runs(full: Path) -> None:
    text = full.read_text(encoding="utf-8")
    assert all(commit in words(text) for commit in ("01abcde", "02abcde", "03abcde"))
    assert len(list((full.parent / "charts").glob("history-*.svg"))) == 2 * len(OPERATIONS)
    assert "None stands out from the noise" in words(text)


def test_one_run_has_no_history(real: Path) -> None:
    assert "The history" not in real.read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_a_step_is_told(tmp_path: Path) -> None:
    slow = few("read_many")
    for each in slow:
        if each["name"] == "test_read_many[1000-hdf5]":
            for name in ("min", "q1", "median", "q3", "max"):
                each["stats"][name] *= 2
    changed = document(slow, 2, versions={"numpy": "3.0"})
    changed["commit_info"] = document([], 1)["commit_info"]
    text = words(written(tmp_path, document(few("read_many"), 1), changed))
    step = "2.00 times the time, from 01abcde 11-01 12:00:00 to 01abcde 11-02 12:00:00"
    assert f"read_many[1000-hdf5]: {step}" in text
    assert "numpy 2.4.6 to 3.0" in text


def test_texts_of_files_stay_texts(full: Path) -> None:
    text = full.read_text(encoding="utf-8")
    assert "<script>document" not in text and "<img src=x" not in text
    assert text.count("<script>") == 1 and unescape(text).count(HOSTILE) > 3


@pytest.mark.parametrize("given", ['x" onerror="alert(1)', "PHN2Zz4=", 7, None])
def test_only_a_png_is_taken_for_a_contact_sheet(tmp_path: Path, given: Any) -> None:
    (run,) = runs(tmp_path, document(few("read_batch"), **{"contact sheet": given}))
    assert page.contact_sheet(run) == ""


def test_the_page_needs_nothing_else(full: Path) -> None:
    text = full.read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert "url(http" not in text and "@import" not in text and "default-src &#39;none&#39;" not in text
    assert "default-src 'none'" in text


def test_a_file_that_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    arguments = (str(tmp_path / "x.json"), "--out", str(tmp_path / "out"))
    started = [sys.executable, "-m", "benchmarks.report", *arguments]
    ended = subprocess.run(started, cwd=ROOT, capture_output=True, text=True)
    reason = f"error: {tmp_path / 'x.json'}: this is no saved run of imgstore's benchmarks"
    assert ended.returncode == 2 and reason in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (run,) = saved(tmp_path, document(few("read_batch")))
    with pytest.raises(SystemExit):
        command(monkeypatch, run, "--out", tmp_path / "file")
    reason = f"--out: {tmp_path / 'file'} cannot be written to"
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; see .ci/requirements.txt")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(SWITCHES))
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["real", "full"])
def file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def shown(browser: Any, file: Path) -> Iterator[Any]:
    """The page in a window, as wide as the last test left it."""
    shown = browser.new_page()
    shown.goto(file.as_uri())
    yield shown
    shown.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_chart_is_seen_and_nothing_scrolls_sideways(shown: Any, file: Path, width: int) -> None:
    shown.set_viewport_size({"width": width, "height": 900})
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in shown.query_selector_all("figure svg")]
    assert len(boxes) == file.read_text(encoding="utf-8").count("<figure>") > 3 * len(OPERATIONS)
    for box in boxes:
        assert box["width"] >= 250 and box["height"] >= 100 and box["x"] >= 0 and box["x"] + box["width"] <= width
    wide = "[...document.querySelectorAll('table')].filter(table => table.getBoundingClientRect().right > innerWidth)"
    assert shown.evaluate(f"{wide}.length") == 0


def test_no_error_and_no_request(browser: Any, file: Path) -> None:
    shown = browser.new_page()
    faults, requests = [], []
    shown.on("console", lambda message: faults.append(message.text))
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.on("dialog", lambda dialog: faults.append(dialog.message))
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(file.as_uri())
    shown.wait_for_timeout(200)
    assert not faults and shown.title().startswith("imgstore: ")
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    shown.close()


INK = """() => {
    const ink = element => getComputedStyle(element).fill
    return [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,
            ...new Set([...document.querySelectorAll("figure svg text")].map(ink))]
}"""


def brightness(color: str) -> int:
    """Of `rgb(r, g, b)`, from 0 to 765."""
    return sum(map(int, re.findall(r"\d+", color)))


def test_text_of_charts_is_dark_on_light_and_light_on_dark(shown: Any) -> None:
    for scheme, sign in (("light", 1), ("dark", -1)):
        shown.emulate_media(media="screen", color_scheme=scheme)
        text, ground, *inks = shown.evaluate(INK)
        assert sign * (brightness(ground) - brightness(text)) > 500 and text in inks and ground not in inks
        shown.emulate_media(media="print")
        assert shown.evaluate(INK)[:2] == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    shown.emulate_media(media="screen", color_scheme="light")


def test_tables_sort_by_number_both_ways(shown: Any) -> None:
    table = shown.query_selector_all("table.sorts")[0]
    column = "rows => rows.map(row => Number(row.cells[2].dataset.value))"  # seconds, such as 0.00256 and 1e-05
    head = table.query_selector("th:nth-child(3)")
    for direction, ordered in (("ascending", sorted), ("descending", lambda values: sorted(values, reverse=True))):
        head.query_selector("button").click()
        values = table.eval_on_selector_all("tbody tr", column)
        assert values == ordered(values) and len(set(values)) > 3
        assert head.get_attribute("aria-sort") == direction


def test_figures_can_be_selected_as_text(shown: Any) -> None:
    shown.keyboard.press("Control+a")
    selected = shown.evaluate("getSelection().toString()")
    assert "read_batch: time" in selected and "images in the store" in selected and "images/s" in selected


def test_charts_have_alternative_text(shown: Any) -> None:
    labels = shown.eval_on_selector_all("figure svg", "all => all.map(svg => svg.getAttribute('aria-label'))")
    assert labels and all(label and ":" in label for label in labels)
    assert shown.query_selector_all("figure svg[role=img]") and not shown.query_selector_all("img:not([alt])")
