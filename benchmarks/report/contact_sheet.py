"""How the images of a run look, and how large they are."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure.images import Images

SHOWN, THUMBNAIL, SHEET_GAP = 6, 64, 4  # images of a contact sheet; pixels


def sizes(images: Images) -> str:
    """Shape and dtype of the smallest image and, where there are others, of the largest."""
    ends = [images[0]] if isinstance(images, np.ndarray) else [pick(images, key=np.size) for pick in (min, max)]
    return " to ".join(dict.fromkeys(f"{'x'.join(map(str, image.shape))} {image.dtype}" for image in ends))


def contact_sheet(images: Images) -> bytes:
    """A few of the images side by side, small, as a PNG file."""
    chosen = range(0, len(images), -(-len(images) // SHOWN))
    small = [thumbnail(images[i]) for i in chosen]
    height = max(image.height for image in small)
    sheet = Image.new("RGBA", (sum(image.width + SHEET_GAP for image in small), height))
    left = 0
    for image in small:
        sheet.paste(image, (left, 0))
        left += image.width + SHEET_GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(image: NDArray[Any]) -> Image.Image:
    """In RGBA, no larger than a thumbnail; of 16 bits the upper 8."""
    pixels = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    small = Image.fromarray(pixels).convert("RGBA")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small
