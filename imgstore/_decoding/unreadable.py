"""Why an image file cannot be read, in words that a person understands."""

import contextlib
import re
import warnings
from collections.abc import Iterable
from typing import IO

from PIL import Image

from imgstore._decoding import misread as _misread

OTHERS = {  # what files with an image's suffix are, too, by their first bytes, and where those lie
    (0, b"<!doctype"): "a web page (HTML)",
    (0, b"<html"): "a web page (HTML)",
    (0, b"<svg"): "an SVG drawing",
    (0, b"<?xml"): "an XML document",
    (0, b"%pdf"): "a PDF document",
    (0, b"%!ps"): "a PostScript document",
    **{(4, b"ftyp" + brand): "a HEIC photograph" for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")},
}


class Refused(ValueError):
    """A reason of ours, which is told as it is."""


def why_unreadable(error: Exception) -> str:
    """What was raised, in one line and without the path."""
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "there is not enough memory for its pixels"
    text = str(error).partition("\n")[0]
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        count = int((re.findall(r"\d+", text) or ["0"])[0])
        return f"it has {count:,} pixels and may be a decompression bomb; --max-pixels={count} has it read"
    # an OSError tells what is missing, as "image file is truncated"; others, and libtiff's, only where Pillow stumbled
    more = f" ({text})" if isinstance(error, OSError) and not text.startswith("decoder error") else ""
    return f"it is damaged, or of a kind that Pillow does not read{more}"


def why_unidentified(file: IO[bytes], formats: Iterable[str]) -> str:
    """What a file is that Pillow opens as none of these formats."""
    file.seek(0)
    head = file.read(512)
    if not head:
        return "it is empty"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for (at, mark), name in OTHERS.items():
        if start[at:].startswith(mark):
            return f"it is {name}, not an image that can be read"
    for form in formats:
        accepts = Image.OPEN[form][1]
        if accepts and accepts(head[:16]) is True:
            with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):  # as it is damaged
                if form == "TIFF" and _misread.holds_floats(file):
                    return "its pixels are floating point, which has no fixed range"
            return f"it is a {form} file that is damaged, or of a kind that Pillow does not read"
    return "it is not an image of a kind that can be read"
