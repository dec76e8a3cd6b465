"""SINGLES: the ids of the images that store_single stored, so that one that is lost is missed."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from imgstore.core.blocks import Labels
from imgstore.core.files import NewFile, opened, passing_over_errors, read_parts
from imgstore.errors import InvalidArgumentError

_LARGEST_SINGLES = 1 << 26
_PART = 1 << 20  # bytes of it that are read at once
_SINGLE = np.dtype([("id", "<i8"), ("check", "<u8")])
_CHECK = np.uint64(0x9E3779B97F4A7C15)


def single_name(image_id: int, suffix: str) -> str:
    """Where a single lies in a generation, whether it exists or not."""
    return f"singles/{image_id:08d}{suffix}"


@contextlib.contextmanager
def listing(generation: str, image_id: int) -> Iterator[None]:
    """Add the id of a single to SINGLES when it is in place; the room for it is made before."""
    record, path = np.array([(image_id, 0)], _SINGLE), f"{generation}/SINGLES"
    record["check"] = _checks(record["id"])
    is_made = not os.path.lexists(path)
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW) as descriptor:
        end = os.fstat(descriptor).st_size // record.nbytes * record.nbytes  # without what is left of half a record
        if end >= _LARGEST_SINGLES:
            message = (
                f"{generation} holds {end // record.nbytes} images that were stored singly; store all with store_many"
            )
            raise InvalidArgumentError("image_id", message)
        file, writer = NewFile(path, descriptor), os.getpid()
        try:
            file.write_at(end, bytes(record.nbytes))
            yield
        except BaseException:
            if os.getpid() == writer:
                with passing_over_errors():
                    os.unlink(path) if is_made else os.ftruncate(descriptor, end)
            raise
        with passing_over_errors():  # the single is in place, and what cannot be written now was room made for
            file.write_at(end, record.tobytes())


def listed_ids(path: str) -> Labels:
    """The ids in SINGLES; what is no record is passed over, as a power cut may leave it."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts_of_the_list(path)]))


def parts_of_the_list(path: str) -> Iterator[Labels]:
    with contextlib.suppress(FileNotFoundError):
        for part in read_parts(path, _LARGEST_SINGLES, _PART):
            records = np.frombuffer(part, _SINGLE, len(part) // _SINGLE.itemsize)
            yield records["id"][(records["check"] == _checks(records["id"])) & (records["id"] >= 0)]


def _checks(ids: Any) -> Any:
    return ~(ids.astype(np.uint64) * _CHECK)
