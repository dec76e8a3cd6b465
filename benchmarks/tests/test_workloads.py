"""Tests of the workloads: what a round does, in which order, and that a backend that lies is found out."""

import contextlib
import ctypes
import dataclasses
import hashlib
import mmap
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

import imgstore
from benchmarks.measure import checks, floor, machine
from benchmarks.measure.cell import BATCH, Array, Cell, Rounds, Terms, missing_room, parts_of
from benchmarks.measure.checks import WrongResultError
from benchmarks.measure.images import Repeated
from benchmarks.measure.operations import measure
from benchmarks.measure.reading import ReadBatch, ReadMany, ReadOne, ReadSingle
from benchmarks.measure.storing import LONG_SECONDS, StoreMany, StoreSingle
from benchmarks.measure.workload import Workload
from benchmarks.report.conditions import file_system
from benchmarks.tests.everywhere import put

COUNT = 5
PEAK = 123
ONCE = Rounds(1, 0)
BACKENDS: dict[str, Any] = {**imgstore.BACKENDS, "floor": floor}
KINDS: tuple[type[Workload], ...] = (StoreSingle, StoreMany, ReadSingle, ReadOne, ReadMany, ReadBatch)
STORING = (StoreSingle, StoreMany)
READING = (ReadSingle, ReadOne, ReadMany, ReadBatch)
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 4, 3), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5])
MIXED = [PIXELS[0], PIXELS[1, ..., 0], PIXELS[2, ..., :1], PIXELS[3, :2, :3], PIXELS[4, ..., 0].astype(np.uint16) * 257]


class FakeBenchmark:
    """pytest-benchmark's fixture as far as `measure` uses it, with brackets in the log around what it times."""

    def __init__(self, log: list[str] | None = None) -> None:
        self.log = [] if log is None else log
        self.extra_info: dict[str, Any] = {}
        self.has_error = False

    def __call__(self, call: Callable[..., Any]) -> Any:
        for _ in range(3):
            result = self._timed(call)
        return result

    def pedantic(self, call: Callable[..., Any], setup: Callable[[], Any], rounds: int) -> Any:
        for _ in range(rounds):
            arguments, options = setup()
            result = self._timed(call, *arguments, **options)
        return result

    @property
    def rounds(self) -> int:
        return self.log.count("[")

    def _timed(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.log.append("[")
        result = call(*arguments, **options)
        self.log.append("]")
        return result


class Noted:
    """A backend or a reader whose calls and options are noted."""

    def __init__(self, target: Any, log: list[str], options: dict[str, Any]) -> None:
        self._target, self._log, self._options = target, log, options

    def __getattr__(self, name: str) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            self._log.append(name)
            self._options.setdefault(name, options)
            result = getattr(self._target, name)(*arguments, **options)
            return Noted(result, self._log, self._options) if name == "open_reader" else result

        return noted

    def __getitem__(self, position: int) -> Any:
        self._log.append("getitem")
        return self._target[position]


class Lying:
    """A backend of which one verb goes through a lie about images and labels."""

    def __init__(self, target: Any, verb: str, lie: Any) -> None:
        self._target, self._verb, self._lie = target, verb, lie

    def __getattr__(self, name: str) -> Any:
        return getattr(self, f"_{name}") if name == self._verb else getattr(self._target, name)

    def __getitem__(self, position: int) -> Any:
        return self._one(*self._target[position])

    def close(self) -> None:
        self._target.close()

    def __enter__(self) -> "Lying":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._target)

    def _one(self, image: Array, label: int) -> tuple[Array, int]:
        images, labels = self._lie([255 - image, image], np.array([label - 1, label]))
        return images[-1], int(labels[-1])

    def _store_single(self, root: str, image: Array, image_id: int, label: int, **options: Any) -> None:
        lied, lied_label = self._one(image, label)
        self._target.store_single(root, lied, image_id, lied_label, **options)

    def _store_many(self, root: str, images: Any, labels: Array, **options: Any) -> None:
        self._target.store_many(root, *self._lie(list(images), labels), **options)

    def _read_single(self, *arguments: Any, **options: Any) -> Any:
        return self._one(*self._target.read_single(*arguments, **options))

    def _read_many(self, *arguments: Any, **options: Any) -> Any:
        images, labels = self._target.read_many(*arguments, **options)
        return self._lie(list(images), labels)

    def _open_reader(self, *arguments: Any, **options: Any) -> Any:
        return Lying(self._target.open_reader(*arguments, **options), "read_many", self._lie)


