"""Image files of every kind against the samples that they were made of, and against a second reader of them.

The files are made byte by byte where Pillow does not write them. tifffile, pypng and simplejpeg read them, too, where
they are installed: what they give must be the samples. Where Pillow itself is wrong, WRONG says so, and the test
fails once Pillow is right.
"""

import contextlib
import importlib
import io
import itertools
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from imgstore import decoding
from imgstore._decoding import misread as _misread
from imgstore.decoding import Less, decode_file, read_image
from imgstore.errors import SourceError
from imgstore.tests import image_files
from imgstore.tests.image_files import DEFLATE, PACKBITS, RAW, Array, gif, png, tiff

HEIGHT, WIDTH = 11, 19
RANDOM = np.random.default_rng(0)
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
UNSPECIFIED, PREMULTIPLIED, ALPHA = 0, 1, 2
UNKNOWN = "of a kind that Pillow does not read"


def second(name: str) -> Any:
    """A package that reads images, too, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class Kind(NamedTuple):
    """What the samples of a TIFF file mean. `kind`: 1 unsigned, 2 signed, 3 float."""

    name: str
    photometric: int
    bits: int
    channels: int
    kind: int = 1
    extra: tuple[int, ...] = ()
    negative: bool = False

    def samples(self) -> Array:
        shape = HEIGHT, WIDTH, self.channels
        if self.kind == 3:
            return RANDOM.random(shape).astype(f"f{self.bits // 8}")
        highest = 2 ** (min(self.bits, 16) - (self.kind == 2))
        drawn = RANDOM.integers(-highest if self.negative else 0, highest, shape)
        if PREMULTIPLIED in self.extra:  # not so clear that the colour is lost, nor brighter than that
            drawn[..., -1] |= highest // 2
            drawn[..., :-1] = drawn[..., :-1] * drawn[..., -1:] // (highest - 1)
        return drawn.astype({1: {32: "u4"}.get(self.bits, "u2"), 2: f"i{self.bits // 8}"}[self.kind])


KINDS = [
    *(Kind(f"grey of {bits}", BLACK_IS_ZERO, bits, 1) for bits in (1, 2, 4, 8, 12, 16, 32)),
    *(Kind(f"white is zero, of {bits}", WHITE_IS_ZERO, bits, 1) for bits in (1, 2, 4, 8, 16)),
    *(Kind(f"signed grey of {bits}", BLACK_IS_ZERO, bits, 1, 2) for bits in (8, 16, 32)),
    *(Kind(f"negative grey of {bits}", BLACK_IS_ZERO, bits, 1, 2, negative=True) for bits in (8, 16, 32)),
    *(Kind(f"float grey of {bits}", BLACK_IS_ZERO, bits, 1, 3) for bits in (16, 32)),
    *(Kind(f"palette of {bits}", PALETTE, bits, 1) for bits in (1, 2, 4, 8)),
    *(Kind(f"grey, alpha of {bits}", BLACK_IS_ZERO, bits, 2, 1, (ALPHA,)) for bits in (8, 16)),
    Kind("grey, premultiplied", BLACK_IS_ZERO, 8, 2, 1, (PREMULTIPLIED,)),
    Kind("palette, alpha", PALETTE, 8, 2, 1, (ALPHA,)),
    *(Kind(f"RGB of {bits}", RGB, bits, 3) for bits in (4, 8, 16)),
    *(Kind(f"RGBA of {bits}", RGB, bits, 4, 1, (ALPHA,)) for bits in (8, 16)),
    *(Kind(f"RGBA of {bits}, premultiplied", RGB, bits, 4, 1, (PREMULTIPLIED,)) for bits in (8, 16)),
    Kind("RGB, a fourth unnamed", RGB, 8, 4),
    Kind("RGB, signed", RGB, 8, 3, 2),
    Kind("RGB, float", RGB, 32, 3, 3),
    *(Kind(f"CMYK of {bits}", CMYK, bits, 4) for bits in (8, 16)),
    Kind("YCbCr", YCBCR, 8, 3),
    Kind("Lab", LAB, 8, 3),
    Kind("grey, more", BLACK_IS_ZERO, 8, 2, 1, (UNSPECIFIED,)),
    Kind("palette, more", PALETTE, 8, 2, 1, (UNSPECIFIED,)),
    *(Kind(f"RGB of {bits}, more", RGB, bits, 4, 1, (UNSPECIFIED,)) for bits in (8, 16)),
    Kind("RGB, two more", RGB, 8, 5, 1, (UNSPECIFIED, UNSPECIFIED)),
    Kind("RGBA, more", RGB, 8, 5, 1, (ALPHA, UNSPECIFIED)),
    Kind("CMYK, more", CMYK, 8, 5, 1, (UNSPECIFIED,)),
]


class Layout(NamedTuple):
    """How the samples lie in a TIFF file."""

    order: str
    planar: bool
    compression: int
    tile: int
    fill_order: int
    big: bool


LAYOUTS = [
    Layout(order, planar, *rest)
    for order, planar in itertools.product("<>", (False, True))
    for rest in [
        *itertools.product((RAW, DEFLATE), (0,), (1, 2), (False,)),
        *itertools.product((RAW, DEFLATE), (16,), (1,), (False,)),
        (PACKBITS, 0, 1, False),
        (RAW, 16, 2, False),
        (RAW, 0, 1, True),
    ]
]

# What Pillow reads wrongly without a word, and the reason that is given; "" where it is read rightly nevertheless.
WRONG: list[tuple[str, Callable[[Kind, Layout], bool]]] = [
    ("channels beyond its colours", lambda kind, layout: UNSPECIFIED in kind.extra),
    ("values are negative", lambda kind, layout: kind.negative and kind.bits == 8),
    ("", lambda kind, layout: kind.photometric == WHITE_IS_ZERO and kind.bits == 16),
    (
        "signed values are compressed",
        lambda kind, layout: kind.kind == 2 and kind.bits > 8 and layout.order == ">" and layout.compression != RAW,
    ),
    (
        "planes of a kind that Pillow mixes up",
        lambda kind, layout: (
            layout.planar
            and (
                kind.photometric == LAB
                or (kind.channels == 2 and layout.compression != RAW)
                or (kind.channels == 4 and kind.photometric == RGB and not kind.extra and layout.compression != RAW)
                or (layout.compression == RAW and (kind.bits == 16 or layout.fill_order == 2))
            )
        ),
    ),
]


def meant(kind: Kind, samples: Array, palette: Array) -> Array:
    """What the samples mean, worked out here."""
    most, first = 2**kind.bits - 1, samples[..., 0].astype(np.int64)
    if UNSPECIFIED in kind.extra or kind.kind == 3:
        return samples
    if kind.photometric == PALETTE:
        found = palette.T[first] >> 8
        return np.dstack([found, samples[..., 1]]) if kind.channels == 2 else found
    if kind.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and kind.channels == 1:
        grey = most - first if kind.photometric == WHITE_IS_ZERO else first
        return grey * (255 // most) if kind.bits < 8 else grey
    upper = samples.astype(np.int64) >> max(0, kind.bits - 8)
    if PREMULTIPLIED in kind.extra:
        return np.dstack([np.minimum(255, upper[..., :-1] * 255 // upper[..., -1:]), upper[..., -1]])
    if kind.photometric == CMYK:
        return (255 - upper[..., :3]) * (255 - upper[..., 3:]) / 255
    if kind.photometric == YCBCR:
        light, blue, red = (upper - [0, 128, 128]).transpose(2, 0, 1)
        green = light - 0.344136 * blue - 0.714136 * red
        colours: Array = np.dstack([light + 1.402 * red, green, light + 1.772 * blue])
        return colours.clip(0, 255)
    if kind.photometric == LAB:  # of which only the order of samples is looked at
        lab = Image.frombytes("LAB", (WIDTH, HEIGHT), upper.astype(np.uint8).tobytes())
        return np.asarray(lab.convert("RGB"))
    return upper


def differ(pixels: Array, expected: Array) -> bool:
    """By more than rounding, which is one step of CMYK, YCbCr and premultiplied alpha."""
    rounding = 1.01 if expected.dtype.kind == "f" else 0
    return pixels.shape != expected.shape or bool(np.abs(pixels.astype(float) - expected).max() > rounding)


def of_pillow(path: Path, expected: Array) -> Array | None:
    """What Pillow itself gives; None where it refuses."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                return np.asarray(image)
            modes = {2: "L", (3, 2): "LA", (3, 3): "RGB", (3, 4): "RGBA"}
            mode = modes.get(2 if expected.ndim == 2 else (3, expected.shape[2]), image.mode)
            return np.asarray(image.convert(mode))
    except (UnidentifiedImageError, ValueError, OSError):
        return None


