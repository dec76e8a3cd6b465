"""Removing generations: only files whose names are ours, by descriptor, never through a link."""

import contextlib
import os
import re
from collections.abc import Iterator

from imgstore.core.files import passing_over_errors
from imgstore.core.generations import generations

_OWN = re.compile(r"DESCRIPTION|SINGLES|labels\.csv|images\.(mdb|h5)|[0-9]{8,19}\.png")  # the files in one
_OWN_SINGLES = re.compile(r"[0-9]{8,19}\.(png|mdb|h5)|\.new")


def remove_generations(root: str, keep: str) -> None:
    for name in generations(root):
        if name != keep:
            remove_generation(os.path.join(root, name))


def remove_generation(path: str) -> None:
    """Remove what is provably ours, and the folders if nothing else lies in them."""
    with passing_over_errors():
        with _held(path) as generation:
            with passing_over_errors():
                with _held("singles", generation) as singles:
                    _remove_files(singles, _OWN_SINGLES)
                os.rmdir("singles", dir_fd=generation)
            _remove_files(generation, _OWN)
        os.rmdir(path)


@contextlib.contextmanager
def _held(path: str, folder: int | None = None) -> Iterator[int]:
    """A descriptor of a folder that is no link, as its name may come to lead elsewhere."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_files(folder: int, own: re.Pattern[str]) -> None:
    for name in os.listdir(folder):
        if own.fullmatch(name):
            with passing_over_errors():
                os.unlink(name, dir_fd=folder)
