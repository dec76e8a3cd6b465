"""Tests of reading in several processes: who reads what, when the clock runs, and that nothing lives on."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import imgstore
from benchmarks.measure import floor
from benchmarks.measure import processes as readers
from benchmarks.measure.cell import BATCH, Cell, Rounds, Terms
from benchmarks.measure.checks import WrongResultError
from benchmarks.measure.images import Repeated
from benchmarks.measure.operations import measure
from benchmarks.measure.processes import Helper, HelperError, InProcesses, ReadWhileReplaced, reading
from benchmarks.measure.reading import ReadBatch, ReadMany
from benchmarks.tests.test_workloads import BACKENDS, COUNT, LABELS, MIXED, ONCE, PIXELS, FakeBenchmark

KINDS = (ReadBatch, ReadMany)
MEASURING = """
    import time
    import numpy as np
    from benchmarks.measure.processes import ReadWhileReplaced
    from benchmarks.measure.cell import Cell, Terms
    from imgstore import hdf5

    if __name__ == "__main__":
        cell = Cell("hdf5", hdf5, np.zeros((5, 4, 4), np.uint8), np.zeros(5, np.int64), {folder!r}, Terms())
        cell.store()
        workload = ReadWhileReplaced(cell, 2)
        workload.prepare()
        helpers = [*workload.helpers, workload.writer]
        print(*(helper.process.pid for helper in helpers), flush=True)
        if {in_a_round}:
            workload.calls = 2000
            workload.prepare()
            workload.call()
        time.sleep(60)
"""


def cell_of(folder: Path, backend: str = "hdf5", images: Any = PIXELS, terms: Terms | None = None) -> Cell:
    cell = Cell(backend, BACKENDS[backend], images, np.resize(LABELS, len(images)), str(folder), terms or Terms())
    cell.store()
    return cell


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for what else the machine is writing, and without the memory of a call."""
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "ROUND_SECONDS", 0.002)