def ours(path: Path) -> Array | str:
    """The pixels, or the reason why not, which is one sentence and does not name the path again."""
    try:
        return read_image(path)
    except SourceError as error:
        caught = error
    assert caught.path == str(path) and str(path) not in caught.reason
    assert "\n" not in caught.reason and ". " not in caught.reason
    return caught.reason


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_tiff_file_is_read_rightly_or_refused(tmp_path: Path, kind: Kind) -> None:
    path, read = tmp_path / "one.tif", 0
    for layout in LAYOUTS:
        if layout.planar and kind.channels == 1:
            continue
        samples = kind.samples()
        palette = RANDOM.integers(0, 256, (3, 2 ** min(kind.bits, 8))).astype(np.uint16) * 257
        subsampling = {_misread.SUBSAMPLING: [1, 1]} if kind.photometric == YCBCR else None
        path.write_bytes(
            tiff(
                samples,
                kind.photometric,
                bits=kind.bits,
                kind=kind.kind,
                extra=kind.extra,
                palette=palette if kind.photometric == PALETTE else None,
                tags=subsampling,
                **layout._asdict(),
            )
        )
        must_be_what_tifffile_reads(path, samples, layout)
        expected = meant(kind, samples, palette)
        pixels, pillow = ours(path), of_pillow(path, expected)
        wrong = [reason for reason, is_so in WRONG if is_so(kind, layout)] if pillow is not None else []
        if wrong:
            assert pillow is not None and differ(pillow, expected), f"Pillow is mended: {layout}"
        if isinstance(pixels, str):
            assert may_be_refused(kind, pillow, wrong, pixels), layout
            continue
        assert not any(wrong), layout
        assert not differ(pixels, expected), layout
        assert pixels.dtype == (np.uint16 if kind.bits > 8 and kind.channels == 1 else np.uint8)
        read += 1
    assert bool(read) == (kind.name not in NEVER_READ)


