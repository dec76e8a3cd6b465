"""Tests of whole runs: `pytest benchmarks` with its options, in a process of its own."""

import contextlib
import importlib.util
import itertools
import json
import os
import platform
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imgstore
from benchmarks.measure.cell import SPARE_BYTES, Cell, Terms
from benchmarks.measure.machine import disk_bytes
from benchmarks.measure.synthetic import synthetic
from benchmarks.report.conditions import RAM_DISKS, file_system
from benchmarks.suite import cells
from benchmarks.tests.everywhere import put

ROOT = Path(__file__).parents[2]
OPERATIONS = ("store_single", "store_many", "read_single", "read_one", "read_many", "read_batch")
BACKENDS = (*imgstore.BACKENDS, "floor")
FEW = ("floor", "hdf5")
CELLS = len(OPERATIONS) * len(BACKENDS)
SUMMARY = "imgstore: medians, all on the same terms"
TRAINING = ("--cache=warm,cold", "--image-size=8,16", "--no-durable")
SECONDS = 60
PROGRESS = "cell 1 of "  # what is shown when a cell begins
LISTED = "benchmarks/test_"  # how a cell is listed

# Faults, as plugins of the run.
FLIPPED_PIXEL = """
    import imgstore.hdf5

    genuine = imgstore.hdf5.read_many

    def lying(*arguments, **options):
        images, labels = genuine(*arguments, **options)
        images[0, 0, 0, 0] ^= 1
        return images, labels

    imgstore.hdf5.read_many = lying
"""
SLOW = """
    import time

    import imgstore.lmdb

    genuine = imgstore.lmdb.read_many

    def slow(*arguments, **options):
        time.sleep(0.1)
        return genuine(*arguments, **options)

    imgstore.lmdb.read_many = slow
"""
FULL_DISK = """
    import errno

    from benchmarks.measure import floor

    genuine = floor.store_many

    def full(*arguments, **options):
        genuine(*arguments, **options)
        raise OSError(errno.ENOSPC, "full")

    floor.store_many = full
"""
LITTLE_ROOM = """
    from benchmarks.measure import cell

    cell.free_disk = lambda directory: 257 << 20
"""
HANG = """
    import os
    import time
    from pathlib import Path

    import imgstore.hdf5

    genuine = imgstore.hdf5.{verb}
    calls, process = [], os.getpid()

    def hanging(*arguments, **options):
        calls.append(None)
        if {when}:
            Path({marker!r}).touch()
            time.sleep(30)
        return genuine(*arguments, **options)

    imgstore.hdf5.{verb} = hanging
"""
SHORT_ROUNDS = """
    from benchmarks.measure import processes

    processes.ROUND_SECONDS = 0.002
"""
NOTED_CALLS = """
    from benchmarks.measure import loader, processes, reading, storing

    def noted(kind, genuine):
        def call(self, *arguments):
            with open({path!r}, "a") as file:
                print(kind.operation, self.cell.name, file=file)
            return genuine(self, *arguments)

        return call

    for name in {kinds}:
        (kind,) = {{getattr(module, name) for module in (loader, processes, reading, storing) if hasattr(module, name)}}
        kind.call = noted(kind, kind.call)
"""


@dataclass(frozen=True)
class Run:
    """How a run ended, what it printed and what it left in the folder for stores."""

    status: int
    out: str
    err: str
    left: list[str]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("ERROR:")]

    def row(self, operation: str, backend: str) -> list[str]:
        """The figures of a cell in the summary, of which there is one cutoff."""
        lines = self.out.partition(SUMMARY)[2].splitlines()[2:]
        block = next(i for i, line in enumerate(lines) if line.startswith(f"{operation} "))
        rows = [line[len("operation      cutoff ") :].split() for line in lines[block : block + len(BACKENDS)]]
        return next((row[1:] for row in rows if row and row[0] == backend), [])


def arguments(stores: Path, *options: str) -> list[str]:
    return [
        "benchmarks",
        "-pno:cacheprovider",
        "--cutoffs=10",
        "--benchmark-max-time=0.01",
        f"--store-dir={stores}",
        *options,
    ]


def command(stores: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments(stores, *options)]


