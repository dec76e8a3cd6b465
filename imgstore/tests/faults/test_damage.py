"""Flipped bits, overwritten bytes, cut, removed and swapped files: reading gives what was stored, or refuses."""

import contextlib
import itertools
import re
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import lmdb as py_lmdb
import numpy as np
import pytest

import imgstore
from imgstore import lmdb
from imgstore.core.checksums import image_checksum
from imgstore.errors import CorruptStoreError, StoreNotFoundError
from imgstore.tests.checks import Record, record, records
from imgstore.tests.faults import damage, lmdb_pages
from imgstore.tests.faults.changes import OURS, Store
from imgstore.tests.faults.damage import CURRENT, READ, REFUSED, Attempt, Changes, Files, Pair, Places, Read, Sample
from imgstore.tests.faults.tally import Tally

WRONG = "WRONG"
LOCK, TABLE = "LOCK", "labels.csv"

Draw = Callable[[Files, Places, Random], Changes]

LONG: dict[Draw, int] = {damage.damaged: 10_000, damage.cut: 1_000, damage.appended: 400}
SHORT: dict[Draw, int] = {damage.damaged: 120, damage.cut: 50, damage.appended: 20}
SHORT_PLAIN: dict[Draw, int] = {damage.damaged: 60, damage.cut: 20, damage.appended: 10}


@pytest.fixture
def samples(store: Store) -> list[Sample]:
    return [damage.sample(store, contents) for contents in (damage.CONTENTS if store.ours else damage.PLAIN_CONTENTS)]


class Trial(NamedTuple):
    """A damaged store, and what it held."""

    store: Store
    root: Path
    held: dict[int, Record]
    changes: Changes

    def judged(self) -> str:
        """What every way of reading came to, in a line."""
        ids = list(self.held)
        outcomes = {self.outcome(*way) for way in damage.reads(self.store, self.root, ids)}
        verified = {self.outcome([], self.verify)} if self.store.ours else set()
        unchecked = {
            damage.survival(way[1]) for way in damage.reads(self.store, self.root, ids, verify=False) if self.store.ours
        }
        bad = (outcomes | verified | unchecked) - {READ, REFUSED}
        if bad:
            return min(bad)
        touched = REFUSED in outcomes or any(name.endswith(TABLE) for name in self.changes)
        if self.store.ours and touched and REFUSED not in verified:
            return "not found by verify"
        return REFUSED if REFUSED in outcomes | verified else READ

    def outcome(self, asked: list[int], read: Read) -> str:
        try:
            got = [record(*pair) for pair in read()]
        except Exception as error:
            refused = not self.store.ours or self.is_refusal(error, asked or list(self.held))
            return REFUSED if refused else f"raised {type(error).__name__}: {error}"
        return READ if got == [self.held[image_id] for image_id in asked] else WRONG

    def is_refusal(self, error: Exception, asked: list[int]) -> bool:
        """Whether the error names what was damaged, and no image that was not asked for."""
        if isinstance(error, StoreNotFoundError):
            return self.changes.get(CURRENT, b"") is None
        named = {str(self.root / name) for name in self.changes}
        return isinstance(error, CorruptStoreError) and error.path in named and error.image_id in {None, *asked}

    def verify(self) -> list[Pair]:
        imgstore.verify(self.root)
        return []


def judged(store: Store, samples: list[Sample], changed: Callable[[int], Changes], count: int) -> list[str]:
    """The outcomes of so many changes, each to the next of the samples, in children."""
    with damage.memory_directory() as directory:

        def prepare() -> Attempt:
            for number, sample in enumerate(samples):
                damage.lay_out(directory / str(number), sample.files)
            return attempt

        def attempt(number: int) -> str:
            root, sample = directory / str(number % len(samples)), samples[number % len(samples)]
            changes = changed(number)
            damage.lay(root, changes)
            limit = damage.limited_memory() if store.ours else contextlib.nullcontext()  # plain py-lmdb maps a GiB
            try:
                with limit:
                    return Trial(store, root, sample.held, changes).judged()
            finally:
                damage.lay(root, {name: sample.files[name] for name in changes})

        return list(damage.in_children(prepare, count))


def drawn(samples: list[Sample], draw: Draw, seed: int) -> Callable[[int], Changes]:
    """The damage of a number: the same for the same seed."""
    places = [Places(sample) for sample in samples]

    def changed(number: int) -> Changes:
        of = number % len(samples)
        return draw(samples[of].files, places[of], Random(f"{seed} {draw.__name__} {number}"))

    return changed


