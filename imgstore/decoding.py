"""Image files become pixels, by Pillow. What is not kept of a file is told; what would be wrong is refused."""

import contextlib
import ctypes
import enum
import functools
import importlib
import logging
import os
import stat
import warnings
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from imgstore._decoding import misread as _misread
from imgstore._decoding.unreadable import Refused, why_unidentified, why_unreadable
from imgstore.errors import SourceError

Array = NDArray[Any]

# Those that hold pixels: EPS and WMF start programs, a small BLP takes 700 MiB, of FITS Pillow reads some wrongly, and
# the rest are films and grids.
# fmt: off
FORMATS = (
    "PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO", "ICNS", "CUR", "DIB", "PSD", "QOI",
    "DCX", "DDS", "FLI", "FTEX", "GBR", "IM", "MSP", "PCD", "PCX", "PIXAR", "SGI", "SUN", "XBM", "XPM",
    "TGA",  # last: it has no mark of its own
)
# fmt: on
# How warnings of Pillow begin that are about other things than the pixels of the first frame
HARMLESS = (
    *("Corrupt EXIF", "Possibly corrupt EXIF", "Metadata Warning", "XMP data", "Tag offset", "Tag data", "id_section"),
    *("Image appears to be a malformed MPO", "Invalid APNG", "Image was not the expected size", "Palette images"),
)
BAND_BYTES = 1 << 20  # of pixels that are copied from Pillow at once
LARGEST_JPEG = 32 << 20  # bytes of a file that is looked at for damage


class Less(enum.IntFlag):
    """What is not kept of an image file."""

    FRAMES = 1
    DEPTH = 2
    PROFILE = 4
    DAMAGED = 8


LESS = {
    Less.FRAMES: "further frames, of which the first is kept",
    Less.DEPTH: "more than 8 bits of colour, or of grey with alpha, of which the upper 8 are kept",
    Less.PROFILE: "a colour profile (ICC), which is not applied",
    Less.DAMAGED: "damage, and the pixels that Pillow makes of it are kept",
}


class Decoded(NamedTuple):
    """pixels: (H, W) or (H, W, C), uint8 or uint16. less: what the file has beyond them."""

    pixels: Array
    less: Less


def read_image(path: Path, max_pixels: int | None = None) -> Array:
    """The pixels of an image file's first frame, its EXIF rotation applied: grey as grey, colour as RGB.

    1-bit (as 0 and 255) and L give (H, W) uint8; grey of 16 bits, or of 32 whose values fit, gives (H, W) uint16.
    Grey with alpha, or with a transparent grey, gives (H, W, 2) uint8. All else, as palette and CMYK, gives
    (H, W, 3) uint8, or (H, W, 4) with transparency. Of 16 bits with colour or alpha the upper 8 are given.

    max_pixels: Pillow's limit, 89,478,485, for None. Raises SourceError: for what cannot be read, floating point,
    negative values and those beyond 16 bits, and for kinds that Pillow reads wrongly.
    """
    return decode_file(path, max_pixels).pixels


def decode_file(path: Path, max_pixels: int | None = None) -> Decoded:
    """As `read_image`, with what is not kept of the file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Refused("it is no regular file")
        # Given the path instead, Pillow 13.0 scrambles an uncompressed TIFF file that is to be rotated.
        with open(path, "rb") as file, _limit(max_pixels):
            try:
                return _decode(file)
            except UnidentifiedImageError:
                raise Refused(why_unidentified(file, _formats())) from None
    except Exception as error:  # a decoder meets damage with whatever it stumbles over
        reason = why_unreadable(error)
    raise SourceError(path, reason)  # here, as what was caught holds the pixels of its frames


@contextlib.contextmanager
def _limit(max_pixels: int | None) -> Any:
    kept = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = max_pixels or kept
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = kept


def _decode(file: IO[bytes]) -> Decoded:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=_formats()) as image:
            if why := _misread.refusal(image):
                raise Refused(why)
            rawmode, deep = _misread.rawmode_of(image), _misread.is_deep(image, file)
            image.load()
            pixels = _pixels(image, rawmode)
            less = Less.PROFILE if image.info.get("icc_profile") else Less(0)
            less |= Less.DEPTH if deep and pixels.dtype == np.uint8 else Less(0)
            damaged = any(_is_of_damage(each) for each in told)
            if damaged or (image.format in ("JPEG", "MPO") and _is_damaged_jpeg(file)):
                less |= Less.DAMAGED
            return Decoded(pixels, less | (Less.FRAMES if _has_frames(image) else Less(0)))


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads; from now on libtiff and Pillow's log print nothing of their own."""
    Image.init()
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without libtiff
        library = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    return tuple(form for form in FORMATS if form in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """Of the files that are read, in lower case."""
    known = {suffix for suffix, form in Image.registered_extensions().items() if form in _formats()}
    return frozenset(known | {".mpo"})  # which Pillow reads as JPEG


def _pixels(loaded: Image.Image, rawmode: str) -> Array:
    clear, image = _misread.clear_grey(loaded, rawmode), _misread.upright(loaded)
    tags = loaded.tag_v2 if isinstance(loaded, TiffImageFile) else None
    if image.mode == "F":
        raise Refused("its pixels are floating point, which has no fixed range")
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise Refused("its values are negative or do not fit in 16 bits")
        grey = grey.astype(np.uint16)
        grey = ~grey if tags and _misread.is_inverted(tags) else grey
        return grey if clear is None else _with_clear(grey == clear, (grey >> 8).astype(np.uint8))
    if image.mode in ("1", "L"):
        grey = _array(image, "L")
        if tags and _misread.is_signed(tags) and grey.max() > 127:
            raise Refused("its values are negative")
        return grey if clear is None else _with_clear(grey == clear, grey)
    if image.mode in ("LA", "La") or rawmode == "LA;16B":
        return _array(image, "LA")
    return _array(image, "RGBA" if image.has_transparency_data else "RGB")


def _with_clear(hidden: Array, grey: Array) -> Array:
    return np.dstack([grey, np.where(hidden, np.uint8(0), np.uint8(255))])


def _array(image: Image.Image, mode: str) -> Array:
    """Its pixels in this mode, copied band by band: `numpy.array` would hold them three times."""
    pixels = np.empty((image.height, image.width, len(mode)), np.uint8)
    rows = max(1, BAND_BYTES // max(1, pixels[0].nbytes)) if image.height else 1
    image = image if image.mode == mode else image.convert(mode)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(band).reshape(band.height, band.width, -1)
    return pixels[..., 0] if mode == "L" else pixels


def _is_of_damage(told: warnings.WarningMessage) -> bool:
    return told.category is UserWarning and not str(told.message).startswith(HARMLESS)


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # something follows the first frame, and is damaged
        return True


def _is_damaged_jpeg(file: IO[bytes]) -> bool:
    """Whether simplejpeg, where it is installed, refuses the file: Pillow decodes a hole to wrong pixels."""
    decode = _strict_decoder()
    if decode is None or os.fstat(file.fileno()).st_size > LARGEST_JPEG:
        return False
    file.seek(0)
    try:
        decode(file.read(), min_height=1, min_width=1, strict=True)  # an eighth of its size, to be quick
    except ValueError:
        return True
    return False


@functools.cache
def _strict_decoder() -> Any:
    try:
        return importlib.import_module("simplejpeg").decode_jpeg
    except ImportError:
        return None
