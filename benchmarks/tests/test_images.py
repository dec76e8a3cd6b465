"""Tests of where a benchmark's images come from."""

import io
import itertools
import os
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import imgstore
from benchmarks import sources as sources_module
from benchmarks.measure import synthetic as synthetic_module
from benchmarks.measure.images import Repeated, Source, fingerprint
from benchmarks.report.contact_sheet import contact_sheet, sizes
from benchmarks.sources import open_source, resized
from imgstore.errors import SourceError
from imgstore.sources import cifar10 as cifar10_module

Batches = dict[str, tuple[NDArray[np.uint8], list[int]]]
NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
FOLDERS = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did: those of Python 3 come back through a call of _codecs.encode."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self: Any, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<I", len(content)) + content)

    dispatch[bytes] = dispatch[str] = save_string


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python_batch(images: NDArray[Any], labels: Any) -> bytes:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    return python2_pickle({"batch_label": b"a batch", "labels": labels, "data": planes, "filenames": [b"x.png"]})


def binary_batch(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    planes = images.transpose(0, 3, 1, 2)
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(planes, labels, strict=True))


def write_cifar(root: Path, version: str, batches: Batches) -> Path:
    folder = root / FOLDERS[version]
    folder.mkdir(parents=True)
    for name, (images, labels) in batches.items():
        if version == "python":
            (folder / name).write_bytes(python_batch(images, labels))
        else:
            (folder / f"{name}.bin").write_bytes(binary_batch(images, labels))
    (folder / "readme.html").write_text("not a batch")
    return folder


def pack(folder: Path, mode: str = "gz") -> Path:
    """A tar file of the folder whose members are in no useful order, as in the real one."""
    location = folder.parent / f"{folder.name}.tar.{mode}"
    with tarfile.open(location, f"w:{mode}") as archive:  # type: ignore[call-overload]
        for file in sorted(folder.iterdir(), reverse=True):
            archive.add(file, f"{folder.name}/{file.name}")
    return location


@pytest.fixture
def batches() -> Batches:
    rng = np.random.default_rng(0)
    sizes = dict(zip(NAMES, [3, 1, 2, 1, 4, 2], strict=True))
    return {
        name: (rng.integers(0, 256, (size, 32, 32, 3), np.uint8), rng.integers(0, 10, size).tolist())
        for name, size in sizes.items()
    }


def assert_holds(source: Source, batches: Batches) -> None:
    np.testing.assert_array_equal(source.images, np.concatenate([images for images, _ in batches.values()]))
    np.testing.assert_array_equal(source.labels, np.concatenate([labels for _, labels in batches.values()]))
    assert source.labels.dtype == np.int64
    assert isinstance(source.images, np.ndarray) and source.images.flags.c_contiguous


@pytest.mark.parametrize("version", FOLDERS)
@pytest.mark.parametrize("place", [Path, lambda folder: folder.parent, pack, lambda folder: pack(folder, "xz")])
def test_cifar10_gives_every_batch_in_order(
    tmp_path: Path, batches: Batches, version: str, place: Callable[[Path], Path]
) -> None:
    location = place(write_cifar(tmp_path, version, batches))
    source = open_source(location, 5)
    assert_holds(source, batches)
    assert source.name == f"CIFAR-10 {location.name if location.is_file() else FOLDERS[version]} (13 images)"
    assert source.fingerprint == fingerprint(source.images, source.labels)


def test_cifar10_is_channels_last_and_in_rows(tmp_path: Path, batches: Batches) -> None:
    folder = write_cifar(tmp_path, "binary", batches)
    planes = bytearray(bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([30]) * 1024)
    planes[2 * 32 + 5] = 99
    (folder / "data_batch_1.bin").write_bytes(bytes([7]) + planes)
    source = open_source(folder, 1)
    assert source.labels[0] == 7
    assert source.images[0][0, 0].tolist() == [10, 20, 30]
    assert source.images[0][2, 5].tolist() == [99, 20, 30]


