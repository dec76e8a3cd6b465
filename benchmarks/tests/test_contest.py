"""Tests of a contest between two copies of the package: with simulated processes, and with real ones."""

import math
import os
import pickle
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

import imgstore
from benchmarks.gate import contest
from benchmarks.gate.contest import HARNESS, NEW, CannotStartError, Contest, Key, Trees, copy_package
from benchmarks.gate.verdicts import FASTER, FEWEST_PAIRS, INCONCLUSIVE, NOT_COMPARABLE, SAME, SLOWER, Series
from benchmarks.measure import worker
from benchmarks.measure.cell import Terms
from benchmarks.measure.checks import WrongResultError
from benchmarks.measure.operations import OPERATIONS
from benchmarks.measure.storing import StoreMany
from benchmarks.measure.synthetic import synthetic
from benchmarks.measure.worker import SLICE, Bench, CannotRunError, OutOfTimeError, ReadSlice, Worker, WorkerGoneError

SOURCE = synthetic(10)
KEYS = [Key(operation, 10, backend) for operation in ("read_one", "store_many") for backend in ("disk", "lmdb")]
PATIENCE = 30.0
CALL_SECONDS = 0.001
SLOW = """

_genuine = read_many


def read_many(*arguments, **options):
    import time

    time.sleep(0.01)
    return _genuine(*arguments, **options)
"""


@dataclass
class World:
    """What simulated processes do: how long each side takes, and what it cannot run."""

    factor: Callable[[str, Key], float] = lambda tree, key: 1.0
    fails: dict[tuple[str, str], Exception] = field(default_factory=dict)
    spread: float = 0.01
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    started: list[tuple[str, str, int]] = field(default_factory=list)
    deadlines: set[float] = field(default_factory=set)
    cores: list[int] = field(default_factory=list)
    busy: float = 1.0
    random: Random = field(default_factory=lambda: Random(1))


class Simulated:
    """As `Worker`, without a process."""

    world: World

    def __init__(
        self, name: str, tree: str, folder: str, source: str, terms: Terms, seed: int, deadline: float, core: int
    ) -> None:
        self.world.deadlines.add(deadline)
        self.world.cores.append(core)
        self.name, self.tree, self.folder, self.gone = name, tree, folder, False
        self.world.started.append((tree, os.path.basename(folder), seed))
        self.mood = self.world.random.gauss(0, self.world.spread)

    def ask(self, request: str, *arguments: Any) -> Any:
        self.world.asked.append((self.tree, request, *arguments))
        if request == "open":
            self.key = Key(*arguments)
        assert not self.gone
        if (self.tree, request) in self.world.fails and (request == "ready" or self.key.backend == "disk"):
            error = self.world.fails[self.tree, request]
            self.gone = isinstance(error, WorkerGoneError)
            raise error
        if request == "ready":
            return None
        if request == "pilot":
            return CALL_SECONDS, CALL_SECONDS
        noise = math.exp(self.mood + self.world.random.gauss(0, self.world.spread))
        return CALL_SECONDS * self.world.factor(self.tree, self.key) * self.world.busy * noise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(Simulated, "world", world, raising=False)
    monkeypatch.setattr(contest, "Worker", Simulated)
    return world


def made(tmp_path: Path, **options: Any) -> Contest:
    return Contest(Trees("new", "ref"), str(tmp_path), SOURCE, Terms(), **{"budget": 60.0, **options})


def verdicts(judge: Contest) -> dict[str, str]:
    return {str(key): row.verdict for key, row in judge.run(KEYS).items()}


def test_identical_code_is_the_same_after_the_screening(tmp_path: Path, world: World) -> None:
    judge = made(tmp_path)
    assert set(verdicts(judge).values()) == {SAME}
    assert judge.pairs == contest.SCREENING_PAIRS
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("side", "expected"), [("new", SLOWER), ("ref", FASTER)])
def test_a_slow_side_is_found_and_nothing_else(tmp_path: Path, world: World, side: str, expected: str) -> None:
    world.factor = lambda tree, key: 1.1 if tree == side and key == KEYS[1] else 1.0
    found = verdicts(made(tmp_path))
    assert found.pop(str(KEYS[1])) == expected and set(found.values()) == {SAME}


