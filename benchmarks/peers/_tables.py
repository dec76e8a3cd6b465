"""What the Arrow formats share: images and labels as a table, and the arrays of a table.

Images of one form are a column of fixed-size binary, whose pixels lie end to end, with the form in the schema's
metadata; others are a column of binary beside one of forms.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow

from benchmarks.peers import Array, Many, gathered
from benchmarks.peers._records import form_of, image_of, images_of

_FORM = b"form"


def table(images: Array | Sequence[Array], labels: Array, mixed: bool = False) -> Any:
    """With `mixed`, as if the forms differed."""
    images = images if mixed else gathered(images)
    if isinstance(images, np.ndarray):
        kind, data = pyarrow.binary(images[0].nbytes), pyarrow.py_buffer(np.ascontiguousarray(images))
        pixels = pyarrow.FixedSizeBinaryArray.from_buffers(kind, len(images), [None, data])
        return pyarrow.table({"image": pixels, "label": labels}, metadata={_FORM: form_of(images[0])})
    pixels = pyarrow.array([image.tobytes() for image in images], pyarrow.large_binary())
    return pyarrow.table({"image": pixels, "form": [form_of(image) for image in images], "label": labels})


def arrays(found: Any, schema: Any) -> Many:
    """Images and labels of a table, as arrays of their own; `schema` is that of the whole, with its metadata."""
    labels = found["label"].to_numpy().copy()
    if not is_mixed(schema):
        return np.concatenate([view(schema, chunk) for chunk in found["image"].chunks]), labels
    pixels = [value.as_buffer() for value in found["image"]]
    return images_of(found["form"].to_pylist(), pixels), labels


def is_mixed(schema: Any) -> bool:
    return "form" in schema.names


def view(schema: Any, chunk: Any) -> Array:
    """The images of a chunk in place."""
    one = image_of(schema.metadata[_FORM], bytes(chunk.type.byte_width))
    return np.ndarray((len(chunk), *one.shape), one.dtype, chunk.buffers()[1], chunk.offset * one.nbytes)
