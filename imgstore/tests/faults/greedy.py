"""What a verb takes of a store that asks for much: memory at its peak and the processor's time, in a child."""

import contextlib
import gc
import io
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import imgstore
from imgstore.command import main as __main__
from imgstore.tests.faults.children import forked

BESIDE = 64 << 20  # bytes that a verb may hold beside what it returns and one copy of one image
SLACK = 12 << 20  # of the interpreter's own
MOST = 1 << 30  # of memory of its own that a child is given: the machine is not only ours
SECONDS = 2.0  # of the processor's time beyond what an honest store takes

Verb = Callable[[Path], int]  # gives the bytes that it returned


class Cost(NamedTuple):
    """What a verb took, and how it ended."""

    outcome: str
    grown: int  # bytes, at the peak
    returned: int
    seconds: float

    def excess(self, image: int, honest: float = 0) -> str:
        """In what it took too much, where an image has so many bytes and an honest store takes so long; else ""."""
        allowed = self.returned + image + BESIDE + SLACK
        much = [f"{self.grown >> 20} MiB, not {allowed >> 20}"] if self.grown > allowed else []
        long = [f"{self.seconds:.1f} s"] if self.seconds > honest + SECONDS else []
        return f"{', '.join(much + long)} ({self.outcome})" if much + long else ""


def cost(verb: Verb, root: Path) -> Cost:
    """Of a verb in a child. AssertionError where it ends the process or hangs."""
    answer = forked(partial(_measured, verb, root))
    assert isinstance(answer, Cost), answer
    return answer


def _measured(verb: Verb, root: Path) -> Cost:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # what it took before does not count
    before, start, returned = _status("VmRSS"), time.process_time(), 0
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + MOST, -1))
    try:
        returned = verb(root)
        outcome = "done"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {str(error)[:200]}"
    return Cost(outcome, _status("VmHWM") - before, returned, time.process_time() - start)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def read_one(root: Path) -> int:
    with imgstore.open_reader(root) as reader:
        image, _ = reader[0]
        return int(image.nbytes)


def read_last(root: Path) -> int:
    with imgstore.open_reader(root) as reader:
        ((image, _),) = reader.__getitems__([len(reader) - 1])
        return int(image.nbytes)


def read_all(root: Path) -> int:
    with imgstore.open_reader(root) as reader:
        images, labels = reader.read_many()
        return sum(image.nbytes for image in images) + labels.nbytes


def verify(root: Path) -> int:
    imgstore.verify(root)
    return 0


def command(*arguments: Any) -> None:
    """What `python -m imgstore` does; what it says is not kept."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = __main__.main([str(argument) for argument in arguments])
    if status:
        raise RuntimeError(said.getvalue().strip().splitlines()[-1])


def info(root: Path) -> int:
    command("info", root)
    return 0


def convert(root: Path) -> int:
    command("convert", root, root.with_name("converted"), "--backend", "hdf5")
    return 0


def convert_to_shards(root: Path) -> int:
    command("convert", root, root.with_name("in shards"), "--backend", "hdf5", "--shard-images", 1)
    return 0


VERBS: dict[str, Verb] = {
    "read one": read_one,
    "read the last": read_last,
    "verify": verify,
    "info": info,
    "convert": convert,
}
