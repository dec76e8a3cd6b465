"""Reading in several processes at once, which are started before the clock; also while the store is replaced.

A round is long enough that what it takes to tell the processes, and to hear from them, does not count.
"""

import contextlib
import importlib
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import imgstore
from benchmarks.measure.cell import BATCH, SEED, Array, Cell, pixel_bytes
from benchmarks.measure.checks import WrongResultError
from benchmarks.measure.images import fingerprint
from benchmarks.measure.machine import settle
from benchmarks.measure.reading import ReadBatch, Reading, ReadingInOthers, ReadMany

ROUND_SECONDS = 0.1


class HelperError(Exception):
    """What went wrong in a process that reads, or in the one that writes."""


class Helper:
    """A process that is told what to do, and answers when it is done. It ends with us, however we end."""

    def __init__(self, serve: Callable[..., None], *arguments: Any) -> None:
        # neither a copy of us, whose libraries may not go on in a child, nor as slow to start as a new Python
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def tell(self, *request: Any) -> None:
        """Raises HelperError where the process has ended."""
        with self.named():
            self.pipe.send(request)

    def answer(self) -> Any:
        """Its answer to what it was told. Raises HelperError."""
        with self.named():
            answer = self.pipe.recv()
        if isinstance(answer, HelperError):
            raise answer
        return answer

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Say with which status the process ended where its end of the pipe is gone."""
        try:
            yield
        except (EOFError, ConnectionError):
            self.process.join()
            raise HelperError(f"a process ended with status {self.process.exitcode}") from None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class InProcesses(ReadingInOthers):
    """`kind` in so many processes at once, each on its share of the images; a call ends with the last of them.

    What one has read is in the page cache for all, so a cold round may not have two read the same.
    """

    def __init__(self, kind: type[ReadBatch] | type[ReadMany], cell: Cell, readers: int) -> None:
        super().__init__(cell)
        self.kind, self.operation, self.readers = kind, kind.operation, readers
        self.helpers = list[Helper]()

    def arguments(self) -> tuple[Any, ...]:
        if not self.helpers:
            self.start()
            images = len(self.cell.images) if self.kind is ReadMany else self.readers * BATCH
            self.images_per_call = self.calls * images
        self.ask("prepare", self.calls)
        return ()

    def start(self) -> None:
        for number in range(self.readers):
            self.helpers.append(Helper(serve_reader, self.kind, *portable(self.cell), number, self.readers))
        if not self.cell.terms.cold:  # there, a second call would find in memory what the first has read
            self.calls = math.ceil(self.round_seconds() / self.ask("seconds", ROUND_SECONDS)[0])

    def round_seconds(self) -> float:
        return ROUND_SECONDS

    def ask(self, *request: Any) -> list[Any]:
        """The answer of each reader."""
        for helper in self.helpers:
            helper.tell(*request)
        return [helper.answer() for helper in self.helpers]

    def let_go(self) -> None:
        self.ask("let_go")

    def call(self) -> None:
        self.ask("run")

    def check(self, result: None) -> None:
        for chosen, seen in self.ask("told"):
            if seen != digest([self.cell.images[image_id] for image_id in chosen.tolist()], self.cell.labels[chosen]):
                raise WrongResultError(f"a reader did not get images {chosen[0]} to {chosen[-1]} as they were stored")

    def finish(self) -> None:
        while self.helpers:
            self.helpers.pop().end()


def reading(kind: type[ReadBatch] | type[ReadMany], cell: Cell, readers: int | None) -> Reading:
    """The workload in so many processes; for None in this one."""
    return InProcesses(kind, cell, readers) if readers else kind(cell)


class Rereading(ReadBatch):
    """A random batch through a reader that is opened anew where the store was replaced."""

    operation = "read_while_replaced"

    def call(self, image_ids: Array) -> Any:
        while True:
            try:
                return self.reader.read_many(image_ids)
            except imgstore.errors.StoreReplacedError:
                self.finish()
                self.open()


class ReadWhileReplaced(InProcesses):
    """Random batches in so many processes, while one more replaces the store again and again."""

    operation = Rereading.operation
    writer: Helper | None

    def __init__(self, cell: Cell, readers: int) -> None:
        copied = replace(cell, directory=os.path.join(cell.directory, "replaced"))
        super().__init__(Rereading, copied, readers)
        self.original, self.writer, self.writing = cell.stored, None, False

    def start(self) -> None:
        shutil.copytree(self.original, self.cell.stored)  # other cells read the other
        super().start()

    def prepare(self) -> tuple[Any, ...]:
        """Each round begins with readers of the newest."""
        self.stop()
        self.let_go()
        settle()
        return self.arguments()

    def round_seconds(self) -> float:
        """As long as it takes to replace the store, at least."""
        bare, _ = portable(self.cell)
        self.writer = Helper(serve_writer, bare, self.original, self.cell.labels)
        self.writer.answer()  # once it is ready
        start = time.perf_counter()
        self.replace(self.writer)
        self.stop()
        return max(ROUND_SECONDS, time.perf_counter() - start)

    def replace(self, writer: Helper) -> None:
        writer.tell("replace")
        self.writing = True

    def stop(self) -> None:
        """Wait for the end of what the writer is at."""
        if self.writer and self.writing:
            self.writer.tell("stop")
            self.writer.answer()
            self.writing = False

    def call(self) -> None:
        assert self.writer
        self.replace(self.writer)
        super().call()

    def check(self, result: None) -> None:
        self.stop()
        super().check(result)

    def finish(self) -> None:
        super().finish()
        if self.writer:
            self.writer.end()
        shutil.rmtree(self.cell.directory, ignore_errors=True)


class Share:
    """What a reader's process is told to do: its share of a workload."""

    def __init__(self, workload: ReadBatch | ReadMany) -> None:
        self.workload = workload
        self.arguments = list[tuple[Any, ...]]()
        self.result: Any = None

    def let_go(self) -> None:
        self.workload.finish()

    def seconds(self, at_least: float) -> float:
        """Of a call, on average over so long: one alone may have had to wait. The first opens the store."""
        self.prepare(1)
        self.run()
        start = time.perf_counter()
        calls, seconds = 0, 0.0
        while seconds < at_least:
            self.prepare(1)
            self.run()
            calls, seconds = calls + 1, time.perf_counter() - start
        return seconds / calls

    def prepare(self, calls: int) -> None:
        self.result = None
        self.arguments = [self.workload.prepare() for _ in range(calls)]

    def run(self) -> None:
        for arguments in self.arguments:
            self.result = None  # let go of first, as in a loop of training
            self.result = self.workload.call(*arguments)

    def told(self) -> tuple[Array, str]:
        """The ids that the last call read, and a digest of what it gave."""
        last = self.workload.parts[-1] if isinstance(self.workload, ReadMany) else self.workload.chosen
        return last, digest(*self.result)