def test_cifar10_reads_a_fortran_ordered_pickle(tmp_path: Path, batches: Batches) -> None:
    folder = write_cifar(tmp_path, "python", batches)
    images, labels = batches["data_batch_1"]
    planes = np.asfortranarray(images.transpose(0, 3, 1, 2).reshape(-1, 3072))
    (folder / "data_batch_1").write_bytes(python2_pickle({"data": planes, "labels": labels}))
    assert_holds(open_source(folder, 1), batches)


@pytest.mark.parametrize("version", FOLDERS)
@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_4", "test_batch"])
@pytest.mark.parametrize("place", [Path, pack])
def test_cifar10_names_a_missing_batch(
    tmp_path: Path, batches: Batches, version: str, name: str, place: Callable[[Path], Path]
) -> None:
    del batches[name]
    location = place(write_cifar(tmp_path, version, batches))
    with pytest.raises(SourceError, match=rf"{location.name}: .* lacks {name}\b"):
        open_source(location, 1)


@pytest.mark.parametrize("version", FOLDERS)
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.99])
def test_cifar10_names_a_truncated_batch(tmp_path: Path, batches: Batches, version: str, kept: float) -> None:
    folder = write_cifar(tmp_path, version, batches)
    file = next(folder.glob("data_batch_3*"))
    os.truncate(file, int(file.stat().st_size * kept))
    with pytest.raises(SourceError, match=file.name):
        open_source(folder, 1)


def test_cifar10_names_where_a_truncated_archive_ends(tmp_path: Path, batches: Batches) -> None:
    location = pack(write_cifar(tmp_path, "binary", batches))
    whole = location.read_bytes()
    named: set[str] = set()
    for kept in range(0, len(whole) - 200, 500):
        location.write_bytes(whole[:kept])
        with pytest.raises(SourceError, match=str(location)) as error:
            open_source(location, 1)
        named.update(name for name in NAMES if f"{name}.bin on" in str(error.value))
    assert named == set(NAMES)


@pytest.mark.parametrize(
    ("name", "hostile"),
    [
        ("os.system", b"cos\nsystem\n(S'touch harmed'\ntR."),
        ("posix.system", b"\x80\x02cposix\nsystem\nU\x0ctouch harmed\x85R."),
        ("os.system", b"(S'touch harmed'\nios\nsystem\n."),
        ("builtins.eval", b'cbuiltins\neval\n(S\'open("harmed", "w")\'\ntR.'),
        ("__builtin__.eval", b"\x80\x02c__builtin__\neval\nU\x13open('harmed', 'wb')\x85R."),
        ("numpy.memmap", b"cnumpy\nmemmap\n(S'harmed'\nS'u1'\nS'w+'\nI0\nI9\ntR."),
        ("numpy.core.multiarray.fromfile", b"cnumpy.core.multiarray\nfromfile\n(S'harmed'\ntR."),
    ],
)
def test_cifar10_refuses_a_pickle_that_names_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches, name: str, hostile: bytes
) -> None:
    folder = write_cifar(tmp_path, "python", batches)
    (folder / "data_batch_2").write_bytes(hostile)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=rf"data_batch_2 .* names {name}, "):
        open_source(folder, 1)
    assert not (tmp_path / "harmed").exists()


def test_cifar10_never_calls_what_a_pickle_may_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches
) -> None:
    folder = write_cifar(tmp_path, "python", batches)
    called: list[Any] = []
    for name in ("ndarray", "dtype"):
        monkeypatch.setattr(np, name, type(name, (), {"__init__": lambda self, *given: called.append(given)}))
    (folder / "data_batch_2").write_bytes(b"cnumpy\nndarray\n((L1099511627776L\nttRcnumpy\ndtype\n(S'O'\ntR\x86.")
    with pytest.raises(SourceError, match="data_batch_2"):
        open_source(folder, 1)
    assert called == []


