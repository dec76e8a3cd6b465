"""py-lmdb: a value of raw bytes for each image, put in order through a cursor and read as views of the map.

py-lmdb's documentation: `Cursor.putmulti` with `append` for ordered bulk loads, `begin(buffers=True)` against
copies, a `map_size` as large as one likes on 64 bits. Read-only and without its lock file, as no one writes.
"""

import struct
from collections.abc import Sequence

import lmdb

from benchmarks.peers import Array, Many, Pair, Reader, sync
from benchmarks.peers._records import all_unpacked, packed, unpacked

_KEY = struct.Struct(">Q")
_MAP_BYTES = 1 << 40


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    with lmdb.open(root, map_size=_MAP_BYTES, sync=False) as environment, environment.begin(write=True) as txn:
        numbered = enumerate(zip(images, labels.tolist(), strict=True))
        txn.cursor().putmulti(((_KEY.pack(image_id), packed(*pair)) for image_id, pair in numbered), append=True)
    sync(root, durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    with lmdb.open(root, map_size=_MAP_BYTES, sync=durable) as environment, environment.begin(write=True) as txn:
        txn.put(_KEY.pack(image_id), packed(image, label))


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    with open_reader(root) as reader:
        return reader[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    with _opened(root) as environment, environment.begin(buffers=True) as txn:
        return all_unpacked(txn.cursor().iternext(keys=False, values=True))


def open_reader(root: str, *, verify: bool = True) -> "Values":
    return Values(_opened(root))


class Values(Reader):
    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment

    def __len__(self) -> int:
        return int(self._environment.stat()["entries"])

    def __getitem__(self, position: int) -> Pair:
        with self._environment.begin(buffers=True) as txn:
            return unpacked(txn.get(_KEY.pack(position)))

    def read_many(self, image_ids: Array) -> Many:
        with self._environment.begin(buffers=True) as txn:
            return all_unpacked(txn.get(_KEY.pack(image_id)) for image_id in image_ids.tolist())

    def close(self) -> None:
        self._environment.close()


def _opened(root: str) -> lmdb.Environment:
    return lmdb.open(root, readonly=True, lock=False, create=False)
