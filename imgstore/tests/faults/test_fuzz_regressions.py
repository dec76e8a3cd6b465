"""What fuzzing and forging found, in its smallest form; and a glance at the fuzzer itself."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from imgstore.tests.faults import damage, fuzz
from imgstore.tests.faults.changes import OURS, Store
from imgstore.tests.faults.damage import READ, REFUSED, Reading

CASES = 60  # of the fuzzer, in the short form
LONG_CASES = 5_000
MANY = damage.Contents(1, damage.SMALL_BLOCKS, [(3, 0)])

Edit = Callable[[bytes], bytes]


def first_id_negative(data: bytes) -> bytes:
    """The second block's: a struct.error came of packing its key."""
    return data.replace(struct.pack("<qQ", 3, 3), struct.pack("<qQ", -1, 3), 1)


def profile_behind_the_pixels(data: bytes) -> bytes:
    """An empty iCCP: Pillow raised an IndexError when it loaded the pixels."""
    at = data.index(b"IEND") - 4
    return data[:at] + damage.png_chunk(b"iCCP", b"") + data[at:]


def header_of_another_size(data: bytes) -> bytes:
    """The pixels were read by what the text tells, and the header was passed over."""
    at = data.index(b"IHDR")
    header = struct.pack(">2I", 40, 10) + data[at + 12 : at + 17]
    return data[: at + 4] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[at + 21 :]


FOUND: list[tuple[str, str, Edit]] = [
    ("lmdb", "images.mdb", first_id_negative),
    ("disk", "00000000.png", profile_behind_the_pixels),
    ("disk", "00000000.png", header_of_another_size),
    ("disk", "singles/00000003.png", header_of_another_size),
]


@pytest.mark.parametrize(("backend", "name", "edit"), FOUND, ids=[f"{name}-{edit.__name__}" for _, name, edit in FOUND])
def test_found(backend: str, name: str, edit: Edit, tmp_path: Path) -> None:
    store = next(store for store in OURS if store.format == backend)
    sample = damage.sample(store, MANY)
    damage.lay_out(tmp_path, sample.files)
    path = damage.generation_of(tmp_path) / name
    data = edit(path.read_bytes())
    assert data != path.read_bytes()
    damage.lay(tmp_path, {str(path.relative_to(tmp_path)): data})
    damage.reseal_format(backend, tmp_path)
    assert not list(Reading(store, tmp_path, sample.held, harmless=False).problems())


@pytest.mark.parametrize("store", OURS, ids=str)
def test_fuzzed(store: Store, is_long: bool, pytestconfig: pytest.Config) -> None:
    count = LONG_CASES if is_long else CASES
    with damage.memory_directory() as root:
        cases = fuzz.fuzz(store.format, pytestconfig.getoption("--fault-seed", default=0), root)
        found = list(damage.in_children(cases.prepare, count))
    problems = {number: outcome for number, outcome in enumerate(found) if outcome not in (READ, REFUSED)}
    assert not problems
    assert REFUSED in found
