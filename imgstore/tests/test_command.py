"""Tests of `python -m imgstore`: what it stores, what it says, and the status that it ends with."""

import errno
import os
import pty
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imgstore
from imgstore import BACKENDS
from imgstore.command import convert, progress
from imgstore.command import main as __main__
from imgstore.errors import StoreBusyError
from imgstore.sources import fingerprint, open_source
from imgstore.tests.checks import Record, current, files, read_back, record, records
from imgstore.tests.strategies import Array, pixels

BYTE = np.dtype(np.uint8)
PHOTOS = {
    "zebra/1.png": pixels(1, (4, 5, 3), BYTE),
    "ant/2.png": pixels(2, (7, 3), BYTE),
    "ant/3.png": pixels(3, (4, 5, 3), BYTE),
    "bee/top.png": pixels(4, (2, 2, 4), BYTE),
}
IN_ORDER = ["ant/2.png", "ant/3.png", "bee/top.png", "zebra/1.png"]
LABELS = [0, 0, 1, 2]
CLASSES = "classes: 0 ant (2), 1 bee (1), 2 zebra (1)\n"
A_MINUTE = 60
NOBODY = 65534


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name, image in PHOTOS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return folder


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


class Ended:
    """How a command ended, and what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: Any) -> None:
        try:
            self.status = __main__.main([str(argument) for argument in arguments])
        except SystemExit as ended:  # as argparse does
            self.status = int(str(ended.code))
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    return lambda *arguments: Ended(capsys, *arguments)


Run = Callable[..., Ended]


def names(backend: ModuleType) -> str:
    return str(backend.BACKEND.name)


def held(root: Path) -> dict[int, Record]:
    """What a store holds: id -> record."""
    imgstore.verify(root)
    with imgstore.open_reader(root) as reader:
        return {image_id: record(*pair) for image_id, pair in zip(reader.ids.tolist(), reader, strict=True)}


def must_be_refused(ended: Ended, status: int, *reasons: str) -> None:
    """In one line, with this status."""
    assert ended.status == status
    assert ended.err.count("\n") == 1 and ended.err.startswith("python -m imgstore: ")
    assert all(reason in ended.err for reason in reasons), ended.err
    assert not ended.out


def test_a_folder_is_converted(backend: ModuleType, photos: Path, dest: Path, run: Run) -> None:
    ended = run("convert", photos, dest, "--backend", names(backend))
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"{CLASSES}{dest}: 4 images, stored and read back\n"
    assert list(held(dest).values()) == records([PHOTOS[name] for name in IN_ORDER], LABELS)
    assert current(dest)[2:5:2] == [names(backend), "synced"]


def test_cifar10_is_converted(backend: ModuleType, tmp_path: Path, dest: Path, run: Run) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    planes = pixels(1, (12, 3, 32, 32), BYTE)
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        batch = [bytes([label]) + planes[label].tobytes() for label in (2 * i % 10, 2 * i % 10 + 1)]
        (folder / name).write_bytes(b"".join(batch))
    assert run("convert", folder, dest, f"--backend={names(backend)}").status == 0
    labels = [*range(10), 0, 1]
    assert list(held(dest).values()) == records([planes[label].transpose(1, 2, 0) for label in labels], labels)


@pytest.mark.parametrize("given", BACKENDS.values(), ids=BACKENDS)
def test_a_store_is_converted_with_its_ids(
    given: ModuleType, backend: ModuleType, tmp_path: Path, dest: Path, run: Run
) -> None:
    """A single that is replaced, one that goes on where the many end, and those behind a gap."""
    source, images = tmp_path / "source", pixels(1, (8, 4, 5), BYTE)
    given.store_many(source, images[:3], [7, -8, 9], durable=False)
    for row, image_id in enumerate([1, 3, 5, 2**62], 3):
        given.store_single(source, images[row], image_id, row, durable=False)
    assert run("convert", source, dest, "--backend", names(backend)).status == 0
    assert held(dest) == held(source) and list(held(dest)) == [0, 1, 2, 3, 5, 2**62]
    singles = sorted(path.stem for path in dest.glob("*/singles/*"))
    assert singles == ["00000005", str(2**62)]


def test_a_store_of_singles_only_is_converted(backend: ModuleType, tmp_path: Path, dest: Path, run: Run) -> None:
    backend.store_single(tmp_path / "source", PHOTOS["bee/top.png"], 5, 1)
    assert run("convert", tmp_path / "source", dest, "--backend=lmdb").status == 0
    assert held(dest) == {5: record(PHOTOS["bee/top.png"], 1)}


def test_an_empty_store_is_converted(backend: ModuleType, tmp_path: Path, dest: Path, run: Run) -> None:
    backend.store_many(tmp_path / "source", [], [])
    assert run("convert", tmp_path / "source", dest, "--backend=hdf5").status == 0
    assert held(dest) == {}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_store_takes_its_own_place_in_another_format(backend: ModuleType, name: str, dest: Path, run: Run) -> None:
    backend.store_many(dest, pixels(1, (5, 4, 4), BYTE), range(5), durable=False)
    before = held(dest)
    must_be_refused(
        run("convert", dest, dest, "--backend", name), 2, f"there is a store at {dest} already", "--replace"
    )
    assert run("convert", dest, dest, "--backend", name, "--replace").status == 0
    assert held(dest) == before and current(dest)[2] == name


def test_no_single_is_lost_while_a_store_takes_its_own_place(
    dest: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    imgstore.disk.store_many(dest, pixels(1, (2, 4, 4), BYTE), [0, 1])

    def open_and_be_late(source: str, **options: Any) -> imgstore.Reader:
        reader = imgstore.open_reader(source)
        with pytest.raises(StoreBusyError):
            imgstore.disk.store_single(source, PHOTOS["bee/top.png"], 2, 1)
        return reader

    monkeypatch.setattr("imgstore.command.convert.open_source", open_and_be_late)
    assert run("convert", dest, dest, "--backend=lmdb", "--replace").status == 0


@pytest.mark.parametrize("name", ["lmdb", "hdf5"])
def test_every_dtype_is_found_as_it_was_given(name: str, tmp_path: Path, dest: Path, run: Run) -> None:
    """A bool among them whose bytes are not 0 and 1, which no format promises to keep."""
    images: list[Array] = [pixels(1, (3, 4), np.dtype(code)) for code in "?bhlqBHLefdFD"]
    images.append(np.full((3, 4), 255, np.uint8).view(bool))
    imgstore.hdf5.store_many(tmp_path / "source", images, range(len(images)))
    assert run("convert", tmp_path / "source", dest, "--backend", name).status == 0
    assert read_back(*BACKENDS[name].read_many(dest))[:-1] == records(images, range(len(images)))[:-1]
    assert BACKENDS[name].read_single(dest, len(images) - 1)[0].view(np.uint8).tolist() == [[1] * 4] * 3


def test_a_bool_of_other_bytes_goes_to_png(tmp_path: Path, dest: Path, run: Run) -> None:
    imgstore.lmdb.store_many(tmp_path / "source", np.full((1, 3, 4), 255, np.uint8).view(bool), [0])
    assert run("convert", tmp_path / "source", dest, "--backend=disk").status == 0


@pytest.mark.parametrize("broken", ["bee/top.png", "zebra/1.png"])
def test_a_file_that_cannot_be_read_is_named(
    backend: ModuleType, broken: str, photos: Path, dest: Path, run: Run
) -> None:
    (photos / broken).write_bytes(b"no image")
    backend.store_many(dest, pixels(1, (2, 3, 3), BYTE), [0, 1])
    before = files(dest)
    ended = run("convert", photos, dest, "--backend", names(backend), "--replace")
    must_be_refused(
        ended,
        1,
        f"{photos / broken}: it is not an image of a kind that can be read; ",
        "--skip-unreadable leaves such files out",
    )
    assert files(dest) == before


def test_files_that_cannot_be_read_are_left_out_when_asked(
    backend: ModuleType, photos: Path, dest: Path, run: Run
) -> None:
    (photos / "ant/2.png").write_bytes(b"no image")
    ended = run("convert", photos, dest, "--backend", names(backend), "--skip-unreadable")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == (
        "classes: 0 ant (1), 1 bee (1), 2 zebra (1)\n"
        f"left out: {photos / 'ant/2.png'}: it is not an image of a kind that can be read\n"
        f"{dest}: 3 images, stored and read back; 1 file left out\n"
    )
    assert list(held(dest).values()) == records([PHOTOS[name] for name in IN_ORDER[1:]], LABELS[1:])


@pytest.mark.parametrize("skip", [False, True])
def test_a_folder_that_cannot_be_listed_is_named(
    photos: Path, dest: Path, run: Run, skip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "zebra":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    ended = run("convert", photos, dest, "--backend=hdf5", *(["--skip-unreadable"] if skip else []))
    assert f"{photos / 'zebra'}: Permission denied" in (ended.out if skip else ended.err)
    assert ended.status == (0 if skip else 1) and dest.exists() == skip


def test_a_folder_of_which_nothing_can_be_read_is_refused(photos: Path, dest: Path, run: Run) -> None:
    for name in PHOTOS:
        (photos / name).write_bytes(b"")
    ended = run("convert", photos, dest, "--backend=hdf5", "--skip-unreadable")
    assert ended.status == 2 and f"SOURCE: {photos}: no image can be read there" in ended.err
    assert not dest.exists()


def test_an_image_that_the_format_cannot_hold_is_named(photos: Path, dest: Path, run: Run) -> None:
    imgstore.lmdb.store_many(photos.parent / "floats", np.zeros((2, 3, 4), np.float32), [0, 1])
    ended = run("convert", photos.parent / "floats", dest, "--backend=disk")
    must_be_refused(ended, 1, f"{photos.parent / 'floats'}: image 0: has shape (3, 4) and dtype float32")
    assert not dest.exists()


def test_a_file_that_the_format_cannot_hold_is_named(
    photos: Path, dest: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgstore.disk.LARGEST_PIXELS", 20)
    ended = run("convert", photos, dest, "--backend=disk")
    must_be_refused(ended, 1, f"{photos / 'ant/2.png'}: image 0: has 7 x 3 pixels")


BAD_ARGUMENTS = [
    ([], "the following arguments are required: COMMAND"),
    (["store"], "invalid choice: 'store'"),
    (["convert", "{photos}"], "the following arguments are required: DEST, --backend"),
    (["convert", "{photos}", "{dest}"], "the following arguments are required: --backend"),
    (["convert", "{photos}", "{dest}", "--backend=zarr"], "argument --backend: invalid choice: 'zarr'"),
    (
        ["convert", "{tmp}/nowhere", "{dest}", "--backend=disk"],
        "SOURCE: {tmp}/nowhere: there is no such file or folder",
    ),
    (
        ["convert", "{photos}/bee/top.png", "{dest}", "--backend=disk"],
        "SOURCE: {photos}/bee/top.png: this is one image; give the folder that it lies in",
    ),
    (["convert", "{tmp}/empty", "{dest}", "--backend=disk"], "SOURCE: {tmp}/empty: no image can be read there"),
    (["convert", "{photos}", "{photos}", "--backend=disk"], "DEST: {photos} holds other files; give a folder that"),
    (["convert", "{photos}", "{photos}/ant", "--backend=disk"], "DEST: {photos}/ant holds other files"),
    (["convert", "{photos}", "{photos}/new", "--backend=disk"], "DEST: {photos}/new lies in {photos}; give a folder"),
    (
        ["convert", "{photos}", "{photos}/bee/top.png", "--backend=disk"],
        "DEST: {photos}/bee/top.png cannot be made or written",
    ),
    (
        ["convert", "{tmp}/nowhere", "{photos}/bee/top.png/new", "--backend=disk"],
        "DEST: {photos}/bee/top.png/new cannot be made",
    ),
    (["convert", "{photos}", "/proc/new", "--backend=disk"], "/proc/new cannot be made or written to (No such file or"),
    (
        ["convert", "{photos}", f"{{tmp}}/new/{'n' * 256}", "--backend=disk"],
        "(File name too long); give another folder",
    ),
    (
        ["convert", "{store}", "{dest}", "--backend=disk", "--skip-unreadable"],
        "--skip-unreadable: {store} has no image files, which it is for; omit the option",
    ),
    (["convert", "", "{dest}", "--backend=disk"], "argument SOURCE: is empty; give a path"),
    (["convert", "{photos}", "", "--backend=disk"], "argument DEST: is empty; give a path"),
    (["info", ""], "argument ROOT: is empty; give a path"),
    (["convert", "{photos}", "{store}", "--backend=disk"], "DEST: there is a store at {store} already"),
    (["convert", "{photos}", "{photos}", "--backend=disk", "--replace"], "DEST: {photos} holds other files"),
    (["convert", "{photos}", "{rocksdb}", "--backend=disk", "--replace"], "DEST: {rocksdb} holds other files"),
    (["convert", "{photos}", "{store}", "--backend=disk", "--r"], "unrecognized arguments: --r"),
    (["verify", "{tmp}/nowhere"], "{tmp}/nowhere: there is no imgstore store here"),
    (["info", "{tmp}/nowhere"], "{tmp}/nowhere: there is no imgstore store here"),
    (["verify", "{photos}"], "{photos}: there is no imgstore store here"),
    (["info", "{photos}/bee/top.png"], "{photos}/bee/top.png: there is no imgstore store here"),
    (["verify"], "the following arguments are required: ROOT"),
    (["convert", "{photos}", "{dest}", "--backend=disk", "--shard-images=0"], "argument --shard-images: invalid"),
    (["convert", "{photos}", "{store}", "--backend=disk", "--shard-images=2"], "DEST: {store} holds other files"),
    (
        ["convert", "{photos}", "{dest}", "--backend=disk", "--shard-images=2", "--replace"],
        "--replace: shards do not take the place of a store; give another DEST",
    ),
    (["info", "{store}", "--json"], "unrecognized arguments: --json"),
]


@pytest.mark.parametrize(("arguments", "reason"), BAD_ARGUMENTS, ids=range(len(BAD_ARGUMENTS)))
def test_a_bad_argument_ends_in_one_line(
    arguments: list[str], reason: str, photos: Path, dest: Path, store: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "empty").mkdir()
    rocksdb = tmp_path / "rocksdb"
    rocksdb.mkdir()
    for name, content in {"CURRENT": "MANIFEST-000005\n", "LOCK": "", "000004.sst": "theirs"}.items():
        (rocksdb / name).write_text(content)
    before = files(tmp_path)
    places = {"photos": photos, "dest": dest, "store": store, "tmp": tmp_path, "rocksdb": rocksdb}
    ended = run(*(argument.format(**places) for argument in arguments))
    must_be_refused(ended, 2, reason.format(**places))
    assert files(tmp_path) == before


@pytest.mark.parametrize(("mode", "name"), [(0o555, "closed/new"), (0o555, "closed"), (0o333, "closed")])
def test_a_dest_without_permission_is_refused(
    mode: int, name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # so that nobody needs permission for the folders above
    tmp_path.chmod(0o755)
    Path("closed").mkdir()
    Path("closed").chmod(mode)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        ended = run("convert", "nowhere", name, "--backend=disk")
    finally:
        os.seteuid(user)
    must_be_refused(ended, 2, f"DEST: {name} cannot be made or written to (Permission denied); give another folder")


def test_an_empty_folder_and_one_of_a_killed_writer_are_taken(photos: Path, dest: Path, run: Run) -> None:
    dest.mkdir()
    assert run("convert", photos, dest, "--backend=lmdb").status == 0
    (dest / "CURRENT").rename(
        dest / ".CURRENT.imgstore-new"
    )  # as if the writer had been killed before it named its generation
    assert run("convert", photos, dest, "--backend=lmdb").status == 0
    assert len(held(dest)) == 4


@pytest.mark.parametrize("current", [b"imgstore \0\0\0", b"", bytes(2 << 20)])
def test_a_store_that_is_damaged_is_still_taken_for_one(photos: Path, dest: Path, run: Run, current: bytes) -> None:
    assert run("convert", photos, dest, "--backend=lmdb").status == 0
    (dest / "CURRENT").write_bytes(current)
    must_be_refused(run("convert", photos, dest, "--backend=lmdb"), 2, f"there is a store at {dest} already")
    assert run("convert", photos, dest, "--backend=lmdb", "--replace").status == 0
    assert len(held(dest)) == 4


def test_a_store_that_comes_up_meanwhile_is_not_replaced(
    backend: ModuleType, photos: Path, dest: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def just_before(root: str, replace: bool) -> None:
        backend.store_many(root, pixels(1, (2, 3, 3), BYTE), [0, 1])

    monkeypatch.setattr("imgstore.command.convert.must_be_free", just_before)
    must_be_refused(run("convert", photos, dest, "--backend=hdf5"), 2, "there is a store at")
    assert len(held(dest)) == 2


@pytest.mark.parametrize("of", ["the many", "a single"])
@pytest.mark.parametrize("what", ["pixel", "label"])
def test_what_is_read_back_otherwise_is_noticed(
    backend: ModuleType, of: str, what: str, tmp_path: Path, dest: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that flips a bit before the store's own checksum is made; DEST is then as it was."""
    source, image = tmp_path / "source", pixels(1, (3, 4, 4), BYTE)
    imgstore.hdf5.store_many(source, image, [1, 2, 3])
    imgstore.hdf5.store_single(source, image[0], 7, 4)
    backend.store_many(dest, image[:1], [0])
    before = files(dest)
    kind = type(backend.BACKEND)
    name = "write_many" if of == "the many" else "write_single"
    genuine = getattr(kind, name)

    def flipping(self: Any, path: str, given: Any) -> Any:
        def flipped(block: Any) -> Any:
            pixel, label = (1, 0) if what == "pixel" else (0, 1)
            return block._replace(images=block.images ^ np.uint8(pixel), labels=block.labels ^ label)

        return genuine(self, path, map(flipped, given) if of == "the many" else flipped(given))

    monkeypatch.setattr(kind, name, flipping)
    ended = run("convert", source, dest, "--backend", names(backend), "--replace")
    must_be_refused(ended, 1, f"image {0 if of == 'the many' else 7}: what is read back is not what was given to store")
    assert files(dest) == before


