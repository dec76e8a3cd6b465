"""How often the gate's verdicts are right: it judges planted changes, many times, and the rates are counted.

Every run compares two copies of the working tree's `imgstore`, one of them with a planted change or neither. What
`--benchmark-compare-fail` would have said is worked out from the same runs: REF's rounds in the first pair of
processes against the working tree's rounds in the second, as two runs one after the other would have had them.
"""

import contextlib
import hashlib
import inspect
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import date
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any, NamedTuple

import imgstore
from benchmarks.gate import contest, verdicts
from benchmarks.gate.contest import HARNESS, NEW, REF, Contest, Key, Trees, copy_package
from benchmarks.gate.verdicts import FASTER, NOT_COMPARABLE, SLOWER, Verdict, wilson
from benchmarks.measure import floor, worker
from benchmarks.measure import operations as workloads
from benchmarks.measure.cell import Terms
from benchmarks.measure.synthetic import synthetic

CUTOFF = 100
OPERATIONS = ("read_many", "store_many", "read_single", "store_single")  # each a backend's function
CELLS = tuple(Key(operation, CUTOFF, backend) for operation in OPERATIONS for backend in imgstore.BACKENDS)
RULES: dict[str, tuple[Callable[[Iterable[float]], float], float]] = {
    "median:5%": (median, 1.05),
    "mean:10%": (fmean, 1.10),
}
SLOW = """

def _planted(genuine):
    import time

    def slowed(*arguments, **options):
        start = time.perf_counter()
        result = genuine(*arguments, **options)
        now = time.perf_counter()
        end = now + {share} * (now - start)
        while time.perf_counter() < end:
            pass
        return result

    return slowed


{operation} = _planted({operation})
"""
BROKEN = """

def {operation}(*arguments, **options):
    raise RuntimeError("planted")
"""
MOST_FUNCTIONS = 200
FORK = multiprocessing.get_context("fork")  # so that the parent of what makes the load is this process
LONGEST_BURST_SECONDS = 1.0
BURST_BYTES = 8 << 20


def functions_never_called(operation: str) -> str:
    """As many as chance will, in each run: what `operation` runs is the same, but its memory lies elsewhere."""
    many = range(Random().randrange(1, MOST_FUNCTIONS))
    return "".join(f"\n\ndef _never_called_{number}(value):\n    return value + {number}\n" for number in many)


class Kind(NamedTuple):
    """Runs of one sort. plant: source text for one side's module, given `operation`. load: what keeps the machine busy.

    expected: the verdict on that operation's cell, or none where nothing that it runs is changed.
    """

    name: str
    runs: int
    expected: Verdict | None = None
    plant: Callable[..., str] = "".format
    side: int = NEW
    load: str = ""


KINDS = (
    Kind("identical, quiet", 20),
    Kind("identical, random load", 10, load="random"),
    Kind("identical, load in one side's turns", 10, load="one side"),
    Kind("other code that is never run", 10, plant=functions_never_called),
    Kind("slower by 5%", 30, SLOWER, partial(SLOW.format, share=0.05)),
    Kind("slower by 10%", 30, SLOWER, partial(SLOW.format, share=0.10)),
    Kind("slower by 20%", 30, SLOWER, partial(SLOW.format, share=0.20)),
    Kind("faster by 20%", 12, FASTER, partial(SLOW.format, share=0.25), REF),
    Kind("an error", 12, NOT_COMPARABLE, BROKEN.format),
)


