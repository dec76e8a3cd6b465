"""Whether what was read or stored is what was given: a fast wrong answer fails."""

from typing import Any

import numpy as np

from benchmarks.measure.cell import Array, Cell, parts_of
from benchmarks.measure.images import Images, Labels


class WrongResultError(AssertionError):
    """A backend gave other pixels or labels than were stored."""


def must_equal(result: Any, images: Images, labels: Labels) -> None:
    """Raise WrongResultError unless `result` is these images and labels."""
    read, read_labels = result
    if np.asarray(read_labels).dtype.kind != "i" or not np.array_equal(read_labels, labels):
        raise WrongResultError("the labels are not those that were stored")
    if len(read) != len(images):
        raise WrongResultError(f"{len(read)} images instead of {len(images)}")
    for image_id, (image, expected) in enumerate(zip(read, images, strict=True)):
        if image.shape != expected.shape or image.dtype != expected.dtype or not np.array_equal(image, expected):
            raise WrongResultError(f"image {image_id} is not the one that was stored")


def must_equal_part(result: Any, cell: Cell, chosen: Array) -> None:
    """Raise WrongResultError unless `result` is the images and labels `chosen`."""
    must_equal(result, [cell.images[image_id] for image_id in chosen.tolist()], cell.labels[chosen])


def must_hold(cell: Cell, root: str) -> None:
    """Raise WrongResultError unless the store at `root` is the cell's images and labels."""
    parts = parts_of(cell.images)
    if len(parts) == 1:
        must_equal(cell.backend.read_many(root), cell.images, cell.labels)
        return
    with cell.backend.open_reader(root) as reader:
        if len(reader) != len(cell.images):
            raise WrongResultError(f"{len(reader)} images instead of {len(cell.images)}")
        for part in parts:
            must_equal_part(reader.read_many(part), cell, part)


def must_equal_one(result: Any, cell: Cell, chosen: int) -> None:
    """Raise WrongResultError unless `result` is image and label `chosen`."""
    image, label = result
    must_equal(([image], [label]), [cell.images[chosen]], cell.labels[chosen : chosen + 1])