def test_a_found_cell_had_fresh_pairs_and_both_controls(tmp_path: Path, world: World) -> None:
    world.factor = lambda tree, key: 1.1 if tree == "new" and key == KEYS[1] else 1.0
    judge = made(tmp_path)
    judge.run(KEYS)
    series = judge.cells[KEYS[1]]
    assert len(series.screened) == contest.SCREENING_PAIRS and len(series.fresh) == contest.MOST_PAIRS
    assert len(series.control) == contest.MOST_PAIRS // 2
    assert len(judge.floors[KEYS[1].floor]) == contest.MOST_PAIRS
    assert abs(np.mean(series.control)) < 0.05 < np.mean(series.fresh)


def test_few_cells_at_once_are_confirmed_and_all_in_the_end(tmp_path: Path, world: World) -> None:
    world.factor = lambda tree, key: 1.2 if tree == "new" and key.backend == "disk" else 1.0
    measured: dict[int, set[str]] = {}
    judge = made(tmp_path, progress=lambda cell, pairs, left: measured.setdefault(pairs, set()).add(cell))
    rows = judge.run([Key("read_one", cutoff, "disk") for cutoff in range(1, 13)])
    assert {row.verdict for row in rows.values()} == {SLOWER}
    ours = [[cell for cell in cells if "disk" in cell] for pairs, cells in measured.items()]
    confirming = [len(cells) for cells in ours[contest.SCREENING_PAIRS :]]
    assert max(confirming) == confirming[0] == contest.MOST_AT_ONCE


def test_what_is_faster_does_not_keep_what_is_slower_from_its_turn(tmp_path: Path, world: World) -> None:
    keys = [Key("read_one", cutoff, "disk") for cutoff in range(1, 9)]
    world.factor = lambda tree, key: 1.0 if tree == "ref" or key == key.floor else 1.1 if key == keys[3] else 0.5
    confirming: dict[int, set[str]] = {}
    judge = made(tmp_path, progress=lambda cell, pairs, left: confirming.setdefault(pairs, set()).add(cell))
    assert judge.run(keys)[keys[3]].verdict == SLOWER
    assert str(keys[3]) in confirming[contest.SCREENING_PAIRS]


def test_load_in_one_sides_turns_withholds_every_verdict(tmp_path: Path, world: World) -> None:
    @contextmanager
    def loaded(side: int) -> Iterator[None]:
        world.busy = 1.5 if side == NEW else 1.0
        yield

    judge = made(tmp_path, turn=loaded)
    rows = judge.run(KEYS)
    assert {row.verdict for row in rows.values()} == {INCONCLUSIVE}
    assert all(row.reason.startswith("the control moved") for row in rows.values())


@pytest.mark.parametrize("side", ["new", "ref"])
@pytest.mark.parametrize("request_", ["open", "round"])
@pytest.mark.parametrize("error", [CannotRunError("no"), WorkerGoneError("gone")])
def test_what_a_side_cannot_run_is_struck_off(
    tmp_path: Path, world: World, side: str, request_: str, error: Exception
) -> None:
    world.fails[side, request_] = error
    rows = made(tmp_path).run(KEYS)
    for key, row in rows.items():
        struck = key.backend == "disk"
        assert row.verdict == (NOT_COMPARABLE if struck else SAME)
        assert row.reason == (str(error) if struck else "")


