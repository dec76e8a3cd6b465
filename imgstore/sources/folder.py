"""A folder of image files, whose class folders give the labels."""

import copy
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from imgstore.decoding import decode_file, suffixes
from imgstore.errors import SourceError, reason_of
from imgstore.sources.account import not_looked_at, nothing_readable

Pair = tuple[NDArray[Any], int]
Labels = NDArray[np.int64]

NO_CLASSES = ("__MACOSX",)  # nor what begins with a dot, as .git and .ipynb_checkpoints
MAC_RESOURCE = "._"  # begins the names of files that macOS puts beside others, with their suffixes
PARTS_OF_A_SET = r"(train|training|val|valid|validation|dev|test|testing)([-_ ]?(set|data|images|\d+))?"
BESIDE = "it lies beside the class folders, so it has no class"


class ImageFolder(Sequence[Pair]):
    """Every image file at any level under `root`, in sorted order; links are followed, and loops of them end.

    As in torchvision's ImageFolder, the label is the index of the file's top-level folder in the sorted names
    of the folders directly in `root`. Other than there, NO_CLASSES and names with a leading dot are no classes.
    Where no folder has an image, every label is 0; else a file in `root` itself has no class, and is left out.

    classes: the names of the labels; () where there are none. `classes` of another folder can be given.
    paths, labels: of each file. less: what was not kept of each file that was read, see `Less`.
    unlisted, left_out: the errors of folders that cannot be looked into, and of files without a class.
    passed_over: how many files were not looked at, by suffix. skipped: the folders that were not.
    roots: the real paths of `root` and of all links that were followed.

    Raises SourceError: for an image that cannot be read, or has more than `max_pixels`; for a folder without image
    files, with a class that is not in `classes`, or of which parts of a data set are the classes, as train and val.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None, max_pixels: int | None = None) -> None:
        self.root, self.max_pixels, self.roots = root, max_pixels, [os.path.realpath(root)]
        self.unlisted, self.left_out = list[SourceError](), list[SourceError]()
        self.passed_over, self.skipped = Counter[str](), list[str]()
        own, depth = dict.fromkeys(class_names(root)), len(root.parts)
        found = sorted(map(Path, self._files()))
        inside = [path for path in found if path.parts[depth] in own]
        if inside:
            self.left_out = [SourceError(path, BESIDE) for path in found if path.parts[depth] not in own]
        self.paths, self.classes = inside or found, tuple(own if classes is None else classes) if inside else ()
        if not self.paths:
            raise nothing_readable(root, self.unlisted, not_looked_at(self))
        if classes is not None and not inside:
            raise SourceError(root, "it has no class folders, so it takes the classes of no other")
        if inside and (unknown := sorted(own.keys() - set(self.classes))):
            raise SourceError(root, f"its class {unknown[0]} is not among the given classes; give others")
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = np.array([number[path.parts[depth]] if inside else 0 for path in self.paths], np.int64)
        self.less = np.zeros(len(self.paths), np.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Pair:  # type: ignore[override]  # no slices
        decoded = decode_file(self.paths[position], self.max_pixels)
        self.less[position] = decoded.less
        return decoded.pixels, int(self.labels[position])

    def part(self, positions: Sequence[int]) -> Self:
        """The files at these positions alone. What is noted of those of a range is noted here, too."""
        part = copy.copy(self)
        part.paths, part.labels = [self.paths[position] for position in positions], self.labels[positions]
        seen = slice(positions.start, positions.stop) if isinstance(positions, range) else positions
        part.less = self.less[seen]
        return part

    def _files(self) -> Iterator[str]:
        """Those with an image's suffix. What is looked into and what is not is noted."""
        to_do, linked = [(os.fspath(self.root), frozenset[tuple[int, int]]())], set[tuple[str, int, int]]()
        while to_do:
            folder, above = to_do.pop()
            try:
                state = os.stat(folder)
                entries = list(os.scandir(folder))
            except OSError as error:
                self.unlisted.append(SourceError(error.filename or folder, reason_of(error)))
                continue
            # a folder that links lead to is looked into once for each class: else few links make millions of paths
            within = os.path.relpath(folder, self.root).partition(os.sep)[0], state.st_dev, state.st_ino
            if within[1:] in above or (within in linked):
                self._skip(folder)
                continue
            if os.path.islink(folder):
                linked.add(within)
            above |= {(state.st_dev, state.st_ino)}
            for entry in entries:
                if not is_folder(entry):
                    if self._is_looked_at(entry.name):
                        yield entry.path
                elif is_no_class(entry.name):
                    self._skip(entry.path)
                else:
                    to_do.append((entry.path, above))
                    if entry.is_symlink():
                        self.roots.append(os.path.realpath(entry.path))

    def _skip(self, folder: str) -> None:
        self.skipped.append(os.path.relpath(folder, self.root))

    def _is_looked_at(self, name: str) -> bool:
        suffix = MAC_RESOURCE + "*" if name.startswith(MAC_RESOURCE) else os.path.splitext(name)[1].lower()
        if suffix not in suffixes():
            self.passed_over[suffix] += 1
        return suffix in suffixes()


def class_names(root: Path) -> list[str]:
    """The names of the class folders directly in `root`, sorted. Raises SourceError where they are no classes."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if is_folder(entry) and not is_no_class(entry.name))
    except OSError as error:
        raise SourceError(root, reason_of(error)) from None
    parts = [name for name in names if re.fullmatch(PARTS_OF_A_SET, name, re.IGNORECASE)]
    if len(parts) > 1:
        raise SourceError(root, f"{' and '.join(parts)} are parts of a data set, not classes; give one of them")
    return names


def is_folder(entry: os.DirEntry[str]) -> bool:
    # not entry.is_dir(), which raises an error for a link to itself
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def is_no_class(name: str) -> bool:
    return name.startswith(".") or name in NO_CLASSES
