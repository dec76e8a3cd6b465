"""Trees of LMDB whose pages are each sound, and that made the engine end the process: refused before it sees them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from imgstore import lmdb
from imgstore.errors import CorruptStoreError
from imgstore.tests.faults import damage, lmdb_pages
from imgstore.tests.faults.damage import PAGE

IMAGES = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
MIXED = [IMAGES[0], IMAGES[1, :5], IMAGES[2], IMAGES[3, :5]]
NEVER_READ = 25  # more images than there are, so that each id is looked up
LOOKS = 1100


def put(root: Path, depth: int, pages: list[bytes]) -> None:
    """A store whose LMDB file is two meta pages and these, with all checksums made to agree."""
    lmdb.store_many(root, MIXED, range(4), durable=False)
    last = len(pages) + 1
    metas = [lmdb_pages.meta(number, depth, last) for number in (0, 1)]
    (damage.generation_of(root) / "images.mdb").write_bytes(b"".join([*metas, *pages]))
    damage.reseal_tree(root)


def outcomes(root: Path, look: Callable[[int], int]) -> set[str]:
    """Of reads in a child, by an open reader or because there is none."""

    def prepare() -> Callable[[int], str]:
        try:
            reader = lmdb.open_reader(root, verify=False)
        except CorruptStoreError:
            return lambda number: "refused"

        def attempt(number: int) -> str:
            try:
                reader.read_many([look(number)])
            except (CorruptStoreError, KeyError):
                return "refused"
            return "read"

        return attempt

    return set(damage.in_children(prepare, LOOKS))


def test_leaves_that_do_not_lie_equally_deep(tmp_path: Path) -> None:
    branch = lmdb_pages.branch
    pages = [
        branch(2, [3, 4], first=0, step=10),
        lmdb_pages.leaf(3, [(1, 2048, 7)]),
        branch(4, [5, 6], first=10, step=10),
        lmdb_pages.leaf(5, [(12, 2048, 7)]),
        lmdb_pages.leaf(6, [(22, 2048, 7)]),
        bytes(PAGE),
    ]
    put(tmp_path, 3, pages)
    assert outcomes(tmp_path, lambda number: number % 4) == {"refused"}


def test_a_value_that_begins_on_a_page_of_the_tree(tmp_path: Path) -> None:
    """The memory of a value's first page is given back, which a page of the tree must not lose."""
    pages = [
        lmdb_pages.branch(2, [3, 4], first=0, step=10),
        lmdb_pages.leaf(3, [(1, 2048, 4)]),
        lmdb_pages.leaf(4, [(12, 2048, 5)]),
        bytes(PAGE),
    ]
    put(tmp_path, 2, pages)
    assert outcomes(tmp_path, lambda number: 0 if number < LOOKS - 20 else 3) == {"refused"}
