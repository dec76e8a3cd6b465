"""Each operation once: what is prepared before a round, the call that is timed, and the check of its result.

`Workload.call` is the backend's bare function. Preparing, the syncing of earlier writes, the eviction of a
cold cache and the check all stand outside the clock.
"""

import itertools
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.images import Images, Labels, Repeated
from benchmarks.memory import peak_growth

Array = NDArray[Any]

BATCH = 256
SEED = 20
SPARE_BYTES = 256 << 20
LONG_SECONDS = 5.0  # of storing, beyond which one more call tells nothing new
WHOLE_BYTES = 4 << 30  # of pixels: more is read in parts, each let go of before the next
PART_BYTES = 512 << 20
FILE_SYSTEM_BLOCK = 4096


class WrongResultError(AssertionError):
    """A backend gave other pixels or labels than were stored."""


@dataclass(frozen=True)
class Terms:
    """What every backend is held to in a run."""

    durable: bool = True
    cold: bool = False
    verify: bool = True


@dataclass(frozen=True)
class Rounds:
    """pytest-benchmark's bounds, which its pedantic mode leaves to us."""

    at_least: int
    seconds: float

    def after(self, pilot_seconds: float) -> int:
        return max(self.at_least, int(self.seconds / pilot_seconds))


@dataclass(frozen=True)
class Cell:
    """One backend with the images of one cutoff, in a directory of the run."""

    name: str
    backend: Any
    images: Images
    labels: Labels
    directory: str
    terms: Terms
    forks: bool = True  # whether its libraries work on in a forked child, where memory is measured
    store_seconds: float = 0.0  # that it took to store what all reading cells share
    image_size: int | None = None  # pixels a side, where the images were made that size

    @property
    def stored(self) -> str:
        """The store that all reading cells share."""
        return os.path.join(self.directory, "stored")

    def store(self) -> None:
        self.backend.store_many(self.stored, self.images, self.labels, durable=False)
        settle()


class Workload(ABC):
    """One operation on one cell. `images_per_call` and `bytes_per_call` are what a call moves."""

    operation: str
    repeats: ClassVar[bool] = False  # too short to be timed alone: pytest-benchmark calls it several times a round
    grows: ClassVar[bool] = False  # holds so many images that its memory is of interest
    readers: int = 1
    calls: int = 1  # of each reader in what is timed as one
    cache: str = "warm"  # what storing has to do with

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.random = np.random.default_rng(SEED)
        self.images_per_call = 1

    @property
    def bytes_per_call(self) -> float:
        """Bytes of pixels, on average."""
        return self.images_per_call * pixel_bytes(self.cell.images) / len(self.cell.images)

    @abstractmethod
    def prepare(self) -> tuple[Any, ...]:
        """Get ready for a round; gives the arguments of `call`."""

    @abstractmethod
    def call(self, *arguments: Any) -> Any:
        """The timed call."""

    @abstractmethod
    def check(self, result: Any) -> None:
        """Raise WrongResultError unless the result of the last call is what was stored."""

    def pilot(self) -> float:
        """Seconds of a round with its preparation, which is what the rounds to come will take."""
        start = time.perf_counter()
        self.call(*self.prepare())
        return time.perf_counter() - start

    def call_for_memory(self) -> Any:
        """The call by whose peak of memory the operation is known."""
        return self.call(*self.prepare())

    def finish(self) -> None:  # noqa: B027  # most need nothing
        """Let go of what the rounds needed."""

    def draw(self) -> int:
        return int(self.random.integers(len(self.cell.images)))


