"""What is said of a folder of images: its classes, and what of it is not stored."""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from imgstore.decoding import LESS, Less
from imgstore.errors import SourceError

if TYPE_CHECKING:
    from imgstore.sources.folder import ImageFolder

EXPECTED = "give cifar-10-python.tar.gz, cifar-10-binary.tar.gz, what either unpacks to, a folder of images, or a store"
MOST_LISTED = 10


def account(source: "ImageFolder") -> Iterator[str]:
    """In lines: classes with counts, what is not kept of files, files not looked at, and those left out."""
    counts = np.bincount(source.labels, minlength=len(source.classes)).tolist()
    named = enumerate(zip(source.classes, counts, strict=bool(source.classes)))
    listed = ", ".join(f"{label} {name} ({count:,})" for label, (name, count) in named)
    yield f"classes: {listed or 'none, so every label is 0'}"
    yield from less_than_they_have(source)
    if others := not_looked_at(source):
        yield f"not looked at: {others}"
    yield from (f"left out: {error}" for error in source.left_out)


def less_than_they_have(source: "ImageFolder") -> Iterator[str]:
    """Of the files that were read: how many have what is not kept, a line for each kind; and which are damaged."""
    for kind, what in LESS.items():
        if count := int(np.count_nonzero(source.less & kind)):
            yield f"{count:,} {'has' if count == 1 else 'have'} {what}"
    yield from (f"damaged: {source.paths[position]}" for position in np.flatnonzero(source.less & Less.DAMAGED))


def not_looked_at(source: "ImageFolder") -> str:
    """How many files of each suffix, and which folders; "" for none."""
    counts = sorted(source.passed_over.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in counts]
    told += [f"the folder {name}" for name in sorted(source.skipped)]
    more = [f"and {len(told) - MOST_LISTED:,} other kinds"] if len(told) > MOST_LISTED else []
    return ", ".join(told[:MOST_LISTED] + more)


def nothing_readable(
    root: str | os.PathLike[str], errors: Sequence[SourceError], not_looked_at: str = ""
) -> SourceError:
    """The error for a folder in which no image is, or none that can be read, for these reasons."""
    others = f"; not looked at: {not_looked_at}" if not_looked_at else ""
    first = "; ".join(map(str, errors[:3])) or f"no file has an image's suffix{others}"
    return SourceError(root, f"no image can be read there ({first}); {EXPECTED}")
