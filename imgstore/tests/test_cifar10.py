"""Files that claim to be CIFAR-10 and ask for all memory or time, each read in a process of its own."""

import gzip
import io
import pickle
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from imgstore.errors import SourceError
from imgstore.sources import cifar10, open_source

A_MINUTE = 60
MEBIBYTE = 1 << 20
IMAGES, ROOM = 6 * cifar10.LARGEST_BATCH, 64 * MEBIBYTE  # bytes: of what is returned, and what may be held beside it


def colliding(count: int) -> bytes:
    """A dict whose keys have one hash."""
    keys = ((i * (2**61 - 1)).to_bytes(11, "little") for i in range(count))
    return b"\x80\x02}(" + b"".join(pickle.LONG1 + b"\x0b" + key + b"N" for key in keys) + b"u."


PICKLES = {  # what a file asks for, and how it is refused
    "a high index of the memo": (b"\x80\x02K\x00r" + struct.pack("<I", 0x0C000000) + b".", "it holds no uint8"),
    "keys with one hash": (colliding(100_000), "it has the opcode"),
    "a key that is a tree of tuples": (
        b"\x80\x02}" + b"N\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"Ns.",
        "it has a dict",
    ),
    "many keys": (b"\x80\x02}(" + b"".join(b"U\x01" + bytes([i]) + b"N" for i in range(200)) + b"u.", "it has a dict"),
    "many lists": (b"\x80\x02" + b"]" * (31 * MEBIBYTE) + b".", "it has more opcodes"),
    "a text that is not there": (b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b".", "it has more opcodes, or longer"),
    "a long line": (b"\x80\x02S'" + b"a" * (31 * MEBIBYTE) + b"'\n.", "the STRING opcode argument must be quoted"),
    "a large integer": (b"\x80\x02\x8b" + struct.pack("<i", 2**24) + b"\x7f" * 2**24 + b".", "it has the opcode"),
}


def header(kind: bytes, size: int, name: str = "cifar-10-batches-py/readme.html") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def zeros(mebibytes: int) -> list[bytes]:
    return [bytes(MEBIBYTE)] * mebibytes


ARCHIVES: dict[str, tuple[Iterable[bytes], str]] = {
    "a long name": ([header(tarfile.GNUTYPE_LONGNAME, 1 << 29), *zeros(512)], "its headers are larger"),
    "a long pax header": ([header(tarfile.XHDTYPE, 1 << 30), b"9 a=bcde\n" * 1000], "its headers are larger"),
    "a large file that is skipped": ([header(tarfile.REGTYPE, 1 << 33), *zeros(1)], "it is larger than 218103808"),
    "many files": ([header(tarfile.REGTYPE, 0) * 1002], "it has more than 1000 files"),
    "a large batch": ([header(tarfile.REGTYPE, 1 << 33, "data_batch_1"), *zeros(1)], "it is larger than 33554432"),
}


def must_be_refused_within_bounds(location: Path, reason: str) -> None:
    """In one sentence, and with little more memory than an idle process."""
    script = f"""
import resource
from imgstore.errors import SourceError
from imgstore.sources import open_source
idle = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (idle + {IMAGES + ROOM},) * 2)
try:
    open_source({str(location)!r})
except SourceError as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=A_MINUTE,
    )
    assert ended.returncode == 0 and ended.stdout.startswith(f"{location}: not readable as CIFAR-10"), ended
    assert f"({reason}" in ended.stdout and ended.stdout.count("\n") == 1, ended


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_takes_neither_time_nor_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "data_batch_1").write_bytes(PICKLES[name][0])
    must_be_refused_within_bounds(tmp_path, PICKLES[name][1])


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_takes_neither_time_nor_memory(tmp_path: Path, name: str) -> None:
    with gzip.open(tmp_path / "cifar.tar.gz", "wb", 1) as file:
        file.writelines(ARCHIVES[name][0])
    must_be_refused_within_bounds(tmp_path / "cifar.tar.gz", ARCHIVES[name][1])


def test_both_versions_in_one_folder_are_read_as_the_first(tmp_path: Path) -> None:
    """Nothing of the one stands in the place of the other."""
    for name in cifar10.BINARY_BATCHES:
        (tmp_path / name).write_bytes(b"\x03" + bytes(3072))
    source = open_source(tmp_path)
    assert isinstance(source, cifar10.Cifar10) and source.labels.tolist() == [3] * 6
    (tmp_path / "test_batch").write_bytes(b"no batch")
    with pytest.raises(SourceError, match="test_batch"):
        open_source(tmp_path)


def test_a_file_in_an_archive_that_ends_early_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO(header(tarfile.REGTYPE, 3073 * 2, "data_batch_1.bin") + bytes(3073))
    (tmp_path / "cifar.tar").write_bytes(content.getvalue())
    with pytest.raises(SourceError, match=r"data_batch_1\.bin on"):
        open_source(tmp_path / "cifar.tar")
