"""Files that are cut while they are open, and sectors that cannot be read: a read fails, the process does not end."""

import ctypes
import os
import platform
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import imgstore
from imgstore.tests.checks import record
from imgstore.tests.faults.changes import OURS, STORES, Store, ours
from imgstore.tests.faults.damage import READ, REFUSED, in_children
from imgstore.tests.faults.mounts import Sectors, sectors
from imgstore.tests.faults.tally import Tally, Tries
from imgstore.tests.faults.ways import CONTENTS, OPEN, UNSHARDED, Attempt, Contents, Sample, attempts, made, outcome

CUT, UNREADABLE = "cut while open", "unreadable sector"
TIMES = Tries(600, 8, 300, 10)  # for each kind of contents
PAGE = 4096


def files_of(sample: Sample) -> list[Path]:
    """Those of more than nothing, the largest last."""
    found = [path for path in sample.root.rglob("*") if path.is_file() and path.stat().st_size]
    return sorted(found, key=lambda path: (path.stat().st_size, path))


def tried(attempt: Attempt, sample: Sample, random: Random, fault: Callable[[], None]) -> str:
    try:
        return attempt.made(sample, random, fault)
    except Exception as error:
        return f"before the fault: {type(error).__name__}: {error}"


def judged(fault: str, store: Store, tally: Tally, came: Iterator[tuple[object, str]]) -> None:
    wrong = []
    for attempt, what in came:
        tally.add(fault, store, what.partition(":")[0])
        if what not in (READ, REFUSED):
            wrong.append(f"{attempt}: {what}")
    assert not wrong or not store.ours, f"{len(wrong)}: {wrong[:20]}"


WHILE_OPEN = {"open": ["opened", "read", "meanwhile"], "fresh": ["meanwhile"]}


