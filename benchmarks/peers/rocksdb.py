"""RocksDB through rocksdict in raw mode: a value for each image, loaded as one sorted table, uncompressed.

rocksdict's README, "An Example of Raw Mode", and RocksDB wiki, "Creating and Ingesting SST files". `verify` is
RocksDB's `verify_checksums`.
"""

import os
import struct
from collections.abc import Iterable, Sequence

import rocksdict

from benchmarks.peers import Array, Many, Pair, sync
from benchmarks.peers._records import Records, all_unpacked, packed

_KEY = struct.Struct(">Q")


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    os.makedirs(root, exist_ok=True)
    path, how = os.path.join(root, "images.sst"), rocksdict.IngestExternalFileOptions()
    how.set_move_files(True)
    table = rocksdict.SstFileWriter(options=_options())
    table.open(path)
    for image_id, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        table[_KEY.pack(image_id)] = packed(image, label)
    table.finish()
    database = rocksdict.Rdict(_path(root), _options())
    database.ingest_external_file([path], how)
    database.close()
    sync(root, durable)


def store_single(root: str, image: Array, image_id: int, label: int, *, durable: bool = True) -> None:
    database, how = rocksdict.Rdict(_path(root), _options()), rocksdict.WriteOptions()
    how.sync = durable
    database.set_write_options(how)
    database[_KEY.pack(image_id)] = packed(image, label)
    database.close()


def read_single(root: str, image_id: int, *, verify: bool = True) -> Pair:
    with open_reader(root, verify=verify) as reader:
        return reader[image_id]


def read_many(root: str, *, verify: bool = True) -> Many:
    with open_reader(root, verify=verify) as reader:
        return all_unpacked(reader.database.values())


def open_reader(root: str, *, verify: bool = True) -> "Values":
    access = rocksdict.AccessType.read_only(error_if_log_file_exist=False)
    database, how = rocksdict.Rdict(_path(root), _options(), access_type=access), rocksdict.ReadOptions()
    how.set_verify_checksums(verify)
    database.set_read_options(how)
    return Values(database)


class Values(Records):
    def __init__(self, database: rocksdict.Rdict) -> None:
        self.database = database

    def __len__(self) -> int:
        return len(list(self.database.keys()))

    def records(self, image_ids: Iterable[int]) -> Sequence[bytes]:
        found: list[bytes] = self.database[[_KEY.pack(image_id) for image_id in image_ids]]
        return found

    def close(self) -> None:
        self.database.close()


def _path(root: str) -> str:
    return os.path.join(root, "db")


def _options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.set_compression_type(rocksdict.DBCompressionType.none())
    return options