def prove(path: Path, budget: float, most: int, show: Callable[[str], None]) -> None:
    """Make the runs that are missing in `path`, at most `most` of a kind; each is saved. Then show the rates.

    budget: seconds of a run. The kinds take turns, so that a proving cut short has runs of each.
    """
    made_by = {"gate": fingerprint(), "budget": budget}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**made_by, "runs": {}}
    if any(results[name] != value for name, value in made_by.items()):
        raise ValueError(f"{path} was made by another gate or with another budget; name another file")
    for number in range(most):
        for kind in (kind for kind in KINDS if number < kind.runs):
            name = f"{kind.name}, run {number + 1}"
            if name not in results["runs"]:
                results["runs"][name] = judged = run(kind, number, budget)
                save(path, results)
                show(f"{name}: {judged['seconds']:.0f} s, {', '.join(loud(judged)) or 'nothing'}")
    for line in table(list(results["runs"].values())):
        show(line)


def fingerprint() -> str:
    """Of what measures, plants and decides, so that the results of two gates are never counted together."""
    digest = hashlib.sha256()
    for module in (contest, floor, verdicts, worker, workloads, sys.modules[__name__]):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]


def save(path: Path, results: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results), encoding="utf-8")
    new.replace(path)


def run(kind: Kind, number: int, budget: float) -> dict[str, Any]:
    """One comparison: what was planted, and what was said of each cell."""
    planted = CELLS[5 * number % len(CELLS)]  # another backend each time
    start, taken = time.monotonic(), cpu_seconds_taken()
    with tempfile.TemporaryDirectory(prefix="imgstore-") as directory, busy(kind.load, directory) as turn:
        trees = planted_trees(directory, kind, planted)
        judge = Contest(trees, directory, synthetic(CUTOFF), Terms(), budget, turn=turn)
        rows = judge.run(CELLS)
    seconds = time.monotonic() - start
    return {
        "kind": kind.name,
        "made": f"{machine()}, {date.today()}",
        "planted": str(planted) if kind.expected else None,
        "seconds": round(seconds, 1),
        "taken": round((cpu_seconds_taken() - taken) / (seconds * (os.cpu_count() or 1)), 4),
        "verdicts": {str(key): row.verdict for key, row in rows.items()},
        "reasons": {str(key): row.reason for key, row in rows.items() if row.reason},
        "changes": {str(key): rounded(asdict(row.change)) for key, row in rows.items() if row.change},
        "one after the other": {str(key): one_after_the_other(judge.times.get(key, [])) for key in rows},
    }


def machine() -> str:
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def cpu_seconds_taken() -> float:
    """By the host, for others, since this machine began: `steal` of proc(5)."""
    with open("/proc/stat", encoding="ascii") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


def loud(judged: Mapping[str, Any]) -> list[str]:
    return [f"{cell} {verdict}" for cell, verdict in judged["verdicts"].items() if verdict in (SLOWER, FASTER)]


def planted_trees(directory: str, kind: Kind, planted: Key) -> Trees:
    """Two copies of the package and of what measures it, with what is planted in one side's module.

    The contract gives the place: what measures a format calls the verbs by their names in the module that BACKENDS
    holds, whoever defined them. So text at the module's end can wrap a verb, and can take its place.
    """
    trees = Trees(os.path.join(directory, "new"), os.path.join(directory, "ref"))
    for tree in trees:
        for package in (os.path.dirname(imgstore.__file__), HARNESS):
            copy_package(package, tree)
    module = os.path.join(trees[kind.side], "imgstore", f"{planted.backend}.py")
    with open(module, "a", encoding="utf-8") as file:
        file.write(kind.plant(operation=planted.operation))
    return trees


def one_after_the_other(times: Sequence[Sequence[tuple[float, float]]]) -> dict[str, float]:
    """For each rule, how many times as long a run of the working tree takes as the run of REF before it."""
    if len(times) < 2:
        return {}
    ref, new = [ref for _, ref in times[0]], [new for new, _ in times[1]]
    return rounded({rule: middle(new) / middle(ref) for rule, (middle, _) in RULES.items()})


def rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """With as many digits as a file of results needs."""
    return {name: round(number, 5) for name, number in numbers.items()}


