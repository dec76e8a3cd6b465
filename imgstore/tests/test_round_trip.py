"""What is stored comes back: every pixel, shape, dtype and label."""

import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgstore import BACKENDS
from imgstore.tests import strategies
from imgstore.tests.checks import fill, read_back, record, records
from imgstore.tests.strategies import Array, channels_held, stores

SOURCES: dict[str, Callable[[Any], Any]] = {
    "as drawn": lambda images: images,
    "list": list,
    "iterator": iter,
    "generator that re-uses a buffer": strategies.reusing,
}
SEQUENCES: list[Callable[[list[int]], Any]] = [list, tuple, iter, np.array]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@given(data=st.data())
def test_store_many(backend: ModuleType, source: Callable[[Any], Any], data: st.DataObject) -> None:
    images, labels, _ = data.draw(stores(backend))
    with TemporaryDirectory() as root:
        backend.store_many(root, source(images), labels, durable=data.draw(st.booleans()))
        got, got_labels = backend.read_many(root, verify=data.draw(st.booleans()))
        backend.verify(root)
    assert read_back(got, got_labels) == records(images, labels)
    assert isinstance(got, np.ndarray) == (len({record(image, 0)[:2] for image in images}) == 1)
    assert (got_labels.dtype, got_labels.shape) == (np.int64, (len(labels),))


@given(data=st.data())
def test_store_single(backend: ModuleType, data: st.DataObject) -> None:
    image_id = data.draw(strategies.ids)
    pairs = data.draw(st.lists(st.tuples(strategies.images(backend), strategies.labels), min_size=1, max_size=3))
    with TemporaryDirectory() as root:
        for image, label in pairs:  # the first is new, the others replace it
            backend.store_single(root, image, image_id, label, durable=data.draw(st.booleans()))
            got, got_label = backend.read_single(root, image_id, verify=data.draw(st.booleans()))
            assert read_back([got], [got_label]) == [record(image, label)]
            assert type(got_label) is int
        backend.verify(root)


@given(data=st.data())
def test_read_single_of_every_store(backend: ModuleType, data: st.DataObject) -> None:
    with TemporaryDirectory() as root:
        expected = fill(backend, root, data.draw(stores(backend)))
        got = {image_id: backend.read_single(root, image_id) for image_id in expected}
    assert {image_id: read_back(*zip(pair, strict=True))[0] for image_id, pair in got.items()} == expected


@given(data=st.data())
def test_read_many_chosen(backend: ModuleType, data: st.DataObject) -> None:
    """In any order, with repeats, from the many and the singles."""
    with TemporaryDirectory() as root:
        expected = fill(backend, root, data.draw(stores(backend, least=1)))
        chosen = data.draw(st.lists(st.sampled_from(list(expected)), max_size=8))
        got, labels = backend.read_many(root, data.draw(st.sampled_from(SEQUENCES))(chosen))
    assert read_back(got, labels) == [expected[image_id] for image_id in chosen]
    assert not chosen or isinstance(got, np.ndarray) == (len({expected[image_id][:2] for image_id in chosen}) == 1)


@given(data=st.data())
def test_read_many_all(backend: ModuleType, data: st.DataObject) -> None:
    """In ascending order of ids, singles among them."""
    with TemporaryDirectory() as root:
        expected = fill(backend, root, data.draw(stores(backend)))
        assert read_back(*backend.read_many(root)) == list(expected.values())


@pytest.mark.parametrize("pickled", [False, True])
@given(data=st.data())
def test_reader(backend: ModuleType, pickled: bool, data: st.DataObject) -> None:
    with TemporaryDirectory() as root:
        expected = fill(backend, root, data.draw(stores(backend, least=1)))
        ids, values = list(expected), list(expected.values())
        with backend.open_reader(root, verify=data.draw(st.booleans())) as opened:
            reader = pickle.loads(pickle.dumps(opened)) if pickled else opened
            positions = data.draw(st.lists(st.integers(-len(ids), len(ids) - 1)))
            chosen = data.draw(st.lists(st.sampled_from(ids)))
            assert len(reader) == len(ids)
            assert (reader.ids.tolist(), reader.ids.dtype) == (ids, np.int64)
            assert read_back(*zip(*reader, strict=True)) == values
            assert [record(*reader[position]) for position in positions] == [values[position] for position in positions]
            pairs = reader.__getitems__(positions)
            assert [record(*pair) for pair in pairs] == [values[position] for position in positions]
            assert read_back(*reader.read_many()) == values
            assert read_back(*reader.read_many(chosen)) == [expected[image_id] for image_id in chosen]


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 2), (5, 4, 3), (1, 1), (1, 1, 1)])
def test_every_way_to_read_keeps_the_shape(backend: ModuleType, shape: tuple[int, ...], tmp_path: Path) -> None:
    images, labels = strategies.pixels(0, (6, *shape), np.dtype(np.uint8)), [*range(6)]
    expected, ids = records(images, labels), [5, 0, 3, 3, 1, -2]
    wanted, chosen = [expected[at] for at in ids], [at % 6 for at in ids]
    backend.store_many(tmp_path, images, labels)
    with backend.open_reader(tmp_path) as reader:
        assert [record(*backend.read_single(tmp_path, image_id)) for image_id in chosen] == wanted
        assert [record(*reader[position]) for position in ids] == wanted
        assert [record(*pair) for pair in reader.__getitems__(ids)] == wanted
        assert read_back(*backend.read_many(tmp_path, chosen)) == read_back(*reader.read_many(chosen)) == wanted
        assert read_back(*backend.read_many(tmp_path)) == read_back(*reader.read_many()) == expected


