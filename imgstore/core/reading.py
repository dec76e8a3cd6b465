"""Reads of a store's file that end in an error, never in the end of the process.

A page of a memory map that the disk cannot give, or that was cut off the file, is a signal: SIGBUS. A system call
gives an error instead. So nothing is read by touching a map. One place is read with `preadv`. Many small ones are
gathered at once: `pwritev` writes them from the map into a file in memory, from which they are copied. Of 256 images
of 3 KB that took 0.22 ms, `process_vm_readv` 0.31, a `preadv` each 0.5, NumPy from the map 0.09. Where that cannot be
done, each place is read with `preadv`.
"""

import ctypes
import mmap
import os
import traceback
import weakref
from collections.abc import Callable
from io import FileIO
from typing import Any

import numpy as np

from imgstore.core.blocks import Array, Form, Labels
from imgstore.core.files import name_path, open_file
from imgstore.errors import CorruptStoreError, ImgstoreError

_MOST_PLACES = 1024  # of one call: IOV_MAX
_SCRATCH_BYTES = 1 << 20
_LARGE = 1 << 16  # bytes of a place that is read faster on its own

_LIBRARIES = frozenset({"builtins", "struct", "zlib", "numpy", "PIL", "lmdb"})  # whose exceptions tell of damage

_pwritev = ctypes.CDLL(None).pwritev
_pwritev.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long]
_pwritev.restype = ctypes.c_ssize_t


class _Scratch:
    """A file in memory, and its map."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.file = FileIO(os.memfd_create("imgstore"), "r+")
        self.file.truncate(_SCRATCH_BYTES)
        self.memory = np.frombuffer(mmap.mmap(self.file.fileno(), _SCRATCH_BYTES), np.uint8)


_idle: list[_Scratch] = []
os.register_at_fork(after_in_child=_idle.clear)  # else parent and child would write to the same ones


class File:
    """A file of the store, open until the last reference to this is gone, so that no thread reads a closed one."""

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        """`descriptor`: of the file, where it is open already and the caller closes it."""
        self.path = path
        if descriptor is None:
            descriptor, _ = open_file(path)
            # not at exit: a thread may still read
            weakref.finalize(self, os.close, descriptor).atexit = False
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    @property
    def address(self) -> int:
        """Where the file is mapped; 0 where it cannot be."""
        # of two threads that map it at once, the first wins: else one's map would go while it reads there
        kept = self.__dict__
        return int((kept.get("_mapped") or kept.setdefault("_mapped", self._map()))[0])

    def _map(self) -> tuple[int, Any]:
        try:
            memory = np.frombuffer(mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
        except (OSError, ValueError) as error:  # no file system has to be able to; and an empty file cannot be
            if isinstance(error, TimeoutError):  # of a handler of signals
                raise
            return 0, None
        return int(memory.ctypes.data), memory

    def fill(self, array: Any, offset: int) -> None:
        """Fill a C-contiguous array with the bytes from `offset` on. Raises OSError, CorruptStoreError."""
        try:
            read = os.preadv(self.descriptor, (array,), offset)
            if read != array.nbytes:  # the system reads at most 2 GiB at once
                self._fill_rest(array, offset, read)
        except OSError as error:
            name_path(error, self.path)
            raise

    def _fill_rest(self, array: Array, offset: int, read: int) -> None:
        rest = array.reshape(-1).view(np.uint8)
        while read < len(rest):
            more = os.preadv(self.descriptor, (rest[read:].data,), offset + read)
            if not more:
                raise CorruptStoreError(self.path, f"ends before byte {offset + len(rest)}, so it was cut")
            read += more

    def bytes_at(self, offset: int, size: int) -> bytes:
        """So many bytes from `offset` on; fewer where the file ends. Raises OSError."""
        try:
            return os.pread(self.descriptor, size, offset)
        except OSError as error:
            name_path(error, self.path)
            raise

    def numbers(self, offset: int, count: int, dtype: Any = np.int64) -> Any:
        """So many numbers of 8 bytes. Raises OSError, CorruptStoreError."""
        array = np.empty(count, dtype)
        self.fill(array, offset)
        return array

    def gather(self, offsets: Labels, form: Form) -> Array:
        """The images of this form at these offsets."""
        images = np.empty((len(offsets), *form[0]), form[1])

        def fill(row: int) -> None:
            self.fill(images[row], int(offsets[row]))

        gather(offsets + self.address if self.address else None, images, fill)
        self.must_be_whole()
        return images

    def must_be_whole(self) -> None:
        """Raise CorruptStoreError where the file was cut: of the page in which it ends now, a map gives zeros."""
        if os.fstat(self.descriptor).st_size < self.size:
            raise CorruptStoreError(self.path, "was cut since it was opened")


def gather(addresses: Labels | None, images: Array, fill: Callable[[int], None]) -> None:
    """Copy into each row of `images` what is mapped at its address; `fill` reads a row that no map gives."""
    for row in range(0 if addresses is None else _gathered(addresses, images), len(images)):
        fill(row)


def _taken() -> _Scratch | None:
    """One that nobody uses; None where none can be had."""
    try:
        return _idle.pop() if _idle else _Scratch()
    except IndexError:  # another thread took it
        return None
    except OSError as error:
        if error.errno is None:  # of a handler of signals
            raise
        return None


def _gathered(addresses: Labels, images: Array) -> int:
    """How many rows, from the first on, could be copied."""
    row_bytes = images[:1].nbytes
    if row_bytes > _LARGE:
        return 0
    scratch = _taken()
    if scratch is None:
        return 0
    places = np.empty((len(images), 2), np.int64)
    places[:, 0], places[:, 1] = addresses, row_bytes
    bytes_of, descriptor, done = images.reshape(-1).view(np.uint8), scratch.file.fileno(), 0
    while done < len(images):
        count = min(_MOST_PLACES, _SCRATCH_BYTES // row_bytes, len(images) - done)
        if os.getpid() != scratch.owner:  # forked in the midst of this, in a handler of signals
            return done
        written = _pwritev(descriptor, places.ctypes.data + 16 * done, count, 0)
        rows = max(written, 0) // row_bytes
        bytes_of[done * row_bytes : (done + rows) * row_bytes] = scratch.memory[: rows * row_bytes]
        done += rows
        if rows < count:
            break
    _idle.append(scratch)
    return done


def of_the_file(read: Callable[[], Any], path: str, what: str, image_id: int | None = None) -> Any:
    """What `read` gives, or CorruptStoreError where it fails as on damage, and fails again.

    An exception may also be the caller's, raised by a handler of signals in the midst of it. It passes through: by
    its kind, which is none that Python or a library has, or because what was raised once is not raised again.
    """
    try:
        return read()
    except (ImgstoreError, MemoryError):
        raise
    except Exception as error:
        if not _may_be_damage(error):
            raise
        traceback.clear_frames(error.__traceback__)  # with what they hold of the first attempt
        if _fails_again(read):
            raise CorruptStoreError(path, f"{what}: {error}", image_id) from None
        raise


def _fails_again(read: Callable[[], Any]) -> bool:
    try:
        read()
    except MemoryError:  # what the first attempt took may still be held
        return True
    except Exception as error:
        if not _may_be_damage(error):
            raise
        return True
    return False


def _may_be_damage(error: Exception) -> bool:
    is_known = type(error).__module__.partition(".")[0] in _LIBRARIES and not isinstance(error, TimeoutError)
    return is_known and getattr(error, "errno", None) is None  # a number is the system's