class StoreMany(Workload):
    """All images into a new store."""

    operation = "store_many"
    grows = True

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.images_per_call = len(cell.images)
        self.root = os.path.join(cell.directory, "store_many")

    def prepare(self) -> tuple[Any, ...]:
        self.finish()
        settle()
        return (self.root,)

    def pilot(self) -> float:
        known = self.cell.store_seconds
        return known if known > LONG_SECONDS else super().pilot()

    def call(self, root: str) -> None:
        self.store(root, self.cell.images)

    def call_for_memory(self) -> None:
        """From a generator: images that come one by one should not be held."""
        (root,) = self.prepare()
        self.store(root, iter(self.cell.images))

    def store(self, root: str, images: Images | Iterator[Array]) -> None:
        cell = self.cell
        cell.backend.store_many(root, images, cell.labels, durable=cell.terms.durable)

    def check(self, result: None) -> None:
        must_hold(self.cell, self.root)

    def finish(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


class StoreSingle(Workload):
    """One image more, with a new id, into a store of all of them."""

    operation = "store_single"

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.root = os.path.join(cell.directory, "store_single")
        copy_tree(cell.stored, self.root)  # reading cells share the other
        self.image_id = len(cell.images) - 1
        self.chosen = 0

    def prepare(self) -> tuple[Any, ...]:
        self.image_id += 1
        self.chosen = self.draw()
        settle()
        return self.root, self.cell.images[self.chosen], self.image_id, int(self.cell.labels[self.chosen])

    def call(self, *arguments: Any) -> None:
        self.cell.backend.store_single(*arguments, durable=self.cell.terms.durable)

    def check(self, result: None) -> None:
        must_equal_one(self.cell.backend.read_single(self.root, self.image_id), self.cell, self.chosen)

    def finish(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


class Reading(Workload):
    """What all reading has in common: the stored set, in the page cache or out of it."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.cache = "cold" if cell.terms.cold else "warm"

    def prepare(self) -> tuple[Any, ...]:
        if self.cell.terms.cold:
            self.let_go()
            evict(self.cell.stored)
        return self.arguments()

    def let_go(self) -> None:
        """Hold nothing of the store, because what is mapped is not evicted."""
        self.finish()

    @abstractmethod
    def arguments(self) -> tuple[Any, ...]:
        """What `call` is given this time."""


class ReadingInOthers(Reading):
    """Reading in other processes, which the first preparation starts."""

    def pilot(self) -> float:
        self.call(*self.prepare())
        return super().pilot()


class ReadSingle(Reading):
    """Open the store, read a random image, close."""

    operation = "read_single"

    def arguments(self) -> tuple[Any, ...]:
        self.chosen = self.draw()
        return self.cell.stored, self.chosen

    def call(self, root: str, image_id: int) -> Any:
        return self.cell.backend.read_single(root, image_id, verify=self.cell.terms.verify)

    def check(self, result: Any) -> None:
        must_equal_one(result, self.cell, self.chosen)


class ReadMany(Reading):
    """Open the store, read all images in order, close."""

    operation = "read_many"
    grows = True

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.images_per_call = len(cell.images)
        self.parts = parts_of(cell.images)
        self.at_once = len(self.parts) == 1

    def take_share(self, number: int, readers: int) -> None:
        self.parts = [np.array_split(part, readers)[number] for part in self.parts]
        self.at_once = False

    def arguments(self) -> tuple[Any, ...]:
        return (self.cell.stored,)

    def call(self, root: str) -> Any:
        """The images, or the last part of them."""
        backend, verify = self.cell.backend, self.cell.terms.verify
        if self.at_once:
            return backend.read_many(root, verify=verify)
        with backend.open_reader(root, verify=verify) as reader:
            for part in self.parts:
                result = None
                result = reader.read_many(part)
        return result

    def check(self, result: Any) -> None:
        must_equal_part(result, self.cell, self.parts[-1])
        if len(self.parts) > 1:
            must_hold(self.cell, self.cell.stored)


class ThroughReader(Reading):
    """Reading through one open reader."""

    reader: Any = None

    def prepare(self) -> tuple[Any, ...]:
        arguments = super().prepare()
        if self.reader is None:
            self.open()
        return arguments

    def open(self) -> None:
        self.reader = self.cell.backend.open_reader(self.cell.stored, verify=self.cell.terms.verify)

    def finish(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None


class ReadOne(ThroughReader):
    """A random image through an open reader."""

    operation = "read_one"

    repeats = True

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.positions = itertools.cycle(self.random.integers(len(cell.images), size=10_000).tolist())

    def arguments(self) -> tuple[Any, ...]:
        return ()

    def call(self) -> Any:
        """Which and what: a runner may give the result of any of its calls."""
        chosen = next(self.positions)
        return chosen, self.reader[chosen]

    def check(self, result: Any) -> None:
        chosen, pair = result
        must_equal_one(pair, self.cell, chosen)


class ReadBatch(ThroughReader):
    """256 random images through an open reader, drawn anew each round: what training does."""

    operation = "read_batch"

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.images_per_call = BATCH
        self.share = np.arange(len(cell.images))

    def take_share(self, number: int, readers: int) -> None:
        """Of fewer images than readers, some have the same."""
        self.share = self.share[number % len(self.share) :: readers]

    def arguments(self) -> tuple[Any, ...]:
        self.chosen = self.share[self.random.integers(len(self.share), size=BATCH)]
        return (self.chosen,)

    def call(self, image_ids: Array) -> Any:
        return self.reader.read_many(image_ids)

    def check(self, result: Any) -> None:
        must_equal_part(result, self.cell, self.chosen)


OPERATIONS: dict[str, type[Workload]] = {
    kind.operation: kind for kind in (StoreMany, ReadMany, ReadBatch, ReadOne, ReadSingle, StoreSingle)
}


def stores(operation: str) -> bool:
    return operation.startswith("store")


def verb_of(operation: str) -> str:
    """The verb of a backend that the operation calls."""
    return "open_reader" if operation in (ReadOne.operation, ReadBatch.operation) else operation


def measure(benchmark: Any, workload: Workload, rounds: Rounds | None) -> None:
    """Time a workload with pytest-benchmark's fixture and check its result; with no rounds, just once.

    A cell that fails is marked, so that pytest-benchmark leaves it out of its JSON.
    """
    try:
        if workload.repeats and not (workload.cell.terms.cold and rounds):
            workload.prepare()
            result = benchmark(workload.call)
        else:
            count = rounds.after(workload.pilot()) if rounds else 1
            result = benchmark.pedantic(workload.call, setup=lambda: (workload.prepare(), {}), rounds=count)
        workload.check(result)
        benchmark.extra_info.update(facts(workload))
        if rounds and workload.cell.forks and workload.grows:
            benchmark.extra_info["peak_bytes"] = peak_growth(workload.call_for_memory)
    except BaseException:
        benchmark.has_error = True
        raise
    finally:
        workload.finish()


def facts(workload: Workload) -> dict[str, Any]:
    """What the JSON says of a cell beside its times; the rates are added when all are known."""
    cell = workload.cell
    return {
        "operation": workload.operation,
        "backend": cell.name,
        "cutoff": len(cell.images),
        **({"image_size": cell.image_size} if cell.image_size else {}),
        "readers": workload.readers,
        "cache": workload.cache,
        "calls": workload.calls,
        "images_per_call": workload.images_per_call,
        "pixel_bytes_per_call": workload.bytes_per_call,
        "disk_bytes_per_image": disk_bytes(cell.stored) / len(cell.images),
    }


def must_equal(result: Any, images: Images, labels: Labels) -> None:
    """Raise WrongResultError unless `result` is these images and labels."""
    read, read_labels = result
    if np.asarray(read_labels).dtype.kind != "i" or not np.array_equal(read_labels, labels):
        raise WrongResultError("the labels are not those that were stored")
    if len(read) != len(images):
        raise WrongResultError(f"{len(read)} images instead of {len(images)}")
    for image_id, (image, expected) in enumerate(zip(read, images, strict=True)):
        if image.shape != expected.shape or image.dtype != expected.dtype or not np.array_equal(image, expected):
            raise WrongResultError(f"image {image_id} is not the one that was stored")


def must_equal_part(result: Any, cell: Cell, chosen: Array) -> None:
    """Raise WrongResultError unless `result` is the images and labels `chosen`."""
    must_equal(result, [cell.images[image_id] for image_id in chosen.tolist()], cell.labels[chosen])


def must_hold(cell: Cell, root: str) -> None:
    """Raise WrongResultError unless the store at `root` is the cell's images and labels."""
    parts = parts_of(cell.images)
    if len(parts) == 1:
        must_equal(cell.backend.read_many(root), cell.images, cell.labels)
        return
    with cell.backend.open_reader(root) as reader:
        if len(reader) != len(cell.images):
            raise WrongResultError(f"{len(reader)} images instead of {len(cell.images)}")
        for part in parts:
            must_equal_part(reader.read_many(part), cell, part)


def parts_of(images: Images) -> list[Array]:
    """The ids of all images: in one part, or in parts of about PART_BYTES where they are many."""
    count, size = len(images), pixel_bytes(images)
    step = count if size <= WHOLE_BYTES else max(1, count * PART_BYTES // size)
    return np.split(np.arange(count), range(step, count, step))


def must_equal_one(result: Any, cell: Cell, chosen: int) -> None:
    """Raise WrongResultError unless `result` is image and label `chosen`."""
    image, label = result
    must_equal(([image], [label]), [cell.images[chosen]], cell.labels[chosen : chosen + 1])


def pixel_bytes(images: Images) -> int:
    if isinstance(images, np.ndarray):
        return images.nbytes
    if isinstance(images, Repeated):
        times, rest = divmod(len(images), len(images.images))
        return times * pixel_bytes(images.images) + pixel_bytes(images.images[:rest])
    return sum(image.nbytes for image in images)


def missing_room(cell: Cell, copies: int = 3, batches: int = 0) -> str | None:
    """Why so many more copies of the store would not fit into the free disk, or what is read into memory; or None.

    That is all images or a part, or so many batches if they are more; twice, because those before are there, too.
    """
    size, count = pixel_bytes(cell.images), len(cell.images)
    disk_need = copies * (size + FILE_SYSTEM_BLOCK * count) + SPARE_BYTES
    at_once = max(size if size <= WHOLE_BYTES else PART_BYTES, batches * BATCH * size // count)
    memory_need = 2 * at_once + SPARE_BYTES
    for need, free, what in ((disk_need, free_disk(cell.directory), "disk"), (memory_need, free_memory(), "memory")):
        if need > free:
            return f"needs {need >> 20} MiB of {what}, {free >> 20} MiB are free"
    return None


def free_disk(directory: str) -> int:
    return shutil.disk_usage(directory).free


def free_memory() -> int:
    return memory("MemAvailable")


def total_memory() -> int:
    return memory("MemTotal")


def memory(field: str) -> int:
    """Bytes, as the kernel tells in this field of meminfo."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        fields = dict(line.split(":") for line in meminfo)
    return int(fields[field].split()[0]) << 10


def disk_bytes(directory: str) -> int:
    """What the files below `directory` take on the disk, in whole blocks of the file system."""
    return sum(os.lstat(path).st_blocks * 512 for path in files_below(directory))


def files_below(directory: str) -> Iterator[str]:
    return (os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names)


def copy_tree(original: str, copy: str) -> None:
    """Copy a folder to a new one, of which nothing is left where that fails."""
    try:
        shutil.copytree(original, copy)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise


def settle() -> None:
    """Let the disks finish earlier writes, so that a round pays only for its own."""
    os.sync()


def evict(directory: str) -> None:
    """Drop the files below `directory` from the page cache; what is mapped or not yet synced would stay."""
    settle()
    for path in files_below(directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