def must_be_what_tifffile_reads(path: Path, samples: Array, layout: Layout) -> None:
    tifffile = second("tifffile")
    with contextlib.suppress(NotImplementedError):  # of 2, 4 and 12 bits without imagecodecs
        again = tifffile.imread(path) if tifffile else None
        if again is not None:
            planes = again.reshape(samples.shape[2], HEIGHT, WIDTH).transpose(1, 2, 0) if layout.planar else again
            assert np.array_equal(planes.reshape(samples.shape), samples), layout


NEVER_READ = {
    *(kind.name for kind in KINDS if kind.kind == 3 or UNSPECIFIED in kind.extra or kind.negative),
    *("grey, alpha of 16", "RGB of 4", "RGB, signed"),
}


def may_be_refused(kind: Kind, pillow: Array | None, wrong: list[str], reason: str) -> bool:
    if kind.kind == 3:
        return "floating point" in reason or (pillow is None and UNKNOWN in reason)
    if pillow is None:
        return UNKNOWN in reason or "mixes up" in reason or "channels beyond" in reason
    if wrong:
        return any(why and why in reason for why in wrong) or (kind.negative and "negative" in reason)
    # without a word about its fourth channel, one layout of several is read rightly, and none is trusted
    return (kind.negative and "negative" in reason) or (kind.name == "RGB, a fourth unnamed" and "planes" in reason)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2), (2, 1)])
