"""SIGKILL at random moments of a call, and before each of its system calls."""

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from imgstore.tests.faults.changes import Case, MakeCase
from imgstore.tests.faults.children import Child, Ended, calls_of, forked, injected
from imgstore.tests.faults.tally import Tally, Tries

LARGE_SIDE = 64  # pixels, of images that take some time to write
KILLS = Tries(200, 5, 60, 3)  # in each call
STEP = Tries(1, 10, 1, 10)  # from one to the next of its system calls
LONGER, SHORTER = 1.02, 0.9  # the time drawn from, so that one child in six is done before it is killed


def test_random_moment(
    case: MakeCase, tmp_path: Path, name: str, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    of = case(tmp_path / "store", LARGE_SIDE)
    kills = KILLS.of(of.store, is_long)
    spans = [duration(of, durable) for durable in (False, True)]
    while kills:
        durable = int(random.integers(2))
        of.lay()
        if killed(partial(of.make, durable=bool(durable)), random.uniform(0, spans[durable])):
            kills -= 1
            spans[durable] *= LONGER
            tally.judge(f"killed in {name}", of.store, forked(of.aftermath))
        else:
            spans[durable] *= SHORTER


def duration(case: Case, durable: bool) -> float:
    """Seconds that the call takes in a child that nobody kills."""
    case.lay()
    child = Child(partial(case.make, durable=durable))
    start = time.perf_counter()
    child.go()
    assert child.answer() is None
    return time.perf_counter() - start


def killed(call: Callable[[], None], seconds: float) -> bool:
    """Whether a child was killed so long after it set out, and had not answered by then."""
    child = Child(call)
    child.go()
    time.sleep(seconds)
    child.kill()
    return isinstance(child.answer(), Ended)


@pytest.mark.usefixtures("strace")
def test_each_system_call(
    case: MakeCase, in_memory: Path, name: str, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    of, log = case(in_memory / "store", durable=False), in_memory / "log"
    step = STEP.of(of.store, is_long)
    of.lay()
    for call in calls_of(of.make, log)[int(random.integers(step)) :: step]:
        of.lay()
        assert injected(of.make, log, call, "signal=SIGKILL") == Ended(-signal.SIGKILL)
        tally.judge("killed at a system call", of.store, forked(of.aftermath))
