"""File systems of our own: a small one in memory, and one on a loop device whose power can be cut."""

import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IMAGE_BYTES = 512 << 20  # sparse; XFS takes no less than 300 MB
_PLENTY = 1 << 14  # pages, and files
_RDONLY, _REMOUNT = 1, 32  # MS_RDONLY, MS_REMOUNT
_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, in XFS too: what xfstests' `godown` uses
_NOLOGFLUSH = struct.pack("I", 2)
_SMALL_IMAGE_BYTES, _BLOCK = 16 << 20, 4096
_FIBMAP = 1  # gives the block of the device where a block of a file lies
_libc = ctypes.CDLL(None, use_errno=True)


class Memory:
    """A tmpfs of which a given number of pages or files is free."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mount("size=64m,mode=0755")
        (path / "one page").write_bytes(b"1")  # a size of 0 would be no limit

    def leave(self, pages: int = _PLENTY, files: int = _PLENTY) -> None:
        """Set how much is free."""
        status, page = os.statvfs(self.path), os.sysconf("SC_PAGE_SIZE")
        pages += status.f_blocks - status.f_bfree
        files += status.f_files - status.f_ffree
        self._mount(f"size={pages * page},nr_inodes={files}", _REMOUNT)

    def forbid_writing(self) -> None:
        self._mount("", _REMOUNT | _RDONLY)

    def _mount(self, options: str, flags: int = 0) -> None:
        if _libc.mount(b"tmpfs", os.fsencode(self.path), b"tmpfs", flags, options.encode()):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(self.path))


@contextmanager
def memory(path: Path) -> Iterator[Memory]:
    """A tmpfs at `path`; skips where mounting is not allowed."""
    path.mkdir()
    try:
        mounted = Memory(path)
    except OSError as error:
        pytest.skip(f"a tmpfs cannot be mounted: {error}")
    try:
        yield mounted
    finally:
        unmount(path)


class Disk:
    """A file system of this kind in a file, on a loop device; an ext4 perhaps without a journal."""

    def __init__(self, folder: Path, kind: str, journal: bool = True) -> None:
        self.kind, self._image, self.path = kind, folder / "image", folder / "mounted"
        self._left = None if journal else folder / "left"  # what has got to the device when the power is cut
        self.path.mkdir()
        with open(self._image, "wb") as image:
            image.truncate(_IMAGE_BYTES)
        run(f"mkfs.{kind}", "-q", *([] if journal else ["-O", "^has_journal"]), self._image)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", self._image, self.path)

    def cut(self) -> None:
        """What is not on the device yet never gets there: neither data nor what the journal has not committed."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _NOLOGFLUSH)
        finally:
            os.close(descriptor)
        if self._left:  # without a journal, to unmount it would still write what changed in its folders
            run("cp", "--sparse=always", self._image, self._left)

    def restart(self) -> None:
        """Mount it as after a power cut: the journal is replayed, or else the file system mended."""
        run("umount", self.path)
        if self._left:
            os.replace(self._left, self._image)
            subprocess.run(["e2fsck", "-fy", self._image], capture_output=True, check=False)  # 1: it has mended
        self.mount()


@contextmanager
def disk(folder: Path, kind: str, journal: bool = True) -> Iterator[Disk]:
    """A file system on a loop device; skips where it cannot be made or mounted."""
    folder.mkdir()
    try:
        try:
            mounted = Disk(folder, kind, journal)
            mounted.cut()
            mounted.restart()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no {kind} can be made, mounted and cut off: {error}")
        yield mounted
    finally:
        unmount(folder / "mounted")


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def unmount(path: Path) -> None:
    """Also while something holds a file open, and where an earlier step has failed."""
    if os.path.ismount(path) and subprocess.run(["umount", path], capture_output=True, check=False).returncode:
        run("umount", "--lazy", path)


class Sectors:
    """A small ext4, mounted read-only, of which all from a chosen block on cannot be read: its device ends there."""

    def __init__(self, folder: Path) -> None:
        self._image, self.path = folder / "image", folder / "mounted"
        self.path.mkdir()
        with open(self._image, "wb") as image:
            image.truncate(_SMALL_IMAGE_BYTES)
        run("mkfs.ext4", "-q", "-b", str(_BLOCK), self._image)
        run("mount", "-o", "loop,noatime", self._image, self.path)

    def freeze(self) -> None:
        """No more is written; what is there now comes back with `restore`."""
        run("mount", "-o", "remount,ro", self.path)
        self._whole = self._image.read_bytes()

    def lose(self, file: Path, block: int) -> None:
        """Let nothing be read from this block of a file on, but for pages of it that a process has mapped."""
        with open(file, "rb") as lost:
            where = fcntl.ioctl(lost, _FIBMAP, struct.pack("i", block))
            os.posix_fadvise(lost.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.truncate(self._image, struct.unpack("i", where)[0] * _BLOCK)

    def restore(self) -> None:
        """Have the whole device again, and all files in the page cache."""
        with open(self._image, "r+b") as image:
            at = image.seek(0, os.SEEK_END)
            image.write(self._whole[at:])
        for path in self.path.rglob("*"):
            if path.is_file():
                path.read_bytes()


@contextmanager
def sectors(folder: Path) -> Iterator[Sectors]:
    """A file system whose sectors can be lost; skips where it cannot be made, or does not fail as it should."""
    folder.mkdir()
    try:
        try:
            mounted = Sectors(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no ext4 can be made and mounted on a loop device: {error}")
        yield mounted
    finally:
        unmount(folder / "mounted")