def test_subsampled_colours_without_compression_are_refused(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    samples = RANDOM.integers(0, 256, (8, 8, 3)).astype(np.uint16)
    content = tiff(samples, YCBCR, tags={_misread.SUBSAMPLING: subsampling})
    (tmp_path / "one.tif").write_bytes(content)
    refused = isinstance(ours(tmp_path / "one.tif"), str)
    assert refused == (subsampling != (1, 1))


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *itertools.product(["L", "RGB", "I;16"], ["tiff_lzw", "zstd", "lzma", "tiff_adobe_deflate", "packbits"]),
        *itertools.product(["L", "RGB"], ["jpeg"]),
    ],
)
def test_a_compressed_tiff_file_is_read(tmp_path: Path, compression: str, mode: str) -> None:
    smooth = np.add.outer(np.arange(64), 2 * np.arange(48))
    image = np.dstack([smooth, smooth // 2, 255 - smooth]).astype(np.uint8)
    kinds: dict[str, Array] = {"L": image[..., 0], "RGB": image, "I;16": (smooth * 300).astype(np.uint16)}
    pixels = kinds[mode]
    Image.fromarray(pixels).save(tmp_path / "one.tif", compression=compression)
    apart = np.abs(read_image(tmp_path / "one.tif").astype(int) - pixels)
    assert apart.max() <= (12 if compression == "jpeg" else 0)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_a_fax_is_read(tmp_path: Path, compression: str) -> None:
    bits = RANDOM.random((9, 21)) > 0.5
    Image.fromarray(bits).save(tmp_path / "one.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "one.tif"), bits * np.uint8(255))


def png_cases() -> Iterator[tuple[int, int, int]]:
    for colour, channels in ((0, 1), (2, 3), (3, 1), (4, 2), (6, 4)):
        for bits in (1, 2, 4, 8, 16):
            if (colour in (0, 3) or bits >= 8) and not (colour == 3 and bits == 16):
                yield colour, channels, bits


@pytest.mark.parametrize(("colour", "channels", "bits"), list(png_cases()))
def test_a_png_file_is_read_rightly_or_refused(tmp_path: Path, colour: int, channels: int, bits: int) -> None:
    path, pypng = tmp_path / "one.png", second("png")
    for interlaced, transparent in itertools.product((False, True), (False, True)):
        samples = RANDOM.integers(0, 2**bits, (HEIGHT, WIDTH, channels)).astype(np.uint16)
        samples[4, 5] = samples[7, 8]
        palette, alphas = RANDOM.integers(0, 256, (2, 2**bits, 3)).astype(np.uint8)
        clear = b""
        if transparent and colour not in (4, 6):
            clear = alphas[:, 0].tobytes() if colour == 3 else struct.pack(f">{channels}H", *samples[7, 8].tolist())
        content = png(
            samples,
            colour,
            bits=bits,
            interlaced=interlaced,
            palette=palette if colour == 3 else None,
            transparent=clear or None,
        )
        path.write_bytes(content)
        if pypng:
            rows = [list(row) for row in pypng.Reader(bytes=content).read()[2]]
            assert np.array_equal(np.array(rows).reshape(samples.shape), samples)
        if (colour, bits, bool(clear)) == (2, 16, True):
            with Image.open(path) as image:  # Pillow looks for the 16 bits of the clear colour among 8 bits
                assert np.asarray(image.convert("RGBA"))[7, 8, 3] == 255, "Pillow is mended"
            assert ours(path) == "its transparent colour has 16 bits, of which Pillow keeps 8"
            continue
        decoded = decode_file(path)
        np.testing.assert_array_equal(decoded.pixels, meant_by_png(colour, bits, samples, palette, alphas, bool(clear)))
        assert decoded.pixels.dtype == (np.uint16 if bits == 16 and colour == 0 and not clear else np.uint8)
        assert bool(decoded.less & Less.DEPTH) == (bits == 16 and decoded.pixels.dtype == np.uint8)


def meant_by_png(colour: int, bits: int, samples: Array, palette: Array, alphas: Array, clear: bool) -> Array:
    first = samples[..., 0]
    if colour == 3:
        return np.dstack([palette[first], alphas[first, 0]]) if clear else palette[first]
    values = first * (255 // (2**bits - 1)) if bits < 8 else first if colour == 0 else samples
    if (colour != 0 or clear) and bits == 16:
        values = values >> 8
    hidden = (samples == samples[7, 8]).all(2)
    return np.dstack([values, np.where(hidden, 0, 255)]) if clear else values


@pytest.mark.parametrize("bits", [2, 4])
def test_pillow_does_not_scale_the_clear_grey_of_few_bits(tmp_path: Path, bits: int) -> None:
    """If it does, `_misread.clear_grey` must not."""
    samples = np.arange(2**bits).reshape(1, -1, 1)
    (tmp_path / "one.png").write_bytes(png(samples, 0, bits=bits, transparent=struct.pack(">H", 2)))
    with Image.open(tmp_path / "one.png") as image:
        assert image.info["transparency"] == 2


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("clear", [None, 5])
@pytest.mark.parametrize("colours", [False, True])
def test_a_gif_file_is_read(tmp_path: Path, interlaced: bool, clear: int | None, colours: bool) -> None:
    greys = np.arange(128, dtype=np.uint8)[:, None].repeat(3, 1)
    palette = RANDOM.integers(0, 256, (128, 3)).astype(np.uint8) if colours else greys
    samples = RANDOM.integers(0, 128, (21, 17))
    samples[3] = 5
    (tmp_path / "one.gif").write_bytes(gif(samples, palette, transparent=clear, interlaced=interlaced))
    expected = palette[samples] if colours else samples
    if clear is not None:
        expected = np.dstack([expected, np.where(samples == clear, 0, 255)])
    np.testing.assert_array_equal(read_image(tmp_path / "one.gif"), expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_lossless_webp_file_is_read(tmp_path: Path, channels: int) -> None:
    pixels = RANDOM.integers(0, 256, (15, 22, channels)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.webp", lossless=True, exact=True)
    np.testing.assert_array_equal(read_image(tmp_path / "one.webp"), pixels)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"optimize": True}]
)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_file_is_read(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    rows, columns = np.mgrid[:50, :70]
    smooth = np.dstack([rows * 3, columns * 2, 200 - rows - columns]).astype(np.uint8)
    image = Image.fromarray(smooth).convert(mode)
    image.save(tmp_path / "one.jpg", quality=95, **options)
    pixels = read_image(tmp_path / "one.jpg")
    expected = np.asarray(image if mode != "CMYK" else image.convert("RGB")).astype(int)
    assert pixels.shape == expected.shape and np.abs(pixels - expected).max() < 16
    simplejpeg = second("simplejpeg")
    if simplejpeg and mode != "CMYK":
        again = simplejpeg.decode_jpeg((tmp_path / "one.jpg").read_bytes(), "GRAY" if mode == "L" else "RGB")
        np.testing.assert_array_equal(pixels, again.reshape(pixels.shape))


TURNED: dict[int, Callable[[Array], Array]] = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image.swapaxes(0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "deflated", "16-bit"])
def test_an_image_is_turned_as_its_exif_says(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :16] = 255  # no turn of it is another one
    pixels[8:, :8] = 128
    path = tmp_path / f"one.{kind if len(kind) < 5 else 'tif'}"
    if kind in ("png", "jpg", "webp"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(path, exif=exif, quality=100, lossless=True)
    else:
        wide, packed = kind == "16-bit", DEFLATE if kind == "deflated" else RAW
        tags = {0x0112: [orientation]}
        path.write_bytes(
            tiff(
                pixels[..., None].astype(np.uint16) * (wide * 256 + 1),
                1,
                bits=16 if wide else 8,
                tags=tags,
                compression=packed,
            )
        )
    turned = read_image(path)
    grey = turned if turned.ndim == 2 else turned[..., 0]
    apart = (grey >> 8 if grey.dtype == np.uint16 else grey).astype(int) - TURNED[orientation](pixels)
    assert np.abs(apart).max() < 10


def test_an_odd_exif_entry_does_not_keep_an_image_from_being_turned(tmp_path: Path) -> None:
    entries = struct.pack(">HHHIHH", 2, 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 282, 10, 1, 38)
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + entries + bytes(4) + struct.pack(">ii", -1, 0)
    Image.new("L", (32, 16)).save(tmp_path / "one.jpg", exif=exif)
    with Image.open(tmp_path / "one.jpg") as image, pytest.raises(Exception, match="argument out of range"):
        ImageOps.exif_transpose(image)  # once it does not, `_misread.upright` is no more needed
    assert read_image(tmp_path / "one.jpg").shape == (32, 16)


def test_an_exif_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    content = png(np.zeros((16, 32, 1), np.uint8), 0, chunks=[(b"eXIf", b"no exif at all")])
    (tmp_path / "one.png").write_bytes(content)
    with Image.open(tmp_path / "one.png") as image, pytest.raises(SyntaxError):
        image.getexif()
    assert read_image(tmp_path / "one.png").shape == (16, 32)


FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]


@pytest.mark.parametrize("suffix", ["gif", "png", "tiff", "webp", "mpo", "avif"])
def test_the_first_of_several_frames_is_kept(tmp_path: Path, suffix: str) -> None:
    if f".{suffix}" not in decoding.suffixes():
        pytest.skip(f"this Pillow reads no {suffix}")
    for count in (1, 2):
        FRAMES[0].save(tmp_path / f"{count}.{suffix}", save_all=True, append_images=FRAMES[1:count])
        decoded = decode_file(tmp_path / f"{count}.{suffix}")
        assert bool(decoded.less & Less.FRAMES) == (count == 2)
        assert decoded.pixels[4, 4, 0] > 200 and decoded.pixels[4, 4, 1] < 50


def test_a_colour_profile_is_not_applied(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2, 3), 100, np.uint8)).save(tmp_path / "one.png", icc_profile=b"a profile")
    decoded = decode_file(tmp_path / "one.png")
    assert decoded.less == Less.PROFILE and (decoded.pixels == 100).all()


@pytest.mark.parametrize(("largest", "deep"), [(255, False), (1023, True), (65535, True)])
def test_colour_of_more_than_8_bits_is_noted(tmp_path: Path, largest: int, deep: bool) -> None:
    values = np.arange(12).astype(">u2" if largest > 255 else "u1")
    (tmp_path / "one.ppm").write_bytes(b"P6 2 2 %d\n" % largest + values.tobytes())
    assert bool(decode_file(tmp_path / "one.ppm").less & Less.DEPTH) == deep
    samples = RANDOM.integers(0, 256, (3, 4, 3))
    (tmp_path / "one.tif").write_bytes(tiff(samples, RGB, bits=16 if deep else 8))
    assert bool(decode_file(tmp_path / "one.tif").less & Less.DEPTH) == deep


@pytest.mark.parametrize(
    ("head", "deep"),
    [
        (b"ftypavif....av1C\x81\x00\x0c\x00", False),
        (b"ftypavif....av1C\x81\x00\x4c\x00", True),
        (b"\xff\x4f\xff\x51" + bytes(38) + b"\x07" + bytes(9), False),
        (b"jP  \xff\x4f\xff\x51" + bytes(38) + b"\x0b" + bytes(9), True),
    ],
)
def test_the_depth_of_a_file_is_read_from_its_head(head: bytes, deep: bool) -> None:
    assert _misread._is_deep_by_its_head(io.BytesIO(head)) == deep


def holed(path: Path) -> Path:
    """A JPEG file of which the middle is gone; Pillow decodes it without a word."""
    noise = Image.fromarray(RANDOM.integers(0, 256, (200, 200, 3)).astype(np.uint8))
    noise.save(path, quality=90)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = bytes(300)
    path.write_bytes(content)
    return path


def test_a_jpeg_file_with_a_hole_is_damaged_for_a_strict_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = holed(tmp_path / "one.jpg")
    monkeypatch.setattr(decoding, "_strict_decoder", lambda: None)
    assert decode_file(path).less == 0, "Pillow says so itself"
    monkeypatch.undo()
    decoding._strict_decoder.cache_clear()
    assert bool(decode_file(path).less & Less.DAMAGED) == bool(second("simplejpeg"))
    Image.new("CMYK", (30, 30), "red").save(path)
    assert decode_file(path).less == 0


@pytest.mark.parametrize(
    ("told", "damaged"),
    [(UserWarning("Truncated"), True), (UserWarning("Corrupt EXIF data. "), False), (DeprecationWarning("IM"), False)],
)
def test_what_pillow_warns_of_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Warning, damaged: bool
) -> None:
    opened = Image.open

    def warning(*given: Any, **options: Any) -> Any:
        warnings.warn(told, stacklevel=2)
        return opened(*given, **options)

    monkeypatch.setattr(Image, "open", warning)
    Image.new("L", (2, 2)).save(tmp_path / "one.png")
    assert bool(decode_file(tmp_path / "one.png").less & Less.DAMAGED) == damaged


