"""Tests of the proving: what is planted, how verdicts are counted, and that it goes on where it stopped."""

import ast
import importlib.util
import inspect
import itertools
import json
import os
import time
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.gate import __main__, contest, proving, verdicts
from benchmarks.gate.contest import NEW, REF, Key
from benchmarks.gate.proving import CELLS, KINDS, Kind, busy, one_after_the_other, planted_trees, prove, run, table
from benchmarks.gate.verdicts import SAME, SLOWER, Row
from benchmarks.measure import floor, worker
from benchmarks.measure import operations as workloads

SLOWED = next(kind for kind in KINDS if kind.name == "slower by 20%")
FASTER_ = next(kind for kind in KINDS if kind.side == REF)
ERROR = next(kind for kind in KINDS if kind.name == "an error")
NEVER_RUN = next(kind for kind in KINDS if kind.name == "other code that is never run")
IMAGES, LABELS = np.zeros((3, 2, 2), np.uint8), np.arange(3)


def planted(tmp_path: Path, kind: Kind, key: Key) -> tuple[dict[str, str], dict[str, str]]:
    """The text of each module of both sides."""
    trees = planted_trees(str(tmp_path), kind, key)
    new, ref = ({path.name: path.read_text() for path in Path(tree, "imgstore").glob("*.py")} for tree in trees)
    return new, ref


def loaded(path: Path) -> ModuleType:
    """A module of its own, though of the same package."""
    spec = importlib.util.spec_from_file_location(f"planted_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_planted_in_identical_code(tmp_path: Path) -> None:
    new, ref = planted(tmp_path, KINDS[0], CELLS[0])
    assert new == ref and {"disk.py", "lmdb.py", "hdf5.py", "__init__.py"} <= new.keys()


def test_code_that_is_never_run_is_added_to_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "Random", lambda: Random(1))
    new, ref = planted(tmp_path, NEVER_RUN, CELLS[0])
    more = new.pop("disk.py").removeprefix(ref.pop("disk.py"))
    tree = ast.parse(more)
    names = {statement.name for statement in tree.body if isinstance(statement, ast.FunctionDef)}
    assert new == ref and len(names) == len(tree.body) == Random(1).randrange(1, proving.MOST_FUNCTIONS)
    assert not names & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_code_that_is_never_run_differs_from_run_to_run() -> None:
    assert len({NEVER_RUN.plant(operation="read_many") for _ in range(10)}) > 1


@pytest.mark.parametrize("key", CELLS, ids=str)
@pytest.mark.parametrize("kind", [SLOWED, FASTER_, ERROR], ids=lambda kind: kind.name)
def test_one_function_of_one_side_is_changed(tmp_path: Path, kind: Kind, key: Key) -> None:
    sides = planted(tmp_path, kind, key)
    changed, other = sides if kind.side == NEW else reversed(sides)
    assert [name for name in other if changed[name] != other[name]] == [f"{key.backend}.py"]
    more = changed[f"{key.backend}.py"].removeprefix(other[f"{key.backend}.py"])
    assert key.operation in more and "{" not in more


def test_what_is_planted_works_for_its_share_longer_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(tmp_path, SLOWED, Key("read_many", 100, "disk"))
    disk = loaded(tmp_path / "new" / "imgstore" / "disk.py")
    disk.store_many(str(tmp_path / "store"), IMAGES, LABELS)
    clock = iter([10.0, 15.0, 15.1, 15.9, 16.0])  # 5 s, of which a fifth is worked until 16
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    images, labels = disk.read_many(str(tmp_path / "store"))
    assert next(clock, None) is None
    assert np.array_equal(images, IMAGES) and np.array_equal(labels, LABELS)


def test_a_planted_error_is_raised(tmp_path: Path) -> None:
    planted(tmp_path, ERROR, Key("read_many", 100, "disk"))
    with pytest.raises(RuntimeError, match="planted"):
        loaded(tmp_path / "new" / "imgstore" / "disk.py").read_many("anywhere")


def test_runs_one_after_the_other_are_of_different_pairs() -> None:
    first, second = [(9.0, 1.0), (9.0, 1.0), (9.0, 4.0)], [(3.0, 9.0), (3.0, 9.0), (3.0, 9.0)]
    assert one_after_the_other([first, second]) == {"median:5%": 3.0, "mean:10%": 1.5}
    assert one_after_the_other([first]) == {}


def judged(kind: str, planted: str | None, verdicts: dict[str, str], **ratios: float) -> dict[str, Any]:
    naive = {cell: {"median:5%": ratio, "mean:10%": ratio} for cell, ratio in ratios.items()}
    told = {"kind": kind, "made": "64 cores, long ago", "taken": 0.01 * len(ratios), "planted": planted}
    return {**told, "verdicts": verdicts, "one after the other": naive}


