"""Tests of the peers: a format counts only if it gives back what was stored, on our terms.

A peer whose packages are not installed is skipped by name.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.measure.checks import must_equal
from benchmarks.peers import PEERS, Array, Peer, Unsupported

VERBS = ("store_many", "store_single", "read_single", "read_many", "open_reader")
COUNT = 40  # more files than are synced one by one
ALWAYS = ("numpy.save", "sqlite", "py-lmdb", "pillow", "lmdb-pickle", "h5py")
IDS = np.array([7, 0, COUNT - 1, 7, 7, 3, COUNT - 1])


def noise(*shape: int, dtype: Any = np.uint8) -> Array:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(dtype)


LABELS = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, COUNT, np.int64, endpoint=True)
LABELS[:5] = [0, -1, 9, 2**63 - 1, -(2**63)]
UNIFORM = {"colour": noise(COUNT, 32, 32, 3), "grey": noise(COUNT, 5, 7)}
MIXED = {
    "sizes": [noise(4 + i % 3, 9, 3) for i in range(COUNT)],
    "grey and colour": [noise(6, 5) if i % 2 else noise(6, 5, 3) for i in range(COUNT)],
    "dtypes": [noise(6, 5, dtype=np.uint16 if i % 2 else np.uint8) for i in range(COUNT)],
}
ONE_FORM = list(UNIFORM["colour"])


def cases(*kinds: dict[str, Any]) -> Callable[[Any], Any]:
    parameters = [pytest.param(images, id=name) for kind in kinds for name, images in kind.items()]
    return pytest.mark.parametrize("images", parameters)


def installed(name: str) -> ModuleType:
    if reason := peers.missing().get(name):
        pytest.skip(f"{name}: {reason}")
    return peers.load(name)


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Peer:
    installed(request.param)
    return PEERS[request.param]


@pytest.fixture
def module(peer: Peer) -> ModuleType:
    return peers.load(peer.name)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def need(peer: Peer, verb: str) -> None:
    if verb not in peer.verbs:
        pytest.skip(f"{peer.name} has no {verb}")


def store(module: ModuleType, root: str, images: Any) -> None:
    """Store them, or skip the test where the format cannot hold them."""
    try:
        module.store_many(root, images, LABELS)
    except Unsupported as reason:
        assert not os.path.exists(root)
        pytest.skip(str(reason))


def pick(images: Any, ids: Array) -> tuple[Any, Array]:
    return [images[image_id] for image_id in ids.tolist()], LABELS[ids]


def test_a_row_lists_the_verbs_that_its_module_has(peer: Peer, module: ModuleType) -> None:
    assert peer.verbs == {verb for verb in VERBS if hasattr(module, verb)}


@pytest.mark.parametrize("durable", [True, False])
@cases(UNIFORM, MIXED, {"list of one form": ONE_FORM})
def test_many_come_back(module: ModuleType, root: str, images: Any, durable: bool) -> None:
    try:
        module.store_many(root, images, LABELS, durable=durable)
    except Unsupported:
        assert not os.path.exists(root)
        return
    read, labels = module.read_many(root)
    must_equal((read, labels), images, LABELS)
    assert labels.dtype == np.int64
    assert isinstance(read, list) == isinstance(peers.gathered(images), list)


@pytest.mark.parametrize("images", [UNIFORM["colour"], ONE_FORM], ids=["array", "list"])
def test_every_format_holds_colour(module: ModuleType, root: str, images: Any) -> None:
    module.store_many(root, images, LABELS)
    must_equal(module.read_many(root, verify=False), images, LABELS)


@cases(UNIFORM, MIXED)
def test_one_comes_back(peer: Peer, module: ModuleType, root: str, images: Any) -> None:
    need(peer, "read_single")
    store(module, root, images)
    for image_id in (0, 3, COUNT - 1):
        image, label = module.read_single(root, image_id)
        assert type(label) is int
        must_equal(([image], [label]), *pick(images, np.array([image_id])))


@cases(UNIFORM, MIXED)
@pytest.mark.parametrize("verify", [True, False])
def test_a_reader_gives_any_order_with_repeats(
    peer: Peer, module: ModuleType, root: str, images: Any, verify: bool
) -> None:
    need(peer, "open_reader")
    store(module, root, images)
    with module.open_reader(root, verify=verify) as reader:
        assert len(reader) == COUNT
        must_equal(reader.read_many(IDS), *pick(images, IDS))
        must_equal(reader.read_many(IDS[:1]), *pick(images, IDS[:1]))
        pairs = [reader[image_id] for image_id in IDS.tolist()]
    must_equal(([image for image, _ in pairs], [label for _, label in pairs]), *pick(images, IDS))
    assert {type(label) for _, label in pairs} == {int}


@pytest.mark.parametrize("durable", [True, False])
@cases({"colour": UNIFORM["colour"]}, {"sizes": MIXED["sizes"]})
def test_a_single_is_added(peer: Peer, module: ModuleType, root: str, images: Any, durable: bool) -> None:
    need(peer, "store_single")
    store(module, root, images)
    for image_id in (COUNT, COUNT + 1):
        module.store_single(root, images[3], image_id, -6, durable=durable)
        image, label = module.read_single(root, image_id)
        must_equal(([image], [label]), [images[3]], np.array([-6]))
    image, label = module.read_single(root, 5)
    must_equal(([image], [label]), *pick(images, np.array([5])))


@cases({"colour": UNIFORM["colour"]}, {"sizes": MIXED["sizes"]})
def test_what_comes_back_may_be_written_to(peer: Peer, module: ModuleType, root: str, images: Any) -> None:
    store(module, root, images)
    found = [module.read_many(root)]
    if "read_single" in peer.verbs:
        image, label = module.read_single(root, 7)
        found.append(([image], np.array([label])))
    if "open_reader" in peer.verbs:
        with module.open_reader(root) as reader:
            found += [reader.read_many(IDS), ([reader[7][0]], np.array([0]))]
    for read, labels in found:
        for image in read:
            image[...] = 255 - image
        labels[...] = 1
    must_equal(module.read_many(root), images, LABELS)


def test_damaged_pixels_are_noticed_where_the_row_says_so(peer: Peer, module: ModuleType, root: str) -> None:
    """And nowhere else, so that a table can tell who reads with a checksum."""
    module.store_many(root, UNIFORM["colour"], LABELS)
    for path in Path(root).rglob("*"):
        if path.is_file():
            path.write_bytes(damaged(path.read_bytes()))
    if peer.checked:
        with pytest.raises(Exception, match=r"\w"):
            module.read_many(root, verify=True)
    else:
        assert not np.array_equal(module.read_many(root)[0], UNIFORM["colour"])


def damaged(content: bytes) -> bytes:
    """With other pixels, where they lie as they are; in the middle of a PNG file."""
    for image in UNIFORM["colour"]:
        pixels = image.tobytes()[1000:1008]
        content = content.replace(pixels, pixels[::-1])
    if content.startswith(b"\x89PNG"):
        middle = len(content) // 2
        content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return content


@pytest.mark.parametrize("name", ALWAYS)
def test_what_our_own_requirements_bring_is_available(name: str) -> None:
    assert name in peers.available()


def test_available_and_missing_share_the_registry_out() -> None:
    assert peers.available().keys() | peers.missing().keys() == PEERS.keys()
    assert not peers.available().keys() & peers.missing().keys()


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "absent", Peer("absent", ("no_such_package",), "records", None, frozenset()))
    assert "no_such_package" in peers.missing()["absent"]
    assert "absent" not in peers.available()


def test_a_package_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "broken", Peer("broken", ("numpy",), "records", None, frozenset()))
    assert "benchmarks.peers.broken" in peers.missing()["broken"]


def test_the_registry_imports_no_peer() -> None:
    code = "import sys, benchmarks.peers as p; print({n for r in p.PEERS.values() for n in r.needs} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "{'numpy'}"


@pytest.mark.parametrize(("files", "synced"), [(3, 6), (peers._FEW + 1, 0)])
def test_sync_reaches_each_file_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, synced: int
) -> None:
    (tmp_path / "store" / "below").mkdir(parents=True)
    for i in range(files):
        (tmp_path / "store" / "below" / str(i)).touch()
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("one"))
    monkeypatch.setattr(os, "sync", lambda: calls.append("all"))
    peers.sync(str(tmp_path / "store"), durable=True)
    assert calls == (["one"] * synced or ["all"])
    peers.sync(str(tmp_path / "store"), durable=False)
    assert len(calls) == (synced or 1)