TWELVE_BITS = b"\xff\xd8\xff\xc1\x00\x0b\x0c\x00\x10\x00\x10\x01\x01\x11\x00\xff\xd9"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "it is a web page (HTML), not an image that can be read"),
        (b"<html>", "it is a web page (HTML), not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a PostScript document, not an image that can"),
        (b"%PDF-1.7", "it is a PDF document, not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is a HEIC photograph, not an image that can be read"),
        (b"nothing of the kind", "it is not an image of a kind that can be read"),
        (TWELVE_BITS, "it is a JPEG file that is damaged, or of a kind that Pillow does not read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "it is a PNG file that is damaged, or of a kind that Pillow does not read"),
        (tiff(np.zeros((2, 2, 3), np.float32), RGB, bits=32, kind=3), "its pixels are floating point, which has no"),
    ],
)
def test_a_reason_is_understood(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "one.png").write_bytes(content)
    given = ours(tmp_path / "one.png")
    assert isinstance(given, str) and given.startswith(reason)


def test_postscript_under_another_name_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript."""
    plugin = importlib.import_module("PIL.EpsImagePlugin")
    monkeypatch.setattr(plugin, "Ghostscript", lambda *given, **options: pytest.fail("started"))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    (tmp_path / "one.png").write_bytes(content)
    with Image.open(tmp_path / "one.png") as image:
        assert image.format == "EPS"
    assert isinstance(ours(tmp_path / "one.png"), str)


def test_what_libtiff_says_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = tiff(RANDOM.integers(0, 256, (40, 40, 1)).astype(np.uint16), 1, compression=DEFLATE, rows=40)
    (tmp_path / "one.tif").write_bytes(content[:30] + bytes(40) + content[70:])
    assert ours(tmp_path / "one.tif") == "it is damaged, or of a kind that Pillow does not read"
    assert capfd.readouterr().err == ""


def test_what_is_caught_does_not_keep_the_pixels(tmp_path: Path) -> None:
    Image.fromarray(RANDOM.integers(0, 256, (50, 50, 3)).astype(np.uint8)).save(tmp_path / "one.jpg")
    content = (tmp_path / "one.jpg").read_bytes()
    (tmp_path / "one.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError) as caught:
        read_image(tmp_path / "one.jpg")
    assert caught.value.__context__ is None and caught.value.__cause__ is None


def test_more_pixels_than_pillow_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (30, 10)).save(tmp_path / "one.png")
    given = ours(tmp_path / "one.png")
    assert given == "it has 300 pixels and may be a decompression bomb; --max-pixels=300 has it read"
    assert read_image(tmp_path / "one.png", 300).shape == (10, 30)
    with pytest.raises(SourceError, match="bomb"):
        read_image(tmp_path / "one.png", 299)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_the_generated_files_are_those_of_their_kinds() -> None:
    """What the tests above rest on where no second reader is installed."""
    samples = np.arange(6).reshape(2, 3, 1)
    with Image.open(io.BytesIO(png(samples, 0))) as image:
        assert image.format == "PNG" and image.size == (3, 2)
    with Image.open(io.BytesIO(gif(samples[..., 0], np.zeros((128, 3))))) as image:
        assert image.format == "GIF" and image.size == (3, 2)
    assert image_files.packed(np.array([[1, 0, 3]]), 2) == [b"\x4c"]