@pytest.mark.parametrize("unable", [("new",), ("ref",), ("new", "ref")])
def test_another_layout_is_told_from_a_side_that_cannot_read(
    tmp_path: Path, world: World, unable: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Simulated.ask

    def ask(self: Simulated, request: str, *arguments: Any) -> Any:
        if request == "read_store" and self.tree in unable and self.key.backend == "disk":
            foreign = arguments[-1] != self.folder
            if foreign or len(unable) == 2:
                raise CannotRunError("what is that?")
        return genuine(self, request, *arguments)

    monkeypatch.setattr(Simulated, "ask", ask)
    rows = made(tmp_path).run(KEYS)
    other = [row.reason.startswith("another layout on disk") for row in rows.values()]
    assert other == [key.backend == "disk" and len(unable) == 1 for key in rows]
    assert [row.verdict == NOT_COMPARABLE for row in rows.values()] == other


def test_without_either_process_there_is_no_comparison(tmp_path: Path, world: World) -> None:
    world.fails = dict.fromkeys([("new", "ready"), ("ref", "ready")], WorkerGoneError("gone"))
    with pytest.raises(CannotStartError, match="gone"):
        made(tmp_path).run(KEYS)


def test_a_pair_is_two_fresh_processes_that_swap_folders_and_share_a_hash_seed(tmp_path: Path, world: World) -> None:
    made(tmp_path).run(KEYS)
    pairs = list(zip(world.started[::2], world.started[1::2], strict=True))
    assert len(pairs) == contest.SCREENING_PAIRS
    for one, other in pairs:
        assert {one[0], other[0]} == {"new", "ref"} and {one[1], other[1]} == {"0", "1"} and one[2] == other[2]
    assert [dict([one[:2], other[:2]])["new"] for one, other in pairs] == ["0", "1", "0", "1"]
    assert len({one[2] for one, _ in pairs}) == len(pairs)


def test_both_sides_of_a_pair_run_on_one_core_of_ours(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    for seed in range(4):
        made(tmp_path, random=Random(seed)).run(KEYS)
    assert set(zip(world.cores[::2], world.cores[1::2], strict=True)) == {(3, 3), (5, 5)}


@pytest.mark.parametrize(
    ("fresh", "control", "lacking"),
    [
        ([0.10, 0.11, 0.10, 0.12], [], True),
        ([-0.10, -0.11, -0.10, -0.12], [0.01], True),
        ([0.10, 0.11, 0.10, 0.12], [0.01, 0.0, 0.01], True),
        ([0.10, 0.11, 0.10, 0.12], [0.01, 0.0, 0.01, 0.0], False),
        ([0.10, 0.11, 0.10, 0.12] * 2, [0.01, 0.0, 0.01, 0.0], False),
        ([0.10, 0.11, 0.10, 0.12] * 3, [0.01, 0.0, 0.01, 0.0], True),
        ([0.10], [], False),
        ([0.30, -0.20, 0.25, -0.10], [], False),
    ],
    ids=["slower", "faster", "too few", "enough", "half", "less than half", "one pair", "could not be found"],
)
def test_a_control_is_measured_of_what_could_be_found(fresh: list[float], control: list[float], lacking: bool) -> None:
    assert Contest._lacks_control(Series(fresh=fresh, control=control)) == lacking


def test_fresh_pairs_and_controls_swap_folders_each_by_themselves(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, now, folders = Simulated.ask, [NEW], dict[str, dict[tuple[str, int], str]]()

    @contextmanager
    def turn(side: int) -> Iterator[None]:
        now[0] = side
        yield

    def ask(self: Simulated, request: str, *arguments: Any) -> Any:
        if request == "round":
            top, folder = os.path.split(self.folder)
            folders.setdefault(top, {})[self.tree, now[0]] = folder
        return genuine(self, request, *arguments)

    monkeypatch.setattr(Simulated, "ask", ask)
    world.factor = lambda tree, key: 1.1 if tree == "new" and key == KEYS[1] else 1.0
    made(tmp_path, turn=turn).run(KEYS)
    for tree, pairs in (("new", contest.SCREENING_PAIRS + contest.MOST_PAIRS), ("ref", contest.MOST_PAIRS // 2)):
        assert "".join(sides.get((tree, NEW), "") for sides in folders.values()) == pairs // 2 * "01"


def test_the_sides_take_turns_in_any_order(tmp_path: Path, world: World) -> None:
    made(tmp_path, random=Random(0)).run(KEYS)
    opens = [tree for tree, request, *_ in world.asked if request == "open"]
    assert set(zip(opens[::2], opens[1::2], strict=True)) == {("new", "ref"), ("ref", "new")}
    rounds = [tree for tree, request, *_ in world.asked if request == "round"]
    turns = list(zip(rounds[::2], rounds[1::2], strict=True))
    assert set(turns) == {("new", "ref"), ("ref", "new")}
    assert len(turns) == len(KEYS) * contest.SCREENING_PAIRS * contest.SCREENING_ROUNDS
    assert {calls for _, request, *rest in world.asked if request == "round" for calls in rest} == {10}


@pytest.mark.parametrize(
    ("seconds", "whole", "calls", "rounds"),
    [(0.001, 0.001, 10, 50), (0.001, 0.01, 10, 5), (1e-6, 1e-6, 10_000, 50), (0.02, 0.025, 1, 20), (5.0, 9.0, 1, 3)],
)
def test_a_round_is_long_enough_to_be_timed(seconds: float, whole: float, calls: int, rounds: int) -> None:
    assert contest.plan(seconds, whole) == (calls, rounds)


def test_the_budget_ends_it(tmp_path: Path, world: World) -> None:
    judge = made(tmp_path, budget=1e-9)
    rows = judge.run(KEYS)
    assert {row.reason for row in rows.values()} == {"too little time for two pairs"} and not world.asked


@pytest.mark.parametrize(("seconds", "pairs"), [(1, 4), (3, 3), (6, 2)])
def test_half_the_budget_screens_and_two_pairs_in_any_case(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, seconds: float, pairs: int
) -> None:
    """Of a minute, where each of four cells takes so long."""
    now = [0.0]
    monkeypatch.setattr(contest, "time", SimpleNamespace(monotonic=lambda: now[0]))
    judge = made(tmp_path, progress=lambda *_: now.append(now.pop() + seconds))
    judge.run(KEYS)
    assert {len(series.screened) for series in judge.cells.values()} == {pairs}


def test_what_stays_open_is_measured_to_the_end_of_the_budget(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    world.spread = 0.3
    monkeypatch.setattr(contest, "time", SimpleNamespace(monotonic=lambda: now[0]))
    judge = made(tmp_path, progress=lambda *_: now.append(now.pop() + 1.75))
    judge.run(KEYS)
    assert not judge.left() and any(series.fresh for series in judge.cells.values())


def test_what_comes_too_late_is_struck_off_on_no_side(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(self: Simulated, request: str, *arguments: Any) -> Any:
        judge.end = 0.0
        raise OutOfTimeError

    monkeypatch.setattr(Simulated, "ask", ask)
    judge = made(tmp_path)
    assert {row.verdict for row in judge.run(KEYS).values()} == {INCONCLUSIVE}


def test_no_answer_is_waited_for_long_after_the_budget(tmp_path: Path, world: World) -> None:
    judge = made(tmp_path)
    judge.run(KEYS)
    assert world.deadlines == {judge.end + contest.SPARE_SECONDS}


def test_progress_tells_cell_pairs_and_time(tmp_path: Path, world: World) -> None:
    told: list[tuple[str, int, float]] = []
    made(tmp_path, progress=lambda *what: told.append(what)).run(KEYS)
    assert [pairs for _, pairs, _ in told] == [pair for pair in range(contest.SCREENING_PAIRS) for _ in KEYS]
    assert {cell for cell, *_ in told} == {str(key) for key in KEYS}
    assert all(0 < left <= 60 for *_, left in told)


def test_the_floor_beside_a_cell_reads_or_stores_as_it_does() -> None:
    assert Key("read_batch", 10, "lmdb").floor == Key("read_many", 10, "floor")
    assert Key("store_many", 100_000, "lmdb").floor == Key("store_single", 1000, "floor")


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source"
    path.write_bytes(pickle.dumps(SOURCE))
    return str(path)


def made_tree(path: Path) -> Path:
    for package in (os.path.dirname(imgstore.__file__), HARNESS):
        copy_package(package, str(path))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return made_tree(tmp_path / "tree")


@contextmanager
def process(tree: Path, source: str, left: float = math.inf, seed: int = 7) -> Iterator[Worker]:
    deadline, core = time.monotonic() + left, min(os.sched_getaffinity(0))
    with Worker("REF", str(tree), str(tree / "stores" / "0"), source, Terms(), seed, deadline, core) as started:
        yield started
    assert started.process.returncode is not None


def change(tree: Path, text: str, module: str = "disk.py") -> None:
    with open(tree / "imgstore" / module, "a", encoding="utf-8") as file:
        file.write(textwrap.dedent(text))


def test_a_worker_measures_the_package_of_its_tree(tree: Path, source: str, tmp_path: Path) -> None:
    told = str(tmp_path / "imported")
    change(
        tree, f"import sys\nprint(__file__, sys.modules['benchmarks.measure.floor'].__file__, file=open({told!r}, 'w'))"
    )
    with process(tree, source) as started:
        for operation in OPERATIONS:
            started.ask("open", operation, 10, "disk")
            seconds, whole = started.ask("pilot")
            assert 0 < seconds <= whole
            assert started.ask("round", 3) > 0
            assert started.ask("close") is None
    files = (tmp_path / "imported").read_text(encoding="utf-8").split()
    assert files == [str(tree / "imgstore" / "disk.py"), str(tree / "benchmarks" / "measure" / "floor.py")]


def test_a_worker_stays_on_its_core(tree: Path, source: str, tmp_path: Path) -> None:
    told = str(tmp_path / "cores")
    change(tree, f"print(*os.sched_getaffinity(0), file=open({told!r}, 'w'))")
    with process(tree, source) as started:
        started.ask("open", "read_one", 10, "disk")
    assert (tmp_path / "cores").read_text(encoding="ascii").split() == [str(min(os.sched_getaffinity(0)))]


def test_hashes_fall_as_the_seed_says(tree: Path, source: str, tmp_path: Path) -> None:
    change(tree, f"with open({str(tmp_path / 'hashes')!r}, 'a') as file:\n    print(hash('a'), file=file)\n")
    for seed in (7, 7, 8):
        with process(tree, source, seed=seed) as started:
            started.ask("open", "read_one", 10, "disk")
    one, same, another = (tmp_path / "hashes").read_text(encoding="ascii").split()
    assert one == same != another


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def read_one(*_, **__):\n    pass\ndel BACKEND, open_reader", "REF: AttributeError: "),
        ("def open_reader(root):\n    pass", "REF: TypeError: open_reader() got an unexpected keyword argument"),
        ("import nothing_of_the_kind", "REF: ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("class R(list):\n    close = list.clear\n\n\n"
         "def open_reader(*_, **__):\n    import numpy\n    return R([(numpy.zeros((1, 1)), 0)] * 10)",
         "REF: WrongResultError: "),
        ("print('no answer')\n\n\ndef open_reader(*_, **__):\n    raise ValueError('a\\nb')", "REF: ValueError: a b"),
    ],
    ids=["no verb", "signature", "import", "wrong pixels", "prints"],
)  # fmt: skip
def test_a_worker_says_what_went_wrong(tree: Path, source: str, text: str, reason: str) -> None:
    change(tree, "\n" + text)
    with process(tree, source) as started:
        with pytest.raises(CannotRunError) as caught:
            started.ask("open", "read_one", 10, "disk")
        assert str(caught.value).startswith(reason) and not isinstance(caught.value, WorkerGoneError)
        assert started.process.poll() is None


def test_a_backend_that_is_not_there_is_named(tree: Path, source: str) -> None:
    with process(tree, source) as started, pytest.raises(CannotRunError, match="REF: there is no backend 'zarr'"):
        started.ask("open", "read_one", 10, "zarr")


@pytest.mark.parametrize(
    ("ending", "reason"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"), ("os._exit(3)", "status 3")],
)
def test_a_process_that_dies_is_noticed(tree: Path, source: str, ending: str, reason: str) -> None:
    change(tree, f"\nimport os\nimport signal\n\n\ndef open_reader(*_, **__):\n    {ending}\n")
    with process(tree, source) as started:
        with pytest.raises(WorkerGoneError, match=f"REF: its process ended with {reason}"):
            started.ask("open", "read_one", 10, "disk")
        with pytest.raises(WorkerGoneError, match=f"REF: its process ended with {reason}"):
            started.ask("close")


@pytest.mark.parametrize(
    ("limit", "left", "error", "reason"),
    [(1.0, math.inf, WorkerGoneError, "REF: no answer within 1 s"), (60.0, 1.0, OutOfTimeError, None)],
)
def test_a_process_that_hangs_is_given_up(
    tree: Path,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
    limit: float,
    left: float,
    error: type[Exception],
    reason: str | None,
) -> None:
    change(tree, "\nimport time\n\n\ndef open_reader(*_, **__):\n    time.sleep(60)\n")
    monkeypatch.setattr(worker, "ANSWER_SECONDS", limit)
    with process(tree, source, left) as started, pytest.raises(error, match=reason):
        started.ask("open", "read_one", 10, "disk")


def test_a_safe_path_does_not_keep_a_worker_from_its_tree(
    tree: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    change(tree, "def read_many(root, **_): raise ValueError('of the tree')")
    with process(tree, source) as started, pytest.raises(CannotRunError, match="of the tree"):
        started.ask("open", "read_many", 10, "disk")


def test_what_a_process_forked_ends_with_it(tree: Path, source: str) -> None:
    change(tree, "\nimport os\nimport time\n\n\ndef open_reader(*_, **__):\n    os.fork()\n    time.sleep(60)\n")
    start = time.monotonic()
    with process(tree, source, left=2.0) as started, pytest.raises(OutOfTimeError):
        started.ask("open", "read_one", 10, "disk")
    assert time.monotonic() - start < PATIENCE


def test_a_worker_ends_with_the_one_that_asks(tree: Path, source: str) -> None:
    with process(tree, source) as started:
        assert started.process.stdin
        started.ask("close")
        assert os.getsid(started.process.pid) != os.getsid(0)  # so that Ctrl-C does not reach it
        started.process.stdin.close()
        assert started.process.wait(PATIENCE) == 0
        started.process.stdin = None


def test_both_sides_store_into_one_folder_and_read_each_others(tree: Path, source: str, tmp_path: Path) -> None:
    roots = []
    for side in "01":
        bench = Bench(str(tmp_path / "pair" / side), SOURCE, Terms())
        bench.open("store_many", 10, "disk")
        assert isinstance(bench.workload, StoreMany)
        roots.append(bench.workload.root)
        bench.read_store(10, "disk", str(tmp_path / "pair" / "0"))
        bench.close()
    assert roots == [str(tmp_path / "pair" / "store_many")] * 2
    (tmp_path / "pair" / "0" / "disk-10" / "stored" / "CURRENT").write_text("damaged")
    with pytest.raises(imgstore.errors.CorruptStoreError):
        bench.read_store(10, "disk", str(tmp_path / "pair" / "0"))


def test_memory_lies_elsewhere_in_each_process(tmp_path: Path) -> None:
    held = {tuple(map(len, Bench(str(tmp_path), SOURCE, Terms()).blocks)) for _ in range(10)}
    assert len(held) > 5


def test_a_round_checks_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(str(tmp_path / "0"), SOURCE, Terms())
    bench.open("read_many", 10, "disk")
    genuine = imgstore.disk.read_many
    monkeypatch.setattr(imgstore.disk, "read_many", lambda root, **_: (genuine(root)[0][::-1], genuine(root)[1]))
    with pytest.raises(WrongResultError):
        bench.round(1)


def test_large_stores_are_read_in_slices(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "0"), synthetic(SLICE), Terms(durable=False))
    bench.open("read_many", SLICE + 1, "lmdb")
    assert isinstance(bench.workload, ReadSlice) and bench.workload.images_per_call == SLICE
    images, labels = bench.workload.call(*bench.workload.prepare())
    assert len(images) == len(labels) == SLICE
    bench.workload.check((images, labels))
    with pytest.raises(WrongResultError):
        bench.workload.check((images[::-1], labels))
    bench.open("read_many", SLICE, "lmdb")
    assert not isinstance(bench.workload, ReadSlice)


def test_real_processes_that_differ_in_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow by far more than any noise, so that as few pairs do as may decide."""
    trees = Trees(str(tmp_path / "new"), str(tmp_path / "ref"))
    for path in trees:
        made_tree(Path(path))
    change(tmp_path / "new", SLOW)
    monkeypatch.setattr(contest, "SCREENING_PAIRS", 2)
    monkeypatch.setattr(contest, "CONFIRMING_ROUNDS", 3)
    monkeypatch.setattr(contest, "MOST_PAIRS", FEWEST_PAIRS + 2)
    judge = Contest(trees, str(tmp_path), SOURCE, Terms(), 60.0)
    slowed = Key("read_many", 10, "disk")
    assert judge.run([slowed])[slowed].verdict == SLOWER
    series = judge.cells[slowed]
    assert min(series.screened + series.fresh) > 1 > max(map(abs, series.control))
    assert len(series.control) == FEWEST_PAIRS
    assert sorted(os.listdir(tmp_path)) == ["new", "ref"]
