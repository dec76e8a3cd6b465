"""What fuzzing and forging found, in its smallest form; and a glance at the fuzzer itself."""

import io
import struct
import zlib
from collections.abc import Callable

import h5py
import pytest

from imgstore.tests.faults import damage, fuzz, hdf5_forms, lmdb_pages
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


def in_dense_links(signature: bytes, *numbers: tuple[int, int]) -> Edit:
    """Nine links more, which HDF5 keeps in a heap and a B-tree; in the header of one of them some bytes are others."""

    def edit(data: bytes) -> bytes:
        file = io.BytesIO(data)
        with h5py.File(file, "r+", libver="latest") as opened:
            for number in range(9):
                opened[f"a{number}"] = opened["labels"]
        written = file.getvalue()
        built, new = hdf5_forms.Built(written, list(hdf5_forms.seals(written)), []), bytearray(written)
        for offset, number in numbers:
            new[written.index(signature) + offset] = number
        return built.sealed(bytes(new))

    return edit


def under_a_branch(*children: int) -> Edit:
    """A new root over the old one, which leads to these pages, counted from the new one backwards."""

    def edit(data: bytes) -> bytes:
        page = len(data) // damage.PAGE
        new = bytearray(data + lmdb_pages.branch(page, [page - child for child in children]))
        for meta in (0, damage.PAGE):
            struct.pack_into("<H", new, meta + lmdb_pages.META["depth"][0], 2)
            struct.pack_into("<Q", new, meta + lmdb_pages.META["root"][0], page)
            struct.pack_into("<Q", new, meta + lmdb_pages.META["last page"][0], page)
        return bytes(new)

    return edit


DENSE = {  # what came of `imgstore.verify`
    "SIGFPE": in_dense_links(b"BTHD", (10, 0), (11, 0)),
    "SIGSEGV, of another kind of tree": in_dense_links(b"BTHD", (5, 0)),
    "SIGSEGV, of a heap of no width": in_dense_links(b"FRHP", (110, 0)),
    "no end, of nodes of 0 bytes": in_dense_links(b"BTHD", (7, 0)),
    "no end, of large records": in_dense_links(b"BTHD", (9, 255)),
}
ASTRAY = {
    "SIGABRT, of one child": under_a_branch(1),
    "a branch below itself": under_a_branch(0, 0),
    "a branch over what is no page of the tree": under_a_branch(2, 3),
}


FOUND: list[tuple[str, str, Edit]] = [
    ("lmdb", "images.mdb", first_id_negative),
    ("disk", "00000000.png", profile_behind_the_pixels),
    ("disk", "00000000.png", header_of_another_size),
    ("disk", "singles/00000003.png", header_of_another_size),
]


@pytest.mark.parametrize(("backend", "name", "edit"), FOUND, ids=[f"{name}-{edit.__name__}" for _, name, edit in FOUND])
def test_found(backend: str, name: str, edit: Edit) -> None:
    assert found(backend, name, edit) == ""


@pytest.mark.parametrize("name", ["images.h5", "singles/00000003.h5"])
@pytest.mark.parametrize("what", DENSE)
def test_found_in_hdf5(what: str, name: str) -> None:
    assert found("hdf5", name, DENSE[what]) == ""


@pytest.mark.parametrize("name", ["images.mdb", "singles/00000003.mdb"])
@pytest.mark.parametrize("what", ASTRAY)
def test_found_in_lmdb(what: str, name: str) -> None:
    assert found("lmdb", name, ASTRAY[what]) == ""


def found(backend: str, name: str, edit: Edit) -> str:
    """What is wrong, in a child, as it may die."""
    store = next(store for store in OURS if store.format == backend)
    sample = damage.sample(store, MANY)

    def attempt(number: int) -> str:
        path = damage.generation_of(root) / name
        data = edit(path.read_bytes())
        assert data != path.read_bytes()
        damage.lay(root, {str(path.relative_to(root)): data})
        damage.reseal_format(backend, root)
        return "; ".join(Reading(store, root, sample.held, harmless=False).problems())

    with damage.memory_directory() as root:
        damage.lay_out(root, sample.files)
        (outcome,) = damage.in_children(lambda: attempt, 1, seconds=10)
    return outcome


@pytest.mark.parametrize("store", OURS, ids=str)
def test_fuzzed(store: Store, is_long: bool, pytestconfig: pytest.Config) -> None:
    count = LONG_CASES if is_long else CASES
    with damage.memory_directory() as root:
        cases = fuzz.fuzz(store.format, pytestconfig.getoption("--fault-seed", default=0), root)
        found = list(damage.in_children(cases.prepare, count))
    problems = {number: outcome for number, outcome in enumerate(found) if outcome not in (READ, REFUSED)}
    assert not problems
    assert REFUSED in found
