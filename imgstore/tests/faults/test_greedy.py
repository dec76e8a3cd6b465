"""Small stores that ask for everything get little: no verb takes more than an honest store of as many images would."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xxhash

import imgstore
from imgstore import shards
from imgstore.core import blocks as _images
from imgstore.errors import CorruptStoreError
from imgstore.tests.checks import record
from imgstore.tests.faults import damage, greedy, lmdb_pages
from imgstore.tests.faults.changes import OURS, Store, ours
from imgstore.tests.faults.children import forked
from imgstore.tests.faults.damage import PAGE
from imgstore.tests.strategies import pixels

LMDB = next(store for store in OURS if store.format == "lmdb")
HDF5 = next(store for store in OURS if store.format == "hdf5")
IMAGES, LABELS = pixels(1, (6, 20, 20, 3), np.dtype(np.uint8)), [1, 2, 3, 4, 5, 6]
LARGE = (6144, 4096, 4)  # 96 MiB
SMALL = (8, 8)
MANY = {"disk": "labels.csv", "lmdb": "images.mdb", "hdf5": "images.h5"}
SUFFIX = {"disk": ".png", "lmdb": ".mdb", "hdf5": ".h5"}

Make = Callable[[Store, Path], None]


@pytest.fixture
def root() -> Iterator[Path]:
    """On a file system that knows holes, and whose files are not gone before the verbs are done."""
    with damage.memory_directory() as folder:
        yield folder / "store"


def costs(root: Path, image: int = 0, honest: float = 0, verbs: dict[str, greedy.Verb] | None = None) -> dict[str, str]:
    """What verbs take too much, by their names."""
    found = {name: greedy.cost(verb, root).excess(image, honest) for name, verb in (verbs or greedy.VERBS).items()}
    return {name: excess for name, excess in found.items() if excess}


def honest(store: Store, root: Path) -> Path:
    """A store of the six; gives its generation."""
    store.verbs.store_many(root, IMAGES, LABELS, durable=False)
    store.verbs.store_single(root, IMAGES[0], 3, 30, durable=False)
    return damage.generation_of(root)


def entries(root: Path) -> dict[str, Any]:
    text: dict[str, Any] = json.loads((damage.generation_of(root) / "DESCRIPTION").read_bytes())
    return text


def describe(root: Path, **changed: Any) -> None:
    damage.reseal(root, json.dumps(entries(root) | changed, separators=(",", ":")).encode())


# DESCRIPTION


def description(text: bytes) -> Make:
    """What stands there already, and more."""

    def make(store: Store, root: Path) -> None:
        before = (honest(store, root) / "DESCRIPTION").read_bytes()
        damage.reseal(root, before[:-1] + b',"more":' + text + b"}")

    return make


def sparse_description(store: Store, root: Path) -> None:
    os.truncate(honest(store, root) / "DESCRIPTION", 900 << 20)  # its checksum is looked at when it was read


def unknown_needs(store: Store, root: Path) -> None:
    honest(store, root)
    describe(root, needs=[f"{number:x}" for number in range(120_000)])


DESCRIPTIONS: dict[str, Make] = {
    "60 MB of nested lists": description(b"[" + b"[]," * 20_000_000 + b"[]]"),
    "1 MB of nested lists": description(b"[" + b"[]," * 340_000 + b"[]]"),
    "1 MB of objects": description(b"[" + b'{"":0},' * 140_000 + b"{}]"),
    "1 MB of names": description(b"{" + b"".join(b'"%x":[],' % number for number in range(90_000)) + b'"":0}'),
    "1 MB of digits": description(b"9" * 1_000_000),
    "1 MB of openings": description(b"[" * 1_000_000),
    "1 MB of escapes": description(b'"' + rb"\u00e9" * 160_000 + b'"'),
    "900 MiB, most of them a hole": sparse_description,
    "needs that nobody knows": unknown_needs,
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions(name: str, root: Path) -> None:
    """Which are read before any backend has a say."""
    DESCRIPTIONS[name](HDF5, root)
    assert not costs(root)


# files with holes


def extended(store: Store, root: Path, size: int, count: int) -> None:
    """The file of the many is continued by a hole, and DESCRIPTION tells of as many images as could lie there."""
    path = honest(store, root) / MANY[store.format]
    os.truncate(path, size)
    if store.format == "lmdb":
        describe(root, tree=[size, *entries(root)["tree"][1:]])
    describe(root, count=count)


@ours
def test_a_hole_for_more_images(store: Store, root: Path) -> None:
    """No more memory for each image that is claimed than for the claim."""
    extended(store, root, size := (256 << 20) if store.format == "disk" else 1 << 38, size // IMAGES[0].nbytes // 2)
    if store.format == "disk":
        describe(root, count=size // 8)
    verbs = {name: greedy.VERBS[name] for name in ("read one", "verify")} | {"read all": greedy.read_all}
    assert not costs(root, IMAGES[0].nbytes, 60, verbs)


@ours
@pytest.mark.parametrize("part", ["many", "single"])
def test_a_hole_at_the_end(store: Store, part: str, root: Path) -> None:
    """Of a file of 1 TiB."""
    generation = honest(store, root)
    name = MANY[store.format] if part == "many" else f"singles/00000003{SUFFIX[store.format]}"
    os.truncate(generation / name, 1 << 40)
    if (store.format, part) == ("lmdb", "many"):
        describe(root, tree=[1 << 40, *entries(root)["tree"][1:]])
    assert not costs(root, IMAGES[0].nbytes)


@pytest.mark.parametrize("size", [1 << 40, 200 << 20])
@pytest.mark.parametrize("name", ["CURRENT", "LOCK", "SINGLES"])
def test_a_hole_in_a_small_file(name: str, size: int, root: Path) -> None:
    generation = honest(LMDB, root)
    os.truncate(generation / name if name == "SINGLES" else root / name, size)
    assert not costs(root, IMAGES[0].nbytes)


def test_a_table_of_blocks_that_is_a_hole(root: Path) -> None:
    """HDF5's, where sizes differ: 48 bytes for each of four million blocks."""
    HDF5.verbs.store_many(root, [IMAGES[0], IMAGES[1][:5]], [1, 2], durable=False)
    blocks = 1 << 22
    path, table = damage.generation_of(root) / "images.h5", ("checksums", (1 + blocks,), "<u8")
    damage.sparse_hdf5(
        path, [("pixels", (1200,), "u1"), ("labels", (1,), "<i8"), table, ("blocks", (blocks, 6), "<u8")]
    )
    describe(root, count=1)
    damage.reseal_metadata(root)
    assert not costs(root, IMAGES[0].nbytes)