def cut(sample: Sample, random: Random) -> Callable[[], None]:
    """Cuts one file, most often the largest, to some length."""
    paths = files_of(sample)
    path = random.choice([random.choice(paths), *paths[-1:] * 4])
    size = path.stat().st_size
    pages = random.randrange(size // PAGE + 1) * PAGE
    length = random.choice([0, 1, pages, pages, size // 2, random.randrange(size), random.randrange(size), size - 1])
    return partial(os.truncate, path, length)


@ours
@pytest.mark.parametrize("contents", CONTENTS.values(), ids=CONTENTS)
def test_cut_while_open(
    store: Store, contents: Contents, in_memory: Path, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    template, seed = made(store, contents, in_memory / "template"), int(random.integers(2**32))
    sample = template._replace(root=in_memory / "store")
    tries = attempts(contents, WHILE_OPEN, TIMES.of(store, is_long), Random(seed))

    def attempt(number: int) -> str:
        shutil.rmtree(sample.root, ignore_errors=True)
        shutil.copytree(template.root, sample.root)
        drawn = Random(f"{seed} {number}")
        return tried(tries[number], sample, drawn, cut(sample, drawn))

    judged(CUT, store, tally, zip(tries, in_children(lambda: attempt, len(tries)), strict=True))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Sectors]:
    with sectors(tmp_path / "device") as device:
        yield device


WHEN_LOST = {"open": ["opened", "read"], "fresh": ["at once"]}


def lost(sample: Sample, device: Sectors, random: Random) -> Callable[[], None]:
    """Loses what lies from some block of a file on, most often of the largest."""
    paths = files_of(sample)
    path = random.choice([random.choice(paths), *paths[-1:] * 3])
    return partial(device.lose, path, random.randrange(-(-path.stat().st_size // PAGE)))


@ours
@pytest.mark.parametrize("contents", CONTENTS.values(), ids=CONTENTS)
def test_unreadable_sector(
    store: Store, contents: Contents, device: Sectors, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    sample, seed = made(store, contents, device.path / "store"), int(random.integers(2**32))
    device.freeze()
    tries = attempts(contents, WHEN_LOST, TIMES.of(store, is_long), Random(seed))

    def attempt(number: int) -> str:
        device.restore()
        drawn = Random(f"{seed} {number}")
        return tried(tries[number], sample, drawn, lost(sample, device, drawn))

    judged(UNREADABLE, store, tally, zip(tries, in_children(lambda: attempt, len(tries)), strict=True))


@pytest.mark.parametrize("store", STORES[len(OURS) :], ids=str)
def test_unreadable_sector_of_plain(
    store: Store, device: Sectors, tally: Tally, is_long: bool, random: np.random.Generator
) -> None:
    sample, seed = made(store, CONTENTS["one form"], device.path / "store"), int(random.integers(2**32))
    device.freeze()
    tries = ["read_single", "backend.read_many"] * (TIMES.of(store, is_long) // 2)

    def attempt(number: int) -> str:
        device.restore()
        lost(sample, device, Random(f"{seed} {number}"))()
        came = outcome(sample, partial(UNSHARDED[tries[number]], sample, True))
        return REFUSED if came.startswith("raised") else came

    judged(UNREADABLE, store, tally, zip(tries, in_children(lambda: attempt, len(tries)), strict=True))


FAR = 900  # an image behind the cut


@ours
@pytest.mark.parametrize("verify", [True, False])
def test_images_behind_the_cut(store: Store, verify: bool, in_memory: Path) -> None:
    """A reader that has read goes on behind the end of its file."""
    root, images = in_memory / "store", np.random.default_rng(0).integers(0, 256, (1000, 32, 32), np.uint8)
    store.verbs.store_many(root, images, range(1000), durable=False)
    sample = Sample(store, root, list(range(1000)), [record(each, row) for row, each in enumerate(images)])
    (path,) = [*root.rglob("images.*"), *root.rglob(f"{FAR:08d}.png")]

    def attempt(number: int) -> str:
        reader = imgstore.open_reader(root, verify=verify)
        assert record(*reader[0]) == sample.held[0]
        os.truncate(path, min(2 * PAGE, path.stat().st_size // 2))
        return outcome(sample, lambda: ([FAR], [reader[FAR]]))

    assert list(in_children(lambda: attempt, 1)) == [REFUSED]


@ours
def test_image_in_lost_sectors(store: Store, device: Sectors) -> None:
    """Also where what lies beside the pixels was read before."""
    sample = made(store, CONTENTS["one form"], device.path / "store")
    device.freeze()
    path = files_of(sample)[-1] if store.format == "disk" else next(sample.root.rglob("images.*"))
    last = int(path.stem) if store.format == "disk" else len(sample.ids) - 1
    tries = [(way, is_used) for way in ("reader[i]", "__getitems__", "verify") for is_used in (False, True)]

    def attempt(number: int) -> str:
        device.restore()
        way, is_used = tries[number]
        reader = imgstore.open_reader(sample.root, verify=False)
        if is_used:
            assert [record(*pair) for pair in reader] == sample.held
        device.lose(path, 0)
        return outcome(sample, partial(read_at, last, way, sample, reader))

    for (way, is_used), came in zip(tries, in_children(lambda: attempt, len(tries)), strict=True):
        assert came == REFUSED or (came == READ and is_used), (way, came)  # what a process has mapped stays in memory


def read_at(position: int, way: str, sample: Sample, reader: imgstore.Reader) -> tuple[list[int], Any]:
    if way == "verify":
        imgstore.verify(sample.root)
        return [], []
    return [position], [reader[position]] if way == "reader[i]" else reader.__getitems__([position])


NUMBERS = {"x86_64": 296, "aarch64": 70}  # of pwritev
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER
_LOAD, _EQUAL, _RETURN, _EPERM, _ALLOW = 0x20, 0x15, 0x06, 0x50001, 0x7FFF0000


def forbid(number: int) -> None:
    """Let this system call answer EPERM in this process from now on, as containers do."""
    steps = [(_LOAD, 0, 0, 0), (_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    told = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, told, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter of system calls can be set here")


@ours
@pytest.mark.skipif(platform.machine() not in NUMBERS, reason="the number of pwritev is not known here")
@pytest.mark.parametrize("name", ["one form", "mixed forms", "shards"])
def test_where_reading_many_places_at_once_is_forbidden(store: Store, name: str, in_memory: Path) -> None:
    sample = made(store, CONTENTS[name], in_memory / "store")
    reads = [Attempt(way, verify, "opened") for way in OPEN for verify in (True, False)]

    def prepare() -> Callable[[int], str]:
        forbid(NUMBERS[platform.machine()])
        return lambda number: tried(reads[number], sample, Random(number), lambda: None)

    assert set(in_children(prepare, len(reads))) == {READ}


@ours
@pytest.mark.parametrize("name", ["one form", "mixed forms", "shards"])
def test_cut_in_the_middle_of_a_page(store: Store, name: str, in_memory: Path) -> None:
    """The rest of a page that is mapped reads as zeros, without an error."""
    template = made(store, CONTENTS[name], in_memory / "template")
    sample = template._replace(root=in_memory / "store")
    position = 7  # no single
    pixels = sample.held[position][2]
    (path,) = [path for path in files_of(template) if pixels in path.read_bytes()] or [files_of(template)[-1]]
    end = max(path.read_bytes().find(pixels), 0) + len(pixels) // 2

    def attempt(number: int) -> str:
        shutil.rmtree(sample.root, ignore_errors=True)
        shutil.copytree(template.root, sample.root)
        reader = imgstore.open_reader(sample.root, verify=False)
        assert len(reader.__getitems__(range(len(sample.ids)))) == len(sample.ids)
        os.truncate(sample.root / path.relative_to(template.root), end + (end % PAGE == 0))
        positions = [[position], [6, position], [position, 0, position]][number]
        return outcome(sample, lambda: (positions, reader.__getitems__(positions)))

    expected = {READ, REFUSED} if store.format == "disk" else {REFUSED}
    assert set(in_children(lambda: attempt, 3)) <= expected
