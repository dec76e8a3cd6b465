"""Where images to store come from: a folder of image files, CIFAR-10, or another store.

Each is a sequence of (image, label), in which an image is read when it is asked for.
"""

import copy
import io
import os
import pickle
import stat
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from imgstore import Reader, open_reader
from imgstore._checksums import checksum
from imgstore._generations import PLAN
from imgstore._shards import is_sharded
from imgstore.errors import SourceError

Array = NDArray[Any]
Labels = NDArray[np.int64]
Pair = tuple[Array, int]

EXPECTED = "give cifar-10-python.tar.gz, cifar-10-binary.tar.gz, what either unpacks to, a folder of images, or a store"
PYTHON_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BINARY_BATCHES = tuple(f"{name}.bin" for name in PYTHON_BATCHES)
BATCHES = PYTHON_BATCHES + BINARY_BATCHES
BATCH_PIXELS = 3 * 32 * 32
LARGEST_BATCH = 64 * 2**20
PICKLED_NAMES = ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")


def open_source(location: str | os.PathLike[str]) -> "Source":
    """The images at `location`.

    A file must be a tar file of CIFAR-10. A folder is a store if it holds CURRENT or SHARDS, and CIFAR-10 if it
    holds a batch of it, or the folder that its tar file unpacks to; else it is searched for image files. Raises
    SourceError, and for a store what `open_reader` raises.
    """
    path = Path(location)
    if os.path.isfile(path):
        return Cifar10(path)
    if not os.path.isdir(path):
        raise SourceError(path, f"there is no such file or folder; {EXPECTED}")
    if os.path.lexists(path / "CURRENT") or is_sharded(str(path)):
        return open_reader(path)
    if os.path.lexists(path / PLAN):
        raise SourceError(path, "this is a part of a sharded store; have the rest stored first")
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"):
        if any(os.path.isfile(folder / name) for name in BATCHES):
            return Cifar10(folder)
    return ImageFolder(path)


def name_of(source: "Source") -> str:
    """What kind of source it is, and the last part of its path."""
    if isinstance(source, Reader):
        return f"store {os.path.basename(source.generation.root)}"
    kind, path = ("CIFAR-10", source.path) if isinstance(source, Cifar10) else ("folder", source.root)
    return f"{kind} {path.resolve().name}"


