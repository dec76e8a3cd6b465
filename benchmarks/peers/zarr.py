"""zarr 3: a group of two arrays, the images in chunks of 1 MiB and without the default compressor.

zarr user guide, "Optimizing performance", "Chunk size and shape": at least 1 MB, of the shape that is read.
Photographs gain little from its Zstandard, which costs more than the disk.
"""

from collections.abc import Sequence

import zarr

from benchmarks.peers import Array, Many, Pair, rows_in, stacked, sync
from benchmarks.peers._rows import Rows

_CHUNK_BYTES = 1 << 20


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    images = stacked(images)
    group = zarr.create_group(root)
    for name, data in (("images", images), ("labels", labels)):
        chunks = (rows_in(_CHUNK_BYTES, data), *data.shape[1:])
        array = group.create_array(name, shape=data.shape, dtype=data.dtype, chunks=chunks, compressors=None)
        array[:] = data
    sync(root, durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    group = zarr.open_group(root, mode="r+")
    for name, data in (("images", image), ("labels", label)):
        array = group[name]
        array.resize((max(image_id + 1, array.shape[0]), *array.shape[1:]))
        array[image_id] = data
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    group = zarr.open_group(root, mode="r")
    return Rows(group["images"], group["labels"])[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    group = zarr.open_group(root, mode="r")
    return group["images"][:], group["labels"][:]


def open_reader(root: str, *, verify: bool = True) -> Rows:
    group = zarr.open_group(root, mode="r")
    return Rows(group["images"], group["labels"][:])