def test_images_are_stored_as_they_are_read(backend: ModuleType, tmp_path: Path, dest: Path, run: Run) -> None:
    """Fifteen photographs of 3 MB, of which a few at once are in memory."""
    (tmp_path / "photos").mkdir()
    for i in range(15):
        Image.new("RGB", (1000, 1000), (i, 0, 0)).save(tmp_path / "photos" / f"{i:02d}.png", compress_level=1)
    tracemalloc.start()
    try:
        assert run("convert", tmp_path / "photos", dest, "--backend", names(backend)).status == 0
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_a_store_is_verified(store: Path, run: Run) -> None:
    ended = run("verify", store)
    assert (ended.status, ended.out, ended.err) == (0, f"{store}: everything is as it was stored\n", "")


def test_a_path_that_is_no_text_is_shown(tmp_path: Path, run: Run) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    imgstore.disk.store_many(root, [], [])
    ended = run("verify", root)
    assert (ended.status, ended.out) == (0, f"{tmp_path}/\\udcff: everything is as it was stored\n")


@pytest.mark.parametrize("command", ["verify", "convert"])
def test_damage_is_named(command: str, backend: ModuleType, store: Path, dest: Path, run: Run) -> None:
    (path,) = (path for path in store.glob("imgstore-*/*") if path.suffix in (".mdb", ".h5") or path.stem == "00000001")
    content = path.read_bytes()
    image = np.arange(20, 40, dtype=np.uint8).tobytes()  # image 1, or its rows
    at = content.find(image if image in content else image[4:8])
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    ended = run(command, store, *([dest, "--backend=hdf5"] if command == "convert" else []))
    must_be_refused(ended, 1, f"{path}: ")
    assert not (dest / "CURRENT").exists()


