"""The images of a benchmark: synthetic, or from CIFAR-10, a folder of image files or a store."""

import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image, ImageOps

Images = NDArray[Any] | Sequence[NDArray[Any]]
Labels = NDArray[np.int64]
Pair = tuple[NDArray[Any], int]

SHOWN, THUMBNAIL, SHEET_GAP = 6, 64, 4  # images of a contact sheet; pixels
SEED = 20
SIZE = 32
CHUNK_PIXELS = 1000 * SIZE * SIZE
MAKING_BYTES, SCALING_BYTES = 72, 8  # for each pixel of what is made or scaled at once
HELD_BYTES = 512 << 20  # of pixels, which stand for a source that has more


@dataclass(frozen=True, eq=False)
class Repeated(Sequence[NDArray[Any]]):
    """`images` over and over, up to `length`, without holding a repeat in memory."""

    images: Images
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        at = range(self.length)[index]
        return [self[i] for i in at] if isinstance(at, range) else self.images[at % len(self.images)]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        # itertools.cycle would keep every image that it has seen.
        return itertools.islice(itertools.chain.from_iterable(itertools.repeat(self.images)), self.length)


@dataclass(frozen=True, eq=False)
class Source:
    """Images with their labels, in memory.

    name: what a report shows.
    images: (N, H, W[, C]) where shapes and dtypes agree, else a list of (H, W[, C]); N is at least 1.
    labels: int64 (N,).
    fingerprint: 16 hex digits, xxh3_64 over every shape, dtype, pixel and label.
    left_out: path and reason of each file that could not be read or has no class.
    not_looked_at: how many files with which suffixes. less: what is not kept of the files that were read.
    """

    name: str
    images: NDArray[Any] | list[NDArray[Any]]
    labels: Labels
    fingerprint: str
    left_out: tuple[tuple[str, str], ...] = ()
    not_looked_at: str = ""
    less: tuple[str, ...] = ()

    def take(self, count: int) -> tuple[Images, Labels]:
        """The first `count` images and labels: views where the source has that many, else `Repeated`."""
        if count <= len(self.images):
            return self.images[:count], self.labels[:count]
        return Repeated(self.images, count), np.resize(self.labels, count)


def open_source(
    location: str | os.PathLike[str] | None, count: int, image_size: int | None = None, max_pixels: int | None = None
) -> Source:
    """The source at `location`: `count` synthetic images for None, else what is there, see `imgstore.sources`.

    image_size: make each image a square of so many pixels a side. max_pixels: that an image file may have.
    Of what is there, at most HELD_BYTES are held: a
    sample, drawn at random but the same each time. Raises what imgstore raises: SourceError where no image can be
    read.
    """
    if location is None:
        return synthetic(count, image_size or SIZE)
    # not above: a worker of the gate imports this module beside another commit's imgstore
    from imgstore import errors, sources

    found = sources.open_source(location, max_pixels=max_pixels)
    try:
        held, unreadable = _held(found, image_size, errors.SourceError)
    except TypeError as error:
        raise errors.SourceError(location, f"Pillow cannot scale its images ({error})") from None
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


def _held(found: Sequence[Pair], image_size: int | None, unreadable: Any) -> tuple[dict[int, Pair], list[Any]]:
    """Images and labels by position, and the error of each that cannot be read, until enough are held."""
    held, errors, room = dict[int, Pair](), list[Any](), HELD_BYTES
    for position in np.random.default_rng(SEED).permutation(len(found)).tolist():
        try:
            image, label = found[position]
        except unreadable as error:
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


