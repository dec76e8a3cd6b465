"""What a store cannot hold is refused in one clear sentence, and the store is as it was."""

import itertools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from imgstore import BACKENDS, errors
from imgstore.core.files import NewFile
from imgstore.errors import (
    ClusterError,
    CorruptStoreError,
    ImageNotFoundError,
    ImgstoreError,
    InvalidArgumentError,
    ReaderClosedError,
    SourceError,
    StoreBusyError,
    StoreNotFoundError,
    StoreReplacedError,
    UnsupportedImageError,
)
from imgstore.tests.checks import current, files, read_back, record, refused
from imgstore.tests.strategies import CODES, MOST_CHANNELS, ORDERS, TOO_LARGE, Array, channels_held

Call = Callable[[ModuleType, Path, Any], object]

IMAGE = np.arange(12, dtype=np.uint8).reshape(3, 4)
IMAGES = np.stack([IMAGE, IMAGE + 1, IMAGE + 2])
LARGE = np.random.default_rng(0).integers(0, 256, (1100, 1000), dtype=np.uint8)  # a block each

BAD_IMAGES: dict[str, Any] = {
    "no rows": np.zeros((0, 4), np.uint8),
    "no columns": np.zeros((4, 0, 3), np.uint8),
    "no channels": np.zeros((4, 4, 0), np.uint8),
    "no dimension": np.array(5),
    "1-D": np.zeros(4, np.uint8),
    "4-D": np.zeros((1, 4, 4, 3), np.uint8),
    "objects": np.full((4, 4), None),
    "strings": np.full((4, 4), "a"),
    "bytes": np.full((4, 4), b"a"),
    "dates": np.zeros((4, 4), "datetime64[s]"),
    "durations": np.zeros((4, 4), "timedelta64[s]"),
    "structured": np.zeros((4, 4), [("r", "u1"), ("g", "u1")]),
    "void": np.zeros((4, 4), "V2"),
    "a list": IMAGE.tolist(),
    "a number": 5,
    "None": None,
    "Pillow's": Image.new("L", (4, 4)),
}
WAYS: dict[str, Call] = {
    "store_single": lambda backend, root, bad: backend.store_single(root, bad, 2, 0, durable=False),
    "list": lambda backend, root, bad: backend.store_many(root, [IMAGE, IMAGE, bad], range(3), durable=False),
    "generator": lambda backend, root, bad: backend.store_many(root, iter([LARGE, LARGE, bad]), range(3)),
}


LABELS: dict[str, Any] = {
    "floats": [1.0, 2.0, 3.0],
    "too large": [0, 0, 2**63],
    "too large, unsigned": np.full(3, 2**63, np.uint64),
    "too small": [0, 0, -(2**63) - 1],
    "far too large": [0, 0, 2**64],
    "too large, and negative": [2**63, 0, -1],
    "strings": ["a", "b", "c"],
    "a string": "abc",
    "None": None,
    "2-D": [[0], [1], [2]],
    "ragged": [[0], [1, 2], 3],
    "unsized": iter([0, 1, 2]),
    "a number": 3,
}
COUNTS = {"too many": range(4), "too few": range(2), "none": []}
NUMBERS: dict[str, Any] = {
    "too large": 2**63,
    "too small": -(2**63) - 1,
    "a string": "x",
    "a float": 1.5,
    "None": None,
    "an array": np.array([1, 2]),
}

# what a call gives for the bad argument, and the argument that the message names
ARGUMENTS: list[tuple[str, str, dict[str, Any], Call]] = [
    ("store_many", "labels", LABELS | COUNTS, lambda backend, root, bad: backend.store_many(root, IMAGES, bad)),
    ("a list", "labels", COUNTS, lambda backend, root, bad: backend.store_many(root, list(IMAGES), bad)),
    ("a generator", "labels", COUNTS, lambda backend, root, bad: backend.store_many(root, iter(IMAGES), bad)),
    ("blocks", "labels", COUNTS, lambda backend, root, bad: backend.store_many(root, iter([LARGE] * 3), bad)),
    ("no images", "labels", {"two": [1, 2]}, lambda backend, root, bad: backend.store_many(root, [], bad)),
    (
        "store_many",
        "images",
        {"a number": 5, "None": None, "0-D": np.array(5)},
        lambda backend, root, bad: backend.store_many(root, bad, [1]),
    ),
    ("store_single", "label", NUMBERS, lambda backend, root, bad: backend.store_single(root, IMAGE, 1, bad)),
    (
        "store_single",
        "image_id",
        {**NUMBERS, "negative": -1},
        lambda backend, root, bad: backend.store_single(root, IMAGE, bad, 1),
    ),
    ("read_single", "image_id", NUMBERS, lambda backend, root, bad: backend.read_single(root, bad)),
    ("read_many", "image_ids", NUMBERS, lambda backend, root, bad: backend.read_many(root, [0, bad])),
    ("read_many", "image_ids", {"a number": 5}, lambda backend, root, bad: backend.read_many(root, bad)),
]