IMAGES = np.zeros((2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        python_batch(IMAGES.astype(object), [0, 1]),
        python_batch(IMAGES.astype(np.int8), [0, 1]),
        python_batch(IMAGES.astype(">u2"), [0, 1]),
        python_batch(IMAGES, [0, 10]),
        python_batch(IMAGES, [-1, 0]),
        python_batch(IMAGES, [0, 2**70]),
        python_batch(IMAGES, [0, True]),
        python_batch(IMAGES, [0, 1.0]),
        python_batch(IMAGES, ["0", "1"]),
        python_batch(IMAGES, np.array([0, 1])),
        python_batch(IMAGES, [0]),
        python_batch(IMAGES, [0, 1, 2]),
        python_batch(IMAGES[:0], []),
        python2_pickle({"data": IMAGES.reshape(3, 2048), "labels": [0, 1, 2]}),
        python2_pickle({"data": IMAGES, "labels": [0, 1]}),
        python2_pickle({"data": bytes(2 * 3072), "labels": [0, 1]}),
        python_batch(IMAGES, [0, 1]).replace(b"M\x00\x0c\x86", b"M\x00\x0b\x86"),
        python2_pickle({"labels": [0, 1]}),
        python2_pickle([IMAGES, [0, 1]]),
        b"\x80\x02cnumpy\nndarray\n.",
        b"<html>404 Not Found</html>",
        b"",
    ],
)
def test_cifar10_refuses_a_pickle_that_holds_anything_else(tmp_path: Path, batches: Batches, content: bytes) -> None:
    folder = write_cifar(tmp_path, "python", batches)
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(SourceError, match="test_batch"):
        open_source(folder, 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes are not whole records"),
        (bytes(3072), "3072 bytes are not whole records"),
        (bytes(3074), "3074 bytes are not whole records"),
        (b"\x0a" + bytes(3072), "labels"),
    ],
)
def test_cifar10_refuses_a_binary_batch_of_anything_else(
    tmp_path: Path, batches: Batches, content: bytes, reason: str
) -> None:
    folder = write_cifar(tmp_path, "binary", batches)
    (folder / "data_batch_5.bin").write_bytes(content)
    with pytest.raises(SourceError, match=rf"data_batch_5\.bin .*{reason}"):
        open_source(folder, 1)


@pytest.mark.parametrize("place", [Path, pack])
def test_cifar10_bounds_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Batches, place: Callable[[Path], Path]
) -> None:
    folder = write_cifar(tmp_path, "binary", batches)
    os.truncate(folder / "data_batch_5.bin", 30_000_000)
    location = place(folder)
    monkeypatch.setattr(cifar10_module, "LARGEST_BATCH", 3 * 3073)
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"data_batch_5\.bin .* larger than 9219 bytes"):
            open_source(location, 1)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"no image", bytes(10240)])
def test_refuses_a_file_that_is_not_cifar10(tmp_path: Path, content: bytes) -> None:
    location = tmp_path / "cifar.tgz"
    location.write_bytes(content)
    with pytest.raises(SourceError, match=r"cifar\.tgz: .*; give cifar-10-python\.tar\.gz") as error:
        open_source(location, 1)
    assert "\n" not in str(error.value)