def fingerprint(images: Images, labels: Labels) -> str:
    """16 hex digits: xxh3_64 over every shape, dtype, pixel and label."""
    digest = xxhash.xxh3_64()
    for array in (*([images] if isinstance(images, np.ndarray) else images), labels):
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def synthesized(count: int, size: int) -> int:
    """How many synthetic images are held for `count`."""
    return count if size == SIZE else min(count, max(1, HELD_BYTES // (3 * size * size)))


def memory_to_open(location: str | os.PathLike[str] | None, count: int, image_size: int | None) -> int:
    """Bytes that `open_source` takes at its peak; of files, which tell their sizes when they are opened, the least."""
    size = image_size or SIZE
    pixels = size * size
    if location is not None:
        return SCALING_BYTES * pixels
    return 3 * pixels * synthesized(count, size) + MAKING_BYTES * max(CHUNK_PIXELS, pixels)


def sizes(images: Images) -> str:
    """Shape and dtype of the smallest image and, where there are others, of the largest."""
    ends = [images[0]] if isinstance(images, np.ndarray) else [pick(images, key=np.size) for pick in (min, max)]
    return " to ".join(dict.fromkeys(f"{'x'.join(map(str, image.shape))} {image.dtype}" for image in ends))


def contact_sheet(images: Images) -> bytes:
    """A few of the images side by side, small, as a PNG file."""
    chosen = range(0, len(images), -(-len(images) // SHOWN))
    small = [thumbnail(images[i]) for i in chosen]
    height = max(image.height for image in small)
    sheet = Image.new("RGBA", (sum(image.width + SHEET_GAP for image in small), height))
    left = 0
    for image in small:
        sheet.paste(image, (left, 0))
        left += image.width + SHEET_GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(image: NDArray[Any]) -> Image.Image:
    """In RGBA, no larger than a thumbnail; of 16 bits the upper 8."""
    pixels = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    small = Image.fromarray(pixels).convert("RGBA")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def synthetic(count: int, size: int = SIZE) -> Source:
    """`count` images with the statistics of photographs, (count, size, size, 3) uint8, and labels 0 to 9.

    Of another size than 32x32, no more than HELD_BYTES hold. Image i is the same for every count; the fingerprint is
    too, being that of the first 1,000 images of 32x32, or of as many pixels. Saved as PNG by Pillow 13.0 at its
    defaults, the first 6,000 average 2,110 bytes (standard deviation 473); 6,000 32x32 crops of photographs, scaled
    by 1 to 1/8, averaged 1,958 (521). Larger ones have the finer detail that photographs of that size have.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    count = synthesized(count, size)
    per_chunk = max(1, CHUNK_PIXELS // (size * size))
    chunks = -(-count // per_chunk)
    images = np.empty((chunks, per_chunk, size, size, 3), np.uint8)
    labels = np.empty((chunks, per_chunk), np.int64)
    for i in range(chunks):
        images[i], labels[i] = _synthetic_chunk(i, per_chunk, size)
    mark, flat = fingerprint(images[0], labels[0]), images.reshape(-1, size, size, 3)
    return Source(f"synthetic {size}x{size}x3", flat[:count], labels.reshape(-1)[:count], mark)


def _synthetic_chunk(index: int, count: int, size: int) -> tuple[NDArray[np.uint8], Labels]:
    """Random fields of amplitude 1/f**1.2, as in crops: one of light for all channels, two of colour."""
    rng = np.random.default_rng([SEED, index])
    frequency = np.hypot(np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size))
    amplitude = (np.maximum(frequency, 1) ** -1.2).astype(np.float32)
    # Sums over frequencies are Gaussian, so the noise need not be, and integers come ten times as fast.
    noise = rng.integers(-128, 128, (count, 3, size, 2 * (size // 2 + 1)), np.int8).astype(np.float32)
    fields = np.fft.irfft2(noise.view(np.complex64) * amplitude, (size, size))
    # irfft2 divides by the number of pixels, and contrast should not depend on it
    fields *= (rng.lognormal(3.7, 1.0, (count, 1, 1, 1)) * (size / SIZE) ** 2).astype(np.float32)
    light, warm, cool = fields.swapaxes(0, 1) * np.array([1, 0.4, 0.2], np.float32)[:, None, None, None]
    light += rng.uniform(15, 195, (count, 1, 1)).astype(np.float32)
    # No matrix product: BLAS rounds as its CPU does, and the fingerprint should be the same on another.
    pixels = np.stack([light + warm, light - cool, light - warm + cool], axis=-1)
    return np.clip(pixels, 0, 255).astype(np.uint8), rng.integers(0, 10, count)