class ImageFolder(Sequence[Pair]):
    """Every image file at any level under `root`, in sorted order; folders that are links are not followed.

    As in torchvision's ImageFolder, the label is the index of the file's top-level folder in the sorted names
    of the folders directly in `root`; it is 0 for a file that lies in `root` itself. An image that cannot be
    read, or that Pillow takes for a decompression bomb, raises SourceError; so does a folder without image files.

    paths, labels: of each file. unlisted: the error of each folder that cannot be looked into.
    """

    def __init__(self, root: Path) -> None:
        suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
        self.root, self.unlisted = root, list[SourceError]()
        files = (Path(folder, name) for folder, _, names in os.walk(root, onerror=self._note) for name in names)
        self.paths = sorted(file for file in files if file.suffix.lower() in suffixes)
        if not self.paths:
            raise nothing_readable(root, self.unlisted)
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        classes = {folder: label for label, folder in enumerate(folders)}
        self.labels = np.array([classes.get(path.relative_to(root).parts[0], 0) for path in self.paths], np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Pair:  # type: ignore[override]  # no slices
        return read_image(self.paths[position]), int(self.labels[position])

    def part(self, positions: Sequence[int]) -> Self:
        """The files at these positions alone."""
        part = copy.copy(self)
        part.paths, part.labels = [self.paths[position] for position in positions], self.labels[positions]
        return part

    def _note(self, error: OSError) -> None:
        self.unlisted.append(SourceError(error.filename, reason_of(error)))


def nothing_readable(root: str | os.PathLike[str], errors: Sequence[SourceError]) -> SourceError:
    """The error for a folder in which no image is, or none that can be read, for these reasons."""
    first = "; ".join(map(str, errors[:3])) or "no file has an image's suffix"
    return SourceError(root, f"no image can be read there ({first}); {EXPECTED}")


def read_image(path: Path) -> Array:
    """The pixels of an image file's first frame, its EXIF rotation applied: grey as grey, colour as RGB.

    1-bit (as 0 and 255) and L give (H, W) uint8; LA gives (H, W, 2) uint8; grey of 16 bits, or of 32 whose
    values fit, gives (H, W) uint16. All else, as palette and CMYK, gives (H, W, 3) uint8, or (H, W, 4) with
    transparency; of 16 bits with colour or alpha Pillow gives the upper 8, as RGB or RGBA. Raises SourceError,
    also for floating point and for values beyond 16 bits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _pixels(path)
        except Exception as error:  # a decoder meets damage with whatever it stumbles over
            raise SourceError(path, reason_of(error)) from error


def _pixels(path: Path) -> Array:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    # Given the path instead, Pillow 13.0 scrambles an uncompressed TIFF file that is to be rotated.
    with open(path, "rb") as file, Image.open(file) as turned:
        image = ImageOps.exif_transpose(turned)
    if image.mode == "F":
        raise ValueError("its pixels are floating point, which has no fixed range")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its values do not fit in 16 bits")
        return values.astype(np.uint16)
    colour = "RGBA" if image.has_transparency_data else "RGB"
    return np.array(image.convert({"1": "L", "L": "L", "LA": "LA", "La": "LA"}.get(image.mode, colour)))


class Cifar10(Sequence[Pair]):
    """CIFAR-10 from its tar file or folder: (32, 32, 3) uint8, the training batches, then the test batch.

    Both its Python and its binary version. All 60,000 are held in memory, 184 MB. A tar file is read in memory,
    and nothing that a pickle names is ever called. Raises SourceError with the name of a batch that is missing,
    truncated or no such batch.
    """

    def __init__(self, path: Path) -> None:
        batches, name = {}, "its beginning"
        try:
            for name, file in _batch_files(path):
                batches[name] = _batch(name, file.read(LARGEST_BATCH + 1))
        except Exception as error:  # an archive or a pickle breaks with whatever its damage leads to
            why = f"not readable as CIFAR-10 from {name} on ({reason_of(error)}); {EXPECTED}"
            raise SourceError(path, why) from error
        expected = BINARY_BATCHES if batches and batches.keys() <= set(BINARY_BATCHES) else PYTHON_BATCHES
        if missing := [name for name in expected if name not in batches]:
            raise SourceError(path, f"CIFAR-10 lacks {', '.join(missing)} here; {EXPECTED}")
        self.path = path
        self.images = np.concatenate([batches[name][0] for name in expected])
        self.labels = np.concatenate([batches[name][1] for name in expected])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Pair:  # type: ignore[override]  # no slices
        return self.images[position], int(self.labels[position])

    def part(self, positions: Sequence[int]) -> Self:
        """The images at these positions alone."""
        part = copy.copy(self)
        part.images, part.labels = self.images[positions], self.labels[positions]
        return part


class ReaderPart(Sequence[Pair]):
    """The images at some positions of a reader."""

    def __init__(self, reader: Reader, positions: Sequence[int]) -> None:
        self.reader, self.positions = reader, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]  # no slices
        return self.reader[self.positions[index]]


Source = Reader | Cifar10 | ImageFolder


def part_of(source: Source, positions: Sequence[int]) -> Sequence[Pair]:
    """The images at these positions, which can be sent to another process without the others."""
    return ReaderPart(source, positions) if isinstance(source, Reader) else source.part(positions)


def fingerprint(source: Source) -> str:
    """A text that is another one where images or labels are others: told without reading image files."""
    if isinstance(source, Cifar10):
        return f"{checksum(source.images):016x} {checksum(source.labels):016x}"
    if isinstance(source, ImageFolder):
        paths, labels = list(map(str, source.paths)), source.labels
    else:  # in the path of a generation is its name, which no other has
        paths, labels = [reader.generation.path("singles") for reader in source.readers()], np.empty(0, np.int64)
    told = "\n".join(map(_state, paths))
    return f"{checksum(told.encode(errors='surrogateescape')):016x} {checksum(labels):016x}"


def _state(path: str) -> str:
    try:
        state = os.stat(path)
    except OSError as error:
        raise SourceError(path, reason_of(error)) from None
    return f"{path} {state.st_size} {state.st_mtime_ns}"


def _batch_files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if path.is_dir():
        for name in (name for name in BATCHES if (path / name).is_file()):
            with open(path / name, "rb") as file:
                yield name, file
        return
    with tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name in BATCHES and (content := archive.extractfile(member)):
                yield name, content


def _batch(name: str, content: bytes) -> tuple[NDArray[np.uint8], Labels]:
    """Pixels (n, 32, 32, 3) and labels (n,) of one batch."""
    if len(content) > LARGEST_BATCH:
        raise ValueError(f"it is larger than {LARGEST_BATCH} bytes")
    planes, labels = (_binary_batch if name in BINARY_BATCHES else _python_batch)(content)
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError("its labels are not all from 0 to 9")
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _binary_batch(content: bytes) -> tuple[NDArray[np.uint8], Labels]:
    if not content or len(content) % (1 + BATCH_PIXELS):
        raise ValueError(f"{len(content)} bytes are not whole records of {1 + BATCH_PIXELS}")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + BATCH_PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _python_batch(content: bytes) -> tuple[NDArray[np.uint8], Labels]:
    batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    match batch.get(b"data"), batch.get(b"labels"):
        case _Recorded(state=(1, (int(n), 3072), dtype, bool(fortran), bytes(pixels))), list(labels) if (
            dtype.arguments == (b"u1", 0, 1) and n == len(labels) and {int} == set(map(type, labels))
        ):
            planes = np.frombuffer(pixels, np.uint8).reshape((n, BATCH_PIXELS), order="F" if fortran else "C")
            return planes, np.array(labels, np.int64)
    raise ValueError("it holds no uint8 (n, 3072) under b'data' with a list of n integers under b'labels'")


class _Recorded:
    """What a pickle calls and the state it sets, recorded and not carried out.

    It stands in for NumPy's array and dtype, which a hostile pickle can have reserve terabytes, or take its
    bytes for pointers.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Recorded]:
        if f"{module}.{name}" in PICKLED_NAMES:
            return _Recorded
        raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR-10 does not and which may do harm")


def reason_of(error: Exception) -> str:
    """In one line, without the number and path of an OSError."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return text.partition("\n")[0].rstrip(":") or type(error).__name__
