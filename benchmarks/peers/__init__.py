"""Other formats behind the verbs of our backends, so that `pytest benchmarks --peers` puts them in one table.

A module each, with as many of these as its format does well; `PEERS` says which.

    store_many(root, images, labels, *, durable=True)              into a folder that does not exist yet
    store_single(root, image, image_id, label, *, durable=True)    the next id
    read_single(root, image_id, *, verify=True)                    (image, label)
    read_many(root, *, verify=True)                                (images, labels), in order
    open_reader(root, *, verify=True)                              a `Reader`

The terms are those of our backends: what comes back may be written to and is no view of a mapped file, and
with `durable` all of it is on the disk when the call returns. `verify` turns the library's own checksum on
where it has one, and else has no effect. Nothing is promised beyond that: neither atomicity nor other ids.
"""

import importlib
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = tuple[Array, int]
Many = tuple[Array | list[Array], Array]

_FEW = 4  # files and folders, up to which syncing each costs less than one sync of the system


class Unsupported(Exception):
    """A format cannot hold these images: raised before anything is written."""


@dataclass(frozen=True)
class Peer:
    """A row of the registry.

    needs: the packages to import. kind: "arrays", "records", "image files" or "tutorial". rival: which of
    our backends it competes with, if any. verbs: what its module has. checked: whether reading with `verify`
    compares the pixels with a checksum.
    """

    name: str
    needs: tuple[str, ...]
    kind: str
    rival: str | None
    verbs: frozenset[str]
    checked: bool = False

    @property
    def module(self) -> str:
        return f"{__name__}.{self.name.replace('-', '_').replace('.', '_')}"


_ALL = frozenset({"store_many", "store_single", "read_single", "read_many", "open_reader"})
_WRITTEN_ONCE = _ALL - {"store_single"}  # a file of the format is not added to, but written anew
_IN_ORDER = frozenset({"store_many", "read_many"})  # and read from its beginning only

_arrays = partial(Peer, kind="arrays")
_records = partial(Peer, kind="records", rival="lmdb")
_files = partial(Peer, kind="image files", rival="disk", verbs=_ALL, checked=True)  # zlib's, in every PNG file
_tutorial = partial(Peer, kind="tutorial", verbs=_ALL)

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        _arrays("numpy.save", ("numpy",), rival=None, verbs=_WRITTEN_ONCE),
        _arrays("zarr", ("zarr",), rival="hdf5", verbs=_ALL),
        _arrays("tensorstore", ("tensorstore",), rival="hdf5", verbs=_ALL),
        _arrays("safetensors", ("safetensors",), rival="hdf5", verbs=_WRITTEN_ONCE),
        _arrays("blosc2", ("blosc2",), rival="hdf5", verbs=_ALL),
        _records("sqlite", ("sqlite3",), verbs=_ALL),
        _records("arrow", ("pyarrow",), verbs=_WRITTEN_ONCE),
        _records("parquet", ("pyarrow",), verbs=_WRITTEN_ONCE, checked=True),
        _records("lance", ("lance", "pyarrow"), verbs=_ALL),
        _records("array_record", ("array_record",), verbs=_WRITTEN_ONCE, checked=True),
        _records("webdataset", ("webdataset",), verbs=_IN_ORDER),
        _records("tfrecord", ("tfrecord",), verbs=_IN_ORDER),
        _records("rocksdb", ("rocksdict",), verbs=_ALL, checked=True),
        _records("datasets", ("datasets",), verbs=_WRITTEN_ONCE),
        _records("py-lmdb", ("lmdb",), verbs=_ALL),
        _files("pillow", ("PIL",)),  # Pillow's defaults with a CSV are what tutorials teach, too
        _files("opencv", ("cv2",)),
        _files("imageio", ("imageio",)),
        _tutorial("lmdb-pickle", ("lmdb",), rival="lmdb"),
        _tutorial("h5py", ("h5py",), rival="hdf5"),
    )
}


def load(name: str) -> ModuleType:
    """The module of a peer; raises ImportError where it is not available."""
    return importlib.import_module(PEERS[name].module)


def available() -> dict[str, ModuleType]:
    """The modules of all peers whose packages are installed."""
    without = missing()
    return {name: load(name) for name in PEERS if name not in without}


def missing() -> dict[str, str]:
    """Why each of the other peers is not available."""
    reasons = {name: _lacking(peer) for name, peer in PEERS.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def reads_in_order_only(name: str) -> bool:
    """Whether it is a peer that reads all images or none."""
    return name in PEERS and "open_reader" not in PEERS[name].verbs


class Reader(ABC):
    """What `open_reader` gives: by position, which is the id."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read_many(self, image_ids: Array) -> Many: ...

    def __getitem__(self, position: int) -> Pair:
        images, labels = self.read_many(np.array([position]))
        return images[0], int(labels[0])

    def close(self) -> None:  # noqa: B027  # most have nothing open
        """Let go of the store."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def stacked(images: Array | Sequence[Array]) -> Array:
    """All images as one (N, H, W[, C]) array; raises Unsupported where their shapes or dtypes differ."""
    together = gathered(images)
    if isinstance(together, list):
        raise Unsupported("it holds images of one shape and dtype only")
    return np.ascontiguousarray(together)


def gathered(images: Array | Sequence[Array]) -> Array | list[Array]:
    """One array where shapes and dtypes agree, else a list."""
    if isinstance(images, np.ndarray):
        return images
    alike = len({(image.shape, image.dtype) for image in images}) == 1
    return np.stack(images) if alike else list(images)


def rows_in(size: int, data: Array) -> int:
    """How many rows of `data` make about `size` bytes, one at least and no more than it has."""
    return max(1, min(len(data), size * len(data) // data.nbytes))


def sync(path: str, durable: bool) -> None:
    """Have the file, or all that is below the folder, on the disk, and its name."""
    if not durable:
        return
    below = [os.path.join(folder, name) for folder, names, files in os.walk(path) for name in (*names, *files)]
    if len(below) > _FEW:
        os.sync()
        return
    for each in (*below, path, os.path.dirname(os.path.abspath(path))):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lacking(peer: Peer) -> str | None:
    for package in peer.needs:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; see benchmarks/peers/requirements.txt"
    try:
        load(peer.name)
    except ImportError as error:  # installed, but not for this machine
        return str(error)
    return None