@pytest.mark.parametrize("code", ["u1", "u2"])
def test_a_batch_comes_from_many_blocks(backend: ModuleType, code: str, tmp_path: Path) -> None:
    images = strategies.pixels(5, (600, 60, 61), np.dtype(code))  # 2 MiB or more, and of odd length
    backend.store_many(tmp_path / "store", images, range(600), durable=False)
    chosen = np.random.default_rng(5).permutation(600)[:64]
    with backend.open_reader(tmp_path / "store") as reader:
        for image_ids in (chosen, chosen[::-1]):  # when nothing was read before, and when all was
            read, labels = reader.read_many(image_ids)
            assert np.array_equal(read, images[image_ids]) and np.array_equal(labels, image_ids)
            assert read.dtype == images.dtype and read.flags.owndata


@pytest.mark.parametrize("bad", [lambda n: n, lambda n: -n - 1])
def test_reader_ends(backend: ModuleType, bad: Callable[[int], int], tmp_path: Path) -> None:
    backend.store_many(tmp_path, IMAGES, range(len(IMAGES)))
    with backend.open_reader(tmp_path) as reader, pytest.raises(IndexError, match=str(bad(len(reader)))):
        reader[bad(len(reader))]


@given(data=st.data())
def test_what_comes_back_is_the_callers(backend: ModuleType, data: st.DataObject) -> None:
    """Each array owns its memory, or is a row of a batch; and to change one changes nothing stored and no other."""
    with TemporaryDirectory() as root:
        expected = fill(backend, root, data.draw(stores(backend, least=1)))
        twice, positions = [*expected] * 2, [*range(len(expected))] * 2
        with backend.open_reader(root) as reader:
            for read in (
                lambda: [backend.read_single(root, image_id)[0] for image_id in twice],
                lambda: [reader[position][0] for position in positions],
                lambda: backend.read_many(root)[0],
                lambda: reader.read_many(twice)[0],
                lambda: reader.read_many([*expected][:1] * 2)[0],
            ):
                assert_owned(read())
            batch = [image for image, _ in reader.__getitems__(positions)]
            assert_owned(batch, [image if image.base is None else image.base for image in batch])
            assert read_back(*reader.read_many()) == list(expected.values())


def assert_owned(images: Array | list[Array], owners: list[Array] | None = None) -> None:
    arrays = [images] if isinstance(images, np.ndarray) else images
    assert all(owner.flags.owndata for owner in owners or arrays)
    assert all(array.flags.writeable for array in arrays)
    for number, array in enumerate(arrays):
        others = arrays[:number] + arrays[number + 1 :]
        before = [other.tobytes() for other in others]
        array.fill(array.dtype.type(array.flat[0] == 0))
        assert before == [other.tobytes() for other in others]


@pytest.mark.parametrize("order", strategies.ORDERS)
@pytest.mark.parametrize(
    ("backend", "code"),
    [(backend, code) for backend in BACKENDS.values() for code in "efdFD" if code in channels_held(backend)],
)
def test_every_nan_keeps_its_payload(backend: ModuleType, code: str, order: Literal["<", ">"], tmp_path: Path) -> None:
    """Quiet and signalling, of either sign, with each bit of the payload; all 65,536 values of float16."""
    image = nans(code).view(np.dtype(code)).reshape(2, -1).astype(np.dtype(code).newbyteorder(order))
    backend.store_many(tmp_path, [image, image[:1]], [0, 1])
    backend.store_single(tmp_path, image, 2, 2)
    assert read_back(*backend.read_many(tmp_path)) == records([image, image[:1], image], [0, 1, 2])


def nans(code: str) -> Array:
    if code == "e":
        return np.arange(1 << 16, dtype=np.uint16)
    bits = {"f": 32, "F": 32, "d": 64, "D": 64}[code]
    fraction = {32: 23, 64: 52}[bits]
    unsigned = np.dtype(f"u{bits // 8}").type
    infinity = unsigned(((1 << bits - 1) - 1) >> fraction << fraction)
    payloads = unsigned(1) << np.arange(fraction, dtype=unsigned)
    return np.concatenate([infinity | payloads, ~unsigned((1 << bits - 1) - 1) | infinity | payloads] * 2)


IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
