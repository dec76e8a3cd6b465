"""Files that claim to be CIFAR-10 and ask for all memory or time."""

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
from imgstore.sources.pickled import read_whole

A_MINUTE = 60
MEBIBYTE = 1 << 20
IMAGES, ROOM = 6 * cifar10.LARGEST_BATCH, 64 * MEBIBYTE  # bytes: of what is returned, and what may be held beside it


def colliding(count: int) -> bytes:
    """A dict whose keys have one hash."""
    keys = ((i * (2**61 - 1)).to_bytes(11, "little") for i in range(count))
    return b"\x80\x02}(" + b"".join(pickle.LONG1 + b"\x0b" + key + b"N" for key in keys) + b"u."


PICKLES: dict[str, tuple[bytes, str]] = {  # what a file asks for, and how it is refused
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
    "a long name": ([header(tarfile.GNUTYPE_LONGNAME, 1 << 28), *zeros(256)], "its headers are larger"),
    "a long pax header": ([header(tarfile.XHDTYPE, 1 << 30), b"9 a=bcde\n" * 1000], "its headers are larger"),
    "a large file that is skipped": ([header(tarfile.REGTYPE, 1 << 33), *zeros(1)], "it is larger than 218103808"),
    "many files": ([header(tarfile.REGTYPE, 0) * 1002], "it has more than 1000 files"),
    "a large batch": ([header(tarfile.REGTYPE, 1 << 33, "data_batch_1"), *zeros(1)], "it is larger than 33554432"),
}


CASES: dict[str, tuple[bytes | Iterable[bytes], str]] = {**PICKLES, **ARCHIVES}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each, by a process that has little more memory than an idle one."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (content, _) in CASES.items():
        if isinstance(content, bytes):
            (folder / name).mkdir()
            (folder / name / "data_batch_1").write_bytes(content)
        else:
            with gzip.open(folder / name, "wb", 1) as file:
                file.writelines(content)
    script = f"""
import resource
from imgstore.errors import SourceError
from imgstore.sources import open_source
idle = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (idle + {IMAGES + ROOM},) * 2)
for name in {list(CASES)!r}:
    try:
        open_source({str(folder)!r} + "/" + name)
    except SourceError as error:
        print(name, error, sep="\t", flush=True)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=A_MINUTE
    )
    assert ended.returncode == 0, ended
    return dict(line.split("\t") for line in ended.stdout.splitlines())


@pytest.mark.parametrize("name", CASES)
def test_what_asks_for_all_memory_or_time_is_refused(told: dict[str, str], name: str) -> None:
    """In one sentence, for the reason that it is refused for, and not for want of memory."""
    assert ": not readable as CIFAR-10 from " in told[name] and f" on ({CASES[name][1]}" in told[name]


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


def test_a_file_that_is_cut_while_it_is_read_is_refused() -> None:
    assert read_whole(io.BytesIO(b"abc"), 3) == b"abc"
    with pytest.raises(EOFError):
        read_whole(io.BytesIO(b"abc"), 4)