@pytest.mark.parametrize(("kind", "cold"), [(ReadBatch, False), (ReadBatch, True), (ReadMany, False)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_readers_are_measured(tmp_path: Path, quick: None, kind: Any, backend: str, cold: bool) -> None:
    cell, benchmark = cell_of(tmp_path, backend, terms=Terms(cold=cold)), FakeBenchmark()
    workload = InProcesses(kind, cell, 2)
    measure(benchmark, workload, Rounds(3, 0))
    facts = benchmark.extra_info
    assert (facts["operation"], facts["readers"], facts["cache"]) == (kind.operation, 2, "cold" if cold else "warm")
    assert facts["images_per_call"] == workload.calls * (COUNT if kind is ReadMany else 2 * BATCH)
    assert workload.calls == 1 if cold else workload.calls >= 1
    assert benchmark.rounds == 3 and not benchmark.has_error and not workload.helpers
    assert os.listdir(tmp_path) == ["stored"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [MIXED, Repeated(PIXELS[:2], COUNT)], ids=["mixed", "repeated"])
def test_images_of_any_kind(tmp_path: Path, quick: None, kind: Any, images: Any) -> None:
    measure(benchmark := FakeBenchmark(), InProcesses(kind, cell_of(tmp_path, images=images), 2), ONCE)
    assert not benchmark.has_error


@pytest.mark.parametrize("readers", [None, 1, 3])
def test_no_process_is_started_unless_a_number_is_asked_for(tmp_path: Path, readers: int | None) -> None:
    workload = reading(ReadBatch, cell_of(tmp_path), readers)
    assert isinstance(workload, InProcesses) == (readers is not None)
    assert workload.readers == (readers or 1)


def test_a_round_lasts_until_the_last_is_done_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told before the clock, in it and after it."""
    workload = InProcesses(ReadBatch, cell_of(tmp_path), 2)
    told: list[str] = []
    ask = workload.ask

    def noted(request: str, *more: Any) -> list[Any]:
        told.append(request)
        return ask(request, *more)

    monkeypatch.setattr(workload, "ask", noted)
    workload.prepare()
    assert told == ["seconds", "prepare"]
    told.clear()
    workload.call()
    assert told == ["run"]
    workload.check(None)
    workload.finish()


class Waiting:
    """A workload whose first call takes long, and whose second has to wait, on a clock of its own."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, iter([5.0, 9.0, 1.0, 1.0, 1.0, 1.0])

    def prepare(self) -> tuple[()]:
        return ()

    def call(self) -> None:
        self.now += next(self.calls)


def test_the_seconds_of_a_call_are_an_average_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    workload: Any = Waiting()
    monkeypatch.setattr(readers, "time", SimpleNamespace(perf_counter=lambda: workload.now))
    assert readers.Share(workload).seconds(12.0) == 3.0


def shares(folder: Path, kind: Any, images: Any, number: int) -> list[list[int]]:
    """What each of so many readers reads in a cold round."""
    workload = InProcesses(kind, cell_of(folder, images=images, terms=Terms(cold=True)), number)
    workload.prepare()
    workload.call()
    read = [chosen.tolist() for chosen, _ in workload.ask("told")]
    workload.check(None)
    workload.finish()
    return read


def test_no_image_of_a_batch_is_read_by_two(tmp_path: Path, quick: None) -> None:
    """In a cold round the second would find it in memory."""
    read = shares(tmp_path, ReadBatch, Repeated(PIXELS, 10), 3)
    assert [sorted(set(batch)) for batch in read] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert set(map(len, read)) == {BATCH}


def test_readers_of_all_images_read_each_once(tmp_path: Path, quick: None) -> None:
    assert shares(tmp_path, ReadMany, PIXELS, 2) == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("kind", KINDS)
def test_there_may_be_fewer_images_than_readers(tmp_path: Path, quick: None, kind: Any) -> None:
    read = shares(tmp_path, kind, PIXELS[:1], 2)
    assert [set(each) for each in read] == [{0}, {0} if kind is ReadBatch else set()]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_reader_gets_is_checked(tmp_path: Path, quick: None, kind: Any) -> None:
    cell = cell_of(tmp_path)
    for images, labels in ((PIXELS ^ 1, LABELS), (PIXELS, LABELS + 1)):
        other = dataclasses.replace(cell, images=images, labels=labels)
        with pytest.raises(WrongResultError, match="a reader did not get images"):
            measure(FakeBenchmark(), InProcesses(kind, other, 2), ONCE)


def test_a_reader_that_fails_says_why(tmp_path: Path, quick: None) -> None:
    cell = cell_of(tmp_path)
    path = next(Path(cell.stored).glob("*/images.h5"))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(PIXELS[2].tobytes())] ^= 1
    path.write_bytes(damaged)
    workload = InProcesses(ReadBatch, cell, 2)
    with pytest.raises(HelperError, match=r"CorruptStoreError: .*images\.h5: image 2: does not match its checksum"):
        measure(FakeBenchmark(), workload, ONCE)
    assert not workload.helpers


def test_a_reader_that_is_killed_is_noticed(tmp_path: Path) -> None:
    workload = InProcesses(ReadBatch, cell_of(tmp_path), 2)
    workload.prepare()
    process = workload.helpers[1].process
    process.kill()
    process.join()
    with pytest.raises(HelperError, match="a process ended with status -9"):
        workload.call()
    workload.finish()


def test_cold_readers_hold_nothing_when_the_store_is_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = InProcesses(ReadBatch, cell_of(tmp_path, "lmdb", terms=Terms(cold=True)), 2)
    held: list[list[str]] = []
    monkeypatch.setattr(
        "benchmarks.measure.reading.evict",
        lambda directory: held.extend(maps_of(each.process.pid, directory) for each in workload.helpers),
    )
    for _ in range(3):
        workload.prepare()
        workload.call()
    assert held == [[]] * 4  # two readers, before the second and the third round
    assert any(maps_of(each.process.pid, str(tmp_path)) for each in workload.helpers)
    workload.finish()


def maps_of(process: int | None, directory: str) -> list[str]:
    """What a process maps below the directory."""
    return [line for line in Path(f"/proc/{process}/maps").read_text().splitlines() if directory in line]


@pytest.mark.parametrize("backend", imgstore.BACKENDS)
def test_reading_while_the_store_is_replaced(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    cell, benchmark = cell_of(tmp_path, backend, Repeated(PIXELS, 100)), FakeBenchmark()
    original = os.listdir(cell.stored)
    workload = ReadWhileReplaced(cell, 2)
    generations = [current(cell.stored)]
    check = workload.check

    def noted(result: None) -> None:
        check(result)
        generations.append(current(workload.cell.stored))

    monkeypatch.setattr(workload, "check", noted)
    measure(benchmark, workload, Rounds(2, 0))
    assert benchmark.extra_info["operation"] == "read_while_replaced" and benchmark.extra_info["readers"] == 2
    assert int(generations[1]) >= int(generations[0]) + 4  # to time it, in the pilot, and in two rounds
    assert os.listdir(tmp_path) == ["stored"] and os.listdir(cell.stored) == original


def current(root: str) -> str:
    """The number of the live generation."""
    return Path(root, "CURRENT").read_text().split()[3].split("-")[1]


def test_a_reader_whose_files_are_gone_opens_the_store_anew(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, "disk")
    workload = readers.Rereading(cell)
    workload.prepare()
    imgstore.disk.store_many(cell.stored, PIXELS, LABELS, durable=False)
    workload.check(workload.call(workload.chosen))
    workload.finish()


def test_a_writer_that_cannot_store_says_why(tmp_path: Path, quick: None) -> None:
    cell = dataclasses.replace(cell_of(tmp_path), labels=LABELS[:-1])
    with pytest.raises(HelperError, match="InvalidArgumentError: "):
        measure(FakeBenchmark(), ReadWhileReplaced(cell, 1), None)
    assert os.listdir(tmp_path) == ["stored"]


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        os.makedirs(target)
        raise OSError("full")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(OSError, match="full"):
        measure(FakeBenchmark(), ReadWhileReplaced(cell_of(tmp_path), 1), ONCE)
    assert os.listdir(tmp_path) == ["stored"]


def test_the_pilot_does_not_time_the_start(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only starting the processes moves."""
    workload = InProcesses(ReadBatch, cell_of(tmp_path, terms=Terms(cold=True)), 1)
    start, clock = workload.start, SimpleNamespace(now=0.0)

    def slow() -> None:
        clock.now += 5
        start()

    monkeypatch.setattr(workload, "start", slow)
    monkeypatch.setattr("benchmarks.measure.workload.time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert workload.pilot() == 0 and clock.now == 5
    workload.finish()


def test_the_writer_works_only_while_the_clock_runs(tmp_path: Path) -> None:
    workload = ReadWhileReplaced(cell_of(tmp_path), 1)
    workload.prepare()
    before = unchanging(workload.cell.stored)
    workload.call()
    workload.check(None)
    assert unchanging(workload.cell.stored) > before
    workload.finish()


def unchanging(root: str) -> str:
    """The number of the live generation, which nobody replaces for a while."""
    number = current(root)
    time.sleep(0.05)
    assert current(root) == number
    return number


def exits(pipe: Any) -> None:
    os._exit(3)


def test_a_process_that_ends_is_named_by_its_status() -> None:
    helper = Helper(exits)
    with pytest.raises(HelperError, match="a process ended with status 3"):
        helper.answer()
    helper.end()


@pytest.mark.parametrize("during", ["between rounds", "in a round"])
def test_nothing_lives_on_when_the_one_that_measures_is_killed(tmp_path: Path, during: str) -> None:
    """Neither a reader nor the writer."""
    text = MEASURING.format(folder=str(tmp_path), in_a_round=during == "in a round")
    (tmp_path / "measure.py").write_text(textwrap.dedent(text))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "measure.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as measuring:
        assert measuring.stdout
        processes = [int(number) for number in measuring.stdout.readline().split()]
        time.sleep(0.1)
        measuring.send_signal(signal.SIGKILL)
    assert len(processes) == 3
    deadline = time.monotonic() + 20
    while any(map(is_alive, processes)):
        assert time.monotonic() < deadline, "a process goes on"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_floor_gives_a_batch_at_once(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, "floor")
    with floor.open_reader(cell.stored) as reader:
        for (image, label), position in zip(reader.__getitems__([3, 1, 3]), [3, 1, 3], strict=True):
            np.testing.assert_array_equal(image, PIXELS[position])
            assert label == LABELS[position] and type(label) is int
