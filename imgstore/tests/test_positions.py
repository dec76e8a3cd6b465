"""Slices, lists and arrays of positions, as in NumPy, and how a reader shows itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import imgstore
from imgstore import BACKENDS, Reader, shards
from imgstore.errors import InvalidArgumentError, ReaderClosedError

IMAGES = np.arange(7 * 4 * 5, dtype=np.uint8).reshape(7, 4, 5)
LABELS = np.arange(7) * 10
KINDS = [*BACKENDS, "singles", "shards"]
POSITIONS = [
    slice(2, 5),
    slice(None),
    slice(None, None, -2),
    slice(-3, None),
    slice(5, 100),
    [0, 5],
    [-1, 0, -1],
    np.array([3]),
    np.array([6, -7], np.int8),
]


@pytest.fixture(params=KINDS)
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reader]:
    root = tmp_path / "store"
    if request.param == "shards":
        shards.store(
            root, [zip(IMAGES[part], LABELS[part], strict=True) for part in (slice(3), slice(3, 7))], backend="lmdb"
        )
    elif request.param == "singles":
        imgstore.lmdb.store_many(root, IMAGES[:5], LABELS[:5], durable=False)
        for image_id, position in ((8, 5), (99, 6)):  # ids are no positions
            imgstore.lmdb.store_single(root, IMAGES[position], image_id, LABELS[position], durable=False)
    else:
        BACKENDS[request.param].store_many(root, IMAGES, LABELS, durable=False)
    with imgstore.open_reader(root) as opened:
        yield opened


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_positions_are_those_of_numpy(reader: Reader, positions: Any) -> None:
    images, labels = reader[positions]
    np.testing.assert_array_equal(images, IMAGES[positions])
    assert labels.tolist() == LABELS[positions].tolist() and labels.dtype == np.int64


def test_no_position_gives_what_read_many_gives(reader: Reader) -> None:
    nothing: tuple[Any, ...] = slice(4, 4), [], np.empty(0, np.int64)
    for positions in nothing:
        images, labels = reader[positions]
        assert (len(images), labels.tolist()) == (0, []) and type(images) is type(reader.read_many([])[0])


def test_a_pair_is_still_a_pair(reader: Reader) -> None:
    last: tuple[Any, ...] = -1, np.int16(6), np.array(6)
    for position in last:
        image, label = reader[position]
        np.testing.assert_array_equal(image, IMAGES[6])
        assert label == 60


@pytest.mark.parametrize("positions", [[7], [0, -8], np.array([100])], ids=str)
def test_beyond_the_end(reader: Reader, positions: Any) -> None:
    with pytest.raises(IndexError, match="is not in a reader of 7 images"):
        reader[positions]


@pytest.mark.parametrize("positions", [np.arange(7) < 3, [True], [0.0], [[0]]], ids=str)
def test_a_mask_is_refused(reader: Reader, positions: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="positions: has shape"):
        reader[positions]


def test_closed(reader: Reader) -> None:
    reader.close()
    with pytest.raises(ReaderClosedError):
        reader[:2]
    assert repr(reader).endswith("/store, closed>")


def test_how_it_shows_itself(reader: Reader, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["reader"]
    shown = f"{kind if kind != 'singles' else 'lmdb'}, 7 images, 4x5 uint8{', 2 stored singly' * (kind == 'singles')}>"
    assert repr(reader).endswith(f"/store: {shown}")


def test_how_others_show_themselves(tmp_path: Path) -> None:
    imgstore.hdf5.store_many(tmp_path / "mixed", [IMAGES[0], IMAGES[0, :2]], [0, 1], durable=False)
    imgstore.hdf5.store_many(tmp_path / "none", [], [], durable=False)
    for name, shown in (("mixed", "hdf5, 2 images, several shapes or dtypes>"), ("none", "hdf5, 0 images>")):
        with imgstore.open_reader(tmp_path / name) as opened:
            assert repr(opened) == f"<Reader of {tmp_path / name}: {shown}"
