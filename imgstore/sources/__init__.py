"""Where images to store come from: a folder of image files, CIFAR-10, or another store.

Each is a sequence of (image, label), in which an image is read when it is asked for.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imgstore import Reader, open_reader
from imgstore.core.checksums import checksum
from imgstore.core.generations import PLAN, SHARDS, Generation
from imgstore.decoding import read_image, suffixes
from imgstore.errors import SourceError, reason_of
from imgstore.sources.account import EXPECTED, account, less_than_they_have, not_looked_at, nothing_readable
from imgstore.sources.cifar10 import BATCHES, Cifar10
from imgstore.sources.folder import ImageFolder, Pair, class_names

__all__ = [
    "Cifar10",
    "ImageFolder",
    "Source",
    "account",
    "classes_of",
    "fingerprint",
    "less_than_they_have",
    "name_of",
    "not_looked_at",
    "nothing_readable",
    "open_source",
    "part_of",
    "read_image",
    "reason_of",
]


class ReaderPart(Sequence[Pair]):
    """The images at some positions of a reader."""

    def __init__(self, reader: Reader, positions: Sequence[int]) -> None:
        self.reader, self.positions = reader, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]  # no slices
        return self.reader[self.positions[index]]


Source = Reader | Cifar10 | ImageFolder


def open_source(
    location: str | os.PathLike[str], *, classes: Sequence[str] | None = None, max_pixels: int | None = None
) -> Source:
    """The images at `location`.

    A file must be a tar file of CIFAR-10. A folder is a store if it holds a file CURRENT or SHARDS, and CIFAR-10 if
    it holds a batch of it, or the folder that its tar file unpacks to; else it is searched for image files, with
    `classes` and `max_pixels` as of `ImageFolder`. Raises SourceError, and for a store what `open_reader` raises.
    """
    path = Path(location)
    if os.path.isfile(path):
        if path.suffix.lower() in suffixes():
            raise SourceError(path, "this is one image; give the folder that it lies in")
        return Cifar10(path)
    if not os.path.isdir(path):
        raise SourceError(path, f"there is no such file or folder; {EXPECTED}")
    if _is_store(path):
        return open_reader(path)
    if _holds(path, PLAN):
        raise SourceError(path, "this is a part of a sharded store; have the rest stored first")
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"):
        if any(os.path.isfile(folder / name) for name in BATCHES):
            return Cifar10(folder)
    return ImageFolder(path, classes, max_pixels)


def classes_of(location: str | os.PathLike[str]) -> list[str]:
    """The names of the classes of a folder of images, or of a store that has them. Raises SourceError."""
    path = Path(location)
    if not os.path.isdir(path):
        raise SourceError(path, "there is no such folder")
    if _is_store(path):
        with open_reader(path) as reader:
            names = list(getattr(reader, "classes", None) or ())
        if not names:
            raise SourceError(path, "this store does not have the names of its classes; give the folder that it is of")
        return names
    if not (names := class_names(path)):
        raise SourceError(path, "it has no class folders")
    return names


def _is_store(path: Path) -> bool:
    return _holds(path, "CURRENT") or _holds(path, SHARDS)


def _holds(folder: Path, name: str) -> bool:
    """A class folder may have the name, too."""
    return os.path.lexists(folder / name) and not os.path.isdir(folder / name)


def name_of(source: Source) -> str:
    """What kind of source it is, and the last part of its path."""
    if isinstance(source, Reader):
        return f"store {os.path.basename(source.generation.root)}"
    kind, path = ("CIFAR-10", source.path) if isinstance(source, Cifar10) else ("folder", source.root)
    return f"{kind} {path.resolve().name}"


def part_of(source: Source, positions: Sequence[int]) -> Sequence[Pair]:
    """The images at these positions, which can be sent to another process without the others."""
    return ReaderPart(source, positions) if isinstance(source, Reader) else source.part(positions)


def fingerprint(source: Source) -> str:
    """A text that is another one where images or labels are others: told without reading image files."""
    if isinstance(source, Cifar10):
        return f"{checksum(source.images):016x} {checksum(source.labels):016x}"
    if isinstance(source, ImageFolder):
        paths, labels = list(map(str, source.paths)), source.labels
    else:  # in the path of a generation is its name, which no other has
        paths, labels = [_changing(reader.generation) for reader in source.readers()], np.empty(0, np.int64)
    told = "\n".join(map(_state, paths))
    return f"{checksum(told.encode(errors='surrogateescape')):016x} {checksum(labels):016x}"


def _changing(generation: Generation) -> str:
    """What is another file, or has another time, when an image was stored singly."""
    singles = generation.path("singles")
    return singles if os.path.isdir(singles) else generation.path("DESCRIPTION")


def _state(path: str) -> str:
    try:
        state = os.stat(path)
    except OSError as error:
        raise SourceError(path, reason_of(error)) from None
    return f"{path} {state.st_size} {state.st_mtime_ns}"
