"""Tests of sharded stores: read as one store, stored in this process, and noticed where a shard is not as it was."""

import functools
import gc
import itertools
import os
import pickle
import re
import resource
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest

import imgstore
from imgstore import shards
from imgstore.core.checksums import checksum
from imgstore.core.mapped import Mapped
from imgstore.core.writing import replace_text, writing
from imgstore.errors import (
    CorruptStoreError,
    ImageNotFoundError,
    ImgstoreError,
    InvalidArgumentError,
    ReaderClosedError,
    StoreBusyError,
    StoreNotFoundError,
    StoreReplacedError,
    UnsupportedImageError,
)
from imgstore.shards import reader as _shards
from imgstore.shards import storing
from imgstore.tests.checks import blocks_of, current, files, in_child, read_back, record, records, refused
from imgstore.tests.strategies import Array, pixels

BYTE = np.dtype(np.uint8)
COUNTS = [5, 0, 400, 1, 9]  # the third has two blocks where images are stored in blocks
COUNT = sum(COUNTS)
BATCH = [3, 414, 5, 404, 405, 3, 406, 0, 300]  # of four shards, out of order, one twice
Pair = tuple[Array, int]


def images_of(form: tuple[int, ...] = (32, 32, 3), count: int = COUNT) -> Array:
    return pixels(1, (count, *form), BYTE)


def labels_of(count: int = COUNT) -> list[int]:
    return list(range(-7, count - 7))


def parts(images: Any, labels: list[int], counts: list[int] = COUNTS) -> list[Callable[[], Iterator[Pair]]]:
    """Partitions of so many images, as generators that do not know how many they have."""
    bounds = list(itertools.accumulate(counts, initial=0))
    pairs = list(zip(images, labels, strict=True))
    return [functools.partial(iter, pairs[first:last]) for first, last in itertools.pairwise(bounds)]


def name_of(backend: ModuleType) -> str:
    return str(backend.BACKEND.name)


