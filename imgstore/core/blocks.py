"""Checked input: images, labels and ids as every backend takes them, and images gathered into blocks."""

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgstore.errors import InvalidArgumentError, UnsupportedImageError

Array = NDArray[Any]
Labels = NDArray[np.int64]
Form = tuple[tuple[int, ...], np.dtype[Any]]  # shape and dtype
Refusal = Callable[[tuple[int, ...], np.dtype[Any]], str | None]

_INT64 = range(-(2**63), 2**63)
_BLOCK_BYTES = 1 << 20
_LARGEST_BLOCK = 16 << 20  # that a store may claim, of more images than one
BYTES_BESIDE_PIXELS = 16  # a label and a checksum for each image
_FILL = "give what its filled() returns, as no mask is kept"
_MAY_BE_BOOL = ("label", "labels")  # of ids, bools would be a mask
_DTYPE = re.compile(r"[<|][biufc]\d{1,2}")


class Block(NamedTuple):
    """Consecutive images of one form: ids `first` to `first + len(images) - 1`."""

    first: int
    images: Array  # (k, H, W[, C]), C-contiguous, native byte order
    labels: Labels  # (k,)


def checked_integer(value: object, name: str, lowest: int = _INT64[0]) -> int:
    """`value` as an int from `lowest` to 2**63 - 1, else InvalidArgumentError; a bool is a label, but no id."""
    try:
        number = int(value) if isinstance(value, np.bool_) else operator.index(value)  # type: ignore[arg-type]
        if isinstance(value, bool | np.bool_) and name not in _MAY_BE_BOOL:
            raise TypeError
    except TypeError:
        raise InvalidArgumentError(name, f"{value!r} is not an integer") from None
    if not lowest <= number <= _INT64[-1]:
        raise InvalidArgumentError(name, f"{number} is not from {lowest} to {_INT64[-1]}")
    return number


def checked_integers(values: object, name: str) -> Labels:
    """`values` as int64 `(N,)`, else InvalidArgumentError; bools are labels, but no ids."""
    if isinstance(values, np.ma.MaskedArray):
        raise InvalidArgumentError(name, f"is a masked array; {_FILL}")
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        raise InvalidArgumentError(name, "is not a sequence of int64 values") from None
    if array.shape == (0,):
        return np.empty(0, np.int64)
    kinds = "biu" if name in _MAY_BE_BOOL else "iu"
    if array.ndim != 1 or array.dtype.kind not in kinds or int(array.max()) not in _INT64:
        raise InvalidArgumentError(name, f"has shape {array.shape} and dtype {array.dtype}; give N int64 values")
    return array.astype(np.int64)


def _check_image(image: object, image_id: int, refusal: Refusal) -> None:
    """Raise UnsupportedImageError where it is no image, or where the backend's `refusal` says why not."""
    if not isinstance(image, np.ndarray):
        why: str | None = f"is a {type(image).__name__}, not a NumPy array; convert it with numpy.asarray"
    elif isinstance(image, np.ma.MaskedArray):
        why = f"is a masked array; {_FILL}"
    elif image.ndim not in (2, 3) or image.size == 0:
        why = f"has shape {image.shape}; an image is (H, W) or (H, W, C), and none of them is 0"
    elif image.dtype.kind not in "biufc":
        why = f"has dtype {image.dtype}; only numbers and bool can be stored"
    else:
        why = refusal(image.shape, image.dtype)
    if why:
        raise UnsupportedImageError(image_id, why)


def blocks(images: Iterable[Array], labels: Labels, refusal: Refusal, owned: bool = False) -> Iterator[Block]:
    """Images 0 to N - 1 in blocks of about 1 MiB, each good until the next is drawn.

    What is checked and written is a copy that nobody else can change meanwhile; an image that fills a block is not
    copied where nobody else has it, as the caller says with `owned`.

    Raises UnsupportedImageError, and InvalidArgumentError when the images are not as many as the labels.
    """
    if not isinstance(images, Iterable) or getattr(images, "ndim", 1) == 0:
        raise InvalidArgumentError("images", "give an (N, H, W[, C]) array, a sequence or an iterator of images")
    if isinstance(images, np.ndarray) and len(images) and not images.dtype.hasobject:
        is_masked = isinstance(images, np.ma.MaskedArray)
        return _sliced(images if is_masked else np.asarray(images), labels, refusal)
    return _gathered(images, labels, refusal, owned)


