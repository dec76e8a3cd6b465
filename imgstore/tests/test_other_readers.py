"""What is stored can be read without this package: by Pillow, h5py and py-lmdb as they are."""

import csv
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pytest
from PIL import Image

from imgstore import disk, hdf5
from imgstore import lmdb as lmdb_backend
from imgstore.tests.checks import Record, current, record, records
from imgstore.tests.strategies import CODES, LIMITS, Array, pixels

LABELS = [-(2**63), 2**63 - 1, 0, 3]
PNG_FORMS = [((6, 5), "B"), *(((6, 5, count), "B") for count in (1, 2, 3, 4)), ((6, 5), "H"), ((6, 5), "?")]
HEADER = struct.Struct("<QqQQQQ8s")  # of an LMDB value, as the docstring of imgstore.lmdb lists it


def sample(shape: tuple[int, ...], code: str) -> Array:
    return pixels(4, (len(LABELS), *shape), np.dtype(code))


MIXED = [sample((6, 5), "B")[0], sample((3, 4, 3), "d")[0], sample((6, 5), "B")[1], sample((2, 2, 1), "H")[0]]


def generation(root: Path) -> Path:
    return root / current(root)[3]


@pytest.mark.parametrize(("shape", "code"), PNG_FORMS)
def test_pillow_reads_the_images_and_csv_the_labels(shape: tuple[int, ...], code: str, tmp_path: Path) -> None:
    images = sample(shape, code)
    disk.store_many(tmp_path, images, LABELS)
    disk.store_single(tmp_path, images[0], 2**63 - 1, 5)
    names = [*(f"{image_id:08d}.png" for image_id in range(4)), f"singles/{2**63 - 1}.png"]
    for name, image in zip(names, [*images, images[0]], strict=True):
        with Image.open(generation(tmp_path) / name) as png:
            assert png.format == "PNG"
            png.load()
            np.testing.assert_array_equal(np.asarray(png).reshape(shape), image)
    with open(generation(tmp_path) / "labels.csv", newline="") as table:
        assert list(csv.DictReader(table)) == [
            {"id": str(image_id), "label": str(label)} for image_id, label in enumerate(LABELS)
        ]


def test_png_forms_are_all_that_disk_holds() -> None:
    assert {code for _, code in PNG_FORMS} == set(LIMITS["disk"])


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)])
@pytest.mark.parametrize("code", CODES)
def test_h5py_reads_images_and_labels(shape: tuple[int, ...], code: str, tmp_path: Path) -> None:
    images = sample(shape, code)
    hdf5.store_many(tmp_path, images, LABELS)
    hdf5.store_single(tmp_path, images[3], 2**63 - 1, 5)
    with h5py.File(generation(tmp_path) / "images.h5") as file:
        assert records(file["images"][...], file["labels"][...]) == records(images, LABELS)
        assert file["images"].chunks is file["images"].compression is None
    with h5py.File(generation(tmp_path) / f"singles/{2**63 - 1}.h5") as file:
        assert records(file["images"][...], file["labels"][...]) == records(images[3:], [5])


def test_h5py_reads_mixed_images(tmp_path: Path) -> None:
    hdf5.store_many(tmp_path, MIXED, LABELS)
    with h5py.File(generation(tmp_path) / "images.h5") as file:
        assert list(hdf5_images(file)) == records(MIXED, LABELS)


def hdf5_images(file: h5py.File) -> Iterator[Record]:
    ends = [*file["blocks"][1:, 0].tolist(), len(file["labels"])]
    for (first, offset, *shape, name), end in zip(file["blocks"][...].tolist(), ends, strict=True):
        dtype = np.dtype(name.to_bytes(8, "little").rstrip(b"\0").decode())
        form = [length for length in shape if length]
        data = file["pixels"][offset : offset + (end - first) * np.prod(form) * dtype.itemsize].view(dtype)
        yield from records(data.reshape(-1, *form), file["labels"][first:end])


@pytest.mark.parametrize("images", [sample((6, 5), "d"), sample((6, 5, 1), "H"), sample((700, 600), "B"), MIXED])
def test_py_lmdb_reads_the_blocks(images: Any, tmp_path: Path) -> None:
    lmdb_backend.store_many(tmp_path, images, LABELS)
    lmdb_backend.store_single(tmp_path, images[3], 2**63 - 1, 5)
    assert list(lmdb_images(generation(tmp_path) / "images.mdb")) == list(enumerate(records(images, LABELS)))
    assert list(lmdb_images(generation(tmp_path) / f"singles/{2**63 - 1}.mdb")) == [(2**63 - 1, record(images[3], 5))]


def lmdb_images(path: Path) -> Iterator[tuple[int, Record]]:
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        for key, value in transaction.cursor():
            _, first, count, *shape, name = HEADER.unpack_from(value)
            assert int.from_bytes(key, "big") == first + count - 1
            form = [length for length in shape if length]
            labels = np.frombuffer(value, "<i8", count, HEADER.size)
            dtype = np.dtype(name.rstrip(b"\0").decode())  # and behind the pixels zeros, to half a page
            data = np.frombuffer(value, dtype, count * int(np.prod(form)), HEADER.size + 16 * count)
            yield from enumerate(records(data.reshape(count, *form), labels), first)
