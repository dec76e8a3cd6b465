"""The images of a run: synthetic, or from CIFAR-10, a folder of image files or a store."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.measure.images import Source, fingerprint
from benchmarks.measure.synthetic import CHUNK_PIXELS, HELD_BYTES, SEED, SIZE, synthesized, synthetic
from imgstore import sources
from imgstore.errors import SourceError

Pair = tuple[NDArray[Any], int]
MAKING_BYTES, SCALING_BYTES = 72, 8  # for each pixel of what is made or scaled at once


def open_source(
    location: str | os.PathLike[str] | None, count: int, image_size: int | None = None, max_pixels: int | None = None
) -> Source:
    """The source at `location`: `count` synthetic images for None, else what is there, see `imgstore.sources`.

    image_size: make each image a square of so many pixels a side. max_pixels: that an image file may have.
    Of what is there, at most HELD_BYTES are held: a sample, drawn at random but the same each time. Raises what
    imgstore raises: SourceError where no image can be read.
    """
    if location is None:
        return synthetic(count, image_size or SIZE)
    found = sources.open_source(location, max_pixels=max_pixels)
    try:
        held, unreadable = _held(found, image_size)
    except TypeError as error:
        raise SourceError(location, f"Pillow cannot scale its images ({error})") from None
    files = found if isinstance(found, sources.ImageFolder) else None
    if not held:
        others = sources.not_looked_at(files) if files else ""
        raise sources.nothing_readable(location, unreadable + (files.unlisted if files else []), others)
    of_all = "" if len(held) + len(unreadable) >= len(found) else f" of {len(found)}"
    square = f", each {image_size}x{image_size}" if image_size else ""
    name = f"{sources.name_of(found)} ({len(held)}{of_all} images{square})"
    stacked = _stacked(name, [held[position] for position in sorted(held)])
    if files is None:
        return stacked
    left_out = [*unreadable, *files.unlisted, *files.left_out]
    return replace(
        stacked,
        left_out=tuple(sorted((error.path, error.reason) for error in left_out)),
        not_looked_at=sources.not_looked_at(files),
        less=tuple(sources.less_than_they_have(files)),
    )


def _stacked(name: str, pairs: list[Pair]) -> Source:
    images = [image for image, _ in pairs]
    alike = len({(image.shape, image.dtype) for image in images}) == 1
    stacked, labels = np.stack(images) if alike else images, np.array([label for _, label in pairs], np.int64)
    return Source(name, stacked, labels, fingerprint(stacked, labels))


def _held(found: Sequence[Pair], image_size: int | None) -> tuple[dict[int, Pair], list[SourceError]]:
    """Images and labels by position, and the error of each that cannot be read, until enough are held."""
    held, errors, room = dict[int, Pair](), list[SourceError](), HELD_BYTES
    for position in np.random.default_rng(SEED).permutation(len(found)).tolist():
        try:
            image, label = found[position]
        except SourceError as error:
            errors.append(error.with_traceback(None))  # which holds what was read
            continue
        held[position] = (resized(image, image_size) if image_size else image), label
        room -= held[position][0].nbytes
        if room <= 0:
            break
    return held, errors


def resized(image: NDArray[Any], size: int) -> NDArray[Any]:
    """A square cut from its middle, scaled with Pillow to `size` pixels a side."""
    return np.array(ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.LANCZOS))


def memory_to_open(location: str | os.PathLike[str] | None, count: int, image_size: int | None) -> int:
    """Bytes that `open_source` takes at its peak; of files, which tell their sizes when they are opened, the least."""
    size = image_size or SIZE
    pixels = size * size
    if location is not None:
        return SCALING_BYTES * pixels
    return 3 * pixels * synthesized(count, size) + MAKING_BYTES * max(CHUNK_PIXELS, pixels)