@pytest.fixture(scope="module")
def made(backend: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded store that tests only read or copy."""
    root = tmp_path_factory.mktemp("made") / "root"
    shards.store(root, parts(images_of(), labels_of()), backend=name_of(backend))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "root"))


def expected(ids: Any = range(COUNT)) -> list[Any]:
    images, labels = images_of(), labels_of()
    return [record(images[image_id], labels[image_id]) for image_id in ids]


@pytest.mark.parametrize("verify", [True, False])
def test_it_reads_as_one_store(made: Path, verify: bool) -> None:
    with imgstore.open_reader(made, verify=verify) as reader:
        assert len(reader) == COUNT and reader.ids.tolist() == list(range(COUNT))
        assert [record(*pair) for pair in reader] == expected()
        assert record(*reader[-1]) == expected()[-1]
        for ids in (BATCH, [2], [2, 4, 2], [406, 414], range(COUNT), np.array(BATCH)):
            images, labels = reader.read_many(ids)
            assert isinstance(images, np.ndarray) and labels.dtype == np.int64
            assert read_back(images, labels) == expected(ids)
        assert read_back(*reader.read_many()) == expected()
        assert reader.read_many([])[1].shape == (0,)
        assert [record(*pair) for pair in reader.__getitems__([-1, *BATCH])] == expected([COUNT - 1, *BATCH])
        for missing in (-1, COUNT):
            with pytest.raises(ImageNotFoundError, match=str(missing)):
                reader.read_many([0, missing])
        with pytest.raises(IndexError):
            reader[COUNT]
    imgstore.verify(made)


def test_a_batch_is_gathered_by_address(backend: ModuleType, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not shard by shard, where images lie in memory maps."""
    if backend is imgstore.disk:
        pytest.skip("a file each")
    monkeypatch.setattr(_shards._Shards, "_gather_by_shard", None)
    monkeypatch.setattr(_shards._Shards, "read", None)
    with imgstore.open_reader(made) as reader:
        assert read_back(*reader.read_many(BATCH)) == expected(BATCH)


@pytest.mark.parametrize("form", [(3, 5), (3, 5, 1)])
def test_every_form(backend: ModuleType, form: tuple[int, ...], tmp_path: Path) -> None:
    images, labels = images_of(form, 15), labels_of(15)
    shards.store(tmp_path, parts(images, labels, [5, 1, 9]), backend=name_of(backend))
    with imgstore.open_reader(tmp_path) as reader:
        ids = [14, 0, 5, 6, 7]
        assert read_back(*reader.read_many(ids)) == records(images[ids], [labels[i] for i in ids])
        assert read_back(*reader.read_many()) == records(images, labels)
        assert reader.forms() == {(form, BYTE): 15}


def test_shards_of_mixed_forms(backend: ModuleType, tmp_path: Path) -> None:
    """Each shard has one form, and they differ; or a shard has many."""
    for name, forms in (("each", [(3, 5)] * 4 + [(6, 5, 3)] * 4), ("one", [(3, 5), (6, 5, 3)] * 2 + [(3, 5)] * 4)):
        images, labels = [pixels(i, form, BYTE) for i, form in enumerate(forms)], labels_of(8)
        shards.store(tmp_path / name, parts(images, labels, [4, 4]), backend=name_of(backend))
        with imgstore.open_reader(tmp_path / name) as reader:
            assert read_back(*reader.read_many()) == records(images, labels)
            assert read_back(*reader.read_many([7, 0, 1])) == records([images[i] for i in (7, 0, 1)], [0, -7, -6])
            assert sum(reader.forms().values()) == 8
        imgstore.verify(tmp_path / name)


def test_each_shard_is_a_store_by_itself(backend: ModuleType, made: Path) -> None:
    images, labels = backend.read_many(made / "shard-000004")
    assert read_back(images, labels) == expected(range(406, COUNT))
    assert not (made / "PLAN").exists()


def test_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(blocks_of("imgstore/README.md", "python")[2], {"__name__": "__main__"})
    with imgstore.open_reader("many") as reader:
        images, labels = reader.read_many([0, 9999])
        assert len(reader) == 10_000 and images[1][0, 0, 0] == 9999 % 256 and labels.tolist() == [0, 9999]


def test_no_shards_and_no_images(backend: ModuleType, tmp_path: Path) -> None:
    shards.store(tmp_path / "none", [], backend=name_of(backend))
    shards.store(tmp_path / "empty", [[], []], backend=name_of(backend))
    for root in (tmp_path / "none", tmp_path / "empty"):
        imgstore.verify(root)
        with imgstore.open_reader(root) as reader:
            assert len(reader) == 0 and len(reader.read_many()[0]) == 0


def read_ids(reader: imgstore.Reader, ids: list[int]) -> list[Any]:
    return [record(*pair) for pair in reader.__getitems__(ids)]


def test_a_pickled_reader_reads_the_same_shards_or_none(backend: ModuleType, root: Path) -> None:
    with imgstore.open_reader(root) as reader:
        pickled = pickle.dumps(reader)
    assert read_ids(pickle.loads(pickled), BATCH) == expected(BATCH)
    shutil.rmtree(root)
    shards.store(root, parts(images_of(), labels_of()), backend=name_of(backend))
    with pytest.raises(StoreReplacedError, match="replaced since the reader was pickled"):
        pickle.loads(pickled)


def open_shards(reader: imgstore.Reader) -> set[int]:
    many: Any = reader._open()
    return set(many._opened.readers)


def test_only_shards_that_are_read_are_opened_and_few_stay_open(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shards, "_most_open", lambda: 2)
    with imgstore.open_reader(made) as reader:
        assert open_shards(reader) == set()
        assert read_ids(reader, [0, 406]) == expected([0, 406]) and open_shards(reader) == {0, 4}
        reader[1]
        assert read_ids(reader, [5, 1]) == expected([5, 1]) and open_shards(reader) == {0, 2}
        assert read_ids(reader, BATCH) == expected(BATCH) and len(open_shards(reader)) == 2  # of four
        assert read_back(*reader.read_many()) == expected() and len(open_shards(reader)) == 2


def read_twice_with_few_files(root: Path, ids: list[int]) -> list[list[Any]]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    readers = [imgstore.open_reader(root) for _ in range(2)]
    return [read_ids(reader, ids) for reader in readers]


def test_two_readers_of_many_shards_open_no_more_files_than_they_may(tmp_path: Path) -> None:
    """Of hdf5, which takes two for a shard."""
    shards.store(tmp_path, parts(images_of(), labels_of(), [1] * 16), backend="hdf5")
    ids = list(range(16))
    assert in_child("spawn", read_twice_with_few_files, tmp_path, ids) == [expected(ids), expected(ids)]


def test_files_are_let_go(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> int:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return sum(str(made) in os.readlink(link) for link in links if os.path.islink(link))

    monkeypatch.setattr(_shards, "_most_open", lambda: 1)
    before = opened()
    with imgstore.open_reader(made) as reader:
        for image_id in (0, 5, 405, 406):
            reader[image_id]
            assert opened() - before <= 2
    del reader
    assert opened() == before


def test_another_thread_may_let_go_of_a_shard_while_it_is_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here as soon as it was opened."""
    monkeypatch.setattr(_shards, "_most_open", lambda: 4)
    opening: Any = _shards._Shards._have_open

    def interrupted(self: Any, needed: list[int]) -> Any:
        opened = opening(self, needed)
        opening(self, [0, 1, 2, 3])
        opening(self, [4])
        return opened

    monkeypatch.setattr(_shards._Shards, "_have_open", interrupted)
    with imgstore.open_reader(made) as reader:
        assert record(*reader[3]) == expected([3])[0]
        assert read_ids(reader, BATCH) == expected(BATCH)


def test_the_reader_of_a_shard_may_be_closed(backend: ModuleType, made: Path) -> None:
    """What is read by address stays mapped; else it would end the process."""
    with imgstore.open_reader(made, verify=False) as reader:
        assert read_ids(reader, BATCH) == expected(BATCH)
        for shard in reader.readers():
            shard.close()
        gc.collect()
        if backend is imgstore.disk:
            with pytest.raises(ReaderClosedError):
                reader.read_many(BATCH)
        else:
            assert read_ids(reader, BATCH) == expected(BATCH)


def replaced(root: Path, backend: ModuleType) -> None:
    backend.store_many(root / "shard-000002", images_of()[5:405], labels_of()[5:405])


def restored(root: Path, backend: ModuleType) -> None:
    """As from a backup that was made of another shard."""
    shutil.rmtree(root / "shard-000002")
    shutil.copytree(root / "shard-000004", root / "shard-000002")


def added(root: Path, backend: ModuleType) -> None:
    backend.store_single(root / "shard-000002", images_of()[0], 400, 0)


@pytest.mark.parametrize("change", [replaced, restored, added])
def test_a_shard_that_is_another_is_not_read(
    change: Callable[[Path, ModuleType], None], root: Path, backend: ModuleType
) -> None:
    change(root, backend)
    begins = f"{root}/shard-000002: is not as SHARDS lists it: it was replaced, restored or added to on its own"
    with imgstore.open_reader(root) as reader:
        for call in (
            lambda: reader[5],
            lambda: reader.read_many([0, 5]),
            lambda: reader.read_many([5]),
            reader.read_many,
            lambda: imgstore.verify(root),
        ):
            with refused(root, StoreReplacedError, begins):
                call()
        assert read_ids(reader, [0, 406]) == expected([0, 406])


def test_a_missing_shard_is_noticed(root: Path) -> None:
    shutil.rmtree(root / "shard-000002")
    with imgstore.open_reader(root) as reader:
        for call in (lambda: reader[5], lambda: reader.read_many([0, 5]), lambda: imgstore.verify(root)):
            unseen = f"{root}/shard-000002: {socket.gethostname()} sees no store here, though SHARDS lists it"
            with refused(root, CorruptStoreError, unseen):
                call()
        assert read_ids(reader, [0, 406]) == expected([0, 406])


def test_a_shard_may_lie_elsewhere(root: Path) -> None:
    """On another disk, say."""
    (root / "shard-000002").rename(root.parent / "elsewhere")
    (root / "shard-000002").symlink_to(root.parent / "elsewhere")
    imgstore.verify(root)
    with imgstore.open_reader(root) as reader:
        assert read_ids(reader, BATCH) == expected(BATCH)


@pytest.mark.parametrize("form", [(32, 32, 3), (4, 5)], ids=["same form", "other form"])
def test_an_image_that_was_replaced_singly_is_read(root: Path, backend: ModuleType, form: tuple[int, ...]) -> None:
    image = pixels(9, form, BYTE)
    backend.store_single(root / "shard-000002", image, 3, 99)  # id 8 of all
    now = expected()
    now[8] = record(image, 99)
    imgstore.verify(root)
    with imgstore.open_reader(root) as reader:
        assert record(*reader[8]) == now[8]
        for ids in ([8], [0, 8, 406], [0, 9, 406], [9, 10]):
            assert read_back(*reader.read_many(ids)) == [now[image_id] for image_id in ids]
        assert read_back(*reader.read_many()) == now
        assert sum(reader.forms().values()) == COUNT


def test_an_image_that_is_replaced_while_all_are_read(root: Path, backend: ModuleType) -> None:
    with imgstore.open_reader(root) as reader:
        blocks = cast(Any, reader)._open().read_blocks()
        next(blocks)
        backend.store_single(root / "shard-000002", images_of()[0], 3, 99)
        with refused(root, StoreReplacedError, f"{root}/shard-000002: an image was replaced in it meanwhile; read ag"):
            list(blocks)
        assert reader.read_many()[1][8] == 99


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_damage_in_a_shard_is_noticed(root: Path) -> None:
    """Of image 406, in each way to read it."""
    (path,) = (
        path
        for path in root.glob("shard-000004/imgstore-*/*")
        if path.name in ("images.mdb", "images.h5", "00000000.png")
    )
    flip(path, path.read_bytes().find(images_of()[406].tobytes()[:90]) + 7)
    with imgstore.open_reader(root) as reader:
        for call in (
            lambda: reader[406],
            lambda: reader.read_many([406]),
            lambda: reader.read_many([0, 406]),
            reader.read_many,
            lambda: imgstore.verify(root),
        ):
            with pytest.raises(CorruptStoreError) as info:
                call()
            assert info.value.path == str(path) and info.value.image_id == 0
        assert read_ids(reader, [0, 407, 5]) == expected([0, 407, 5])


def test_a_damaged_manifest_is_noticed(root: Path) -> None:
    path = root / "SHARDS"
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at)
        with pytest.raises(CorruptStoreError, match="SHARDS"):
            imgstore.open_reader(root)
        path.write_bytes(whole)
    for cut in (b"", whole[:17], whole[:-1], whole + b"\n", b"%016x\n" % checksum(b"")):
        path.write_bytes(cut)
        with pytest.raises(CorruptStoreError, match="SHARDS"):
            imgstore.open_reader(root)


FORGED = [
    ("shard-000001", "shard-000003"),
    (" 0 mixed", " 9999999999999999999 mixed"),
    ("32x32x3", "32x32x3x3"),
    ("32x32x3", "32x0x3"),
    ("|u1", "|O1"),
    ("imgstore-shards 1", "imgstore-shards 2"),
    ("shard-000004", "../shard-000004"),
]


@pytest.mark.parametrize(("true", "false"), FORGED, ids=range(len(FORGED)))
def test_a_forged_manifest_is_refused(true: str, false: str, root: Path) -> None:
    """With a checksum that agrees. What it says of a shard is held against the shard."""

    def read() -> None:
        imgstore.open_reader(root)
        imgstore.verify(root)

    path = root / "SHARDS"
    text = path.read_text()[:-17].replace(true, false)
    path.write_text(f"{text}{checksum(text.encode()):016x}\n")
    with pytest.raises((CorruptStoreError, StoreReplacedError)):
        read()


@pytest.mark.parametrize("form", ["32x32x4 |u1", "32x32x3 <f8", "3x3 |u1"])
def test_no_forged_form_reads_beyond_a_shard(form: str, root: Path) -> None:
    path = root / "SHARDS"
    text = path.read_text()[:-17].replace("32x32x3 |u1", form)
    path.write_text(f"{text}{checksum(text.encode()):016x}\n")
    with imgstore.open_reader(root, verify=False) as reader, pytest.raises(StoreReplacedError):
        reader.read_many(BATCH)


def test_an_ordinary_store_does_not_take_its_place(root: Path, backend: ModuleType, tmp_path: Path) -> None:
    image = images_of()[0]
    for call in (
        lambda: backend.store_many(root, [image], [0]),
        lambda: backend.store_single(root, image, 0, 0),
        lambda: shards.store(root, [], backend="hdf5"),
    ):
        with refused(root, InvalidArgumentError, f"root: {root} is a sharded store; give another folder"):
            call()


class Failing:
    """A partition that counts how often it is drawn, and fails at its second image while `broken`."""

    def __init__(self, first: int, broken: bool = False) -> None:
        self.first, self.broken, self.drawn = first, broken, 0

    def __call__(self) -> Iterator[Pair]:
        self.drawn += 1
        for i in range(3):
            if self.broken and i == 1:
                raise RuntimeError("the source is broken")
            yield images_of()[self.first + i], self.first + i - 7


def test_a_run_that_failed_goes_on_from_whole_shards(backend: ModuleType, tmp_path: Path) -> None:
    given = [Failing(0), Failing(3), Failing(6, broken=True), Failing(9)]
    store = functools.partial(shards.store, tmp_path, given, backend=name_of(backend), fingerprint="these")
    with pytest.raises(RuntimeError, match="the source is broken"):
        store()
    with pytest.raises(StoreNotFoundError):
        imgstore.open_reader(tmp_path)
    generations = [current(tmp_path / f"shard-00000{i}")[3] for i in range(2)]
    (path,) = (path for path in tmp_path.glob("shard-000001/imgstore-*/*") if path.suffix in (".mdb", ".h5", ".csv"))
    flip(path, path.stat().st_size * 3 // 4)  # it is not whole any more
    given[2].broken = False
    store()
    assert [partition.drawn for partition in given] == [1, 2, 2, 1]
    assert current(tmp_path / "shard-000000")[3] == generations[0]
    assert current(tmp_path / "shard-000001")[3] != generations[1]
    imgstore.verify(tmp_path)
    with imgstore.open_reader(tmp_path) as reader:
        assert read_back(*reader.read_many()) == expected(range(12))


def copied(root: Path) -> None:
    shutil.copytree(root / "shard-000000", root / "shard-000001", dirs_exist_ok=True)


def added_to(root: Path) -> None:
    imgstore.lmdb.store_single(root / "shard-000000", images_of()[0], 3, 0)


@pytest.mark.parametrize(("change", "number"), [(copied, 1), (added_to, 0)])
def test_a_run_does_not_go_on_from_other_shards(change: Callable[[Path], None], number: int, tmp_path: Path) -> None:
    given = [Failing(0), Failing(3, broken=True)]
    store = functools.partial(shards.store, tmp_path, given, backend="lmdb", fingerprint="these")
    with pytest.raises(RuntimeError):
        store()
    change(tmp_path)
    given[1].broken, path = False, tmp_path / f"shard-{number:06d}"
    with refused(path, InvalidArgumentError, f"root: {path} is a store that is not this shard of this run, or was"):
        store()
    shutil.rmtree(path)
    store()
    with imgstore.open_reader(tmp_path) as reader:
        assert read_back(*reader.read_many()) == expected(range(6))


@pytest.mark.parametrize(
    "other", [{"fingerprint": "those"}, {"fingerprint": None}, {"backend": "hdf5"}, {"partitions": [Failing(0)]}]
)
def test_shards_of_another_run_are_not_taken(tmp_path: Path, other: dict[str, Any]) -> None:
    given: dict[str, Any] = {"partitions": [Failing(0), Failing(3, True)], "backend": "lmdb", "fingerprint": "these"}
    with pytest.raises(RuntimeError):
        shards.store(tmp_path, **given)
    begins = f"root: {tmp_path} holds a part of another sharded store; remove it, or give another folder"
    with refused(tmp_path, InvalidArgumentError, begins):
        shards.store(tmp_path, **(given | other))
    with refused(tmp_path, InvalidArgumentError, begins):
        imgstore.lmdb.store_many(tmp_path, images_of()[:1], [0])


def test_shards_are_stored_where_links_lead(backend: ModuleType, tmp_path: Path) -> None:
    """To other disks, say."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / "shard-000001").symlink_to(elsewhere)
    shards.store(root, [Failing(0), Failing(3)], backend=name_of(backend))
    assert (elsewhere / "CURRENT").exists()
    imgstore.verify(root)
    with imgstore.open_reader(root) as reader:
        assert read_back(*reader.read_many()) == expected(range(6))


@pytest.mark.parametrize("stands", ["other files", "a store", "another shard"])
def test_a_folder_that_is_not_free_is_refused(tmp_path: Path, stands: str) -> None:
    if stands == "another shard":
        imgstore.lmdb.store_many(tmp_path / "shard-000000", images_of()[:1], [0])
    elif stands == "a store":
        imgstore.lmdb.store_many(tmp_path, images_of()[:1], [0])
    else:
        (tmp_path / "note.txt").write_text("mine")
    with refused(tmp_path, InvalidArgumentError, f"root: {tmp_path} holds other files"):
        shards.store(tmp_path, [Failing(0)], backend="lmdb")


BAD: list[tuple[list[Any], type[ImgstoreError], str]] = [
    ([np.zeros((2, 3)), "no image"], UnsupportedImageError, "shard 1, image 1: is a str, not a NumPy array"),
    ([np.zeros((2, 3)), np.zeros((2, 3, 4, 5))], UnsupportedImageError, "shard 1, image 1: has shape (2, 3, 4, 5)"),
    ([np.zeros((2, 3), object)], UnsupportedImageError, "shard 1, image 0: has dtype object"),
]


@pytest.mark.parametrize(("images", "kind", "begins"), BAD, ids=range(len(BAD)))
def test_an_image_that_cannot_be_stored_is_named(
    images: list[Any], kind: type[ImgstoreError], begins: str, tmp_path: Path
) -> None:
    given: list[Any] = [Failing(0), [(image, 0) for image in images]]
    with pytest.raises(kind) as info:
        shards.store(tmp_path, given, backend="hdf5")
    assert str(info.value).startswith(begins)
    assert not (tmp_path / "SHARDS").exists()


def test_a_bad_argument_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, InvalidArgumentError, "backend: 'zarr' is none of disk, lmdb, hdf5"):
        shards.store(tmp_path, [], backend="zarr")
    with refused(tmp_path, StoreNotFoundError, f"{tmp_path}: there is no sharded store here"):
        shards.verify(tmp_path)
    for called_again in ({"client": object()}, {"fingerprint": "these"}):
        with refused(tmp_path, InvalidArgumentError, "partitions: give callables"):
            shards.store(tmp_path, [[]], backend="hdf5", **called_again)
    label: Any = "cat"
    with pytest.raises(InvalidArgumentError, match="label: 'cat' is not an integer"):
        shards.store(tmp_path, [[(images_of()[0], label)]], backend="hdf5")


def test_images_of_any_memory_layout_are_compared(tmp_path: Path) -> None:
    image = np.arange(2 * 3 * 4, dtype=">u2").reshape(2, 3, 4)
    odd = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).view(bool)  # True is another byte than 1
    given = [image.transpose(1, 0, 2), np.asfortranarray(image), image[::-1], image > 5, (image > 5).transpose(1, 0, 2)]
    shards.store(tmp_path, [zip([*given, odd], range(6), strict=True)], backend="lmdb")
    with imgstore.open_reader(tmp_path) as reader:
        assert read_back(*reader.read_many()) == records([*given, odd.view(np.uint8) != 0], range(6))