def test_refuses_a_path_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere: there is no such file or folder; give "):
        open_source(tmp_path / "nowhere", 1)


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
WIDE = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5957
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
ALPHA = np.dstack([COLOUR, 255 - GREY // 3])
BITS = GREY > 100
PALETTE = Image.fromarray(GREY // 20)
PALETTE.putpalette(COLOUR.tobytes())


def mode(array: NDArray[Any], name: str) -> Image.Image:
    return Image.fromarray(array).convert(name)


@pytest.mark.parametrize(
    ("image", "suffix", "options", "expected"),
    [
        pytest.param(Image.fromarray(GREY), "png", {}, GREY, id="grey"),
        pytest.param(Image.fromarray(BITS), "png", {}, BITS * np.uint8(255), id="1-bit"),
        pytest.param(Image.fromarray(ALPHA[..., 2:]), "png", {}, ALPHA[..., 2:], id="grey with alpha"),
        pytest.param(Image.fromarray(WIDE), "png", {}, WIDE, id="16-bit PNG"),
        pytest.param(Image.fromarray(WIDE), "tiff", {}, WIDE, id="16-bit TIFF"),
        pytest.param(Image.fromarray(WIDE.astype(">u2")), "tiff", {}, WIDE, id="16-bit TIFF, big-endian"),
        pytest.param(Image.fromarray(WIDE), "pgm", {}, WIDE, id="16-bit PGM"),
        pytest.param(Image.fromarray(WIDE.astype(np.int32)), "tiff", {}, WIDE, id="32-bit of 16 bits"),
        pytest.param(Image.fromarray(COLOUR), "bmp", {}, COLOUR, id="colour"),
        pytest.param(Image.fromarray(ALPHA), "webp", {"lossless": True}, ALPHA, id="colour with alpha"),
        pytest.param(PALETTE, "gif", {}, COLOUR, id="palette"),
        pytest.param(
            PALETTE,
            "png",
            {"transparency": 5},
            np.dstack([COLOUR, np.where(GREY == 100, 0, 255).astype(np.uint8)]),
            id="palette with transparency",
        ),
        pytest.param(mode(ALPHA, "RGBA").convert("PA"), "tiff", {}, None, id="palette with alpha"),
        pytest.param(mode(COLOUR, "CMYK"), "tiff", {}, COLOUR, id="CMYK"),
        pytest.param(mode(COLOUR, "YCbCr"), "tiff", {}, None, id="YCbCr"),
        pytest.param(Image.new("LAB", (4, 3), (150, 140, 90)), "tiff", {}, None, id="LAB"),
    ],
)
def test_a_mode_becomes_its_array(
    tmp_path: Path, image: Image.Image, suffix: str, options: dict[str, Any], expected: NDArray[Any] | None
) -> None:
    image.save(tmp_path / f"one.{suffix}", **options)
    source = open_source(tmp_path, 1)
    if expected is None:
        expected = np.asarray(image.convert("RGBA" if image.mode == "PA" else "RGB"))
    np.testing.assert_array_equal(source.images[0], expected)
    assert source.images[0].dtype == (np.uint16 if expected is WIDE else np.uint8)
    assert source.images[0].dtype.isnative


def test_hsv_becomes_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.png").touch()
    monkeypatch.setattr(Image, "open", lambda path, formats: Image.new("HSV", (4, 3), (0, 255, 200)))
    assert open_source(tmp_path, 1).images[0][0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (GREY.astype(np.float32), "floating point"),
        (WIDE.astype(np.int32) + 65536, "16 bits"),
        (WIDE.astype(np.int32) - 1, "16 bits"),
    ],
)
def test_leaves_out_pixels_that_no_backend_keeps(tmp_path: Path, array: NDArray[Any], reason: str) -> None:
    Image.fromarray(GREY).save(tmp_path / "good.png")
    Image.fromarray(array).save(tmp_path / "wide.tiff")
    source = open_source(tmp_path, 1)
    assert len(source.images) == 1
    ((path, given),) = source.left_out
    assert path == str(tmp_path / "wide.tiff") and reason in given


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_applies_exif_rotation_once(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / f"turned.{suffix}", exif=exif)
    (image,) = open_source(tmp_path, 1).images
    np.testing.assert_array_equal(image > 127, np.rot90(pixels, -1) > 127)


def test_takes_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "film.tiff", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(open_source(tmp_path, 1).images, GREY[None])


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG file that claims to be of this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\1\0IDAT"


def test_leaves_out_what_cannot_be_read(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for suffix in ("png", "jpg", "tiff", "webp"):
        file = tmp_path / f"cut.{suffix}"
        Image.fromarray(noise).save(file)
        os.truncate(file, file.stat().st_size // 2)
    Image.fromarray(noise).save(tmp_path / "tags.tiff")
    os.truncate(tmp_path / "tags.tiff", 100)
    (tmp_path / "empty.PNG").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "header.png").write_bytes(png_header(10, 10))
    (tmp_path / "text.gif").write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    bad = sorted(str(path) for path in tmp_path.iterdir())
    for name in ("labels.csv", "film.mpg", "store.h5", "drawing.eps"):
        (tmp_path / name).write_bytes(bytes(100))
    Image.fromarray(GREY).save(tmp_path / "zebra.png")
    source = open_source(tmp_path, 1)
    np.testing.assert_array_equal(source.images, GREY[None])
    assert source.name == f"folder {tmp_path.name} (1 images)"
    assert [path for path, _ in source.left_out] == bad
    assert all(reason and "\n" not in reason for _, reason in source.left_out)
    assert not [str(each) for each in recwarn.list]


def test_a_reason_is_never_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(file: Any, formats: Any) -> Image.Image:
        raise MemoryError

    (tmp_path / "one.png").touch()
    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(SourceError, match=r"one\.png: there is not enough memory for its pixels"):
        open_source(tmp_path, 1)


@pytest.mark.parametrize(("width", "height"), [(300, 500), (500, 500), (2**31 - 1, 2**31 - 1)])
def test_leaves_out_a_decompression_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, height: int
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    Image.fromarray(GREY).save(tmp_path / "small.png")
    if width * height < 10**6:
        Image.new("L", (width, height)).save(tmp_path / "bomb.png")
    else:
        (tmp_path / "bomb.png").write_bytes(png_header(width, height))
    source = open_source(tmp_path, 1)
    assert len(source.images) == 1
    ((path, reason),) = source.left_out
    assert path == str(tmp_path / "bomb.png") and "decompression bomb" in reason


def test_names_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    Image.fromarray(GREY).save(tmp_path / "one.png")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    source = open_source(tmp_path, 1)
    assert [path for path, _ in source.left_out] == [str(tmp_path / "closed")]


@pytest.mark.parametrize("content", [None, "no image"])
def test_refuses_a_folder_without_an_image(tmp_path: Path, content: str | None) -> None:
    if content:
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=str(tmp_path)) as error:
        open_source(tmp_path, 1)
    expected = "a.png: it is not an image of a kind" if content else "no file has an image's suffix"
    assert expected in str(error.value) and "; give " in str(error.value)


def test_labels_are_the_top_level_folders_in_sorted_order(tmp_path: Path) -> None:
    values = {
        "zebra/1.png": 1,
        "zebra/deep/ant/2.png": 2,
        "ant/3.PNG": 3,
        "top.png": 4,
        "bee/bad.png": 0,
        "cat/5.png": 5,
    }
    for name, value in values.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), value).save(tmp_path / name)
    (tmp_path / "bee" / "bad.png").write_bytes(b"bad")
    source = open_source(tmp_path, 1)
    assert [image[0, 0] for image in source.images] == [3, 5, 1, 2]
    assert source.labels.tolist() == [0, 2, 3, 3]
    assert source.labels.dtype == np.int64


