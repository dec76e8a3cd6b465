"""Stores that an earlier version, or another version of HDF5, has written are read."""

import shutil
from pathlib import Path

import pytest

import imgstore
from imgstore.tests import stored
from imgstore.tests.checks import record, records

STORES = sorted(
    path for path in Path(stored.__file__).parent.glob("*/*") if path.is_dir() and path.name != "__pycache__"
)


@pytest.mark.parametrize("store", STORES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_store_of_format_3_is_read(store: Path, tmp_path: Path) -> None:
    images = list(stored.IMAGES if store.name == "alike" else stored.MIXED)
    expected = records([*images[:2], stored.SINGLE[0], *images[3:]], [*stored.LABELS[:2], 77, *stored.LABELS[3:]])
    imgstore.verify(store)
    with imgstore.open_reader(store) as reader:
        assert records(*reader.read_many()) == expected
        assert [record(*pair) for pair in reader] == expected
    root = shutil.copytree(store, tmp_path / "store")
    backend = imgstore.BACKENDS[store.parent.name.partition("-")[0]]
    backend.store_single(root, images[0], 5, 6, durable=False)
    assert record(*backend.read_single(root, 5)) == record(images[0], 6)


def test_each_backend_has_a_store_that_was_written_once() -> None:
    assert {path.parent.name.partition("-")[0] for path in STORES} == set(imgstore.BACKENDS)
