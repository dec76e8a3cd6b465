"""How much a call grows the process that makes it, measured in a process of its own."""

import ctypes
import gc
import mmap
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

SAMPLE_SECONDS = 0.001


def peak_growth(call: Callable[[], Any]) -> int:
    """Bytes by which `call`, in a forked child, raises its resident memory, sampled every millisecond.

    Pages of mapped files do not count: they belong to the page cache, whoever maps them. Raises
    ChildProcessError when the call fails.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            os.write(writing, str(_measured(call)).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with open(reading, encoding="ascii") as pipe:
            text = pipe.read()
    finally:  # also when we are interrupted: the child would go on, and hold our output open
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not text:
        raise ChildProcessError("the call failed in the process that was to measure its memory")
    return int(text)


def _measured(call: Callable[[], Any]) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before hides what is asked for again
    samples, done = [_resident()], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            samples.append(_resident())

    sampler = threading.Thread(target=sample)
    sampler.start()
    result = call()
    samples.append(_resident())
    done.set()
    sampler.join()
    del result
    return max(samples) - samples[0]


def _resident() -> int:
    """Bytes of the process's own pages: resident less shared, as proc(5) tells in statm."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        resident, shared = statm.read().split()[1:3]
    return (int(resident) - int(shared)) * mmap.PAGESIZE
