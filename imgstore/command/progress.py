"""A line on the terminal that shows how many are done."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
SHOWN_EVERY = 0.1  # seconds
START_OF_LINE = "\r\x1b[K"  # what stood there is erased


def shown(items: Iterable[T], doing: str, total: int, what: str = "images") -> Iterator[T]:
    """The items, with a line on the terminal that tells how many are done; elsewhere there is no such line."""
    if not sys.stderr.isatty():
        yield from items
        return
    start = last = time.monotonic()
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last > SHOWN_EVERY:
            last, left = now, (now - start) / (done + 1) * (total - done - 1)
            text = f"{doing} {done + 1:,} of {total:,} {what}, {left:.0f} s left"
            print(f"{START_OF_LINE}{text}", end="", file=sys.stderr, flush=True)
    print(START_OF_LINE, end="", file=sys.stderr, flush=True)
