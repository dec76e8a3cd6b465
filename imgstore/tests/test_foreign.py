"""What is not ours stays: folders with a date for a name, files in our own folders, the stores of others."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import imgstore
from imgstore.core.files import write_file
from imgstore.errors import CorruptStoreError, InvalidArgumentError, StoreBusyError, StoreNotFoundError
from imgstore.tests.checks import current, files, record, records
from imgstore.tests.faults import damage
from imgstore.tests.strategies import pixels

IMAGES, LABELS = pixels(1, (5, 6, 4), np.dtype(np.uint8)), [5, 4, 3, 2, 1]
OURS = "imgstore-000001-abcdefabcdef"  # a generation that a killed writer left, by its name
LIKE_OURS = [
    "20251128-084743",
    "000007-3f9a1c",
    "imgstore-000007-3f9a1c",
    "imgstore-7-3f9a1c3f9a1c",
    "imgstore-000007-3F9A1C3F9A1C",
    "imgstore-000007-3f9a1c3f9a1c.old",
    "Imgstore-000007-3f9a1c3f9a1c",
    "imgstore-\u0660\u0660\u0660\u0660\u0660\u0661-3f9a1c3f9a1c",
]
FOREIGN: dict[str, bytes | None] = {
    "photo.png": b"a holiday",
    "notes/1.txt": b"a note",
    "20251128.jpg": b"a day",
    "images.zip": b"somebody's copy",
    "singles/photo.png": b"a holiday",
    "singles/3.png": b"no name of a single",
    "singles/album/00000003.png": b"too deep",
    "images.mdb.bak": b"somebody's copy",
}

Write = Callable[[ModuleType, Path], None]


def store_many(backend: ModuleType, root: Path) -> None:
    backend.store_many(root, IMAGES, LABELS, durable=False)


def store_single(backend: ModuleType, root: Path) -> None:
    backend.store_single(root, IMAGES[0], 7, 8, durable=False)


WRITES: list[Write] = [store_many, store_single]
each_write = pytest.mark.parametrize("write", WRITES)


def laid(root: Path, foreign: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Lay the files there; gives them with their folders."""
    root.mkdir(exist_ok=True)
    before = files(root)
    damage.lay(root, foreign)
    return {name: data for name, data in files(root).items() if name not in before}


def must_still_be_there(root: Path, foreign: dict[str, bytes | None]) -> None:
    after = files(root)
    assert {name: after.get(name, "removed") for name in foreign} == foreign


@each_write
def test_folders_that_look_like_ours_stay(backend: ModuleType, write: Write, tmp_path: Path) -> None:
    foreign = laid(tmp_path, {f"{name}/{file}": data for name in LIKE_OURS for file, data in FOREIGN.items()})
    foreign |= laid(tmp_path, {f"{name}/images.mdb": b"no store's" for name in LIKE_OURS})
    for _ in range(3):
        write(backend, tmp_path)
        must_still_be_there(tmp_path, foreign)
    store_many(backend, tmp_path)
    must_still_be_there(tmp_path, foreign)
    assert records(*backend.read_many(tmp_path)) == records(IMAGES, LABELS)


def test_files_that_lie_in_a_folder_of_our_name_stay(backend: ModuleType, tmp_path: Path) -> None:
    foreign = laid(tmp_path, {f"{OURS}/{name}": data for name, data in FOREIGN.items()})
    laid(
        tmp_path, dict.fromkeys((f"{OURS}/DESCRIPTION", f"{OURS}/images.mdb", f"{OURS}/singles/00000003.png"), b"ours")
    )
    store_many(backend, tmp_path)
    must_still_be_there(tmp_path, foreign)
    assert records(*backend.read_many(tmp_path)) == records(IMAGES, LABELS)
    store_many(backend, tmp_path)
    must_still_be_there(tmp_path, foreign)
    left = {name for name in files(tmp_path) if not name.startswith(OURS)}
    assert {name.split("/")[0] for name in left} == {"CURRENT", "LOCK", current(tmp_path)[3]}


@each_write
def test_files_that_were_put_into_a_store_stay(backend: ModuleType, write: Write, tmp_path: Path) -> None:
    """And nothing else of the generation that was replaced."""
    write(backend, tmp_path)
    replaced = current(tmp_path)[3]
    foreign = laid(tmp_path, {f"{replaced}/{name}": data for name, data in FOREIGN.items()})
    store_many(backend, tmp_path)
    must_still_be_there(tmp_path, foreign)
    assert {name for name in files(tmp_path) if name.startswith(f"{replaced}/")} - {f"{replaced}/singles"} == {
        name for name in foreign if name != f"{replaced}/singles"
    }
    assert records(*backend.read_many(tmp_path)) == records(IMAGES, LABELS)


