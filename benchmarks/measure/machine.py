"""Memory, disk and caches of this machine."""

import os
import shutil
from collections.abc import Iterator


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