def flipped(image: Array) -> Array:
    """The image with one bit of its last pixel turned over."""
    image = image.copy()
    image.reshape(-1)[-1] ^= 1
    return image


LIES: dict[str, Callable[[list[Array], Array], tuple[list[Array], Array]]] = {
    "wrong pixel": lambda images, labels: ([*images[:-1], flipped(images[-1])], labels),
    "wrong label": lambda images, labels: (images, labels + (np.arange(len(labels)) == len(labels) - 1)),
    "wrong dtype": lambda images, labels: ([*images[:-1], images[-1].astype(np.int32)], labels),
    "wrong shape": lambda images, labels: ([*images[:-1], images[-1].reshape(1, -1)], labels),
    "one pair short": lambda images, labels: (images[:-1], labels[:-1]),
    "one image short": lambda images, labels: (images[:-1], labels),
    "images swapped": lambda images, labels: ([*images[1:], images[0]], labels),
    "labels swapped": lambda images, labels: (images, np.roll(labels, 1)),
}


@pytest.fixture(params=["floor"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Cell:
    """A cell of five small images, stored."""
    cell = Cell(request.param, BACKENDS[request.param], PIXELS, LABELS, str(tmp_path), Terms())
    cell.store()
    return cell


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where disk and memory are of no interest: a sync waits for everything that the machine is writing."""
    monkeypatch.setattr(os, "sync", lambda: None)
    put(monkeypatch, "peak_growth", lambda call: PEAK)


def every(kinds: tuple[type[Workload], ...] = KINDS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=[kind.operation for kind in kinds])


@every()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("images", [PIXELS, MIXED, Repeated(PIXELS[:2], COUNT)], ids=["uniform", "mixed", "repeated"])
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_an_honest_backend_passes(
    tmp_path: Path, quick: None, kind: type[Workload], backend: str, images: Any, cold: bool
) -> None:
    cell = Cell(backend, BACKENDS[backend], images, LABELS, str(tmp_path), Terms(cold=cold))
    cell.store()
    benchmark = FakeBenchmark()
    measure(benchmark, kind(cell), Rounds(3, 0))
    assert benchmark.rounds == 3 and not benchmark.has_error
    assert (benchmark.extra_info["operation"], benchmark.extra_info["backend"]) == (kind.operation, backend)
    assert os.listdir(tmp_path) == ["stored"]


@pytest.mark.parametrize(
    ("kind", "lie"),
    # a store is not asked to hold more labels than images
    [(kind, lie) for kind in KINDS for lie in LIES if (kind, lie) != (StoreMany, "one image short")],
    ids=lambda value: value if isinstance(value, str) else value.operation,
)
@pytest.mark.parametrize("images", [PIXELS, MIXED], ids=["uniform", "mixed"])
@pytest.mark.parametrize("rounds", [ONCE, None], ids=["measured", "disabled"])
def test_a_backend_that_lies_is_found_out(
    tmp_path: Path, quick: None, kind: type[Workload], lie: str, images: Any, rounds: Rounds | None
) -> None:
    cell = Cell("floor", floor, images, LABELS, str(tmp_path), Terms())
    cell.store()
    verb = "open_reader" if kind in (ReadOne, ReadBatch) else kind.operation
    lying = kind(dataclasses.replace(cell, backend=Lying(floor, verb, LIES[lie])))
    benchmark = FakeBenchmark()
    with pytest.raises(WrongResultError):
        measure(benchmark, lying, rounds)
    assert benchmark.has_error and not benchmark.extra_info
    assert os.listdir(tmp_path) == ["stored"]


@every()
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_cell_that_ends_early_is_marked_and_leaves_nothing(
    tmp_path: Path, quick: None, tiny: Cell, kind: type[Workload], error: BaseException
) -> None:
    benchmark, workload = FakeBenchmark(), kind(tiny)
    workload.check = lambda result: (_ for _ in ()).throw(error)  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        measure(benchmark, workload, ONCE)
    assert benchmark.has_error
    assert os.listdir(tmp_path) == ["stored"]


ORDER = {  # a pilot, then one round; brackets stand around what is timed; at last the memory of another call
    (StoreSingle, False): "settle store_single settle [ store_single ] read_single check",
    (StoreMany, False): "settle store_many settle [ store_many ] read_many check peak: settle store_many",
    (ReadSingle, False): "read_single [ read_single ] check",
    (ReadMany, False): "read_many [ read_many ] check peak: read_many",
    (ReadOne, False): "open_reader [ getitem ] [ getitem ] [ getitem ] check close",
    (ReadBatch, False): "open_reader read_many [ read_many ] check close",
    (ReadSingle, True): "evict read_single evict [ read_single ] check",
    (ReadMany, True): "evict read_many evict [ read_many ] check peak: evict read_many",
    (ReadOne, True): "evict open_reader getitem close evict open_reader [ getitem ] check close",
    (ReadBatch, True): "evict open_reader read_many close evict open_reader [ read_many ] check close",
}
ORDER |= {(kind, True): ORDER[kind, False] for kind in STORING}
ORDER_ONCE = {
    StoreSingle: "settle [ store_single ] read_single check",
    StoreMany: "settle [ store_many ] read_many check",
    ReadSingle: "[ read_single ] check",
    ReadMany: "[ read_many ] check",
    ReadOne: "open_reader [ getitem ] [ getitem ] [ getitem ] check close",
    ReadBatch: "open_reader [ read_many ] check close",
}


@pytest.mark.parametrize(("seconds", "stored"), [(LONG_SECONDS / 2, 2), (LONG_SECONDS * 2, 1)])
def test_what_takes_long_to_store_has_no_pilot(tiny: Cell, log: list[str], seconds: float, stored: int) -> None:
    workload = StoreMany(noted(dataclasses.replace(tiny, store_seconds=seconds), log, Terms()))
    measure(FakeBenchmark(log), workload, ONCE)
    log = log[: log.index("peak:")]
    assert log.count("store_many") == stored


def logged(log: list[str], entry: str, function: Callable[..., Any] = lambda *_: None) -> Any:
    """The function, with an entry in the log for each call."""

    def call(*arguments: Any) -> Any:
        log.append(entry)
        return function(*arguments)

    return call


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order; `noted` adds a backend's calls."""
    log: list[str] = []
    put(monkeypatch, "settle", logged(log, "settle"))
    put(monkeypatch, "evict", logged(log, "evict"))
    put(monkeypatch, "must_equal", logged(log, "check", checks.must_equal))
    put(monkeypatch, "peak_growth", logged(log, "peak:", lambda call: call()))
    return log


def noted(cell: Cell, log: list[str], terms: Terms, options: dict[str, Any] | None = None) -> Cell:
    backend = Noted(cell.backend, log, {} if options is None else options)
    return dataclasses.replace(cell, backend=backend, terms=terms)


@every()
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_only_the_bare_call_is_timed(tiny: Cell, log: list[str], kind: type[Workload], cold: bool) -> None:
    measure(FakeBenchmark(log), kind(noted(tiny, log, Terms(cold=cold))), ONCE)
    assert " ".join(log) == ORDER[kind, cold]


@every()
def test_without_rounds_everything_runs_once(tiny: Cell, log: list[str], kind: type[Workload]) -> None:
    measure(FakeBenchmark(log), kind(noted(tiny, log, Terms())), None)
    assert " ".join(log) == ORDER_ONCE[kind]


@every()
@pytest.mark.parametrize("held", [False, True])
def test_the_terms_reach_the_backend(tiny: Cell, log: list[str], kind: type[Workload], held: bool) -> None:
    options: dict[str, Any] = {}
    measure(FakeBenchmark(), kind(noted(tiny, log, Terms(durable=held, verify=held), options)), ONCE)
    verb = "open_reader" if kind in (ReadOne, ReadBatch) else kind.operation
    assert options[verb] == {"durable" if kind in STORING else "verify": held}


@every(tuple(kind for kind in KINDS if kind is not ReadOne))
def test_rounds_follow_the_pilot(
    tiny: Cell, quick: None, monkeypatch: pytest.MonkeyPatch, kind: type[Workload]
) -> None:
    monkeypatch.setattr(Workload, "pilot", lambda workload: 0.25)
    benchmark = FakeBenchmark()
    measure(benchmark, kind(tiny), Rounds(3, 2.0))
    assert benchmark.rounds == 8


@pytest.mark.parametrize(
    ("at_least", "seconds", "pilot_seconds", "expected"),
    [(3, 0.5, 2.0, 3), (3, 0.5, 0.125, 4), (3, 0.5, 0.15, 3), (3, 1.0, 0.15, 6), (1, 0, 0.1, 1), (5, 10, 1e-3, 10_000)],
)
def test_rounds_fill_the_time_but_are_never_too_few(
    at_least: int, seconds: float, pilot_seconds: float, expected: int
) -> None:
    assert Rounds(at_least, seconds).after(pilot_seconds) == expected


def test_a_pilot_counts_the_preparation(tiny: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, "settle", lambda: time.sleep(0.05))
    workload = StoreMany(tiny)
    assert workload.pilot() > 0.05
    workload.finish()


@every()
@pytest.mark.parametrize("images", [PIXELS, MIXED], ids=["uniform", "mixed"])
def test_facts_say_what_a_call_moves(tmp_path: Path, quick: None, kind: type[Workload], images: Any) -> None:
    cell = Cell("floor", floor, images, LABELS, str(tmp_path), Terms())
    cell.store()
    measure(benchmark := FakeBenchmark(), kind(cell), ONCE)
    moved = {"read_many": COUNT, "store_many": COUNT, "read_batch": BATCH}.get(kind.operation, 1)
    assert benchmark.extra_info == {
        "operation": kind.operation,
        "backend": "floor",
        "cutoff": COUNT,
        "readers": 1,
        "cache": "warm",
        "calls": 1,
        "images_per_call": moved,
        "pixel_bytes_per_call": pytest.approx(moved * np.mean([image.nbytes for image in images])),
        "disk_bytes_per_image": os.stat(os.path.join(cell.stored, "flat")).st_blocks * 512 / COUNT,
        **({"peak_bytes": PEAK} if moved == COUNT else {}),
    }


@every()
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_facts_tell_the_cache_and_the_size(tiny: Cell, quick: None, kind: type[Workload], cold: bool) -> None:
    measure(benchmark := FakeBenchmark(), kind(dataclasses.replace(tiny, terms=Terms(cold=cold), image_size=6)), ONCE)
    assert benchmark.extra_info["image_size"] == 6
    assert benchmark.extra_info["cache"] == ("cold" if cold and kind in READING else "warm")


@every((StoreMany, ReadMany))
@pytest.mark.parametrize("tiny", BACKENDS, indirect=True)
def test_the_memory_is_measured_in_another_process(tiny: Cell, kind: type[Workload]) -> None:
    workload, benchmark, calls = kind(tiny), FakeBenchmark(), list[str]()
    workload.call = logged(calls, "call", workload.call)  # type: ignore[method-assign]
    measure(benchmark, workload, ONCE)
    assert calls == ["call", "call"]  # the pilot and the round
    assert 0 <= benchmark.extra_info["peak_bytes"] < 1 << 26
    assert os.listdir(tiny.directory) == ["stored"]


def test_storing_is_known_by_the_memory_that_a_generator_takes(tiny: Cell, quick: None) -> None:
    workload, given = StoreMany(tiny), list[Any]()
    workload.store = lambda root, images: given.append(images)  # type: ignore[method-assign]
    workload.call_for_memory()
    assert not hasattr(given[0], "__len__") and np.array_equal(list(given[0]), PIXELS)


@every((StoreMany, ReadMany))
@pytest.mark.parametrize(("forks", "rounds"), [(False, ONCE), (True, None)], ids=["no fork", "disabled"])
def test_no_memory_is_measured(
    tiny: Cell, log: list[str], kind: type[Workload], forks: bool, rounds: Rounds | None
) -> None:
    measure(benchmark := FakeBenchmark(log), kind(dataclasses.replace(tiny, forks=forks)), rounds)
    assert "peak:" not in log and "peak_bytes" not in benchmark.extra_info


@pytest.mark.parametrize("tiny", BACKENDS, indirect=True)
def test_storing_singles_leaves_the_stored_set_alone(tiny: Cell, quick: None) -> None:
    before = contents(tiny.stored)
    measure(FakeBenchmark(), StoreSingle(tiny), Rounds(4, 0))
    assert contents(tiny.stored) == before


def contents(directory: str) -> dict[str, str]:
    """A digest of each file below the directory."""
    files = [path for path in Path(directory).rglob("*") if path.is_file()]
    assert files
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("tiny", BACKENDS, indirect=True)
def test_each_single_is_a_new_image_in_a_store_of_all(tiny: Cell, quick: None) -> None:
    workload = StoreSingle(tiny)
    for expected in (COUNT, COUNT + 1, COUNT + 2):
        root, image, image_id, label = workload.prepare()
        assert image_id == expected
        assert any(
            np.array_equal(image, own) and label == own_label for own, own_label in zip(PIXELS, LABELS, strict=True)
        )
        workload.call(root, image, image_id, label)
    for image_id in range(COUNT):
        np.testing.assert_array_equal(tiny.backend.read_single(root, image_id)[0], PIXELS[image_id])
    workload.finish()


def test_each_store_is_a_new_one(tiny: Cell, quick: None) -> None:
    workload = StoreMany(tiny)
    for _ in range(2):
        (root,) = workload.prepare()
        assert not os.path.exists(root)
        workload.call(root)
    workload.finish()


def test_each_batch_is_drawn_anew(tiny: Cell) -> None:
    workload = ReadBatch(tiny)
    first, second = (workload.prepare()[0].copy() for _ in range(2))
    workload.finish()
    assert first.shape == second.shape == (256,)
    assert set(first.tolist()) == set(range(COUNT))
    assert not np.array_equal(first, second)


@every((ReadSingle, ReadOne, StoreSingle))
def test_single_images_are_drawn_at_random(tiny: Cell, quick: None, kind: type[Any]) -> None:
    assert set(chosen(kind(tiny), 100)) == set(range(COUNT))


@every((ReadSingle, ReadOne, StoreSingle, ReadBatch))
def test_every_backend_gets_the_same_draws(
    tmp_path_factory: pytest.TempPathFactory, quick: None, kind: type[Any]
) -> None:
    draws = []
    for name in ("lmdb", "floor"):
        cell = Cell(name, BACKENDS[name], PIXELS, LABELS, str(tmp_path_factory.mktemp(name)), Terms())
        cell.store()
        draws.append(chosen(kind(cell), 20))
    np.testing.assert_array_equal(draws[0], draws[1])


def chosen(workload: Any, rounds: int) -> list[Any]:
    """What the workload chose in each round."""
    choices = []
    for _ in range(rounds):
        result = workload.call(*workload.prepare())
        choices.append(result[0] if isinstance(workload, ReadOne) else workload.chosen)
    workload.finish()
    return choices


def test_evict_drops_every_file_once_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    files = [tmp_path / "one", tmp_path / "deep" / "two"]
    for file in files:
        file.write_bytes(bytes(9))
    log: list[Any] = []
    put(monkeypatch, "settle", lambda: log.append("settle"))
    monkeypatch.setattr(
        os, "posix_fadvise", lambda descriptor, *rest: log.append((os.readlink(f"/proc/self/fd/{descriptor}"), *rest))
    )
    machine.evict(str(tmp_path))
    assert log[0] == "settle"
    assert sorted(log[1:]) == sorted((str(file), 0, 0, os.POSIX_FADV_DONTNEED) for file in files)


def cached_pages(directory: str) -> int:
    """How many pages of the files below the directory are in memory."""
    return sum(map(cached_pages_of, (path for path in Path(directory).rglob("*") if path.is_file())))


def cached_pages_of(file: Path) -> int:
    size = file.stat().st_size
    if not size:
        return 0
    with open(file, "rb") as opened:
        mapped = np.frombuffer(mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (mapped, pages)]
    assert ctypes.CDLL(None).mincore(addresses[0], ctypes.c_size_t(size), addresses[1]) == 0
    return int(np.count_nonzero(pages & 1))


@pytest.fixture
def control(tmp_path: Path) -> Iterator[BinaryIO]:
    """A file of a megabyte that was evicted."""
    path = tmp_path / "control"
    path.write_bytes(os.urandom(1 << 20))
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file
    path.unlink()


@pytest.fixture
def evicted(control: BinaryIO, tmp_path: Path) -> None:
    """Skips where the file system keeps in memory what it is told to evict, as a RAM disk does."""
    if cached_pages_of(tmp_path / "control"):
        pytest.skip(f"{file_system(str(tmp_path))[0]} keeps in memory what it is told to evict")


@every((ReadSingle, ReadMany))
@pytest.mark.parametrize("tiny", BACKENDS, indirect=True)
def test_a_cold_round_starts_with_nothing_in_memory(tiny: Cell, evicted: None, kind: type[Workload]) -> None:
    workload = kind(dataclasses.replace(tiny, terms=Terms(cold=True)))
    for _ in range(2):
        arguments = workload.prepare()
        assert cached_pages(tiny.stored) == 0
        workload.call(*arguments)
        assert cached_pages(tiny.stored) > 0


def device_reads() -> int:
    """Bytes that the devices had to read for this process; skips where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError as error:
        pytest.skip(f"what a process reads from devices is not told: {error}")
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


@pytest.fixture
def counted(control: BinaryIO, tmp_path: Path) -> None:
    """Skips where reads are not counted, as with a RAM disk or a file system of another machine."""
    before = device_reads()
    size = len(control.read())
    if device_reads() - before < size:
        pytest.skip(f"{file_system(str(tmp_path))[0]} counts no reads, or keeps in memory what it is told to evict")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cold_round_reads_from_the_device(tmp_path: Path, counted: None, backend: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3), np.uint8)
    cell = Cell(backend, BACKENDS[backend], images, np.arange(40), str(tmp_path), Terms())
    cell.store()
    moved: dict[bool, list[int]] = {}
    for cold in (True, False, True):
        workload = ReadMany(dataclasses.replace(cell, terms=Terms(cold=cold)))
        arguments = workload.prepare()
        before = device_reads()
        workload.call(*arguments)
        moved.setdefault(cold, []).append(device_reads() - before)
    assert min(moved[True]) >= images.nbytes and max(moved[False]) < images.nbytes / 10


@every(READING)
@pytest.mark.parametrize("tiny", BACKENDS, indirect=True)
def test_nothing_holds_the_store_when_it_is_evicted(
    monkeypatch: pytest.MonkeyPatch, tiny: Cell, kind: type[Workload]
) -> None:
    held: list[list[str]] = []
    put(monkeypatch, "evict", lambda directory: held.append(in_use(directory)))
    measure(FakeBenchmark(), kind(dataclasses.replace(tiny, terms=Terms(cold=True))), Rounds(2, 0))
    assert held[:3] == [[], [], []]


def in_use(directory: str) -> list[str]:
    """What this process maps or has open below the directory."""
    descriptors = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    opened = [os.readlink(descriptor) for descriptor in descriptors if os.path.lexists(descriptor)]
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [entry for entry in (*opened, *mapped) if directory in entry]


@every((ReadOne, ReadBatch))
def test_a_warm_reader_stays_open_and_a_cold_one_is_opened_anew(tiny: Cell, kind: type[Any]) -> None:
    for cold, expected in ((False, 1), (True, 3)):
        workload = kind(dataclasses.replace(tiny, terms=Terms(cold=cold)))
        readers = []
        for _ in range(3):
            workload.prepare()
            readers.append(workload.reader)
        assert len({id(reader) for reader in readers}) == expected
        workload.finish()
        assert workload.reader is None


def roomy(monkeypatch: pytest.MonkeyPatch, disk: int = 1 << 60, memory: int = 1 << 60) -> None:
    put(monkeypatch, "free_disk", lambda directory: disk)
    put(monkeypatch, "free_memory", lambda: memory)


@pytest.fixture
def large() -> Cell:
    """A cell of 2 GiB of pixels that takes no memory: a million images of 2 KiB."""
    images = np.broadcast_to(np.zeros((32, 64), np.uint8), (1 << 20, 32, 64))
    return Cell("floor", floor, images, np.zeros(1 << 20, np.int64), "/", Terms())


@pytest.mark.parametrize(
    ("disk", "memory", "reason"),
    [
        (64 << 30, 64 << 30, None),
        # three stores at once, each with a block of the file system for every file
        (3 * (6 << 30) + (256 << 20), 64 << 30, None),
        (3 * (6 << 30) + (256 << 20) - 1, 64 << 30, "needs 18688 MiB of disk, 18687 MiB are free"),
        (0, 0, "needs 18688 MiB of disk, 0 MiB are free"),
        # the images once more, as they are read
        (64 << 30, (4 << 30) + (256 << 20), None),
        (64 << 30, (4 << 30) + (256 << 20) - 1, "needs 4352 MiB of memory, 4351 MiB are free"),
    ],
)
def test_a_cell_needs_room(
    monkeypatch: pytest.MonkeyPatch, large: Cell, disk: int, memory: int, reason: str | None
) -> None:
    roomy(monkeypatch, disk, memory)
    assert missing_room(large) == reason


def test_each_copy_needs_room(monkeypatch: pytest.MonkeyPatch, large: Cell) -> None:
    roomy(monkeypatch, disk=256 << 20)
    assert missing_room(large, 0) is None
    assert missing_room(large, 1) == "needs 6400 MiB of disk, 256 MiB are free"


def test_each_batch_needs_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for each reader: of ten images of 64 MiB, 256 are 16 GiB."""
    images = np.broadcast_to(np.zeros((8192, 8192), np.uint8), (10, 8192, 8192))
    cell = Cell("floor", floor, images, np.zeros(10, np.int64), "/", Terms())
    roomy(monkeypatch, memory=(96 << 30) + (256 << 20))
    assert missing_room(cell) is None and missing_room(cell, batches=3) is None
    assert missing_room(cell, batches=4) == "needs 131328 MiB of memory, 98560 MiB are free"


def test_what_is_read_in_parts_needs_room_for_a_part(monkeypatch: pytest.MonkeyPatch, large: Cell) -> None:
    cell = dataclasses.replace(large, images=Repeated(large.images, 3 * len(large.images)))  # 6 GiB
    roomy(monkeypatch, memory=(1 << 30) + (256 << 20))
    assert missing_room(cell) is None
    roomy(monkeypatch, memory=(1 << 30) + (256 << 20) - 1)
    assert missing_room(cell) == "needs 1280 MiB of memory, 1279 MiB are free"


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at once are two images, about."""
    put(monkeypatch, "WHOLE_BYTES", 0)
    put(monkeypatch, "PART_BYTES", 2 * 6 * 4 * 3)


def lie_about(label: int) -> Callable[[list[Array], Array], tuple[list[Array], Array]]:
    """Of the image with this label a pixel is wrong."""
    return lambda images, labels: (
        [flipped(image) if own == label else image for image, own in zip(images, labels, strict=True)],
        labels,
    )


@every((ReadMany, StoreMany))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("images", [PIXELS, MIXED], ids=["uniform", "mixed"])
@pytest.mark.parametrize("lie", [None, 3, 5], ids=["none", "in the first part", "in the last part"])
def test_a_large_store_is_read_and_checked_in_parts(
    tmp_path: Path, quick: None, in_parts: None, kind: type[Workload], backend: str, images: Any, lie: Any
) -> None:
    cell = Cell(backend, BACKENDS[backend], images, LABELS, str(tmp_path), Terms())
    cell.store()
    lying = dataclasses.replace(cell, backend=Lying(cell.backend, "open_reader", lie_about(lie)))
    with contextlib.nullcontext() if lie is None else pytest.raises(WrongResultError):
        measure(FakeBenchmark(), kind(lying), ONCE)
    assert os.listdir(tmp_path) == ["stored"]


def test_a_large_store_of_more_images_is_found_out(tiny: Cell, quick: None, in_parts: None) -> None:
    floor.store_many(tiny.stored, [*PIXELS, PIXELS[0]], [*LABELS, 0])
    with pytest.raises(WrongResultError, match="6 images instead of 5"):
        measure(FakeBenchmark(), ReadMany(tiny), ONCE)


class Watching:
    """A backend that notes, as each part is read, how many of those before are still in memory."""

    def __init__(self) -> None:
        self.parts, self.alive = list[Any](), list[int]()

    def open_reader(self, root: str, verify: bool) -> Any:
        return contextlib.nullcontext(self)

    def read_many(self, image_ids: Array) -> tuple[Array, Array]:
        self.alive.append(sum(part() is not None for part in self.parts))
        images = PIXELS[image_ids]
        self.parts.append(weakref.ref(images))
        return images, LABELS[image_ids]


def test_each_part_is_let_go_of_before_the_next(tiny: Cell, in_parts: None) -> None:
    watching = Watching()
    ReadMany(dataclasses.replace(tiny, backend=watching)).call(tiny.stored)
    assert watching.alive == [0, 0, 0]


@pytest.mark.parametrize(
    ("images", "whole", "part", "expected"),
    [
        (PIXELS, 0, 1, 5),
        (PIXELS, 0, 150, 3),
        (PIXELS, 5 * 72 - 1, 150, 3),
        (PIXELS, 5 * 72, 150, 1),
        (MIXED, 0, 1, 5),
        (MIXED, 0, 150, 2),
        (MIXED, 1 << 30, 150, 1),
        (Repeated(PIXELS, 11), 0, 150, 6),
    ],
)
def test_parts_are_all_images_in_order(
    monkeypatch: pytest.MonkeyPatch, images: Any, whole: int, part: int, expected: int
) -> None:
    put(monkeypatch, "WHOLE_BYTES", whole)
    put(monkeypatch, "PART_BYTES", part)
    parts = parts_of(images)
    assert np.concatenate(parts).tolist() == list(range(len(images)))
    assert len(parts) == expected


@pytest.mark.parametrize("images", [MIXED, Repeated(MIXED, 3 * COUNT)], ids=["mixed", "repeated"])
def test_a_mixed_cell_needs_the_room_of_all_its_images(monkeypatch: pytest.MonkeyPatch, images: Any) -> None:
    cell = Cell("floor", floor, images, np.zeros(len(images), np.int64), "/", Terms())
    size = sum(image.nbytes for image in images)
    needed = 3 * (size + len(images) * 4096) + (256 << 20)
    roomy(monkeypatch, disk=needed)
    assert missing_room(cell) is None
    roomy(monkeypatch, disk=needed - 1)
    assert "disk" in (missing_room(cell) or "")


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, tiny: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        os.mkdir(target)
        raise OSError("full")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="full"):
        StoreSingle(tiny)
    assert os.listdir(tmp_path) == ["stored"]


def test_free_room_is_what_the_system_says(tmp_path: Path) -> None:
    status, page = os.statvfs(tmp_path), os.sysconf("SC_PAGE_SIZE")
    assert machine.free_disk(str(tmp_path)) == pytest.approx(status.f_bavail * status.f_frsize, rel=0.1)
    assert os.sysconf("SC_AVPHYS_PAGES") * page / 2 < machine.free_memory() <= os.sysconf("SC_PHYS_PAGES") * page


def test_disk_bytes_are_those_that_files_take(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "full").write_bytes(os.urandom(8192))
    shutil.copy(tmp_path / "full", tmp_path / "deep" / "full")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 30)
    machine.settle()
    assert 2 * 8192 <= machine.disk_bytes(str(tmp_path)) < 1 << 20