@pytest.mark.parametrize("name", [OURS, f"{OURS}/singles", f"{OURS}/00000000.png", f"{OURS}/images.mdb"])
def test_what_a_link_leads_to_stays(backend: ModuleType, name: str, tmp_path: Path) -> None:
    elsewhere = laid(tmp_path / "elsewhere", {"images.mdb": b"1", "singles/00000003.png": b"2", "00000000.png": b"3"})
    root = tmp_path / "store"
    (root / name).parent.mkdir(parents=True)
    (root / name).symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        store_many(backend, root)
    assert files(tmp_path / "elsewhere") == elsewhere
    assert records(*backend.read_many(root)) == records(IMAGES, LABELS)


def test_a_killed_writers_generation_is_removed(backend: ModuleType, tmp_path: Path) -> None:
    store_many(backend, tmp_path)
    store_single(backend, tmp_path)
    (tmp_path / current(tmp_path)[3]).rename(tmp_path / OURS)
    (tmp_path / "imgstore-000002-abcdefabcdef").mkdir()
    (tmp_path / OURS / "singles" / ".new").touch()
    (tmp_path / "CURRENT").unlink()
    store_many(backend, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"CURRENT", "LOCK", current(tmp_path)[3]}


ROCKSDB = {
    "CURRENT": b"MANIFEST-000004\n",
    "LOCK": b"",
    "IDENTITY": b"2b9d5f9c",
    "MANIFEST-000004": b"\x56\xf9\xb8\xf8\x1c\x00\x01\x01",
    "000003.log": b"a write-ahead log",
    "imgstore-notes.txt": b"a note",
}


@each_write
def test_a_store_of_rocksdb_is_left_as_it_is(backend: ModuleType, write: Write, tmp_path: Path) -> None:
    foreign = laid(tmp_path, dict(ROCKSDB))
    with pytest.raises(InvalidArgumentError, match="CURRENT"):
        write(backend, tmp_path)
    assert files(tmp_path) == foreign
    for read in (imgstore.open_reader, imgstore.verify, backend.read_many):
        with pytest.raises((StoreNotFoundError, CorruptStoreError)):
            read(tmp_path)


@each_write
@pytest.mark.parametrize("version", ["2", "4", "10"])
def test_a_store_of_another_format_is_left_as_it_is(
    backend: ModuleType, write: Write, version: str, tmp_path: Path
) -> None:
    store_many(backend, tmp_path)
    damage.reseal(tmp_path, version=version)
    before = files(tmp_path)
    with pytest.raises(InvalidArgumentError):
        write(backend, tmp_path)
    assert files(tmp_path) == before


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
    "cut": lambda data: data[:-9],
    "zeros, as a power cut leaves it": lambda data: bytes(len(data)),
    "empty, as a power cut leaves it": lambda data: b"",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_store_of_ours_is_replaced(backend: ModuleType, name: str, tmp_path: Path) -> None:
    store_many(backend, tmp_path)
    damage.lay(tmp_path, {"CURRENT": DAMAGES[name]((tmp_path / "CURRENT").read_bytes())})
    with pytest.raises(CorruptStoreError):
        imgstore.open_reader(tmp_path)
    backend.store_many(tmp_path, IMAGES[:2], [8, 9], durable=False)
    assert records(*backend.read_many(tmp_path)) == records(IMAGES[:2], [8, 9])
    assert {path.name for path in tmp_path.iterdir()} == {"CURRENT", "LOCK", current(tmp_path)[3]}


def test_a_store_beside_foreign_folders_travels(backend: ModuleType, tmp_path: Path) -> None:
    """As a user copies it, with what lies beside it."""
    root, copy = tmp_path / "store", tmp_path / "copy"
    foreign = laid(root, {"20251128-084743/photo.png": b"a holiday"})
    store_many(backend, root)
    store_single(backend, root)
    shutil.copytree(root, copy)
    os.utime(copy / "CURRENT", (1, 1))
    store_single(backend, copy)
    imgstore.verify(copy)
    assert record(*backend.read_single(copy, 7)) == record(IMAGES[0], 8)
    must_still_be_there(copy, foreign)


def test_a_store_that_the_root_leads_to_meanwhile_stays(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link is switched before CURRENT is written: what it leads to now was locked by nobody."""
    one, other, root = tmp_path / "one", tmp_path / "other", tmp_path / "root"
    for store in (one, other):
        store_many(backend, store)
    root.symlink_to(one)
    before, write = files(other), write_file

    def write_and_switch(path: str, data: bytes) -> None:
        write(path, data)
        root.unlink()
        root.symlink_to(other)

    monkeypatch.setattr("imgstore.core.writing.write_file", write_and_switch)
    with pytest.raises(StoreBusyError, match="leads to another folder"):
        backend.store_many(root, IMAGES[:2], [1, 2], durable=False)
    assert files(other) == before
    for store in (one, other):
        assert records(*backend.read_many(store)) == records(IMAGES, LABELS)