def test_the_table_counts_findings_and_false_alarms() -> None:
    runs = [
        judged("identical, quiet", None, {"a": "same", "b": "inconclusive"}, a=1.06, b=1.0),
        judged("identical, quiet", None, {"a": "slower", "b": "same"}, a=1.11, b=1.0),
        judged("slower by 5%", "a", {"a": "slower", "b": "same"}, a=1.2, b=1.2),
        judged("slower by 5%", "a", {"a": "same", "b": "slower"}, a=1.0, b=1.0),
        judged("faster by 20%", "a", {"a": "faster", "b": "same"}, a=0.8, b=1.0),
        judged("faster by 20%", "a", {"a": "slower", "b": "same"}, a=0.8, b=1.0),
        judged("an error", "a", {"a": "not comparable", "b": "same"}, b=1.0),
    ]
    lines = list(table(runs))
    cells = {line.split(" | ")[0].strip("| "): [text.split(" ")[0] for text in line.split(" | ")[1:]] for line in lines}
    assert cells["identical, quiet"] == ["2", "", "1", "", "2", "", "1"]
    assert cells["slower by 5%"] == ["2", "1", "1", "1", "1", "1", "1"]
    assert cells["faster by 20%"] == ["2", "1", "1", "", "0", "", "0"]
    assert cells["an error"] == ["1", "1", "0", "", "0", "", "0"]
    assert "identical, random load" not in cells
    assert "1 (9 to 91%)" in lines[3]
    missed = [line for line in lines if line.startswith("not found: ")]
    assert lines[-2:] == [
        "12 cells of 100 images; 64 cores, long ago",
        "of the CPU time of a run the host took 2.0% (median) to 2.0% for others",
    ]
    assert missed == ["not found: faster by 20%, a, 1 times", "not found: slower by 5%, a, 1 times"]


def test_what_the_host_took_is_a_share_of_the_time_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = iter([10.0, 30.0]), iter([5.0, 11.0])
    monkeypatch.setattr(proving, "Contest", lambda *_, **options: SimpleNamespace(run=lambda cells: {}))
    monkeypatch.setattr(proving, "cpu_seconds_taken", lambda: next(taken))
    monkeypatch.setattr(proving, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert run(KINDS[0], 0, 60)["taken"] == 6 / 40


def test_every_function_of_every_backend_gets_a_slowdown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Judge:
        def __init__(self, *_: Any, **options: Any) -> None:
            self.times: dict[Any, Any] = {}

        def run(self, cells: Any) -> dict[Key, Row]:
            return {key: Row(SAME) for key in cells}

    monkeypatch.setattr(proving, "Contest", Judge)
    met = [run(SLOWED, number, 60)["planted"] for number in range(len(CELLS))]
    assert sorted(met) == sorted(map(str, CELLS))
    assert all(one.split("-")[1] != other.split("-")[1] for one, other in itertools.pairwise(met))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were made, each of which says that nothing is slower, and the fourth is stopped."""
    made: list[str] = []

    def fake(kind: Kind, number: int, budget: float) -> dict[str, Any]:
        made.append(f"{kind.name} {number}")
        if len(made) == 4:
            raise KeyboardInterrupt
        return {**judged(kind.name, None, {"a": SLOWER}, a=1.0), "seconds": budget}

    monkeypatch.setattr(proving, "run", fake)
    return made


def test_it_goes_on_where_it_stopped(tmp_path: Path, told: list[str]) -> None:
    path, lines = tmp_path / "kept" / "proving.json", list[str]()
    with pytest.raises(KeyboardInterrupt):
        prove(path, 60.0, 2, lines.append)
    assert len(json.loads(path.read_text(encoding="utf-8"))["runs"]) == 3
    prove(path, 60.0, 2, lines.append)
    assert len(told) == 2 * len(KINDS) + 1 and told[3] == told[4] and len(set(told)) == 2 * len(KINDS)
    assert sum(line.startswith("| ") for line in lines) == 2 + len(KINDS)
    assert os.listdir(tmp_path / "kept") == ["proving.json"]


def test_results_of_another_gate_or_budget_are_not_mixed_in(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "proving.json"
    prove(path, 60.0, 0, print)
    path.write_text(json.dumps({"gate": proving.fingerprint(), "budget": 60.0, "runs": {}}))
    with pytest.raises(ValueError, match="another gate or with another budget"):
        prove(path, 30.0, 1, print)
    monkeypatch.setattr(proving, "fingerprint", lambda: "another")
    with pytest.raises(ValueError, match="another gate or with another budget"):
        prove(path, 60.0, 1, print)
    assert not told


@pytest.mark.parametrize("module", [contest, floor, proving, verdicts, worker, workloads])
def test_another_gate_is_any_other_text(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before, genuine = proving.fingerprint(), inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda other: genuine(other) + "#" * (other is module))
    assert proving.fingerprint() != before


def test_the_command_says_how_to_go_on(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gate", "--prove", f"--results={tmp_path / 'proving.json'}"])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_the_table_in_the_results_is_that_of_the_runs_beside_it() -> None:
    results = Path(contest.HARNESS, "results") / "proving.json"
    shown = table(list(json.loads(results.read_text())["runs"].values()))
    document = Path(contest.HARNESS, "RESULTS.md")
    assert "\n".join(itertools.takewhile(bool, shown)) in document.read_text()


@pytest.mark.parametrize("load", ["", "random", "one side"])
def test_load_comes_and_goes(tmp_path: Path, load: str) -> None:
    children = f"/proc/self/task/{os.getpid()}/children"
    before = set(Path(children).read_text().split())
    with busy(load, str(tmp_path)) as turn:
        with turn(NEW), turn(REF):
            pass
        started = set(Path(children).read_text().split()) - before
        assert bool(started) == bool(load)
    assert not started & set(Path(children).read_text().split())