def test_a_full_disk_is_named(photos: Path, dest: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr("imgstore.disk.write_file", full)
    must_be_refused(run("convert", photos, dest, "--backend=disk"), 1, "00000000.png: No space left on device")


def told(ended: Ended) -> dict[str, str]:
    assert (ended.status, ended.err) == (0, "")
    return dict(line.split(maxsplit=1) for line in ended.out.splitlines())


def test_info_tells_what_is_in_a_store(backend: ModuleType, store: Path, run: Run) -> None:
    backend.store_single(store, PHOTOS["bee/top.png"], 5, 1)
    backend.store_single(store, pixels(5, (5, 4), BYTE), 1, 1)
    generation = current(store)[3]
    size = sum(path.stat().st_size for path in (store / generation).rglob("*") if path.is_file())
    assert told(run("info", store)) == {
        "backend": names(backend),
        "images": "4",
        "shapes": "5x4 uint8 (3), 2x2x4 uint8 (1)",
        "pixels": "76 bytes",
        "files": f"{size:,} bytes",
        "generation": f"{generation}, synced",
        "format": "3",
    }


def test_info_of_an_empty_store(backend: ModuleType, dest: Path, run: Run) -> None:
    backend.store_many(dest, [], [], durable=False)
    entries = told(run("info", dest))
    assert (entries["images"], entries["shapes"], entries["pixels"]) == ("0", "none", "0 bytes")
    assert entries["generation"].endswith(", not synced")


def test_info_of_many_sizes_names_the_most_frequent(backend: ModuleType, dest: Path, run: Run) -> None:
    images = [pixels(i, (1 + i // 2, 3), BYTE) for i in range(1, 26)]
    backend.store_many(dest, images, range(25))
    with imgstore.open_reader(dest) as reader:
        assert reader.forms() == {((1, 3), BYTE): 1} | {((n, 3), BYTE): 2 for n in range(2, 14)}
    assert told(run("info", dest))["shapes"] == ", ".join(f"{n}x3 uint8 (2)" for n in range(2, 12)) + ", and 3 others"


@pytest.mark.parametrize("mixed", [False, True])
def test_info_reads_no_pixels(
    backend: ModuleType, mixed: bool, dest: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the many; damage among them goes unnoticed."""
    images = [pixels(0, (90, 90 + mixed * i), BYTE) for i in range(4)]
    backend.store_many(dest, images, range(4))
    for path in dest.glob("imgstore-*/*"):
        content = path.read_bytes() if path.is_file() else b""
        if (at := content.find(images[1].tobytes()[:30])) > 0:
            path.write_bytes(content[: at + 5] + bytes([content[at + 5] ^ 1]) + content[at + 6 :])
    many = type(imgstore.open_reader(dest)._open())
    for name in ("read", "gather", "read_blocks"):
        monkeypatch.setattr(many, name, None)
    assert told(run("info", dest))["images"] == "4"


def test_a_folder_is_converted_to_shards(backend: ModuleType, photos: Path, dest: Path, run: Run) -> None:
    ended = run("convert", photos, dest, "--backend", names(backend), "--shard-images=3")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"{CLASSES}{dest}: 4 images in 2 shards, stored and read back\n"
    assert list(held(dest).values()) == records([PHOTOS[name] for name in IN_ORDER], LABELS)
    assert backend.read_single(dest / "shard-000001", 0)[1] == 2
    assert run("verify", dest).out == f"{dest}: everything is as it was stored\n"
    entries = told(run("info", dest))
    size = sum(path.stat().st_size for path in dest.glob("shard-*/imgstore-*/**/*") if path.is_file())
    assert entries == {
        "backend": names(backend),
        "images": "4",
        "shapes": "4x5x3 uint8 (2), 7x3 uint8 (1), 2x2x4 uint8 (1)",
        "pixels": "157 bytes",
        "files": f"{size:,} bytes",
        "shards": "2, synced",
        "format": "3",
    }


@pytest.mark.parametrize("of", ["store", "sharded store", "CIFAR-10"])
def test_other_sources_are_converted_to_shards(of: str, tmp_path: Path, dest: Path, run: Run) -> None:
    """What is read of them again is the same."""
    planes, source = pixels(1, (12, 3, 32, 32), BYTE), tmp_path / "source"
    source.mkdir()
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        batch = [bytes([label % 10]) + planes[label].tobytes() for label in (2 * i, 2 * i + 1)]
        (source / name).write_bytes(b"".join(batch))
    if of != "CIFAR-10":
        shard = ["--shard-images=7"] if of == "sharded store" else []
        assert run("convert", source, tmp_path / "store", "--backend=hdf5", *shard).status == 0
        source = tmp_path / "store"
    assert run("convert", source, dest, "--backend=lmdb", "--shard-images=5").status == 0
    labels = [label % 10 for label in range(12)]
    assert list(held(dest).values()) == records(planes.transpose(0, 2, 3, 1), labels)
    assert len(list(dest.glob("shard-*"))) == 3
    assert run("convert", dest, tmp_path / "whole", "--backend=disk").status == 0
    assert held(tmp_path / "whole") == held(dest)


def test_a_conversion_to_shards_that_was_stopped_goes_on(photos: Path, dest: Path, run: Run) -> None:
    broken = photos / "bee/top.png"  # image 2 of 4
    whole, times = broken.read_bytes(), broken.stat()
    broken.write_bytes(whole[:-30] + bytes(30))
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    command = "convert", photos, dest, "--backend=lmdb", "--shard-images=1"
    must_be_refused(run(*command), 1, f"{broken}: ", "--skip-unreadable leaves such files out")
    must_be_refused(run("verify", dest), 2, f"{dest}: there is no imgstore store here")
    must_be_refused(run("convert", dest, dest.parent / "other", "--backend=disk"), 2, f"{dest}: this is a part of a")
    generation = current(dest / "shard-000000")[3]
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    must_be_refused(run(*command), 2, f"DEST: {dest} holds a part of another sharded store; remove it")
    must_be_refused(run(*command[:-2], "--backend=hdf5"), 2, f"DEST: {dest} holds a part of another sharded store")
    broken.write_bytes(whole)
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    (photos / "aardvark").mkdir()  # the labels are others
    must_be_refused(run(*command), 2, f"DEST: {dest} holds a part of another sharded store; remove it")
    (photos / "aardvark").rmdir()
    assert run(*command).status == 0
    assert current(dest / "shard-000000")[3] == generation
    assert list(held(dest).values()) == records([PHOTOS[name] for name in IN_ORDER], LABELS)


def test_a_store_in_which_an_image_was_replaced_is_another_source(backend: ModuleType, store: Path) -> None:
    before = fingerprint(open_source(store))
    assert fingerprint(open_source(store)) == before
    backend.store_single(store, PHOTOS["bee/top.png"], 1, 1)
    assert fingerprint(open_source(store)) != before


def test_an_image_of_a_shard_that_cannot_be_stored_is_named(
    photos: Path, dest: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgstore.disk.LARGEST_PIXELS", 20)
    for name in ("ant/2.png", "ant/3.png"):
        Image.fromarray(pixels(1, (2, 2), BYTE)).save(photos / name)
    Image.fromarray(pixels(1, (5, 5), BYTE)).save(photos / "zebra/1.png")
    ended = run("convert", photos, dest, "--backend=disk", "--shard-images=2")
    must_be_refused(ended, 1, f"{photos / 'zebra/1.png'}: shard 1, image 1: has 5 x 5 pixels")


def test_a_bad_dest_for_shards_is_refused_before_anything_is_read(
    photos: Path, store: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "open_source", None)
    (tmp_path / "file").touch()
    for dest, reason in ((store, "holds other files"), (tmp_path / "file/dest", "cannot be made or written to")):
        ended = run("convert", photos, dest, "--backend=hdf5", "--shard-images=2")
        must_be_refused(ended, 2, f"DEST: {dest} {reason}")


def test_unreadable_files_are_left_out_of_shards(photos: Path, dest: Path, run: Run) -> None:
    (photos / "ant/2.png").write_bytes(b"no image")
    ended = run("convert", photos, dest, "--backend=hdf5", "--shard-images=2", "--skip-unreadable")
    assert ended.status == 0
    assert list(held(dest).values()) == records([PHOTOS[name] for name in IN_ORDER[1:]], LABELS[1:])


def test_a_link_that_leads_nowhere_is_named(photos: Path, dest: Path, run: Run) -> None:
    (photos / "ant/9.png").symlink_to("nowhere")
    ended = run("convert", photos, dest, "--backend=hdf5", "--shard-images=2")
    must_be_refused(ended, 1, f"{photos / 'ant/9.png'}: No such file or directory; --skip-unreadable leaves such files")


def test_ids_with_gaps_do_not_go_into_shards(backend: ModuleType, store: Path, dest: Path, run: Run) -> None:
    backend.store_single(store, PHOTOS["bee/top.png"], 5, 1)
    ended = run("convert", store, dest, "--backend=hdf5", "--shard-images=2")
    must_be_refused(ended, 2, f"--shard-images: there are gaps in the ids of {store}, which shards do not keep")
    assert not dest.exists()


def test_what_has_no_shards_needs_no_scheduler(photos: Path, store: Path, dest: Path, run: Run) -> None:
    scheduler = "--scheduler=tcp://127.0.0.1:1"
    must_be_refused(run("convert", photos, dest, "--backend=hdf5", scheduler), 2, "--scheduler: only shards")
    must_be_refused(run("verify", store, scheduler), 2, f"--scheduler: {store} is no sharded store")


def test_dask_is_asked_for_where_it_is_not_installed(
    photos: Path, dest: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    ended = run("convert", photos, dest, "--backend=hdf5", "--shard-images=2", "--scheduler=tcp://127.0.0.1:1")
    reason = "--scheduler: Dask is not installed; pip install -r imgstore/requirements-dask.txt"
    must_be_refused(ended, 2, reason)
    assert (Path(__file__).parents[2] / "imgstore/requirements-dask.txt").is_file() and not dest.exists()


def test_the_commands_of_the_readme(photos: Path, dest: Path) -> None:
    """In a process of their own, one after the other as in a shell."""
    for arguments in (["convert", photos, dest, "--backend", "lmdb"], ["verify", dest], ["info", dest]):
        ended = command(*arguments)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        assert ended.stdout.count("\n") == {"convert": 2, "verify": 1, "info": 7}[str(arguments[0])]


def command(*arguments: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "imgstore", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=A_MINUTE,
        **options,
    )


def test_a_terminal_shows_how_far_it_is(photos: Path, dest: Path) -> None:
    for i in range(300):
        Image.new("RGB", (200, 200), (i % 256, 0, 0)).save(photos / f"ant/{i:03d}.png")
    terminal, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "imgstore", "convert", str(photos), str(dest), "--backend=disk"]
    with subprocess.Popen(arguments, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                read = os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            shown += read
            if not read:
                break
    os.close(terminal)
    assert process.returncode == 0
    lines = shown.decode().split("\r\x1b[K")
    assert any(line.startswith("storing ") and " of 304 images, " in line for line in lines)
    assert any(line.startswith("comparing ") for line in lines)
    assert b"\n" not in shown and lines[-1] == ""


def test_a_message_takes_the_place_of_how_far_it_was(
    photos: Path, dest: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "zebra/1.png").write_bytes(b"no image")
    monkeypatch.setattr(progress, "SHOWN_EVERY", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    *_, shown, message = run("convert", photos, dest, "--backend=disk").err.split(progress.START_OF_LINE)
    assert shown.startswith("storing 3 of 4 images, ") and message.startswith("python -m imgstore: ")


def test_ctrl_c_ends_with_130_and_leaves_dest_as_it_was(photos: Path, dest: Path) -> None:
    imgstore.disk.store_many(dest, pixels(1, (2, 3, 3), BYTE), [0, 1])
    before = held(dest)
    for i in range(2000):
        os.link(photos / "bee/top.png", photos / f"bee/{i:04d}.png")
    arguments = [sys.executable, "-m", "imgstore", "convert", str(photos), str(dest), "--replace", "--backend=disk"]
    with subprocess.Popen(
        arguments,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    ) as process:
        deadline = time.monotonic() + A_MINUTE
        while len(list(dest.glob("imgstore-*"))) < 2:  # it is at work on the next generation
            assert process.poll() is None and time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=A_MINUTE)
    assert (process.returncode, errors) == (130, "python -m imgstore: stopped\n")
    assert held(dest) == before and len(list(dest.glob("imgstore-*"))) == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["info {dest}", "verify {dest}", "convert {photos} {dest}-2 --backend=disk"])
def test_a_reader_that_leaves_gets_no_complaint(photos: Path, dest: Path, arguments: str, unbuffered: str) -> None:
    imgstore.disk.store_many(dest, pixels(1, (2, 4, 4), BYTE), [0, 1])
    receiving, sending = os.pipe()
    os.close(receiving)
    given = arguments.format(dest=dest, photos=photos).split()
    done = subprocess.run(
        [sys.executable, "-m", "imgstore", *given],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=sending,
        stderr=subprocess.PIPE,
        timeout=A_MINUTE,
        check=False,
    )
    os.close(sending)
    assert (done.returncode, done.stderr) == (141, b"")


def test_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--version"])
    assert capsys.readouterr().out == f"imgstore {imgstore.__version__}\n"
