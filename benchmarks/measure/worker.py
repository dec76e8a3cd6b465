"""A process that measures one side of a comparison, with its own copies of `imgstore` and of the workloads.

`Worker` starts one and asks it; `python -m benchmarks.measure.worker` answers, a line of JSON for each line of JSON.
"""

import contextlib
import importlib
import json
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from random import Random
from types import TracebackType
from typing import Any, Self, TextIO

from benchmarks.measure import floor
from benchmarks.measure.cell import Cell, Terms, missing_room
from benchmarks.measure.checks import must_equal
from benchmarks.measure.floor import FLOOR
from benchmarks.measure.images import Source
from benchmarks.measure.operations import OPERATIONS
from benchmarks.measure.reading import ReadMany
from benchmarks.measure.storing import StoreMany
from benchmarks.measure.workload import Workload

ANSWER_SECONDS = 60.0  # beyond which a call hangs
SLICE = 1000
PILOT_ROUNDS = 3
SMALLEST_BLOCK, LARGEST_BLOCK = 513, 8192  # bytes; smaller ones Python keeps in pools of its own
MOST_BLOCKS = 200


class CannotRunError(Exception):
    """A side cannot run a cell, for the reason given."""


class WorkerGoneError(CannotRunError):
    """And its process is gone, or no longer answers."""


class OutOfTimeError(Exception):
    """The deadline has passed, which says nothing about a side."""


class Worker:
    """A fresh process with the packages `imgstore` and `benchmarks` in `tree`, its stores below `folder`.

    name: whose side it is, for errors. source: a file with the pickled images. deadline: when to wait no longer, as
    `time.monotonic` counts. core: the only one that it runs on.
    """

    def __init__(
        self, name: str, tree: str, folder: str, source: str, terms: Terms, hash_seed: int, deadline: float, core: int
    ) -> None:
        self.name, self.folder, self.deadline = name, folder, deadline
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the process has ended
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measure.worker", folder, source, json.dumps(asdict(terms))],
            cwd=tree,  # whose packages are imported before any other
            env=os.environ | {"PYTHONHASHSEED": str(hash_seed), "PYTHONSAFEPATH": ""},  # which would leave cwd out
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,  # Ctrl-C is for the one that asks, who then ends us
        )
        with contextlib.suppress(ProcessLookupError):  # it ended at once, which `ask` will tell
            os.sched_setaffinity(self.process.pid, {core})

    def ask(self, request: str, *arguments: Any) -> Any:
        """Have a method of `Bench` called. Raises CannotRunError with what went wrong there, or OutOfTimeError."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps([request, *arguments]).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        left = max(0.0, self.deadline - time.monotonic())
        if not select.select([self.process.stdout], [], [], min(left, ANSWER_SECONDS))[0]:
            if left < ANSWER_SECONDS:
                raise OutOfTimeError
            raise WorkerGoneError(f"{self.name}: no answer within {ANSWER_SECONDS:.0f} s")
        answer = json.loads(self.process.stdout.readline() or "null")
        if answer is None:
            raise self._gone()
        if "error" in answer:
            raise CannotRunError(f"{self.name}: {answer['error']}")
        return answer["result"]

    def _gone(self) -> WorkerGoneError:
        status = self.process.wait(ANSWER_SECONDS)
        ending = f"signal {-status}" if status < 0 else f"status {status}"
        self.errors.seek(0)
        last = "".join(self.errors.read().decode(errors="replace").strip().splitlines()[-1:])
        return WorkerGoneError(f"{self.name}: its process ended with {ending}" + (f" ({last})" if last else ""))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with what it forked, which would hold the pipe
        self.process.communicate()
        self.errors.close()


class ReadSlice(ReadMany):
    """About 1,000 consecutive images of a larger store, so that a round stays short enough to alternate."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.images_per_call = SLICE

    def arguments(self) -> tuple[Any, ...]:
        first = int(self.random.integers(len(self.cell.images) - SLICE))
        self.chosen = range(first, first + SLICE)
        return self.cell.stored, self.chosen

    def call(self, root: str, *chosen: range) -> Any:
        return self.cell.backend.read_many(root, *chosen, verify=self.cell.terms.verify)

    def check(self, result: Any) -> None:
        images = [self.cell.images[image_id] for image_id in self.chosen]
        must_equal(result, images, self.cell.labels[self.chosen.start : self.chosen.stop])