class Bad(NamedTuple):
    """A call with an argument that every backend refuses."""

    argument: str
    call: Callable[[ModuleType, Path], object]


def given_bad(call: Call, bad: Any) -> Callable[[ModuleType, Path], object]:
    return lambda backend, root: call(backend, root, bad)


BAD_CALLS = {
    f"{way}, {argument}: {name}": Bad(argument, given_bad(call, bad))
    for way, argument, values, call in ARGUMENTS
    for name, bad in values.items()
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", BAD_IMAGES)
def test_what_is_no_image_is_refused(backend: ModuleType, bad: str, way: str, store: Path) -> None:
    with refused(store, UnsupportedImageError, "image 2: ") as caught:
        WAYS[way](backend, store, BAD_IMAGES[bad])
    assert caught[0].image_id == 2


@pytest.mark.parametrize("bad", [bad for bad, image in BAD_IMAGES.items() if isinstance(image, np.ndarray)])
def test_an_array_of_what_is_no_image_is_refused(backend: ModuleType, bad: str, store: Path) -> None:
    with refused(store, UnsupportedImageError, "image 0: ") as caught:
        backend.store_many(store, np.stack([BAD_IMAGES[bad]] * 3), range(3))
    assert caught[0].image_id == 0


@pytest.mark.parametrize("way", ["store_single", "list"])
@pytest.mark.parametrize("code", CODES)
def test_a_form_is_held_or_refused(backend: ModuleType, code: str, way: str, store: Path) -> None:
    """As `LIMITS` says, with every number of channels and in either byte order."""
    for order, channels in itertools.product(ORDERS, range(MOST_CHANNELS + 1)):
        shape = (3, 4, channels) if channels else (3, 4)
        image = np.ones(shape, np.dtype(code).newbyteorder(order))
        if max(channels, 1) <= channels_held(backend).get(code, 0):
            WAYS[way](backend, store, image)
            assert read_back(*backend.read_many(store, [2]))[0][:3] == record(image, 0)[:3]
        else:
            with refused(store, UnsupportedImageError, "image 2: "):
                WAYS[way](backend, store, image)


@pytest.mark.parametrize("name", TOO_LARGE)
def test_an_image_too_large_is_refused(name: str, store: Path) -> None:
    image = np.broadcast_to(np.uint8(0), TOO_LARGE[name])  # takes no memory
    for way in WAYS.values():
        with refused(store, UnsupportedImageError, "image 2: "):
            way(BACKENDS[name], store, image)


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_a_bad_argument_is_refused(backend: ModuleType, bad: str, store: Path) -> None:
    argument, call = BAD_CALLS[bad]
    with refused(store, InvalidArgumentError, f"{argument}: "):
        call(backend, store)


@pytest.mark.parametrize(
    "images",
    [
        np.array([*[None] * 3, IMAGE, IMAGE], object)[3:],
        IMAGE.view(np.matrix),
        IMAGES.view(bool),
        IMAGES.view(np.recarray),
    ],
    ids=["an array of arrays", "matrix", "bool of any bytes", "record array"],
)
def test_odd_images_are_stored_whole_or_refused(backend: ModuleType, images: Any, store: Path) -> None:
    before = files(store)
    try:
        backend.store_many(store, images, range(len(images)))
    except ImgstoreError:
        assert files(store) == before
    else:
        np.testing.assert_array_equal(list(backend.read_many(store)[0]), list(images))


@pytest.mark.parametrize("image_id", [-1, 3, 2**63 - 1, -(2**63)])
def test_a_missing_id_is_named(backend: ModuleType, image_id: int, store: Path) -> None:
    with backend.open_reader(store) as reader:
        reads: list[Callable[[], object]] = [
            lambda: backend.read_single(store, image_id),
            lambda: backend.read_many(store, [0, image_id, 1]),
            lambda: reader.read_many([image_id]),
        ]
        for read in reads:
            with refused(store, ImageNotFoundError, f"no image with id {image_id} in the store {store}") as caught:
                read()
            assert (caught[0].image_id, caught[0].root) == (image_id, str(store))


READS: dict[str, Callable[[ModuleType, Path], object]] = {
    "read_single": lambda backend, root: backend.read_single(root, 0),
    "read_many": lambda backend, root: backend.read_many(root),
    "open_reader": lambda backend, root: backend.open_reader(root),
    "verify": lambda backend, root: backend.verify(root),
}
WRITES: dict[str, Callable[[ModuleType, Path], object]] = {
    "store_many": lambda backend, root: backend.store_many(root, IMAGES, range(3)),
    "store_single": lambda backend, root: backend.store_single(root, IMAGE, 0, 0),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("where", ["missing", "missing/deeper", "a file", "a file/deeper", "empty"])
def test_a_missing_store_is_named(backend: ModuleType, read: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "empty").mkdir()
    with refused(tmp_path, StoreNotFoundError, f"{tmp_path / where}: ") as caught:
        READS[read](backend, tmp_path / where)
    assert caught[0].path == str(tmp_path / where)


@pytest.mark.parametrize("write", WRITES)
def test_a_root_that_is_a_file_is_refused(backend: ModuleType, write: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("mine")
    with refused(tmp_path, InvalidArgumentError, f"root: {tmp_path / 'a file'}"):
        WRITES[write](backend, tmp_path / "a file")


@pytest.mark.parametrize("verb", [*READS, "store_single"])
def test_another_backends_store_is_refused(backend: ModuleType, verb: str, tmp_path: Path) -> None:
    for other in BACKENDS.values():
        root = tmp_path / other.BACKEND.name
        other.store_many(root, IMAGES, range(3))
        if other is not backend:
            with refused(root, StoreNotFoundError, f"{root}: ") as caught:
                (READS | WRITES)[verb](backend, root)
            assert all(name in str(caught[0]) for name in (backend.BACKEND.name, other.BACKEND.name))


@pytest.mark.parametrize(
    "use",
    [
        len,
        list,
        pickle.dumps,
        lambda reader: reader[0],
        lambda reader: reader.__getitems__([]),
        lambda reader: reader.ids,
        lambda reader: reader.read_many(),
        lambda reader: reader.read_many([]),
        lambda reader: reader.__enter__(),
    ],
    ids=["len", "iteration", "pickle", "position", "positions", "ids", "all", "read_many", "with"],
)
def test_a_closed_reader_is_refused(backend: ModuleType, use: Callable[[Any], object], store: Path) -> None:
    reader = backend.open_reader(store)
    with reader:
        pass
    reader.close()
    with refused(store, ReaderClosedError, "this reader was closed"):
        use(reader)


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), GeneratorExit(), OSError(28, "full")])
@pytest.mark.parametrize("given_before", [0, 1, 3])
def test_a_generator_that_raises_leaves_no_litter(
    backend: ModuleType, given_before: int, error: BaseException, store: Path
) -> None:
    def images() -> Iterator[Array]:
        yield from [LARGE] * given_before
        raise error

    before = files(store)
    with pytest.raises(type(error)) as caught:
        backend.store_many(store, images(), range(5))
    assert caught.value is error
    assert files(store) == before