def environment(folder: Path, *plugins: str) -> dict[str, str]:
    """Ours, without what pytest told us, and with no plugins but these: to load all that are installed takes longer
    than a run."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    loaded = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": ",".join(["pytest_benchmark.plugin", *plugins])}
    return inherited | loaded | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PY_COLORS": "0"}


def measure(tmp_path: Path, *options: str, prefix: tuple[str, ...] = ()) -> Run:
    stores = tmp_path / "stores"
    stores.mkdir(exist_ok=True)
    ended = subprocess.run(
        [*prefix, *command(stores, *options)],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return Run(ended.returncode, ended.stdout, ended.stderr, os.listdir(stores))


@pytest.fixture
def begun(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """As `measure`, but in this process, which is many times faster: for runs that end before they measure much."""
    stores = tmp_path / "stores"
    stores.mkdir(exist_ok=True)
    monkeypatch.chdir(ROOT)

    def begin(*options: str) -> Run:
        status = pytest.main(["-pno:hypothesispytest", *arguments(stores, *options)])
        out, err = capsys.readouterr()
        return Run(int(status), out, err, os.listdir(stores))

    return begin


def plugin(folder: Path, text: str) -> str:
    """Write a plugin; gives the option that loads it."""
    (folder / "fault.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return "-pfault"


def cells_of(path: Path) -> dict[str, Any]:
    """The cells of a JSON file, by name."""
    return {cell["name"]: cell for cell in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]}


def must_be_refused(run: Run, reason: str) -> None:
    """One line that says why, and nothing measured."""
    assert run.status == pytest.ExitCode.USAGE_ERROR
    assert len(run.errors) == 1 and reason in run.errors[0]
    assert "Traceback" not in run.err and "INTERNALERROR" not in run.out
    assert PROGRESS not in run.out and SUMMARY not in run.out
    assert not run.left


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def saved(folder: Path) -> Run:
    """A run of every cell, saved in both of pytest-benchmark's ways."""
    return measure(folder, "--benchmark-autosave", storage(folder), f"--benchmark-json={folder / 'run.json'}")


def storage(folder: Path) -> str:
    return f"--benchmark-storage={folder / 'storage'}"


@pytest.fixture
def report(saved: Run, folder: Path) -> dict[str, Any]:
    """The JSON of the saved run."""
    report: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return report


def test_a_run_measures_every_cell_and_leaves_nothing(saved: Run) -> None:
    assert saved.status == 0
    assert f"collected {CELLS} items" in saved.out and f"{CELLS} passed" in saved.out
    assert not saved.left


def test_a_run_says_first_what_it_measures(saved: Run, folder: Path) -> None:
    kind, device = file_system(str(folder))
    heading = saved.out.partition(PROGRESS)[0].splitlines()
    assert "images: synthetic 32x32x3" in heading
    assert f"stores: in {folder / 'stores'}, {kind} on {device}" in heading
    assert "terms: durable True, cold False, verify True" in heading


@pytest.mark.parametrize("operation", OPERATIONS)
def test_tables_and_summary_have_a_row_for_each_backend(saved: Run, operation: str) -> None:
    table = saved.out.partition(f"benchmark 'test_{operation} cutoff=10': {len(BACKENDS)} tests")[2].partition("\n\n")[
        0
    ]
    for backend in BACKENDS:
        assert f"\ntest_{operation}[10-{backend}] " in table
        assert len(saved.row(operation, backend)) == (5 if operation.endswith("_many") else 4)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_json_carries_the_figures(folder: Path, saved: Run, operation: str, backend: str) -> None:
    cells = cells_of(folder / "run.json")
    cell, floor = cells[f"test_{operation}[10-{backend}]"], cells[f"test_{operation}[10-floor]"]
    figures, seconds = cell["extra_info"], cell["stats"]["median"]
    images = {"store_many": 10, "read_many": 10, "read_batch": 256}.get(operation, 1)
    assert (figures["operation"], figures["backend"], figures["cutoff"]) == (operation, backend, 10)
    assert figures["images_per_second"] == pytest.approx(images / seconds)
    assert figures["megabytes_per_second"] == pytest.approx(images * 3072 / seconds / 1e6)
    assert figures["times_floor"] == pytest.approx(seconds / floor["stats"]["median"])
    assert figures["disk_bytes_per_image"] >= 3072 or backend == "disk"
    assert saved.row(operation, backend)[0] == f"{figures['images_per_second']:,.0f}"
    assert cell["stats"]["rounds"] >= 3


