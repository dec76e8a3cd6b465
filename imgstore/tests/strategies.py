"""Images, labels, ids and whole stores, as strategies; `LIMITS` says what a format cannot hold, and why."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray

Array = NDArray[Any]
Form = tuple[tuple[int, ...], np.dtype[Any]]  # shape and dtype

CODES = f"?{np.typecodes['AllInteger']}{np.typecodes['AllFloat']}"  # every number of a fixed size
ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
MOST_CHANNELS = 5

# dtype -> most channels, for a format that does not hold all of `CODES` with any number of channels
LIMITS: dict[str, dict[str, int]] = {
    # A PNG has 1 to 4 samples a pixel, each an unsigned integer; Pillow keeps 1 or 16 bits in one channel only.
    "disk": {"?": 1, "B": 4, "H": 1},
}
# the least (H, W) of uint8 that a format refuses for its size
TOO_LARGE: dict[str, tuple[int, int]] = {
    "disk": (1, 89_478_486),  # Pillow takes a larger one for a decompression bomb
    "lmdb": (4095, (1 << 20) + 1),  # a value is smaller than 4 GiB
}


class Stored(NamedTuple):
    """What goes into a store: images and labels of store_many, then image, id and label of each store_single."""

    images: Array | list[Array]
    labels: list[int]
    singles: list[tuple[Array, int, int]]

    def pairs(self) -> dict[int, tuple[Array, int]]:
        """What the store then holds, in ascending order of ids."""
        pairs = dict(enumerate(zip(self.images, self.labels, strict=True)))
        pairs |= {image_id: (image, label) for image, image_id, label in self.singles}
        return dict(sorted(pairs.items()))


def channels_held(backend: ModuleType) -> dict[str, int]:
    """dtype -> most channels that the backend holds; a dtype that is not there it refuses."""
    return LIMITS.get(backend.BACKEND.name, dict.fromkeys(CODES, MOST_CHANNELS))


def dtypes(codes: str = CODES) -> SearchStrategy[np.dtype[Any]]:
    """In either byte order."""
    return st.builds(lambda code, order: np.dtype(code).newbyteorder(order), st.sampled_from(codes), order)


def shapes(channels: int = MOST_CHANNELS) -> SearchStrategy[tuple[int, ...]]:
    """(H, W) and (H, W, C), among them (H, W, 1), one pixel, and the long and thin."""
    plane = st.tuples(st.integers(1, 8), st.integers(1, 8)) | st.sampled_from([(1, 1), (1, 1001), (1001, 1)])
    last = st.just(()) | st.tuples(st.integers(1, channels))
    return st.builds(lambda plane, last: (*plane, *last), plane, last)


def forms(backend: ModuleType) -> SearchStrategy[Form]:
    """Shape and dtype that the backend holds."""
    held = channels_held(backend)
    weighed = [code for code in sorted(held) for _ in range(held[code])]
    return st.sampled_from(weighed).flatmap(lambda code: st.tuples(shapes(held[code]), dtypes(code)))


def arrays(shape: tuple[int, ...], dtype: np.dtype[Any]) -> SearchStrategy[Array]:
    """Of any values, in any layout in memory."""
    return st.builds(lambda seed, layout: layout(pixels(seed, shape, dtype)), seeds, st.sampled_from(LAYOUTS))


def images(backend: ModuleType) -> SearchStrategy[Array]:
    """One image that the backend holds."""
    return forms(backend).flatmap(lambda form: arrays(*form))


def many(backend: ModuleType) -> SearchStrategy[Array | list[Array]]:
    """What store_many takes: an (N, H, W[, C]) array, a list of any images, a list of images of one form."""
    uniform = st.tuples(st.integers(0, 6), forms(backend)).flatmap(lambda n: arrays((n[0], *n[1][0]), n[1][1]))
    return st.one_of(uniform, st.lists(images(backend), max_size=6), one_form(backend))


def one_form(backend: ModuleType) -> SearchStrategy[list[Array]]:
    """A list of images that agree in shape and dtype, though not in byte order or layout."""
    return forms(backend).flatmap(lambda form: st.lists(either_order(*form), min_size=1, max_size=6))


def either_order(shape: tuple[int, ...], dtype: np.dtype[Any]) -> SearchStrategy[Array]:
    return order.flatmap(lambda order: arrays(shape, dtype.newbyteorder(order)))


@st.composite
def stores(draw: st.DrawFn, backend: ModuleType, least: int = 0) -> Stored:
    """Many images, and singles that replace some of them or stand beside them."""
    drawn = draw((many(backend) | several_blocks).filter(lambda images: len(images) >= least))
    near = st.integers(0, max(len(drawn) - 1, 0))
    singles = draw(st.lists(st.tuples(images(backend), near | ids, labels), max_size=3))
    return Stored(drawn, draw(st.lists(labels, min_size=len(drawn), max_size=len(drawn))), singles)


def pixels(seed: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Random bits, so that every value of the dtype may come; a tenth each are all zeros and all ones."""
    random = np.random.default_rng(seed)
    size = int(np.prod(shape))
    bits = random.integers(0, 256, (size, dtype.itemsize), np.uint8)
    choice = random.random(size)
    bits[choice < 0.2] = 255
    bits[choice < 0.1] = 0
    return (bits & 1 if dtype.kind == "b" else bits).view(dtype).reshape(shape)


def every_second(array: Array) -> Array:
    wide = np.zeros((array.shape[0], 2 * array.shape[1], *array.shape[2:]), array.dtype)
    wide[:, ::2] = array
    return wide[:, ::2]


def transposed(array: Array) -> Array:
    return np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1)


def backwards(array: Array) -> Array:
    return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]


def misaligned(array: Array) -> Array:
    return np.ndarray(array.shape, array.dtype, b"\0" + array.tobytes(), 1)


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def reusing(images: Array | list[Array]) -> Iterator[Array]:
    """A generator that gives every image in one buffer and spoils it afterwards."""
    buffers: dict[Form, Array] = {}
    for image in images:
        buffer = buffers.setdefault((image.shape, image.dtype), np.empty_like(image))
        buffer[...] = image
        yield buffer
        buffer[...] = 0


LAYOUTS: list[Callable[[Array], Array]] = [
    np.ascontiguousarray,
    np.asfortranarray,
    every_second,
    transposed,
    backwards,
    misaligned,
    read_only,
]

order = st.sampled_from(ORDERS)
seeds = st.integers(0, 2**32 - 1)
labels = st.integers(-(2**63), 2**63 - 1)
ids = (
    st.integers(0, 9)
    | st.sampled_from([99_999_999, 100_000_000, 2**31, 2**32, 2**53 + 1, 2**63 - 1])
    | st.integers(0, 2**63 - 1)
)
several_blocks = arrays((5, 600, 450), np.dtype(np.uint8))  # a block is about 1 MiB