def test_labels_of_a_flat_folder_are_zero(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(GREY).save(tmp_path / f"{name}.png")
    assert open_source(str(tmp_path), 1).labels.tolist() == [0, 0]


def test_images_are_an_array_only_where_shapes_and_dtypes_agree(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    Image.fromarray(255 - COLOUR).save(tmp_path / "b.png")
    stacked = open_source(tmp_path, 1)
    assert isinstance(stacked.images, np.ndarray) and stacked.images.shape == (2, 3, 4, 3)
    Image.fromarray(GREY).save(tmp_path / "c.png")
    Image.fromarray(WIDE).save(tmp_path / "d.png")
    mixed = open_source(tmp_path, 1)
    assert isinstance(mixed.images, list)
    for image, expected in zip(mixed.images, [COLOUR, 255 - COLOUR, GREY, WIDE], strict=True):
        np.testing.assert_array_equal(image, expected)
    assert mixed.fingerprint == fingerprint(mixed.images, mixed.labels) != stacked.fingerprint


def test_a_fingerprint_tells_any_difference() -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    labels = np.zeros(2, np.int64)
    changed = pixels.copy()
    changed[1, 2, 0, 1] = 1
    variants: list[tuple[Any, NDArray[np.int64]]] = [
        (pixels, labels),
        (changed, labels),
        (pixels, np.array([0, 1])),
        (pixels.view(np.int8), labels),
        (pixels.reshape(2, 4, 12), labels),
        (pixels.reshape(2, 2, 8, 3), labels),
        ([pixels[0], pixels[1].reshape(2, 8, 3)], labels),
        ([pixels[0], changed[1].reshape(2, 8, 3)], labels),
        (pixels[:1], labels[:1]),
    ]
    marks = [fingerprint(images, given) for images, given in variants]
    assert len(set(marks)) == len(variants)
    assert all(len(bytes.fromhex(mark)) == 8 for mark in marks)
    assert fingerprint(np.asfortranarray(changed), labels) == marks[1]
    assert marks[1] == "acfd5f7760b1c1eb"  # runs of other commits are compared by it


def png_size(image: NDArray[np.uint8]) -> int:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.tell()


def test_synthetic_images_are_the_same_for_every_count() -> None:
    short, long, again = (open_source(None, count) for count in (700, 2100, 2100))
    for source, count in ((short, 700), (long, 2100)):
        assert isinstance(source.images, np.ndarray)
        assert source.images.shape == (count, 32, 32, 3) and source.images.dtype == np.uint8
        assert source.labels.shape == (count,) and source.labels.dtype == np.int64
    np.testing.assert_array_equal(short.images, long.images[:700])
    np.testing.assert_array_equal(short.labels, long.labels[:700])
    np.testing.assert_array_equal(long.images, again.images)
    np.testing.assert_array_equal(long.labels, again.labels)
    assert short.fingerprint == long.fingerprint == fingerprint(long.images[:1000], long.labels[:1000])
    assert short.name == long.name == "synthetic 32x32x3"


def test_synthetic_images_differ_from_each_other() -> None:
    images = open_source(None, 3000).images
    assert len({image.tobytes() for image in images}) == 3000


def test_synthetic_images_take_the_room_of_photographs_as_png() -> None:
    sizes = [png_size(image) for image in open_source(None, 300).images]
    assert 1900 < np.mean(sizes) < 2400
    assert np.std(sizes) > 300


def test_synthetic_images_have_the_statistics_of_photographs() -> None:
    source = open_source(None, 1000)
    pixels = np.asarray(source.images, float)
    means = pixels.mean((1, 2, 3))
    contrasts = pixels.std((1, 2)).mean(1)
    assert 80 < means.mean() < 130 and 30 < means.std() < 60
    assert np.percentile(contrasts, 90) > 4 * np.percentile(contrasts, 10)
    deviations = pixels - pixels.mean((1, 2), keepdims=True)
    assert np.corrcoef(deviations.reshape(-1, 3).T).min() > 0.5
    power = (np.abs(np.fft.fft2(deviations, axes=(1, 2))) ** 2).mean((0, 3))
    octaves = np.sqrt([power[0, 2], power[0, 4], power[0, 8]])
    assert ((octaves[:-1] / octaves[1:] > 1.8) & (octaves[:-1] / octaves[1:] < 3)).all()
    assert set(source.labels) == set(range(10))


@pytest.mark.parametrize("size", [7, 64, 96])
def test_synthetic_images_of_another_size(size: int) -> None:
    """They compress as photographs of that size do, not as enlarged ones."""
    short, long = open_source(None, 3, size), open_source(None, 300, size)
    assert isinstance(long.images, np.ndarray)
    assert long.images.shape == (300, size, size, 3) and long.name == f"synthetic {size}x{size}x3"
    np.testing.assert_array_equal(short.images, long.images[:3])
    assert short.fingerprint == long.fingerprint != open_source(None, 3).fingerprint
    pixels = np.asarray(long.images, float)
    assert 80 < pixels.mean() < 130 and 15 < pixels.std((1, 2)).mean() < 60
    if size > 32:
        assert 0.5 < np.mean([png_size(image) for image in long.images[:30]]) / (3 * size * size) < 0.85


def test_the_images_of_earlier_runs_are_synthesized_still() -> None:
    """Saved runs are compared with new ones by it."""
    assert open_source(None, 1).fingerprint == "2f65085fef83cedc"


@pytest.mark.parametrize("count", [9, 10, 11])
def test_no_more_synthetic_images_are_held_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(synthetic_module, "HELD_BYTES", 10 * 64 * 64 * 3)
    source = open_source(None, count, 64)
    assert len(source.images) == min(count, 10)
    assert len(source.take(count)[0]) == count


def test_a_sample_stands_for_a_folder_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in range(50):
        Image.new("L", (10, 10), value).save(tmp_path / f"{value:02d}.png")
    monkeypatch.setattr(sources_module, "HELD_BYTES", 1000)
    source, again = open_source(tmp_path, 100), open_source(tmp_path, 100)
    values = [int(image[0, 0]) for image in source.images]
    assert len(values) == 10 and values == sorted(set(values)) != list(range(10))
    np.testing.assert_array_equal(source.images, again.images)
    assert source.name == f"folder {tmp_path.name} (10 of 50 images)"
    assert len(source.take(100)[0]) == 100


def test_a_large_folder_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of photographs need no more memory than what is held."""
    for value in range(40):
        Image.new("RGB", (500, 400), (value, 0, 0)).save(tmp_path / f"{value:02d}.png")
    monkeypatch.setattr(sources_module, "HELD_BYTES", 2_000_000)
    tracemalloc.start()
    try:
        open_source(tmp_path, 40)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000  # all are 24,000,000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "image", [GREY, WIDE, COLOUR, ALPHA, ALPHA[..., 2:]], ids=["grey", "16-bit", "RGB", "RGBA", "LA"]
)
def test_an_image_is_cut_to_a_square_and_scaled(image: NDArray[Any]) -> None:
    large = image.repeat(8, 0).repeat(8, 1)  # 24x32
    small = resized(large, 6)
    assert small.shape == (6, 6, *image.shape[2:]) and small.dtype == image.dtype
    apart = small[2:4, 2:4].mean((0, 1)) - large[8:16, 12:20].mean((0, 1))
    assert np.abs(apart).max() < 0.15 * np.iinfo(image.dtype).max


def test_a_folder_is_measured_in_another_size(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    Image.fromarray(COLOUR.repeat(3, 0)).save(tmp_path / "b.png")
    source = open_source(tmp_path, 1, 16)
    assert isinstance(source.images, np.ndarray) and source.images.shape == (2, 16, 16, 3)
    assert source.name == f"folder {tmp_path.name} (2 images, each 16x16)"
    assert source.fingerprint != open_source(tmp_path, 1).fingerprint


def test_cifar10_is_measured_in_another_size(tmp_path: Path, batches: Batches) -> None:
    source = open_source(write_cifar(tmp_path, "binary", batches), 1, 48)
    assert isinstance(source.images, np.ndarray) and source.images.shape == (13, 48, 48, 3)


def test_a_store_is_measured(tmp_path: Path) -> None:
    images, labels = [COLOUR, GREY], np.array([5, -1])
    imgstore.hdf5.store_many(tmp_path / "store", images, labels, durable=False)
    source = open_source(tmp_path / "store", 1)
    assert source.name == "store store (2 images)" and source.labels.tolist() == [5, -1]
    for image, expected in zip(source.images, images, strict=True):
        np.testing.assert_array_equal(image, expected)


def test_refuses_no_synthetic_images() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, not 0"):
        open_source(None, 0)


def sources() -> list[Source]:
    rng = np.random.default_rng(0)
    labels = np.array([5, 6, 7])
    shapes = [(2, 3), (4, 2, 3), (1, 1)]
    return [
        Source("array", rng.integers(0, 256, (3, 2, 2), np.uint8), labels, ""),
        Source("list", [rng.integers(0, 256, shape, np.uint8) for shape in shapes], labels, ""),
    ]


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_take_gives_views_of_the_first(source: Source, count: int) -> None:
    images, labels = source.take(count)
    assert type(images) is type(source.images)
    assert len(images) == len(labels) == count
    for taken, own in zip(images, source.images, strict=False):
        assert np.shares_memory(taken, own) and taken.shape == own.shape
    assert labels.tolist() == [5, 6, 7][:count] and labels.dtype == np.int64


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
@pytest.mark.parametrize("count", [4, 6, 8])
def test_take_repeats_a_short_source(source: Source, count: int) -> None:
    images, labels = source.take(count)
    assert isinstance(images, Repeated) and len(images) == count
    assert labels.tolist() == [5, 6, 7, 5, 6, 7, 5, 6][:count] and labels.dtype == np.int64
    expected = [source.images[i % 3] for i in range(count)]
    for given in (list(images), [images[i] for i in range(count)], [images[i - count] for i in range(count)]):
        assert len(given) == count
        assert all(np.shares_memory(a, b) and np.array_equal(a, b) for a, b in zip(given, expected, strict=True))
    np.testing.assert_array_equal(images[np.int64(3)], source.images[0])
    assert [id(image.base) for image in images[2:5]] == [id(image.base) for image in expected[2:5]]
    for beyond in (count, -count - 1):
        with pytest.raises(IndexError):
            images[beyond]


def test_repeats_take_no_memory() -> None:
    source = sources()[0]
    endless = Repeated(source.images, 10**15)
    np.testing.assert_array_equal(endless[-1], source.images[(10**15 - 1) % 3])
    assert len(list(itertools.islice(endless, 7))) == 7
    assert len(pickle.dumps(endless)) < 1000


def decoded(sheet: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(sheet)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGBA"))


def test_a_contact_sheet_shows_a_few_from_all_over() -> None:
    images = np.repeat(np.arange(60, dtype=np.uint8), 8 * 8 * 3).reshape(60, 8, 8, 3)
    shown = decoded(contact_sheet(images))
    assert shown.shape == (8, 6 * 12, 4)
    assert shown[4, 4::12, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert not shown[:, 8:12, 3].any()  # a gap


@pytest.mark.parametrize("count", [1, 5, 7])
def test_a_contact_sheet_of_any_number(count: int) -> None:
    shown = decoded(contact_sheet([np.full((4, 4), i, np.uint8) for i in range(count)]))
    assert 8 <= shown.shape[1] <= 6 * 8


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (np.full((300, 200), 7, np.uint8), (7, 7, 7, 255)),
        (np.full((300, 200), 7 << 8 | 255, np.uint16), (7, 7, 7, 255)),
        (np.full((300, 200, 2), (9, 255), np.uint8), (9, 9, 9, 255)),
        (np.full((300, 200, 3), (1, 2, 3), np.uint8), (1, 2, 3, 255)),
        (np.full((300, 200, 4), (1, 2, 3, 255), np.uint8), (1, 2, 3, 255)),
    ],
    ids=["L", "I;16", "LA", "RGB", "RGBA"],
)
def test_a_contact_sheet_is_small_whatever_the_images(image: NDArray[Any], pixel: tuple[int, ...]) -> None:
    shown = decoded(contact_sheet([image, image[:40]]))
    assert shown.shape[0] == 64 and shown.shape[1] < 2 * 70
    assert tuple(shown[10, 10].tolist()) == pixel


def test_sizes_name_the_smallest_and_the_largest() -> None:
    grey, colour, wide = np.zeros((4, 4), np.uint8), np.zeros((4, 5, 3), np.uint8), np.zeros((9, 9), np.uint16)
    assert sizes(np.zeros((3, 4, 5, 3), np.uint8)) == "4x5x3 uint8"
    assert sizes([colour, wide, grey]) == "4x4 uint8 to 9x9 uint16"
    assert sizes([grey, grey]) == "4x4 uint8"