def test_the_json_says_what_the_run_was_made_of(report: dict[str, Any], folder: Path) -> None:
    kind, device = file_system(str(folder))
    made_of = report["machine_info"]["imgstore"]
    assert made_of["images"] == {
        "name": "synthetic 32x32x3",
        "fingerprint": synthetic(1).fingerprint,
        "count": 10,
        "sizes": "32x32x3 uint8",
    }
    assert report["command"].startswith("pytest benchmarks ") and "--cutoffs=10" in report["command"].split()
    assert made_of["terms"] == {"durable": True, "cold": False, "verify": True}
    assert made_of["file system"] == {"type": kind, "device": device}
    assert made_of["kernel"] == platform.release()
    assert made_of["versions"]["numpy"] == np.__version__
    assert not [name for name in report["machine_info"]["cpu"] if name.startswith("hz_actual")]


def test_an_autosaved_run_carries_the_same_figures(folder: Path, report: dict[str, Any]) -> None:
    (path,) = (folder / "storage").rglob("*.json")
    autosaved = json.loads(path.read_text(encoding="utf-8"))
    assert autosaved["machine_info"] == report["machine_info"]
    figures = [[cell["extra_info"] for cell in run["benchmarks"]] for run in (autosaved, report)]
    assert figures[0] == figures[1] and len(figures[0]) == CELLS
    assert all("times_floor" in figure for figure in figures[0])


@pytest.mark.parametrize(
    ("options", "count"),
    [("--cutoffs=all", 5 * CELLS), ("--cutoffs=100,10,10 --backends=hdf5,disk,hdf5,floor", 2 * 3 * len(OPERATIONS))],
)
def test_options_choose_the_cells(begun: Callable[..., Run], options: str, count: int) -> None:
    run = begun("--collect-only", "-q", *options.split())
    cells = [line for line in run.out.splitlines() if line.startswith(LISTED)]
    assert len(set(cells)) == len(cells) == count
    assert run.status == 0 and not run.left


def test_a_run_says_where_it_is_in_plain_lines(saved: Run) -> None:
    lines = [line for line in saved.out.splitlines() if line.startswith("cell ")]
    assert len(lines) == CELLS and lines[0].startswith(f"cell 1 of {CELLS}: ")
    assert re.fullmatch(rf"cell {CELLS} of {CELLS}: \w+\[10-\w+\], about \d+ s left", lines[-1])
    assert "[100%]" not in saved.out and f"{LISTED}read.py" not in saved.out.partition("benchmark 'test_")[0]


def test_on_a_terminal_it_is_one_line_that_does_not_scroll(tmp_path: Path) -> None:
    (tmp_path / "stores").mkdir()
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        command(tmp_path / "stores", "-kread_one"), cwd=ROOT, env=environment(tmp_path), stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    with run, killed_at_last(run):
        out = everything_from(ours)
        assert run.wait(SECONDS) == 0
    shown = out[out.index("cell 1 of ") : out.rindex("cell ")]
    assert shown.count("\r") >= len(BACKENDS) - 1 and "\n" not in shown
    assert out.rindex(f"cell {len(BACKENDS)} of {len(BACKENDS)}: ") < out.index(SUMMARY)


def everything_from(terminal: int) -> str:
    """What a process writes to a terminal until it ends."""
    parts = []
    with contextlib.suppress(OSError):  # what Linux says of a terminal that nobody holds any longer
        while part := os.read(terminal, 4096):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


@pytest.mark.parametrize("option", ["-q", "-v"])
def test_quiet_is_quiet_and_verbose_is_pytests_own(begun: Callable[..., Run], option: str) -> None:
    run = begun(option, "-kread_one and floor")
    assert run.status == 0 and "cell " not in run.out.partition("benchmark 'test_")[0]