@pytest.mark.parametrize("given_before", [0, 1, 3])
def test_a_first_call_that_fails_makes_no_store(backend: ModuleType, given_before: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        backend.store_many(tmp_path, iter([LARGE] * given_before), range(5))
    assert set(files(tmp_path)) <= {"LOCK"}
    with pytest.raises(StoreNotFoundError):
        backend.open_reader(tmp_path)


@pytest.mark.parametrize("root", ["store", "a new one"])
def test_a_single_that_cannot_be_written_changes_nothing(
    backend: ModuleType, root: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(file: NewFile, block: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    before = files(store)
    monkeypatch.setattr(backend.BACKEND, "write_single", write_half)
    with pytest.raises(OSError, match="No space left"):
        backend.store_single(store.parent / root, IMAGE, 0, 0, durable=False)
    assert files(store) == before
    assert (store.parent / root / "CURRENT").exists() == (root == "store")


@pytest.mark.parametrize("write", WRITES)
def test_a_store_holds_only_what_it_should(backend: ModuleType, write: str, store: Path) -> None:
    for _ in range(3):
        WRITES[write](backend, store)
    assert {path.name for path in store.iterdir()} == {"LOCK", "CURRENT", current(store)[3]}
    singles = store / current(store)[3] / "singles"
    assert singles.exists() == (write == "store_single")
    assert not singles.exists() or len(list(singles.iterdir())) == 1


ERRORS: list[tuple[ImgstoreError, type[Exception]]] = [
    (InvalidArgumentError("labels", "a message"), ValueError),
    (UnsupportedImageError(3, "a message"), ValueError),
    (UnsupportedImageError(3, "a message", 5), ValueError),
    (ClusterError("a message"), RuntimeError),
    (ImageNotFoundError(3, "/a/path"), KeyError),
    (SourceError("/a/path", "a message"), ValueError),
    (ReaderClosedError("a message"), ValueError),
    (StoreNotFoundError("/a/path", "a message"), FileNotFoundError),
    (CorruptStoreError("/a/path", "a message", 3), OSError),
    (CorruptStoreError("/a/path", "a message"), OSError),
    (StoreBusyError("/a/path", "a message"), OSError),
    (StoreReplacedError("/a/path", "a message"), OSError),
]


@pytest.mark.parametrize(("error", "builtin"), ERRORS)
def test_an_error_pickles_and_is_a_builtin_too(error: ImgstoreError, builtin: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.args, vars(copy)) == (type(error), str(error), error.args, vars(error))
    assert isinstance(error, builtin)


def test_the_errors_are_all_here() -> None:
    public = {value for name, value in vars(errors).items() if isinstance(value, type) and name[0] != "_"}
    assert {type(error) for error, _ in ERRORS} == {kind for kind in public if issubclass(kind, ImgstoreError)} - {
        ImgstoreError
    }