def noted(tally: Tally, fault: str, store: Store, found: list[str]) -> list[str]:
    """What was found, counted; of ours nothing but what was stored, and refusals."""
    for outcome in found:
        tally.add(fault, store, outcome.split(":")[0])
    bad = [f"{number}: {outcome}" for number, outcome in enumerate(found) if outcome not in (READ, REFUSED)]
    assert not (bad and store.ours), f"{len(bad)} of {len(found)}:\n" + "\n".join(bad[:20])
    return found


@pytest.mark.parametrize("draw", LONG, ids=lambda draw: draw.__name__)
def test_damage(
    store: Store, samples: list[Sample], draw: Draw, tally: Tally, is_long: bool, pytestconfig: pytest.Config
) -> None:
    count = (LONG if is_long else SHORT if store.ours else SHORT_PLAIN)[draw]
    changed = drawn(samples, draw, pytestconfig.getoption("--fault-seed", default=0))
    found = noted(tally, f"bytes {draw.__name__}", store, judged(store, samples, changed, count))
    assert REFUSED in found or not store.ours


def test_removed(store: Store, samples: list[Sample], tally: Tally) -> None:
    for sample in samples:
        changes: list[Changes] = [{name: None} for name in sample.files if name != LOCK]
        noted(tally, "file removed", store, judged(store, [sample], changes.__getitem__, len(changes)))


def test_swapped(store: Store, samples: list[Sample], tally: Tally) -> None:
    for sample in samples[::2]:
        names = [name for name in sample.files if sample.files[name]]
        # an older image of the same id is whole in itself: nothing tells that its file was put in the newer's place
        pairs = [pair for pair in itertools.combinations(names, 2) if not brings_back(*pair)]
        changes: list[Changes] = [{a: sample.files[b], b: sample.files[a]} for a, b in pairs]
        found = noted(tally, "two files swapped", store, judged(store, [sample], changes.__getitem__, len(changes)))
        assert READ not in found or not store.ours


def brings_back(one: str, other: str) -> bool:
    """Whether a single and the file of the many are swapped, which hold images of the same id."""
    return ("/singles/" in one) != ("/singles/" in other) and Path(one).suffix == Path(other).suffix


@pytest.mark.parametrize("store", OURS, ids=str)
def test_names_the_file_and_the_image(store: Store, samples: list[Sample], tmp_path: Path) -> None:
    for sample in samples[:1] + samples[3:4]:  # in the others LMDB's tree holds pixels, and is refused as a whole
        damage.lay_out(tmp_path, sample.files)
        for image_id in sample.held:
            name, at = place_of(sample, image_id)
            data = bytearray(sample.files[name])
            data[at] ^= 1
            damage.lay(tmp_path, {name: bytes(data)})
            with pytest.raises(CorruptStoreError) as raised:
                store.verbs.read_single(tmp_path, image_id)
            assert (raised.value.path, raised.value.image_id) == (str(tmp_path / name), image_id)
            damage.lay(tmp_path, {name: sample.files[name]})


