"""ArrayRecord: a record for each image, in groups of one and uncompressed.

`ArrayRecordReader` in array_record's own documentation: "readahead_buffer_size:0,max_parallelism:0" for random
access, its defaults for reading in order. With larger groups a random read takes in its neighbours. The hashes of
chunks are checked whatever `verify` says.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from benchmarks.peers import Array, Many, Pair, sync
from benchmarks.peers._records import Records, all_unpacked, packed


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    os.makedirs(root, exist_ok=True)
    writer = ArrayRecordWriter(_path(root), "group_size:1,uncompressed")
    for image, label in zip(images, labels.tolist(), strict=True):
        writer.write(packed(image, label))
    writer.close()
    sync(root, durable)


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    with open_reader(root) as reader:
        return reader[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    file = ArrayRecordReader(_path(root))
    records = file.read_all()
    file.close()
    return all_unpacked(records)


def open_reader(root: str, *, verify: bool = True) -> "Groups":
    return Groups(ArrayRecordReader(_path(root), "readahead_buffer_size:0,max_parallelism:0"))


class Groups(Records):
    def __init__(self, file: Any) -> None:
        self._file = file

    def __len__(self) -> int:
        return int(self._file.num_records())

    def records(self, image_ids: Iterable[int]) -> Sequence[bytes]:
        found: Sequence[bytes] = self._file.read(image_ids)
        return found

    def close(self) -> None:
        self._file.close()


def _path(root: str) -> str:
    return os.path.join(root, "images.array_record")