@contextlib.contextmanager
def busy(load: str, directory: str) -> Iterator[Callable[[int], AbstractContextManager[object]]]:
    """Keep every core busy now and then, or in the working tree's turns; gives the context of a turn."""
    go = FORK.Event()
    work: dict[str, Callable[[int], None]] = {"random": partial(burst, directory), "one side": partial(burn, go)}
    cores = range(os.cpu_count() or 1) if load else ()
    processes = [FORK.Process(target=work[load], args=(os.getpid(),), daemon=True) for _ in cores]
    try:
        for process in processes:
            process.start()
        yield partial(in_turn, go)
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextlib.contextmanager
def in_turn(go: Event, side: int) -> Iterator[None]:
    if side == NEW:
        go.set()
    yield
    go.clear()


def burst(directory: str, parent: int) -> None:
    """Compute, write and rest, for random times, as long as `parent` lives."""
    draw = Random()
    while os.getppid() == parent:
        end = time.monotonic() + draw.uniform(0, LONGEST_BURST_SECONDS)
        while time.monotonic() < end:
            pass
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(draw.randbytes(BURST_BYTES))
            file.flush()
            os.fsync(file.fileno())
        time.sleep(draw.uniform(0, LONGEST_BURST_SECONDS))


def burn(go: Event, parent: int) -> None:
    """Compute as long as it is told to and `parent` lives."""
    while os.getppid() == parent:
        if go.wait(LONGEST_BURST_SECONDS):
            end = time.monotonic() + LONGEST_BURST_SECONDS
            while go.is_set() and time.monotonic() < end:
                pass


def table(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rates with their 95% intervals, in Markdown; a false alarm is a run with one in any cell."""
    judges = ("the gate", *RULES)
    yield f"| planted | runs | {' | '.join(f'{judge}: found | false alarm' for judge in judges)} |"
    yield f"| --- | ---: |{' ---: | ---: |' * len(judges)}"
    for kind in KINDS:
        if those := [run for run in runs if run["kind"] == kind.name]:
            counted = [text for judge in judges for text in counts(kind, those, judge)]
            yield f"| {kind.name} | {len(those)} | {' | '.join(counted)} |"
    yield ""
    expected = {kind.name: kind.expected for kind in KINDS}
    missed = [run for run in runs if run["planted"] and run["verdicts"][run["planted"]] != expected[run["kind"]]]
    for (kind, planted), count in sorted(Counter((run["kind"], run["planted"]) for run in missed).items()):
        yield f"not found: {kind}, {planted}, {count} times"
    yield "; ".join([f"{len(CELLS)} cells of {CUTOFF} images", *sorted({run["made"] for run in runs})])
    if taken := [100 * run["taken"] for run in runs]:
        yield f"of the CPU time of a run the host took {median(taken):.1f}% (median) to {max(taken):.1f}% for others"


def counts(kind: Kind, runs: Sequence[Mapping[str, Any]], judge: str) -> tuple[str, str]:
    """How often a judge found what was planted, and how often it raised a false alarm."""
    right = false = 0
    for run in runs:
        alarms, planted = alarmed(run, judge), {run["planted"]}
        by_time = kind.expected == SLOWER
        right += bool(alarms & planted) if by_time else run["verdicts"].get(run["planted"]) == kind.expected
        false += bool(alarms - planted if by_time else alarms)
    able = kind.expected and (judge not in RULES or kind.expected == SLOWER)
    return rate(right, len(runs)) if able else "", rate(false, len(runs))


def rate(count: int, runs: int) -> str:
    low, high = wilson(count, runs)
    return f"{count} ({100 * low:.0f} to {100 * high:.0f}%)"


def alarmed(run: Mapping[str, Any], judge: str) -> set[str]:
    """The cells that a judge calls slower."""
    if judge not in RULES:
        return {cell for cell, verdict in run["verdicts"].items() if verdict == SLOWER}
    limit = RULES[judge][1]
    return {cell for cell, ratios in run["one after the other"].items() if ratios.get(judge, 0) > limit}