def test_a_partition_may_use_its_array_again(backend: ModuleType, tmp_path: Path) -> None:
    def pairs(images: Array, room: Array) -> Iterator[Pair]:
        for label, image in enumerate(images):
            room[...] = image
            yield room, label
        room[...] = 0

    for name, form in (("many in a block", (4, 5)), ("one", (600, 600, 3))):
        images = images_of(form, 3)
        shards.store(tmp_path / name, [pairs(images, np.empty_like(images[0]))], backend=name_of(backend))
        with imgstore.open_reader(tmp_path / name) as reader:
            assert read_back(*reader.read_many()) == records(images, range(3))


def mapped_bytes() -> int:
    """Of this process, of files; Dask holds them against a worker's --memory-limit."""
    (kilobytes,) = re.findall(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


@pytest.mark.parametrize("name", ["lmdb", "hdf5"])
def test_what_is_compared_or_verified_does_not_stay_mapped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, images, read_blocks = list[int](), images_of((512, 512, 3), 24), cast(Any, Mapped.read_blocks)

    def noting(*arguments: Any, **options: Any) -> Iterator[Any]:
        for block in read_blocks(*arguments, **options):
            seen.append(mapped_bytes())
            yield block

    monkeypatch.setattr(Mapped, "read_blocks", noting)
    store = functools.partial(shards.store, tmp_path, [zip(images, range(24), strict=True)], backend=name)
    for call in (store, functools.partial(imgstore.verify, tmp_path)):
        seen.clear()
        call()
        assert len(seen) == 24 and max(seen) - seen[0] < images.nbytes / 4


def plan_of(root: Path) -> str:
    text = "imgstore-plan lmdb 1 0\n"
    (root / "PLAN").write_text(text)
    return text


def test_a_task_that_runs_twice_at_once_stores_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan, drawn, waits, told = plan_of(tmp_path), list[int](), threading.Event(), list[Any]()
    monkeypatch.setattr("imgstore.shards.storing.time.sleep", lambda seconds: waits.set())

    def pairs() -> Iterator[Pair]:
        drawn.append(1)
        assert waits.wait(60), "the other task does not wait for this one"
        yield images_of()[0], 5

    def task() -> None:
        told.append(storing._store_shard(str(tmp_path), plan, 0, pairs, "lmdb"))

    threads = [threading.Thread(target=task) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(told) == 2 and told[0] == told[1] and len(drawn) == 1
    waited = f"{tmp_path}/shard-000000: another writer is at work; try again when it is done; waiting"
    assert [record.getMessage() for record in caplog.records] == [waited]


def test_a_worker_that_sees_another_folder_stores_nothing(tmp_path: Path) -> None:
    with refused(tmp_path, InvalidArgumentError, f"root: {tmp_path} on ") as caught:
        storing._store_shard(str(tmp_path), "imgstore-plan lmdb 1 0\n", 0, Failing(0), "lmdb")
    assert "is not the folder of this run" in str(caught[0])


def test_a_task_of_a_run_that_was_given_up_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited for its shard, or was in its middle, when another run began in the same folder."""
    plan = plan_of(tmp_path)

    def begin() -> int:
        return (tmp_path / "PLAN").write_text("imgstore-plan lmdb 1 1\n")

    def pairs() -> Iterator[Pair]:
        yield images_of()[0], 5
        begin()

    def refuses(partition: Any) -> None:
        with pytest.raises(InvalidArgumentError, match="is not the folder of this run"):
            storing._store_shard(str(tmp_path), plan, 0, partition, "lmdb")
        assert not (tmp_path / "shard-000000/CURRENT").exists()

    refuses(pairs)
    plan_of(tmp_path)
    given, locked = Failing(0), writing(str(tmp_path / "shard-000000"))

    def wait(seconds: float) -> None:
        locked.close()
        begin()

    monkeypatch.setattr("imgstore.shards.storing.time.sleep", wait)
    refuses(given)
    assert given.drawn == 0


def test_one_run_at_a_time(tmp_path: Path) -> None:
    def pairs() -> Iterator[Pair]:
        with pytest.raises(StoreBusyError):
            shards.store(tmp_path, [pairs], backend="lmdb", fingerprint="these")
        yield images_of()[0], 0

    shards.store(tmp_path, [pairs], backend="lmdb", fingerprint="these")
    imgstore.verify(tmp_path)


def test_a_shard_that_vanished_meanwhile_is_not_listed(tmp_path: Path) -> None:
    def removing() -> Iterator[Pair]:
        (tmp_path / "shard-000000/CURRENT").unlink()
        yield from Failing(3)()

    with pytest.raises(CorruptStoreError, match="shard-000000: is not what was stored there; let nothing else write"):
        shards.store(tmp_path, [Failing(0), removing], backend="lmdb")
    assert not (tmp_path / "SHARDS").exists()


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[Any]()

    def noting(root: str, name: str, text: str) -> None:
        written.append((name, sorted(path.parent.name for path in Path(root).glob("shard-*/CURRENT"))))
        replace_text(root, name, text)

    monkeypatch.setattr("imgstore.shards.storing.replace_text", noting)
    shards.store(tmp_path, [Failing(0), Failing(3)], backend="lmdb")
    assert written == [("PLAN", []), ("SHARDS", ["shard-000000", "shard-000001"])]
    assert set(files(tmp_path)) >= {"SHARDS", "LOCK"} and not (tmp_path / "PLAN").exists()