@ours
@pytest.mark.parametrize("part", ["many", "single"])
def test_one_large_image(store: Store, part: str, root: Path) -> None:
    """One copy beside what is returned; its zeros are a hole, as a copy of an honest store has them."""
    image = np.zeros(LARGE, np.uint8)
    pillows = image.nbytes if store.format == "disk" else 0  # which decodes it whole, into memory of its own
    if part == "many":
        store.verbs.store_many(root, image[np.newaxis], [1], durable=False)
    else:
        store.verbs.store_single(root, image, 0, 1, durable=False)
    for path in damage.generation_of(root).rglob("images.*"):
        damage.make_sparse(path)
    assert not costs(root, image.nbytes + pillows, honest=5)


@pytest.mark.parametrize("store", [LMDB, HDF5], ids=str)
def test_one_large_block(store: Store, root: Path) -> None:
    """Of small images, as none of ours is."""
    images = np.zeros((3 << 20, *SMALL), np.uint8)
    with mock.patch.object(_images, "_BLOCK_BYTES", 1 << 28):
        store.verbs.store_many(root, images[: 200 << 14], np.zeros(3 << 20, np.int64), durable=False)
    assert not costs(root, images[0].nbytes, honest=20, verbs={name: greedy.VERBS[name] for name in ("verify",)})


# lists


def test_a_list_of_singles_that_are_not_there(root: Path) -> None:
    """300,000 of them."""
    generation = honest(LMDB, root)
    (generation / "SINGLES").write_bytes(damage.listed(range(1000, 301_000)))
    assert not costs(root, IMAGES[0].nbytes, honest=10)


def manifest(lines: list[str], root: Path) -> None:
    title = (root / "SHARDS").read_text().splitlines()[0]
    text = "".join(f"{line}\n" for line in (title, *lines)).encode()
    (root / "SHARDS").write_bytes(text + b"%016x\n" % xxhash.xxh3_64_intdigest(text))


@pytest.fixture
def sharded(root: Path) -> Path:
    shards.store(root, [zip(IMAGES, LABELS, strict=True)] * 2, backend="lmdb")
    return root


def test_one_shard_400_times(sharded: Path) -> None:
    line = (sharded / "SHARDS").read_text().splitlines()[1]
    manifest([line] * 400, sharded)
    for read in (imgstore.open_reader, imgstore.verify):
        with pytest.raises(CorruptStoreError):
            read(sharded)
    assert not costs(sharded, IMAGES[0].nbytes)