def blocks_of_random_size() -> list[bytes]:
    """Memory to hold to the end, so that what is allocated after it lies elsewhere in each process.

    Else it lies where the code of a side happens to put it, alike in every pair: a commit that changed a module which
    the cell never runs made read_batch of lmdb 11% faster, again and again. As Stabilizer does it (Curtsinger and
    Berger 2013), but once a process.
    """
    draw = Random()
    return [bytes(draw.randrange(SMALLEST_BLOCK, LARGEST_BLOCK)) for _ in range(draw.randrange(MOST_BLOCKS))]


class Bench:
    """What a worker can be asked: whether it is ready, open a cell, time rounds of it, close it."""

    def __init__(self, folder: str, source: Source, terms: Terms) -> None:
        self.folder, self.source, self.terms = folder, source, terms
        self.workload: Workload | None = None
        self.blocks = blocks_of_random_size()

    def ready(self) -> None:
        """Nothing that needs `imgstore`."""

    def open(self, operation: str, cutoff: int, backend: str) -> None:
        """Store what the cell reads, unless an earlier one did, and warm it up."""
        cell = self._cell(cutoff, backend)
        if reason := missing_room(cell):
            raise CannotRunError(reason)
        if not os.path.isdir(cell.stored):
            cell.store()
        sliced = operation == ReadMany.operation and cutoff > SLICE
        self.workload = (ReadSlice if sliced else OPERATIONS[operation])(cell)
        if isinstance(
            self.workload, StoreMany
        ):  # in one folder, in turns: two differed by 30%, for all rounds of a pair
            self.workload.root = os.path.join(os.path.dirname(self.folder), operation)
        self.round(1)

    def pilot(self) -> tuple[float, float]:
        """Seconds of a call, bare and with its preparation and check: the least of a few."""
        bare, whole = math.inf, math.inf
        for _ in range(PILOT_ROUNDS):
            start = time.perf_counter()
            bare = min(bare, self.round(1))
            whole = min(whole, time.perf_counter() - start)
        return bare, whole

    def read_store(self, cutoff: int, backend: str, folder: str) -> None:
        """Read all that a side stored below `folder`, whichever it was."""
        cell = self._cell(cutoff, backend, folder)
        must_equal(cell.backend.read_many(cell.stored), cell.images, cell.labels)

    def round(self, calls: int) -> float:
        """Seconds of a call, the mean of as many; the last one's result is checked."""
        assert self.workload
        workload, result, seconds = self.workload, None, 0.0
        at_once = calls if workload.repeats and not self.terms.cold else 1
        for _ in range(calls // at_once):
            result = None  # else it is let go of within the clock
            arguments = workload.prepare()
            start = time.perf_counter()
            for _ in range(at_once):
                result = workload.call(*arguments)
            seconds += time.perf_counter() - start
        workload.check(result)
        return seconds / calls

    def close(self) -> None:
        if self.workload:
            self.workload.finish()
            self.workload = None

    def _cell(self, cutoff: int, name: str, folder: str | None = None) -> Cell:
        directory = os.path.join(folder or self.folder, f"{name}-{cutoff}")
        os.makedirs(directory, exist_ok=True)
        images, labels = self.source.take(cutoff)
        return Cell(name, self._backend(name), images, labels, directory, self.terms)

    def _backend(self, name: str) -> Any:
        if name == FLOOR:
            return floor
        backends = importlib.import_module("imgstore").BACKENDS
        if name not in backends:
            raise CannotRunError(f"there is no backend {name!r}")
        return backends[name]


def serve(requests: TextIO, answers: TextIO, bench: Bench) -> None:
    for line in requests:
        request, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(bench, request)(*arguments)}
        except Exception as error:  # whatever the code under test raises is what its side answers
            answer = {"error": reason_of(error)}
        print(json.dumps(answer), file=answers, flush=True)


def reason_of(error: Exception) -> str:
    """In one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, CannotRunError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def main(folder: str, source: str, terms: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what the code under test prints must not pass for an answer
    with open(source, "rb") as file:
        images = pickle.load(file)  # written by the one that started us
    serve(sys.stdin, answers, Bench(folder, images, Terms(**json.loads(terms))))


if __name__ == "__main__":
    main(*sys.argv[1:])