@pytest.mark.parametrize("options", ["--report {folder}", "--report={folder}"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_report_is_written_where_it_is_asked_for(
    tmp_path: Path, begun: Callable[..., Run], undrawn: None, options: str, exists: bool
) -> None:
    folder = tmp_path / "out"
    if exists:
        folder.mkdir()
    run = begun("-kread_one and floor", *options.format(folder=folder).split())
    assert run.status == 0 and (folder / "index.html").stat().st_size > 10_000
    assert run.out.rstrip().rpartition("report: ")[2].startswith(f"{folder / 'index.html'}\n")
    assert run.out.index(SUMMARY) < run.out.index("report: ")


@pytest.mark.parametrize("name", ["run.json", "out/run.json"])
def test_a_report_of_a_run_that_is_saved_too(
    tmp_path: Path, begun: Callable[..., Run], undrawn: None, name: str
) -> None:
    """What the report keeps has no rounds, whatever else is asked for."""
    run = begun("-kread_one and floor", f"--report={tmp_path / 'out'}", f"--benchmark-json={tmp_path / name}")
    assert run.status == 0 and (tmp_path / "out" / "index.html").exists()
    for path in {tmp_path / name, tmp_path / "out" / "run.json"}:
        in_report = path.parent.name == "out"
        assert [("data" in cell["stats"]) for cell in cells_of(path).values()] == [not in_report]


def test_a_report_that_cannot_be_written_fails_the_run_in_one_line(tmp_path: Path, begun: Callable[..., Run]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "charts").touch()
    run = begun("-kread_one and floor", f"--report={out}")
    assert run.status == pytest.ExitCode.TESTS_FAILED and "Traceback" not in run.out + run.err
    assert f"report: none, because of [Errno 17] File exists: '{out / 'charts'}'\n" in run.out
    assert SUMMARY in run.out and "1 passed" in run.out


@pytest.mark.filterwarnings("ignore:Not saving anything")
@pytest.mark.parametrize("option", ["--benchmark-disable", "-kno_such_cell"])
def test_no_report_of_nothing(tmp_path: Path, begun: Callable[..., Run], option: str) -> None:
    run = begun("-kread_one and floor", f"--report={tmp_path / 'out'}", option)
    assert "report: nothing was measured, so there is none" in run.out
    assert not list((tmp_path / "out").iterdir()) and "Traceback" not in run.out + run.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--report={tmp_path}/file", "--report: {tmp_path}/file cannot be made (File exists); give another folder"),
        ("--report=/proc/out", "--report: /proc/out cannot be made"),
        ("--report={tmp_path}/out --against=nowhere", "--report: with --against nothing is measured that it shows"),
    ],
)
def test_a_report_that_cannot_be_is_refused_before_anything_is_measured(
    tmp_path: Path, begun: Callable[..., Run], options: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    must_be_refused(begun(*options.format(tmp_path=tmp_path).split()), reason.format(tmp_path=tmp_path))


def test_disabled_each_cell_runs_once(tmp_path: Path) -> None:
    kinds = ["StoreSingle", "StoreMany", "ReadSingle", "ReadOne", "ReadMany", "ReadBatch"]
    text = NOTED_CALLS.format(path=str(tmp_path / "calls"), kinds=kinds)
    run = measure(tmp_path, "--benchmark-disable", plugin(tmp_path, text))
    assert f"{CELLS} passed" in run.out and "Median" not in run.out and SUMMARY not in run.out
    calls = Counter((tmp_path / "calls").read_text(encoding="utf-8").splitlines())
    assert calls == {f"{operation} {backend}": 1 for operation in OPERATIONS for backend in BACKENDS}
    assert run.status == 0 and not run.left


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--images={tmp_path}/nowhere", "{tmp_path}/nowhere: there is no such file or folder; give "),
        ("--images={tmp_path}/text", "{tmp_path}/text: not readable as CIFAR-10"),
        ("--images={tmp_path}/empty", "{tmp_path}/empty: no image can be read there"),
        ("--backends=lmdb,zarr", "there is no 'zarr'; choose from disk, lmdb, hdf5"),
        ("--cutoffs=0", "'0' is not a list of positive integers"),
        ("--cutoffs=-1", "'-1' is not a list of positive integers"),
        ("--cutoffs=x", "'x' is not a list of positive integers"),
        ("--readers=0", "'0' is not a list of positive integers"),
        ("--readers=two", "'two' is not a list of positive integers"),
        ("--image-size=32x32", "'32x32' is not a list of positive integers"),
        ("--cache=hot", "'hot' is neither warm nor cold, nor warm,cold"),
        ("--cache=warm,", "'warm,' is neither warm nor cold, nor warm,cold"),
        ("--cutoffs=1000000000000", "1000000000000 images would need "),
        ("--image-size=100000", "one of 100000x100000 would need "),
        ("--store-dir={tmp_path}/nowhere", "{tmp_path}/nowhere is not a folder; give one that exists"),
        ("--store-dir={tmp_path}/text", "{tmp_path}/text is not a folder"),
        ("--store-dir=/proc", "/proc cannot be written to; give a folder of yours"),
    ],
    ids=lambda value: value.replace("{tmp_path}", "") if value.startswith("--") else "",
)
def test_bad_input_is_refused_in_one_line(tmp_path: Path, begun: Callable[..., Run], option: str, reason: str) -> None:
    (tmp_path / "text").write_text("no image")
    (tmp_path / "empty").mkdir()
    name = option.partition("=")[0]
    run = begun(option.format(tmp_path=tmp_path))
    must_be_refused(run, reason.format(tmp_path=tmp_path))
    assert run.errors[0].startswith(f"ERROR: {name}: ")


