"""Images with the statistics of photographs, made anew each time, and always the same."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.images import Labels, Source, fingerprint

SEED = 20
SIZE = 32
CHUNK_PIXELS = 1000 * SIZE * SIZE
HELD_BYTES = 512 << 20  # of pixels, which stand for a source that has more


def synthesized(count: int, size: int) -> int:
    """How many synthetic images are held for `count`."""
    return count if size == SIZE else min(count, max(1, HELD_BYTES // (3 * size * size)))


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
