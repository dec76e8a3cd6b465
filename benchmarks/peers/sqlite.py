"""SQLite: a row for each image, its pixels in a BLOB, in pages of 16 KiB that are read through a memory map.

SQLite documentation, "Internal Versus External BLOBs" (the page size), "Memory-Mapped I/O", and FAQ 19 (all in one
transaction). A new file needs no journal; a single is committed with one that persists, "PRAGMA journal_mode".
"""

import os
import sqlite3
from collections.abc import Iterable

import numpy as np

from benchmarks.peers import Array, Many, Pair, Reader, sync
from benchmarks.peers._records import form_of, image_of, images_of, pixels_of

_INSERT = "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)"
_SELECT = "SELECT label, form, pixels FROM images"
_MAP_BYTES = 1 << 40


def store_many(root: str, images: Iterable[Array], labels: Array, *, durable: bool = True) -> None:
    os.makedirs(root, exist_ok=True)
    database = _opened(root, "page_size=16384", "journal_mode=OFF", "synchronous=OFF")
    database.execute("CREATE TABLE images (id INTEGER PRIMARY KEY, label INTEGER, form BLOB, pixels BLOB)")
    with database:
        rows = zip(range(len(labels)), labels.tolist(), images, strict=True)
        database.executemany(_INSERT, ((row, label, form_of(image), pixels_of(image)) for row, label, image in rows))
    database.close()
    sync(root, durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    database = _opened(root, "journal_mode=PERSIST", f"synchronous={'FULL' if durable else 'OFF'}")
    with database:
        database.execute(_INSERT, (image_id, label, form_of(image), pixels_of(image)))
    database.close()


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    with open_reader(root) as reader:
        return reader[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    with open_reader(root) as reader:
        return _arrays(reader.database.execute(f"{_SELECT} ORDER BY id"))


def open_reader(root: str, *, verify: bool = True) -> "Table":
    return Table(_opened(root, f"mmap_size={_MAP_BYTES}"))


class Table(Reader):
    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def __len__(self) -> int:
        return int(self.database.execute("SELECT count(*) FROM images").fetchone()[0])

    def __getitem__(self, position: int) -> Pair:
        label, form, pixels = self._row(position)
        return image_of(form, pixels), label

    def read_many(self, image_ids: Array) -> Many:
        return _arrays(map(self._row, image_ids.tolist()))

    def close(self) -> None:
        self.database.close()

    def _row(self, image_id: int) -> tuple[int, bytes, bytes]:
        row: tuple[int, bytes, bytes] = self.database.execute(f"{_SELECT} WHERE id = ?", (image_id,)).fetchone()
        return row


def _arrays(rows: Iterable[tuple[int, bytes, bytes]]) -> Many:
    labels, forms, pixels = zip(*rows, strict=True)
    return images_of(forms, pixels), np.array(labels, np.int64)


def _opened(root: str, *pragmas: str) -> sqlite3.Connection:
    database = sqlite3.connect(os.path.join(root, "images.db"))
    for pragma in pragmas:
        database.execute(f"PRAGMA {pragma}")
    return database
