"""Checksums: one for each image, for random reads, and one for each block, for bulk reads.

Both are xxh3 with 64 bits (https://xxhash.com). They cover the ids too, because a flipped page number hands
back another image that is whole in itself. They guard against accidents, not against forgery.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from imgstore.core.blocks import Array, Block, Labels

Checksums = NDArray[np.uint64]

checksum: Callable[..., int] = xxhash.xxh3_64_intdigest  # of a contiguous buffer, with a seed

_MASK = 2**64 - 1
# odd and without a pattern, so that no flip in an id undoes one in a label
_ID_FACTOR, _LABEL_FACTOR = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93

_form_seed = lru_cache(maxsize=1024)(lambda shape, dtype: checksum(f"{dtype.str} {shape}".encode()))


def image_checksum(image: Array, image_id: int, label: int) -> int:
    """Over id, label, shape, dtype and pixels of one C-contiguous image."""
    seed = _form_seed(image.shape, image.dtype) + image_id * _ID_FACTOR + label * _LABEL_FACTOR
    return checksum(image, seed & _MASK)


def image_checksums(images: Array, ids: Labels, labels: Labels) -> Checksums:
    """`image_checksum` of each image, faster than a loop: uint64 `(N,)`."""
    seeds = ids.astype(np.uint64) * np.uint64(_ID_FACTOR) + labels.astype(np.uint64) * np.uint64(_LABEL_FACTOR)
    seeds += np.uint64(_form_seed(images.shape[1:], images.dtype))
    rows = images.reshape(len(images), -1)  # of one dimension each, which Python's buffers take faster
    return np.fromiter(map(checksum, rows, seeds.tolist()), np.uint64, len(images))


def block_checksum(block: Block, checksums: Checksums) -> int:
    """Over the ids, labels, form, pixels and image checksums of a block."""
    form = f"{block.images.dtype.str} {block.images.shape}".encode()
    beside = checksum(block.labels, checksum(checksums, checksum(form, block.first)))
    return checksum(block.images, beside)