def place_of(sample: Sample, image_id: int) -> tuple[str, int]:
    """Where a pixel of an image lies."""
    names = [name for name in sample.files if not name.endswith(".png") or Path(name).stem == f"{image_id:08d}"]
    for name in sorted(names, key=lambda name: "/singles/" not in name):
        found = np.flatnonzero(damage.pixel_places(name, sample.files[name], {image_id: sample.held[image_id]}))
        if found.size:
            return name, int(found[found.size // 2])
    raise AssertionError(f"image {image_id} is in no file")


@pytest.mark.parametrize("store", OURS, ids=str)
def test_images_that_changed_places(store: Store, tmp_path: Path) -> None:
    """Each with its label and checksum, whole in itself: as a wrong number of a page would hand it back."""
    images, label = [damage.image(number, 3) for number in range(2)], 5
    store.verbs.store_many(tmp_path, images, [label, label], durable=False)
    parts = [(image.tobytes(), image_checksum(image, number, label)) for number, image in enumerate(images)]
    files = {name: data for name, data in damage.files_of(tmp_path).items() if "/0" in name or "images" in name}
    damage.lay(tmp_path, dict(zip(files, map(swapped, reversed(files.values()), [parts] * len(files)), strict=True)))
    calls = [partial(store.verbs.read_single, tmp_path, number) for number in range(2)]
    calls += [partial(store.verbs.read_many, tmp_path, [number]) for number in range(2)]
    for read in (*calls, partial(store.verbs.read_many, tmp_path), partial(imgstore.verify, tmp_path)):
        with pytest.raises(CorruptStoreError):
            read()


def swapped(data: bytes, parts: list[tuple[bytes, int]]) -> bytes:
    """A file with the two images in one another's place; a PNG, which holds one, with the other's id."""
    if data.startswith(damage.PNG):
        new = re.sub(rb"id=(\d)", lambda found: b"id=%d" % (1 - int(found[1])), data)
        return damage.sealed("x.png", new, damage.png_spans(new))
    (one, one_sum), (other, other_sum) = ((part, checksum.to_bytes(8, "little")) for part, checksum in parts)
    places = {one: other, other: one, one_sum: other_sum, other_sum: one_sum}
    return re.sub(b"|".join(map(re.escape, places)), lambda found: places[found[0]], data, flags=re.DOTALL)


def test_a_shortage_of_memory_is_no_damage(backend: Any, tmp_path: Path) -> None:
    image = np.zeros((6000, 6000, 3), np.uint8)  # more than malloc keeps of what other tests gave back
    backend.store_many(tmp_path, [image], [1], durable=False)
    with damage.limited_memory(image.nbytes // 2), pytest.raises((MemoryError, OSError)) as raised:
        backend.read_single(tmp_path, 0)
    assert not isinstance(raised.value, CorruptStoreError)
    assert record(*backend.read_single(tmp_path, 0)) == record(image, 1)


def test_pages_of_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LMDB makes pages as large as those of the machine, and ours are of 4 KiB mostly: here they have 16."""
    images = [damage.image(number, 0) for number in range(3)]
    lmdb.store_many(tmp_path, images, [1, 2, 3], durable=False)
    path, page = damage.generation_of(tmp_path) / "images.mdb", 1 << 14
    with (
        py_lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as reading,
    ):
        ((key, value),) = reading.cursor()
    monkeypatch.setattr(lmdb_pages, "PAGE", page)
    value = value.ljust(page // 2, b"\0")
    leaf = lmdb_pages.leaf(2, [(int.from_bytes(key, "big"), len(value), 3)])
    content = (struct.pack("<QHHI", 3, 0, lmdb_pages.OVERFLOW, 1) + value).ljust(page, b"\0")
    data = b"".join([*(lmdb_pages.meta(number, 1, 3) for number in (0, 1)), leaf, content])
    damage.lay(tmp_path, {str(path.relative_to(tmp_path)): data})
    damage.reseal_tree(tmp_path)
    imgstore.verify(tmp_path)
    assert records(*lmdb.read_many(tmp_path)) == records(images, [1, 2, 3])
    assert record(*lmdb.read_single(tmp_path, 1)) == record(images[1], 2)


@pytest.mark.parametrize(("version", "says"), [("2", "409e50d"), ("4", "another version")])
def test_another_version_of_the_format(version: str, says: str, backend: Any, tmp_path: Path) -> None:
    backend.store_many(tmp_path, [damage.image(1, 0)], [1], durable=False)
    damage.reseal(tmp_path, version=version)
    with pytest.raises((CorruptStoreError, StoreNotFoundError), match=says):
        imgstore.open_reader(tmp_path)


def test_a_folder_with_the_largest_number(backend: Any, tmp_path: Path) -> None:
    (tmp_path / "imgstore-999999999999999999-aaaaaaaaaaaa").mkdir()
    backend.store_many(tmp_path, [damage.image(1, 0)], [1], durable=False)
    assert records(*backend.read_many(tmp_path)) == records([damage.image(1, 0)], [1])


def test_a_single_whose_file_is_gone_is_missed(backend: Any, tmp_path: Path) -> None:
    backend.store_single(tmp_path, damage.image(1, 0), 3, 1, durable=False)
    (single,) = tmp_path.glob("*/singles/*")
    single.unlink()
    for read in (partial(backend.read_single, tmp_path, 3), partial(imgstore.verify, tmp_path)):
        with pytest.raises(CorruptStoreError) as raised:
            read()
        assert (raised.value.path, raised.value.image_id) == (str(single), 3)