def test_shards_in_another_order(sharded: Path) -> None:
    manifest((sharded / "SHARDS").read_text().splitlines()[2:0:-1], sharded)
    with pytest.raises(CorruptStoreError):
        imgstore.open_reader(sharded)


def test_shards_that_are_not_there(sharded: Path) -> None:
    """300,000 of them."""
    first, second = (sharded / "SHARDS").read_text().splitlines()[1:3]
    more = [second.replace("shard-000001", f"shard-{number:06d}") for number in range(2, 300_000)]
    manifest([first, second, *more], sharded)
    assert not costs(sharded, IMAGES[0].nbytes, honest=10)


@pytest.mark.parametrize("claimed", [10**8, 2**62])
def test_a_shard_that_claims_many_images(claimed: int, sharded: Path) -> None:
    first, second = (sharded / "SHARDS").read_text().splitlines()[1:3]
    name, _, rest = second.split(" ", 2)
    manifest([first, f"{name} {claimed} {rest}"], sharded)
    verbs = dict(greedy.VERBS) | {"convert to shards": greedy.convert_to_shards}
    assert not costs(sharded, IMAGES[0].nbytes, verbs=verbs)


def test_a_list_of_shards_that_is_a_hole(sharded: Path) -> None:
    os.truncate(sharded / "SHARDS", 1 << 30)
    assert not costs(sharded, IMAGES[0].nbytes)


# LMDB's tree


def test_a_file_that_is_all_tree(root: Path) -> None:
    """As many pages as LMDB's file can have, of which only the first ones are there."""
    path = honest(LMDB, root) / "images.mdb"
    data = bytearray(path.read_bytes())
    for meta in (0, PAGE):
        struct.pack_into("<Q", data, meta + lmdb_pages.META["last page"][0], (1 << 40) // PAGE - 1)
        struct.pack_into("<Q", data, meta + lmdb_pages.META["size of the map"][0], 1 << 40)
    path.write_bytes(data)
    os.truncate(path, 1 << 40)
    damage.reseal_tree(root)
    assert not costs(root, IMAGES[0].nbytes)


def test_a_tree_of_many_pages(root: Path) -> None:
    """A branch over 70 branches over 100 leaves each: 28 MiB, of which a leaf holds one entry."""
    path = honest(LMDB, root) / "images.mdb"
    path.write_bytes(wide_tree(70, 100))
    damage.reseal_tree(root)
    assert not costs(root, IMAGES[0].nbytes)


def wide_tree(branches: int, leaves: int) -> bytes:
    last = 2 + branches + branches * leaves
    leaf_of = [3 + branches + number for number in range(branches * leaves)]
    pages = [lmdb_pages.meta(page, 3, last) for page in (0, 1)]
    pages.append(lmdb_pages.branch(2, list(range(3, 3 + branches)), step=leaves))
    for number in range(branches):
        below = leaf_of[number * leaves : (number + 1) * leaves]
        pages.append(lmdb_pages.branch(3 + number, below, first=number * leaves))
    for number, page in enumerate(leaf_of):
        pages.append(lmdb_pages.leaf(page, [(number, 2048, 2)]))
    return b"".join(pages)


def shared_branches(levels: int, children: int) -> bytes:
    """A tree of few pages, each of which is every child of the one above: children ** levels ways to walk it."""
    last = levels + 2
    branches = [lmdb_pages.branch(page, [page + 1] * children) for page in range(2, last)]
    metas = [lmdb_pages.meta(page, levels + 1, last) for page in (0, 1)]
    return b"".join([*metas, *branches, lmdb_pages.leaf(last, [(5, 2048, 2)])])


@pytest.mark.parametrize("part", ["many", "single"])
@pytest.mark.parametrize(("levels", "children"), [(8, 100), (30, 2), (200, 2)])
def test_a_tree_whose_branches_share_pages(part: str, levels: int, children: int, root: Path) -> None:
    generation = honest(LMDB, root)
    data = shared_branches(levels, children)
    (generation / ("images.mdb" if part == "many" else "singles/00000003.mdb")).write_bytes(data)
    assert forked(partial(damage.reseal_tree, root)) is None  # it walks the tree, too
    verbs = dict(greedy.VERBS) | {"read the single": partial(read_single, LMDB)}
    assert not costs(root, IMAGES[0].nbytes, verbs=verbs)


def read_single(store: Store, root: Path) -> int:
    image, label = store.verbs.read_single(root, 3)
    assert record(image, label)
    return int(image.nbytes)
