"""Kinds of image files of which Pillow 13 reads other pixels without a word. The tests say where it is mended."""

from typing import IO, Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES = 258, 259, 262, 266, 277  # tags of TIFF
PLANAR, EXTRA, SAMPLE_FORMAT, SUBSAMPLING = 284, 338, 339, 530
WHITE_IS_ZERO, RGB, CMYK, YCBCR = 0, 2, 5, 6  # values of PHOTOMETRIC
UNSPECIFIED, SIGNED, FLOAT, IN_PLANES, RAW = 0, 2, 3, 2, 1
GREY_STEPS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies greys of 2 and 4 bits by, but not the transparent one
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def arguments_of(image: Image.Image) -> tuple[Any, ...]:
    """What Pillow gives its decoder, before the pixels are loaded: first how they lie in the file, if it says so."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def rawmode_of(image: Image.Image) -> str:
    """How the pixels lie in the file, in Pillow's words, before they are loaded; "" where it does not say."""
    return str((arguments_of(image) or ("",))[0])


def refusal(image: Image.Image) -> str | None:
    """Why the pixels of an image that is not loaded yet would be wrong, or None."""
    if rawmode_of(image) == "RGB;16B" and "transparency" in image.info:
        return "its transparent colour has 16 bits, of which Pillow keeps 8"
    return _refusal_of_tiff(image.tag_v2) if isinstance(image, TiffImageFile) else None


def _refusal_of_tiff(tags: ImageFileDirectory_v2) -> str | None:
    bits, extra, photometric = tags.get(BITS, (1,)), tags.get(EXTRA, ()), tags.get(PHOTOMETRIC, 0)
    samples, raw = tags.get(SAMPLES, 1), tags.get(COMPRESSION, RAW) == RAW
    if UNSPECIFIED in extra:
        return "it has channels beyond its colours, and does not say what they are"
    if tags.get(PLANAR) == IN_PLANES and samples > 1:
        known = photometric in (CMYK, YCBCR) or (photometric == RGB and samples == 3 + len(extra))
        if not known or (raw and (bits[0] != 8 or tags.get(FILL_ORDER) == 2)):
            return "its channels lie in planes of a kind that Pillow mixes up"
    if photometric == YCBCR and raw and tuple(tags.get(SUBSAMPLING, (2, 2))) != (1, 1):
        return "its colours are subsampled without compression, which Pillow mixes up"
    if is_signed(tags) and tags.prefix == b"MM" and not raw and bits[0] > 8:
        return "its signed values are compressed in an order of bytes that Pillow mixes up"
    return None


def is_signed(tags: ImageFileDirectory_v2) -> bool:
    """Whether the values may be negative; Pillow takes -1 of 8 bits for 255."""
    return bool(tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED)


def is_inverted(tags: ImageFileDirectory_v2) -> bool:
    """Whether 0 is white in 16 bits, which Pillow passes over."""
    return tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and tags.get(BITS, (1,))[0] == 16


def holds_floats(file: IO[bytes]) -> bool:
    """Whether a TIFF file, of a kind that Pillow does not open, has floating point pixels."""
    file.seek(0)
    head = file.read(8)
    tags = ImageFileDirectory_v2(head + file.read(8) if 43 in head[2:4] else head)
    file.seek(tags.next)
    tags.load(file)
    return FLOAT in tags.get(SAMPLE_FORMAT, ())


def clear_grey(image: Image.Image, rawmode: str) -> int | None:
    """The grey that is transparent, as the pixels have it, or None."""
    clear = image.info.get("transparency")
    return clear * GREY_STEPS.get(rawmode, 1) if isinstance(clear, int) else None


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; `ImageOps.exif_transpose` fails where another entry is odd."""
    try:
        method = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # an EXIF that cannot be read turns nothing
        method = None
    return image if method is None else image.transpose(method)


def is_deep(image: Image.Image, file: IO[bytes]) -> bool:
    """Whether the file has more than 8 bits a value, where Pillow gives 8."""
    if image.format == "PPM":
        largest = (arguments_of(image) or (0,))[-1]
        return isinstance(largest, int) and largest > 255
    if image.format in ("JPEG2000", "AVIF"):
        return _is_deep_by_its_head(file)
    return ";16" in rawmode_of(image)


def _is_deep_by_its_head(file: IO[bytes]) -> bool:
    place = file.tell()
    file.seek(0)
    head = file.read(1 << 16)
    file.seek(place)
    size, av1 = head.find(b"\xff\x4f\xff\x51"), head.find(b"av1C")
    if 0 <= size < len(head) - 42:  # SIZ of JPEG 2000: the depth of its first channel
        return head[size + 42] & 0x7F > 7
    return 0 <= av1 < len(head) - 6 and bool(head[av1 + 6] & 0x40)
