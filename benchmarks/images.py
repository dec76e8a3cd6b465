"""Where the images of a benchmark come from: synthetic, CIFAR-10, or a folder of image files."""

import io
import itertools
import os
import pickle
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image, ImageOps

Images = NDArray[Any] | Sequence[NDArray[Any]]
Labels = NDArray[np.int64]

EXPECTED = "give cifar-10-python.tar.gz, cifar-10-binary.tar.gz, what either unpacks to, or a folder of images"
SEED = 20
CHUNK = 1000
PYTHON_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BINARY_BATCHES = tuple(f"{name}.bin" for name in PYTHON_BATCHES)
BATCHES = PYTHON_BATCHES + BINARY_BATCHES
BATCH_PIXELS = 3 * 32 * 32
LARGEST_BATCH = 64 * 2**20
PICKLED_NAMES = ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")


class SourceError(Exception):
    """No images can be had there: one sentence says which path, what was wrong and what to do."""


@dataclass(frozen=True, eq=False)
class Repeated(Sequence[NDArray[Any]]):
    """`images` over and over, up to `length`, without holding a repeat in memory."""

    images: Images
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        at = range(self.length)[index]
        return [self[i] for i in at] if isinstance(at, range) else self.images[at % len(self.images)]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        # itertools.cycle would keep every image that it has seen.
        return itertools.islice(itertools.chain.from_iterable(itertools.repeat(self.images)), self.length)


@dataclass(frozen=True, eq=False)
class Source:
    """Images with their labels, in memory.

    name: what a report shows.
    images: (N, H, W[, C]) where shapes and dtypes agree, else a list of (H, W[, C]); N is at least 1.
    labels: int64 (N,).
    fingerprint: 16 hex digits, xxh3_64 over every shape, dtype, pixel and label.
    left_out: path and reason of each file that could not be read.
    """

    name: str
    images: NDArray[Any] | list[NDArray[Any]]
    labels: Labels
    fingerprint: str
    left_out: tuple[tuple[str, str], ...] = ()

    def take(self, count: int) -> tuple[Images, Labels]:
        """The first `count` images and labels: views where the source has that many, else `Repeated`."""
        if count <= len(self.images):
            return self.images[:count], self.labels[:count]
        return Repeated(self.images, count), np.resize(self.labels, count)


def open_source(location: str | os.PathLike[str] | None, count: int) -> Source:
    """The source at `location`: `count` synthetic images for None, else all that are there.

    A file must be a tar file of CIFAR-10. A folder is CIFAR-10 if it holds a batch of it, or the folder that
    its tar file unpacks to; otherwise it is searched for image files. Raises SourceError.
    """
    if location is None:
        return synthetic(count)
    path = Path(location)
    if os.path.isfile(path):
        return cifar10(path)
    if not os.path.isdir(path):
        raise SourceError(f"{path}: there is no such file or folder; {EXPECTED}")
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"):
        if any(os.path.isfile(folder / name) for name in BATCHES):
            return cifar10(folder)
    return image_folder(path)