def digest(images: Any, labels: Array) -> str:
    return fingerprint(list(images), labels)


def portable(cell: Cell) -> tuple[Cell, tuple[int, int]]:
    """The cell with the name of its backend, and without its images; how many they are, and their mean bytes."""
    count = len(cell.images)
    terms = replace(cell.terms, cold=False)  # who evicts is the one that started the readers
    bare = replace(cell, backend=cell.backend.__name__, images=[], labels=cell.labels[:0], terms=terms)
    return bare, (count, pixel_bytes(cell.images) // count)


def serve_reader(pipe: Connection, kind: Any, bare: Cell, size: tuple[int, int], number: int, readers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started us, who then ends us
    images = np.broadcast_to(np.uint8(0), size)  # which take no memory
    workload = kind(replace(bare, backend=importlib.import_module(bare.backend), images=images))
    workload.take_share(number, readers)
    workload.random = np.random.default_rng([SEED, number])
    share = Share(workload)
    with contextlib.suppress(EOFError, OSError):  # it is gone
        while True:
            request, *arguments = pipe.recv()
            pipe.send(outcome(getattr(share, request), *arguments))


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What it gives, or what went wrong."""
    try:
        return call(*arguments)
    except Exception as error:  # whatever a backend raises; not each kind can be sent
        return HelperError(f"{type(error).__name__}: {error}")


def serve_writer(pipe: Connection, bare: Cell, original: str, labels: Array) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    store_many, durable = importlib.import_module(bare.backend).store_many, bare.terms.durable
    with contextlib.suppress(EOFError), imgstore.open_reader(original) as reader:

        def replace_until_told() -> None:
            told_to_stop = False
            while not told_to_stop:
                store_many(bare.stored, (image for image, _ in reader), labels, durable=durable)
                told_to_stop = pipe.poll()

        pipe.send(None)  # ready
        while pipe.recv():
            failed = outcome(replace_until_told)
            pipe.recv()
            pipe.send(failed)