@pytest.mark.parametrize("option", ["--store-dir", "--report"])
def test_a_folder_without_permission_is_refused_in_one_line(tmp_path: Path, option: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may write anywhere, and there is no setpriv to take that away")
        prefix = ("setpriv", "--bounding-set=-dac_override")
    run = measure(tmp_path, f"{option}={closed}", prefix=prefix)
    must_be_refused(run, f"{option}: {closed} cannot be written to; give a folder of yours")


def test_a_folder_of_images_is_measured_and_what_is_left_out_is_named(tmp_path: Path, photos: Path) -> None:
    """At the beginning, in run.json and on the page; a name that moves the cursor is escaped."""
    (photos / "broken\x1b[2J.png").write_bytes(b"not an image")
    (photos / "telephone.heic").touch()
    Image.new("L", (4, 5)).save(photos / "profile.png", icc_profile=b"a profile")
    report = tmp_path / "report"
    run = measure(tmp_path, f"--images={photos}", "-kread_many", f"--report={report}", "--max-pixels=1000")
    for line in (
        f"images: folder {photos.name} (3 images); 1 files left out",
        "1 has a colour profile (ICC), which is not applied",
        "not looked at: 1 .heic",
        f"left out: {photos}/broken\\x1b[2J.png: it is not an image of a kind that can be read",
    ):
        assert line in run.out.splitlines()
    assert run.status == 0 and f"{len(BACKENDS)} passed" in run.out
    made_of = json.loads((report / "run.json").read_text())["machine_info"]["imgstore"]["images"]
    assert (made_of["left out"], made_of["not looked at"]) == (1, "1 .heic")
    assert "1 files left out, not looked at: 1 .heic" in next(report.glob("*.html")).read_text()


@pytest.mark.parametrize(("pixels", "reason"), [("19", "it has 20 pixels"), ("0", "'0' is not a positive integer")])
def test_no_larger_images_are_read_than_asked_for(tmp_path: Path, photos: Path, pixels: str, reason: str) -> None:
    for path in photos.iterdir():
        path.unlink()
    Image.new("L", (4, 5)).save(photos / "one.png")
    run = measure(tmp_path, f"--images={photos}", "-kread_many", f"--max-pixels={pixels}")
    must_be_refused(run, reason)


def test_more_repeats_than_memory_holds_are_no_error(tmp_path: Path, photos: Path) -> None:
    run = measure(tmp_path, f"--images={photos}", "--cutoffs=1000000000000", "-kread_one")
    assert "MemoryError" not in run.out and "INTERNALERROR" not in run.out
    assert run.errors or f"{len(BACKENDS)} skipped" in run.out
    assert not run.left


def not_on_a_ram_disk(folder: Path) -> None:
    if file_system(str(folder))[0] in RAM_DISKS:
        pytest.skip("the folder for tests is a RAM disk, where nothing is cold")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Run:
    """A run of what training does, on two sizes of images, in short rounds; saved."""
    not_on_a_ram_disk(folder)
    few = "-kread_one or read_batch or 2readers and 16px and (replaced or load)"
    quick = (few, "--backends=hdf5", "--benchmark-min-rounds=1", plugin(folder, SHORT_ROUNDS))
    save = ("--benchmark-autosave", storage(folder / "trained"), f"--benchmark-json={folder / 'trained.json'}")
    return measure(folder, *TRAINING, "--readers=1,2", *quick, *save, "-rs")


def test_training_is_measured_in_processes_sizes_and_caches(trained: Run, folder: Path) -> None:
    assert trained.status == 0 and not trained.left
    torch = importlib.util.find_spec("torch") is not None
    assert torch or "PyTorch is not installed: pip install torch==2.13.0" in trained.out
    seen = Counter(
        (facts["operation"], facts["backend"], facts["image_size"], facts["readers"], facts["cache"])
        for facts in (cell["extra_info"] for cell in cells_of(folder / "trained.json").values())
    )
    expected = {
        *itertools.product(("read_one",), FEW, (8, 16), (1,), ("warm", "cold")),
        *itertools.product(("read_batch",), FEW, (8, 16), (1, 2), ("warm", "cold")),
        ("read_while_replaced", "hdf5", 16, 2, "warm"),
        *(itertools.product(("load_epoch",), (*FEW, "pillow"), (16,), (2,), ("warm",)) if torch else ()),
    }
    assert seen == Counter(expected)


def test_the_names_tell_the_cells_apart(trained: Run, folder: Path) -> None:
    names = cells_of(folder / "trained.json").keys()
    assert {"test_read_one[10-hdf5-8px-cold]", "test_read_batch[10-floor-16px-2readers-warm]"} <= names
    assert "test_read_while_replaced[10-hdf5-16px-2readers]" in names


def test_the_summary_shows_processes_sizes_and_caches(trained: Run) -> None:
    _, _, table = trained.out.partition(SUMMARY)
    titles = table.splitlines()[1]
    assert titles.split("  ")[-1] == "cold x floor" and "readers  efficiency  cold images/s" in titles
    for operation, size_and_readers in (("read_batch", ["8", "1"]), ("read_while_replaced", ["16", "2"])):
        line = next(line for line in table.splitlines() if line.startswith(f"{operation} "))
        assert line[titles.index("pixels a side") :].split()[:2] == size_and_readers
    assert "images: synthetic 8x8x3\nimages: synthetic 16x16x3" in trained.out
    assert "terms: durable False, cold both, verify True" in trained.out


def test_the_efficiency_is_against_one_reader(trained: Run, folder: Path) -> None:
    cells = cells_of(folder / "trained.json")
    one, two = (cells[f"test_read_batch[10-hdf5-8px-{n}readers-warm]"]["extra_info"] for n in (1, 2))
    assert two["efficiency"] == pytest.approx(two["images_per_second"] / one["images_per_second"] / 2)
    assert "efficiency" not in one
    assert two["images_per_call"] == 2 * 256 * two["calls"]


def test_a_run_of_both_caches_is_compared_with_its_like(
    tmp_path: Path, trained: Run, folder: Path, begun: Callable[..., Run]
) -> None:
    few = ("-kread_one and floor", "--readers=1", storage(folder / "trained"), "--benchmark-compare", *TRAINING)
    run = measure(tmp_path, *few)
    assert run.status == 0 and "test_read_one[10-floor-8px-cold] (0001_" in run.out
    for option, reason in (
        ("--cache=warm", "not the same terms: durable False, cold False, verify True, readers other processes now"),
        ("--image-size=8", "not the same images: name synthetic 8x8x3"),
    ):
        must_be_refused(begun(*few, option), f"--benchmark-compare: {reason}")


@pytest.mark.parametrize("option", ["--readers=2", "--cache=warm,cold", "--image-size=8,16"])
def test_another_commit_is_compared_in_one_way_only(begun: Callable[..., Run], option: str) -> None:
    must_be_refused(begun("--against=HEAD", option), "--against: takes one --cache, one --image-size and no")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two images of different sizes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for width in (5, 7):
        pixels = np.random.default_rng(width).integers(0, 256, (4, width, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{width}.png")
    return photos


def test_compare_shows_both_runs_side_by_side(tmp_path: Path, saved: Run, folder: Path) -> None:
    run = measure(tmp_path, "-kread_one", "--cutoffs=10,20", storage(folder), "--benchmark-compare")
    assert run.status == 0
    for cutoff, count in ((10, 2 * len(BACKENDS)), (20, len(BACKENDS))):  # the saved run has no cell of 20
        assert f"'test_read_one cutoff={cutoff}': {count} tests" in run.out
    for backend in BACKENDS:
        assert f"test_read_one[10-{backend}] (NOW)" in run.out
        assert f"test_read_one[10-{backend}] (0001_" in run.out
    assert "machine_info is different" not in run.err
    assert run.row("read_one", "lmdb")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--images={photos}", "not the same images: name folder photos (2 images)"),
        ("--no-verify", "not the same terms: durable True, cold False, verify False now"),
        ("--no-durable", "not the same terms: durable False, cold False, verify True now"),
        ("--cache=cold", "not the same terms: durable True, cold True, verify True now"),
        ("--readers=1", "not the same terms: durable True, cold False, verify True, readers other processes now"),
        ("--cutoffs=20", "the saved run has no cell of this one; choose the same --cutoffs and --backends"),
    ],
)
def test_compare_refuses_what_does_not_compare(
    tmp_path: Path, saved: Run, folder: Path, begun: Callable[..., Run], photos: Path, option: str, reason: str
) -> None:
    if option == "--cache=cold":
        not_on_a_ram_disk(tmp_path)
    run = begun("-kread_one", storage(folder), "--benchmark-compare", option.format(photos=photos))
    must_be_refused(run, f"--benchmark-compare: {reason}")


def test_compare_fail_refuses_cells_that_were_not_saved(saved: Run, folder: Path, begun: Callable[..., Run]) -> None:
    lenient = ("--benchmark-compare", "--benchmark-compare-fail=min:99999%")
    run = begun("-kread_one and floor", "--cutoffs=10,20", storage(folder), *lenient)
    must_be_refused(run, "1 of 2 cells are not in the saved run, benchmarks/test_read.py::test_read_one[20-floor]")


def test_what_got_slower_fails_with_the_summary(tmp_path: Path, saved: Run, folder: Path) -> None:
    compare = ("--benchmark-compare", "--benchmark-compare-fail=min:0.05")
    run = measure(tmp_path, "-kread_many", storage(folder), *compare, plugin(tmp_path, SLOW))
    assert run.status == pytest.ExitCode.TESTS_FAILED
    assert "Performance has regressed:\n\ttest_read_many[10-lmdb]" in run.err
    assert "test_read_many[10-hdf5] -" not in run.err
    assert run.row("read_many", "lmdb")
    assert not run.left


def test_a_wrong_result_fails_its_cell_alone(tmp_path: Path) -> None:
    json_option = f"--benchmark-json={tmp_path / 'run.json'}"
    run = measure(tmp_path, "-kread_many or read_single", json_option, plugin(tmp_path, FLIPPED_PIXEL))
    assert run.status == pytest.ExitCode.TESTS_FAILED and f"1 failed, {2 * len(BACKENDS) - 1} passed" in run.out
    assert "WrongResultError: image 0 is not the one that was stored" in run.out
    assert "FAILED benchmarks/test_read.py::test_read_many[10-hdf5]" in run.out
    measured = {f"test_{name}[10-{backend}]" for name in ("read_many", "read_single") for backend in BACKENDS}
    assert cells_of(tmp_path / "run.json").keys() == measured - {"test_read_many[10-hdf5]"}
    assert run.row("read_many", "lmdb") and not run.row("read_many", "hdf5")
    assert "\ntest_read_many[10-lmdb] " in run.out and "\ntest_read_many[10-hdf5] " not in run.out
    assert not run.left


def test_a_store_that_failed_is_not_left_to_the_next_cell(tmp_path: Path) -> None:
    json_option = f"--benchmark-json={tmp_path / 'run.json'}"
    run = measure(tmp_path, "-kread_many", "--backends=floor,disk", json_option, plugin(tmp_path, FULL_DISK))
    assert "1 passed" in run.out and "1 error" in run.out and not run.left
    source = synthetic(10)
    imgstore.disk.store_many(tmp_path / "alone", source.images, source.labels)
    figures = cells_of(tmp_path / "run.json")["test_read_many[10-disk]"]["extra_info"]
    assert figures["disk_bytes_per_image"] * 10 == disk_bytes(str(tmp_path / "alone"))


def test_what_needs_other_processes_says_so_where_it_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    status = pytest.main(["-pno:hypothesispytest", "-pno:cacheprovider", "--cutoffs=10", "benchmarks/test_training.py"])
    out = capsys.readouterr().out
    assert status == pytest.ExitCode.INTERRUPTED and "needs other processes: give --readers=N,..." in out


@pytest.mark.parametrize(
    ("name", "number", "room"),
    [
        ("read_batch", 8, "None"),
        ("read_batch", 9, "MiB of memory"),
        ("read_while_replaced", 1, "MiB of disk"),
        ("read_many", 9, "None"),
        ("store_many", None, "None"),
    ],
)
def test_the_room_that_is_needed_is_that_of_the_test(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int | None, room: str
) -> None:
    """4 GiB for batches of 1 MiB; no disk for another copy of the store."""
    images = np.broadcast_to(np.zeros((1024, 1024), np.uint8), (10, 1024, 1024))
    stored = Cell("hdf5", None, images, np.zeros(10, np.int64), "/", Terms())
    put(monkeypatch, "free_memory", lambda: (4 << 30) + SPARE_BYTES)
    put(monkeypatch, "free_disk", lambda directory: SPARE_BYTES)
    assert room in str(cells.why_not_run(stored, name, number))


def test_cells_without_room_are_skipped_with_the_reason(tmp_path: Path) -> None:
    run = measure(tmp_path, "-kread_many", "--cutoffs=10,1000", "-rs", plugin(tmp_path, LITTLE_ROOM))
    assert run.status == 0 and f"{len(BACKENDS)} passed, {len(BACKENDS)} skipped" in run.out
    assert "needs 276 MiB of disk, 257 MiB are free" in run.out
    assert run.row("read_many", "lmdb")
    assert "test_read_many[1000-" not in run.out.partition("Name (time")[2]


@pytest.mark.parametrize(("name", "skipped"), [("tfrecord", True), ("sqlite", False), ("floor", False)])
def test_a_peer_that_gives_all_or_none_is_skipped_where_parts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, skipped: bool
) -> None:
    cell = Cell(name, None, np.zeros((3, 4, 4), np.uint8), np.zeros(3, np.int64), str(tmp_path), Terms())
    assert cells.why_not(cell) is None
    put(monkeypatch, "WHOLE_BYTES", 0)
    put(monkeypatch, "PART_BYTES", 16)
    reason = "they are read in parts, and tfrecord gives all or none" if skipped else None
    assert cells.why_not(cell) == reason
    monkeypatch.undo()
    assert [cells.why_not_run(cell, "read_many", readers) for readers in (None, 1)] == [None, reason]


