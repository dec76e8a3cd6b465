"""What sharding costs and brings: batches of a sharded store beside the plain one, then the work of 1 and 2 processes.

`python -m benchmarks.studies.shards` prints both tables; the second needs
`pip install -r imgstore/requirements-dask.txt`. What is stored is read from a store, so all of it is timed: reading,
storing, reading back and comparing, and the syncs.
"""

import argparse
import functools
import importlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import imgstore
from benchmarks.measure.cell import BATCH, Cell, Terms
from benchmarks.measure.machine import settle
from benchmarks.measure.reading import ReadBatch
from benchmarks.sources import open_source
from benchmarks.studies.pairs import Ratio, alternate, timed
from imgstore import BACKENDS, shards
from imgstore.core.compared import convert
from imgstore.core.writing import writing
from imgstore.sources import part_of

FORMATS = ("lmdb", "hdf5")
SHARDS = (1, 100)
STORED_SHARDS = 10
WORKERS = (1, 2)
ROUNDS = 3


def parts(source: str, count: int) -> list[Callable[[], Iterator[Any]]]:
    """The images of a store as so many partitions."""
    reader = imgstore.open_reader(source)
    bounds = np.linspace(0, len(reader), count + 1).astype(int).tolist()
    ranges = (range(first, last) for first, last in itertools.pairwise(bounds))
    return [functools.partial(iter, part_of(reader, positions)) for positions in ranges]


def batch_rows(cell: Cell, seconds: float) -> Iterator[str]:
    """How many times as long as of the plain store a batch of a sharded one takes."""
    for count in SHARDS:
        directory = os.path.join(cell.directory, f"{count}-shards")
        sharded = replace(cell, backend=imgstore, directory=directory)
        shards.store(sharded.stored, parts(cell.stored, count), backend=cell.name)
        settle()
        ours, plain = ReadBatch(sharded), ReadBatch(cell)
        ratio = Ratio.of(alternate(timed(ours), timed(plain), seconds))
        ours.finish()
        plain.finish()
        spread = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        yield f"| {cell.name} | {count} | {spread} | {(ratio.first - ratio.second) * 1e6:+.0f} us | {ratio.pairs} |"


def read_batches(root: str, seed: int, seconds: float) -> int:
    """Random batches for so long; gives how many images there were."""
    random, images = np.random.default_rng(seed), 0
    with imgstore.open_reader(root) as reader:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            images += len(reader.read_many(random.integers(len(reader), size=BATCH))[1])
    return images


def store_rate(cell: Cell, root: str, client: Any = None, plain: bool = False) -> float:
    """Images a second, of the fastest of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        shutil.rmtree(root, ignore_errors=True)
        settle()
        start = time.monotonic()
        if plain:
            with imgstore.open_reader(cell.stored) as reader:
                backend, lock = BACKENDS[cell.name].BACKEND, functools.partial(writing, root)
                convert(reader, len(reader), np.empty(0, np.int64), root, backend, False, lambda pairs, _: pairs, lock)
        else:
            shards.store(root, parts(cell.stored, STORED_SHARDS), backend=cell.name, client=client)
        best = min(best, time.monotonic() - start)
    return len(cell.images) / best


def read_rate(root: str, client: Any, workers: int, seconds: float) -> float:
    """Images a second that all workers read together."""
    tasks = [client.submit(read_batches, root, seed, seconds, pure=False) for seed in range(workers)]
    return float(sum(client.gather(tasks))) / seconds


def worker_rows(cell: Cell, seconds: float) -> Iterator[str]:
    """Images a second stored and read, in this process and by workers."""
    distributed, root = importlib.import_module("distributed"), os.path.join(cell.directory, "sharded")
    yield f"| {cell.name} | plain | this process | {store_rate(cell, root + '-plain', plain=True):,.0f} | |"
    yield f"| {cell.name} | {STORED_SHARDS} shards | this process | {store_rate(cell, root):,.0f} | |"
    for workers in WORKERS:
        with (
            distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            stored = store_rate(cell, root, client)
            for name, read in (("plain", cell.stored), (f"{STORED_SHARDS} shards", root)):
                rate = read_rate(read, client, workers, seconds)
                told = f"{stored:,.0f}" if read == root else ""
                yield f"| {cell.name} | {name} | {workers} | {told} | {rate:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.shards", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cutoff", type=int, default=100_000, help="images in a store; default: %(default)s")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="squares of so many pixels a side; default: 32"
    )
    parser.add_argument("--seconds", type=float, default=5, help="for each row; default: 5")
    parser.add_argument("--store-dir", metavar="PATH", help="a folder on the disk to measure")
    options = parser.parse_args()
    images, labels = open_source(None, options.cutoff, options.image_size).take(options.cutoff)
    with tempfile.TemporaryDirectory(prefix="imgstore-", dir=options.store_dir) as directory:
        cells = [Cell(name, BACKENDS[name], images, labels, os.path.join(directory, name), Terms()) for name in FORMATS]
        print("| backend | shards | read_batch takes times as long as of the plain store (quartiles) | more | pairs |")
        print("| --- | --- | --- | --- | --- |")
        for cell in cells:
            os.mkdir(cell.directory)
            cell.store()
            for row in batch_rows(cell, options.seconds):
                print(row, flush=True)
        print("\n| backend | store | workers | images/s stored | images/s read in batches |")
        print("| --- | --- | --- | --- | --- |")
        for cell in cells:
            for row in worker_rows(cell, options.seconds):
                print(row, flush=True)


if __name__ == "__main__":
    main()
