"""What imgstore raises: every error is an `ImgstoreError` and the builtin that a caller would expect.

A full disk, a missing permission or too many open files stay the `OSError` that the system raised.
"""

import os
from typing import Any


class ImgstoreError(Exception):
    """The base of every error that imgstore itself raises. Each pickles, so it crosses from a process.

    From a worker of PyTorch's DataLoader it comes as the RuntimeError that PyTorch makes of its text.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # made without its constructor, which builds the message from other arguments; then given its attributes
        return type(self).__new__, (type(self),), {"args": self.args, **self.__dict__}


class InvalidArgumentError(ImgstoreError, ValueError):
    """An argument that no backend takes: `argument` names it."""

    def __init__(self, argument: str, message: str) -> None:
        self.argument, self.reason = argument, message
        super().__init__(f"{argument}: {message}")


class UnsupportedImageError(ImgstoreError, ValueError):
    """An image that the backend cannot hold without loss: `image_id` says which, of which `shard`."""

    def __init__(self, image_id: int, message: str, shard: int | None = None) -> None:
        self.image_id, self.reason, self.shard = image_id, message, shard
        where = "" if shard is None else f"shard {shard}, "
        super().__init__(f"{where}image {image_id}: {message}")


class ImageNotFoundError(ImgstoreError, KeyError):
    """No image with the id `image_id` in the store."""

    def __init__(self, image_id: int, root: str | os.PathLike[str]) -> None:
        self.image_id = image_id
        self.root = os.fspath(root)
        super().__init__(f"no image with id {image_id} in the store {self.root}")

    def __str__(self) -> str:  # a KeyError would show the quotes of a repr
        return str(self.args[0])


class SourceError(ImgstoreError, ValueError):
    """Images that were to be stored cannot be read at `path`, for the reason `reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(f"{self.path}: {reason}")


class ClusterError(ImgstoreError, RuntimeError):
    """A cluster of Dask did not finish: its scheduler was lost, workers ended, or see other folders or packages."""


class ReaderClosedError(ImgstoreError, ValueError):
    """A reader was used after its `close`."""


class _StoreError(ImgstoreError, OSError):
    """An error about the path `path` of a store."""

    def __init__(self, path: str | os.PathLike[str], message: str) -> None:
        self.path = os.fspath(path)
        super().__init__(f"{self.path}: {message}")


class StoreNotFoundError(_StoreError, FileNotFoundError):
    """No store at `path`, or none of this backend."""


class CorruptStoreError(_StoreError):
    """What lies at `path` is not what was stored; `image_id` is the image concerned, where it is known."""

    def __init__(self, path: str | os.PathLike[str], message: str, image_id: int | None = None) -> None:
        self.image_id = image_id
        super().__init__(path, message if image_id is None else f"image {image_id}: {message}")


class StoreBusyError(_StoreError):
    """Another writer is at work on the store at `path`."""


class StoreReplacedError(_StoreError):
    """The store at `path` was replaced after the reader had opened it: open it again."""


def reason_of(error: Exception) -> str:
    """In one line, without the number and path of an OSError."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return text.partition("\n")[0].rstrip(":") or type(error).__name__


def printable(text: str) -> str:
    """The text with control characters escaped: a file's name may hold a newline, or move the cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