def test_a_ram_disk_is_warned_of_and_never_cold(tmp_path: Path, begun: Callable[..., Run]) -> None:
    if not os.path.isdir("/dev/shm") or file_system("/dev/shm")[0] != "tmpfs":
        pytest.skip("there is no RAM disk at /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as stores:
        run = measure(tmp_path, f"--store-dir={stores}", "-kread_one and floor")
        cold = begun(f"--store-dir={stores}", "--cache=warm,cold")
        must_be_refused(cold, f"--cache: {stores} is a RAM disk (tmpfs), where nothing is cold")
        assert not os.listdir(stores)
    assert run.status == 0
    assert f"UserWarning: {stores} is a RAM disk (tmpfs): storing there measures no disk" in run.out


@pytest.mark.parametrize(
    ("number", "verb", "when"),
    [
        pytest.param(signal.SIGINT, "store_many", "len(calls) == 1", id="before a round"),
        pytest.param(signal.SIGINT, "read_many", "len(calls) == 2", id="in a round"),
        pytest.param(signal.SIGTERM, "read_many", "len(calls) == 2", id="in a round, SIGTERM"),
        pytest.param(signal.SIGINT, "read_many", "process != os.getpid()", id="as its memory is measured"),
    ],
)
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals, verb: str, when: str) -> None:
    text = HANG.format(verb=verb, when=when, marker=str(tmp_path / "hangs"))
    json_option = f"--benchmark-json={tmp_path / 'run.json'}"
    run = interrupted(tmp_path, number, "-kread_many", json_option, plugin(tmp_path, text))
    assert run.status == pytest.ExitCode.INTERRUPTED and "KeyboardInterrupt" in run.out
    assert "Traceback" not in run.out + run.err and "INTERNALERROR" not in run.out + run.err
    measured = cells_of(tmp_path / "run.json").keys()
    assert measured and measured <= {f"test_read_many[10-{backend}]" for backend in BACKENDS if backend != "hdf5"}
    assert SUMMARY in run.out
    assert not run.left


def interrupted(tmp_path: Path, number: signal.Signals, *options: str) -> Run:
    """A run that got a signal while it hung."""
    stores = tmp_path / "stores"
    stores.mkdir()
    run = started(tmp_path, stores, *options)
    with run, killed_at_last(run):
        wait_for(tmp_path / "hangs")
        assert os.listdir(stores)
        run.send_signal(number)
        out, err = run.communicate(timeout=20)  # less than it would hang
    return Run(run.returncode, out, err, os.listdir(stores))


def started(tmp_path: Path, stores: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(stores, *options),
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


@contextlib.contextmanager
def killed_at_last(run: "subprocess.Popen[Any]") -> Iterator[None]:
    """See that the process ends, whatever the test finds."""
    try:
        yield
    finally:
        run.kill()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.02)