def block_of_one(image: Array, image_id: int, label: int, refusal: Refusal) -> Block:
    """A copy of an image of any id as a block. Raises InvalidArgumentError, UnsupportedImageError."""
    number = checked_integer(image_id, "image_id", 0)
    _check_image(image, number, refusal)
    native = _native(image.dtype)
    pixels = np.array(image, native, order="C", subok=False).view(
        native
    )  # else '<' may stay in it, which buffers refuse
    return Block(number, pixels[np.newaxis], np.array([checked_integer(label, "label")]))


def image_bytes(form: Form) -> int:
    """Bytes of pixels; in Python's integers, so that no forged shape overflows."""
    size = form[1].itemsize
    for length in form[0]:
        size *= int(length)
    return size


def form_of(shape: object, dtype: object) -> Form | None:
    """Shape and dtype as a store recorded them, or None where no image can have them."""
    if not isinstance(shape, (list, tuple)) or not isinstance(dtype, str) or len(shape) not in (2, 3):
        return None
    if not _DTYPE.fullmatch(dtype) or not all(type(length) is int and 0 < length < 2**48 for length in shape):
        return None
    try:
        return tuple(shape), np.dtype(dtype)
    except TypeError:
        return None


def is_block(count: int, form: Form) -> bool:
    """Whether a store may have so many images of this form in a block."""
    return count == 1 or 1 < count <= _LARGEST_BLOCK // (image_bytes(form) + BYTES_BESIDE_PIXELS)


def _images_per_block(form: Form) -> int:
    return max(1, _BLOCK_BYTES // (image_bytes(form) + BYTES_BESIDE_PIXELS))


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In the machine's byte order, and without metadata, which h5py would take for another type."""
    return np.dtype(dtype.newbyteorder("=").str)


class _Room:
    """Memory for one block after the other: fresh memory costs more than a copy."""

    def __init__(self) -> None:
        self._bytes = np.empty(_BLOCK_BYTES, np.uint8)

    def of(self, count: int, form: Form) -> Array:
        """Room for so many images, in place of the block before."""
        if (size := count * image_bytes(form)) > len(self._bytes):
            self._bytes = np.empty(0, np.uint8)  # first, so that there are never two
            self._bytes = np.empty(size, np.uint8)
        return np.ndarray((count, *form[0]), form[1], self._bytes)


def _sliced(images: Array, labels: Labels, refusal: Refusal) -> Iterator[Block]:
    if len(images) != len(labels):
        raise _mismatch(len(images), labels)
    _check_image(images[0], 0, refusal)
    room, form = _Room(), (images.shape[1:], _native(images.dtype))
    step = _images_per_block(form)
    for first in range(0, len(images), step):
        part = images[first : first + step]
        block = room.of(len(part), form)
        block[...] = part
        yield Block(first, block, labels[first : first + step])


def _gathered(images: Iterable[Array], labels: Labels, refusal: Refusal, owned: bool) -> Iterator[Block]:
    room = _Room()
    given: Form | None = None
    form: Form | None = None
    next_form: Form = (), np.dtype(bool)
    block, first, seen, step, is_taken = np.empty(0), 0, 0, 0, False
    for image in images:
        if seen == len(labels):
            raise _mismatch(f"more than {seen}", labels)
        if type(image) is not np.ndarray or given != (image.shape, image.dtype):
            _check_image(image, seen, refusal)
            given, next_form = (image.shape, image.dtype), (image.shape, _native(image.dtype))
        if next_form != form and seen > first:
            yield Block(first, block[: seen - first], labels[first:seen])
            first = seen
        if seen == first:
            form, step = next_form, min(_images_per_block(next_form), len(labels) - seen)
            is_taken = owned and step == 1 and image.flags.c_contiguous and image.dtype.isnative
            block = image[np.newaxis] if is_taken else room.of(step, form)
        if not is_taken:
            block[seen - first] = image  # copied at once: a generator may use its array again
        seen += 1
        if seen == first + step:
            yield Block(first, block, labels[first:seen])
            first = seen
    if seen != len(labels):
        raise _mismatch(seen, labels)
    if seen > first:  # where nobody knew that so many would come
        yield Block(first, block[: seen - first], labels[first:seen])


def _mismatch(images: int | str, labels: Labels) -> InvalidArgumentError:
    return InvalidArgumentError("labels", f"there are {len(labels)} labels for {images} images; give one for each")