def fingerprint(images: Images, labels: Labels) -> str:
    """16 hex digits: xxh3_64 over every shape, dtype, pixel and label."""
    digest = xxhash.xxh3_64()
    for array in (*([images] if isinstance(images, np.ndarray) else images), labels):
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def synthetic(count: int) -> Source:
    """`count` images with the statistics of photographs, (count, 32, 32, 3) uint8, and labels 0 to 9.

    Image i is the same for every count; the fingerprint is too, being that of the first 1,000 images.
    Saved as PNG by Pillow 13.0 at its defaults, the first 6,000 average 2,110 bytes (standard deviation 473);
    6,000 32x32 crops of photographs, scaled by 1 to 1/8, averaged 1,958 (521).
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    chunks = -(-count // CHUNK)
    images = np.empty((chunks, CHUNK, 32, 32, 3), np.uint8)
    labels = np.empty((chunks, CHUNK), np.int64)
    for i in range(chunks):
        images[i], labels[i] = _synthetic_chunk(i)
    mark = fingerprint(images[0], labels[0])
    return Source("synthetic 32x32x3", images.reshape(-1, 32, 32, 3)[:count], labels.reshape(-1)[:count], mark)


def _synthetic_chunk(index: int) -> tuple[NDArray[np.uint8], Labels]:
    """Random fields of amplitude 1/f**1.2, as in crops: one of light for all channels, two of colour."""
    rng = np.random.default_rng([SEED, index])
    frequency = np.hypot(np.fft.fftfreq(32, 1 / 32)[:, None], np.fft.rfftfreq(32, 1 / 32))
    amplitude = (np.maximum(frequency, 1) ** -1.2).astype(np.float32)
    # Sums over frequencies are Gaussian, so the noise need not be, and integers come ten times as fast.
    noise = rng.integers(-128, 128, (CHUNK, 3, 32, 2 * 17), np.int8).astype(np.float32)
    fields = np.fft.irfft2(noise.view(np.complex64) * amplitude)
    fields *= rng.lognormal(3.7, 1.0, (CHUNK, 1, 1, 1)).astype(np.float32)
    light, warm, cool = fields.swapaxes(0, 1) * np.array([1, 0.4, 0.2], np.float32)[:, None, None, None]
    light += rng.uniform(15, 195, (CHUNK, 1, 1)).astype(np.float32)
    # No matrix product: BLAS rounds as its CPU does, and the fingerprint should be the same on another.
    pixels = np.stack([light + warm, light - cool, light - warm + cool], axis=-1)
    return np.clip(pixels, 0, 255).astype(np.uint8), rng.integers(0, 10, CHUNK)


def cifar10(path: Path) -> Source:
    """CIFAR-10 from its tar file or folder: (N, 32, 32, 3) uint8, the training batches, then the test batch.

    Both its Python and its binary version. A tar file is read in memory, and nothing that a pickle names is
    ever called. Raises SourceError with the name of a batch that is missing, truncated or no such batch.
    """
    batches, name = {}, "its beginning"
    try:
        for name, file in _batch_files(path):
            batches[name] = _batch(name, file.read(LARGEST_BATCH + 1))
    except Exception as error:  # an archive or a pickle breaks with whatever its damage leads to
        why = f"{path}: not readable as CIFAR-10 from {name} on ({_reason(error)}); {EXPECTED}"
        raise SourceError(why) from error
    expected = BINARY_BATCHES if batches and batches.keys() <= set(BINARY_BATCHES) else PYTHON_BATCHES
    if missing := [name for name in expected if name not in batches]:
        raise SourceError(f"{path}: CIFAR-10 lacks {', '.join(missing)} here; {EXPECTED}")
    images = np.concatenate([batches[name][0] for name in expected])
    labels = np.concatenate([batches[name][1] for name in expected])
    return Source(f"CIFAR-10 ({path.resolve().name})", images, labels, fingerprint(images, labels))


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


def image_folder(root: Path) -> Source:
    """Every image file at any level under `root`, in sorted order; folders that are links are not followed.

    As in torchvision's ImageFolder, the label is the index of the file's top-level folder in the sorted names
    of the folders directly in `root`; it is 0 for a file that lies in `root` itself. What cannot be read, or
    what Pillow takes for a decompression bomb, is left out. Raises SourceError where no image remains.
    """
    read, left_out = _read_images(root)
    if not read:
        first = "; ".join(": ".join(entry) for entry in left_out[:3]) or "no file has an image's suffix"
        raise SourceError(f"{root}: no image can be read there ({first}); {EXPECTED}")
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    classes = {folder: label for label, folder in enumerate(folders)}
    labels = np.array([classes.get(path.relative_to(root).parts[0], 0) for path in read], np.int64)
    images = list(read.values())
    alike = len({(image.shape, image.dtype) for image in images}) == 1
    stacked = np.stack(images) if alike else images
    name = f"folder {root.resolve().name} ({len(images)} images)"
    return Source(name, stacked, labels, fingerprint(stacked, labels), left_out)


def _read_images(root: Path) -> tuple[dict[Path, NDArray[Any]], tuple[tuple[str, str], ...]]:
    """The image of each file that can be read; path and reason of each file or folder that cannot."""
    suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
    errors: list[OSError] = []
    files = [Path(folder, name) for folder, _, names in os.walk(root, onerror=errors.append) for name in names]
    left_out = [(str(error.filename), _reason(error)) for error in errors]
    read = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for path in sorted(file for file in files if file.suffix.lower() in suffixes):
            try:
                read[path] = read_image(path)
            except Exception as error:  # a decoder meets damage with whatever it stumbles over
                left_out.append((str(path), _reason(error)))
    return read, tuple(left_out)


def read_image(path: Path) -> NDArray[Any]:
    """The pixels of an image file's first frame, its EXIF rotation applied: grey as grey, colour as RGB.

    1-bit (as 0 and 255) and L give (H, W) uint8; LA gives (H, W, 2) uint8; grey of 16 bits, or of 32 whose
    values fit, gives (H, W) uint16. All else, as palette and CMYK, gives (H, W, 3) uint8, or (H, W, 4) with
    transparency; of 16 bits with colour or alpha Pillow gives the upper 8, as RGB or RGBA. Raises ValueError
    for floating point and for values beyond 16 bits.
    """
    if not path.is_file():
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


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(":") or type(error).__name__
