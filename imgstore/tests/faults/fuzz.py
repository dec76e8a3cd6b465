"""Mutated stores for the readers: python -m imgstore.tests.faults.fuzz --minutes 15 --backend lmdb

Files are mutated, mostly with every checksum made to agree again, so that what was mutated reaches the parsers; half
of the time it is the structure that is another: see `structures.py`. Whatever is read must be as stored, or refused,
whether or not anybody verified it first; no read ends the process, takes 2 s or 1 GB.
"""

import argparse
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import imgstore
from imgstore import BACKENDS, shards
from imgstore.errors import CorruptStoreError, StoreNotFoundError, StoreReplacedError
from imgstore.tests.checks import record
from imgstore.tests.faults import damage, structures
from imgstore.tests.faults.changes import OURS, Store
from imgstore.tests.faults.damage import READ, REFUSED, Attempt, Pair, Places, Reading, Sample

DESCRIPTION = "DESCRIPTION"
MEMORY = 1 << 30
STRUCTURED, OFTEN = 0.5, 0.8  # of the cases; of the others
SEALED, FORMAT, SHARDS, SINGLES = "bytes, sealed", "format", "SHARDS", "SINGLES"
STRUCTURES = {FORMAT: 10, DESCRIPTION: 2, damage.CURRENT: 1, SINGLES: 1, SHARDS: 2}  # how often each
REFUSALS = CorruptStoreError, StoreNotFoundError, StoreReplacedError
# of a DESCRIPTION that may tell of fewer images than there are
FORGEABLE = (
    "read something else",
    "read nothing",
    "raised ImageNotFoundError",
    "raised KeyError",
    "refused, but not by verify",
)
WIDE = damage.Contents(1, damage.SINGLE_BLOCKS, [], 200)  # more blocks than a page of LMDB's tree has room for
SHOWN = 3  # cases of a kind
AT_ONCE = 1000  # cases between two looks at the clock
MOST_MUTATIONS = 4
NUMBERS = [0, 1, 2, 7, 8, 127, 128, 255, 256, 4095, 4096, *(2**n - m for n in (15, 16, 31, 32, 48, 63) for m in (0, 1))]
TOKENS = ["null", "true", "-1", "1e999", "NaN", "[]", "{}", '""', "[[[[", "9" * 30, "1.5", str(2**63), '"|O"', '"<f2"']
_VALUE = re.compile(r'-?\d+|"[^"]*"|null|\[[^\]]*\]')

Mutate = Callable[[bytearray, int, Random], None]


def number_put(data: bytearray, at: int, random: Random) -> None:
    width = random.choice([1, 2, 4, 8])
    start = at // width * width if random.random() < 0.7 else at
    value = random.choice([*NUMBERS, len(data), len(data) // damage.PAGE, random.randrange(64)])
    negative = random.choice([-value, value])
    data[start : start + width] = (negative % 256**width).to_bytes(width, random.choice(["little", "big"]))


def number_nudged(data: bytearray, at: int, random: Random) -> None:
    data[at] = (data[at] + random.choice([-8, -2, -1, 1, 2, 8])) % 256


def part_copied(data: bytearray, at: int, random: Random) -> None:
    size, source = random.randint(1, 64), random.randrange(len(data))
    part = data[source : source + size]
    data[at : at + len(part)] = part


def part_inserted(data: bytearray, at: int, random: Random) -> None:
    source = random.randrange(len(data))
    data[at:at] = data[source : source + random.choice([1, 4, 16, 64, damage.PAGE])]


def part_removed(data: bytearray, at: int, random: Random) -> None:
    del data[at : at + random.choice([1, 4, 16, 64, damage.PAGE])]


IN_PLACE: list[Mutate] = [*damage.OVERWRITINGS, number_put, number_put, number_put, number_nudged, part_copied]
MUTATIONS: list[Mutate] = [*IN_PLACE, *IN_PLACE, part_inserted, part_removed]


def mutated(data: bytes, at: int, random: Random) -> bytes:
    """One mutation or several, most of them near one another."""
    new = bytearray(data)
    for _ in range(random.randint(1, MOST_MUTATIONS)):
        if not new:
            break
        at = random.choice([at, at + random.randint(-32, 32), random.randrange(len(new))]) % len(new)
        random.choice(MUTATIONS)(new, at, random)
    return bytes(new)


def described(text: bytes, random: Random) -> bytes:
    """JSON with other values."""
    tokens = list(_VALUE.finditer(text.decode()))
    for token in random.sample(tokens, random.randint(1, min(2, len(tokens)))):
        text = text.replace(token[0].encode(), random.choice(TOKENS).encode(), 1)
    return text


class Case(NamedTuple):
    """One file of a sample, and what becomes of it."""

    of: int  # of the samples; -1: of the sharded store
    name: str
    data: bytes
    kind: str  # what was mutated: bytes, or a structure; SEALED: bytes, whose checksums agree
    words: tuple[tuple[str, str], ...] = ()  # of CURRENT, and what becomes of them


class Fuzz(NamedTuple):
    """Numbered cases: the same for the same backend, seed and samples."""

    store: Store
    samples: list[Sample]
    places: list[Places]
    sharded: Sample
    seed: int
    root: Path

    def case(self, number: int) -> Case:
        random = Random(f"{self.store.format} {self.seed} {number}")
        if random.random() < STRUCTURED:
            return self._structured(number, random)
        of = random.randrange(len(self.samples))
        name, at = self.places[of].draw(random)
        data, kind = self.samples[of].files[name], SEALED if random.random() < OFTEN else "bytes"
        if name.endswith(DESCRIPTION) and kind == SEALED:
            return Case(of, name, described(data, random), kind)
        new = mutated(data, at, random)
        return Case(of, name, damage.sealed(name, new, spans_of(name, data, new)) if kind == SEALED else new, kind)

    def _structured(self, number: int, random: Random) -> Case:
        (kind,) = random.choices(list(STRUCTURES), [*STRUCTURES.values()])
        if kind == SHARDS:
            return Case(-1, kind, structures.of_shards(self.sharded.files[kind], random), kind)
        if kind != FORMAT or self.store.format == "disk":
            return self._beside(kind if kind != FORMAT else DESCRIPTION, random)
        same = Random(f"{self.seed} {number // structures.PER_STRUCTURE}")  # for as many cases as share a structure
        of = same.randrange(len(self.samples))
        files = self.samples[of].files
        name = same.choice([name for name in files if Path(name).suffix == self.store.verbs.BACKEND.suffix])
        if self.store.format == "hdf5":
            return Case(of, name, structures.of_hdf5(files[name], self.seed, number, random), kind)
        return Case(of, name, structures.of_lmdb(files[name], random), kind)

    def _beside(self, kind: str, random: Random) -> Case:
        """In one of the small files."""
        named = {of: [name for name in each.files if Path(name).name == kind] for of, each in enumerate(self.samples)}
        of = random.choice([of for of, names in named.items() if names])
        (name,), files = named[of], self.samples[of].files
        if kind == damage.CURRENT:
            return Case(
                of, name, files[name], kind, tuple(structures.of_current(files[name].decode().split(), random).items())
            )
        make = structures.of_singles if kind == SINGLES else structures.of_description
        return Case(of, name, make(files[name], random), kind)

    def prepare(self) -> Attempt:
        for number, sample in enumerate([*self.samples, self.sharded]):
            damage.lay_out(self.root / str(number), sample.files)
        return self.attempt

    def attempt(self, number: int) -> str:
        case = self.case(number)
        all_samples = [*self.samples, self.sharded]
        sample, root = all_samples[case.of], self.root / str(range(len(all_samples))[case.of])
        damage.lay(root, {case.name: case.data})
        try:
            reseal(root, case)
            with damage.limited_memory(MEMORY):
                return outcome(self.store, root, sample, case)
        finally:
            sealing = [file for file in sample.files if Path(file).name in (damage.CURRENT, DESCRIPTION)]
            damage.lay(root, {file: sample.files[file] for file in {case.name, *sealing}})


def spans_of(name: str, data: bytes, new: bytes) -> list[slice]:
    """What the format's checksums cover: as in the whole file, where it did not grow, else as the mutated tells."""
    if Path(name).suffix not in damage.SEALS:
        return []
    spans = damage.SEALS[Path(name).suffix][0](data if len(data) == len(new) else new)
    return [span for span in spans if span.stop + 4 <= len(new)]


def reseal(root: Path, case: Case) -> None:
    """Make DESCRIPTION and CURRENT agree with it."""
    if case.kind in (SEALED, FORMAT) and Path(case.name).stem == "images":
        damage.reseal_format(Path(case.name).suffix, root)
    elif case.kind in (DESCRIPTION, damage.CURRENT) or (case.kind == SEALED and case.name.endswith(DESCRIPTION)):
        damage.reseal(root, **dict(case.words))


def outcome(store: Store, root: Path, sample: Sample, case: Case) -> str:
    """Problems, or a word."""
    if case.of < 0:
        return of_shards(root, sample)
    reading = Reading(store, root, sample.held, REFUSALS, step=max(1, len(sample.held) // 5))
    forgeable = FORGEABLE if case.name.endswith(DESCRIPTION) and case.kind != "bytes" else ()
    problems = [each for each in reading.problems() if not each.startswith(forgeable)]
    return "; ".join(problems) or reading.outcome([], reading.verify)


def of_shards(root: Path, sample: Sample) -> str:
    """What comes of a SHARDS that may list others, in another order: images that were stored, or a refusal."""
    held = {each[:3] for each in sample.held.values()}
    for call in (imgstore.verify, read_whole, read_each):
        start = time.process_time()
        try:
            found = call(root) or []
        except REFUSALS:
            return REFUSED
        except Exception as error:
            return f"raised {type(error).__name__}: {error}"
        if not {record(*pair)[:3] for pair in found} <= held:
            return "read something else"
        if time.process_time() - start > damage.QUICK:
            return "took long"
    return READ


def read_whole(root: Path) -> list[Pair]:
    with imgstore.open_reader(root) as reader:
        return list(zip(*reader.read_many(), strict=True))


def read_each(root: Path) -> list[Pair]:
    with imgstore.open_reader(root) as reader:
        reader.forms()
        last = len(reader) - 1
        return [*reader.__getitems__([last, 0, last // 2]), reader[last // 2]] if len(reader) else []


def sharded_sample(store: Store) -> Sample:
    """A sharded store of three shards, two of one form."""
    parts = [[(damage.image(part * 4 + number, part == 2), number) for number in range(4)] for part in range(3)]
    with damage.memory_directory() as root:
        shards.store(root / "store", parts, backend=store.format)
        held = {number: record(*pair) for number, pair in enumerate(itertools.chain(*parts))}
        return Sample(damage.files_of(root / "store"), held, {})


def fuzz(backend: str, seed: int, root: Path) -> Fuzz:
    store = next(store for store in OURS if store.format == backend)
    contents = [*damage.CONTENTS, *([WIDE] if backend == "lmdb" else [])]
    samples = [damage.sample(store, each) for each in contents]
    return Fuzz(store, samples, [Places(sample) for sample in samples], sharded_sample(store), seed, root)


def shifted(cases: Fuzz, first: int) -> Attempt:
    attempt = cases.prepare()
    return lambda number: attempt(first + number)


def run(cases: Fuzz, seconds: float, first: int) -> Iterator[tuple[int, str]]:
    """Numbers and outcomes until the time is up."""
    end = time.monotonic() + seconds
    for start in itertools.count(first, AT_ONCE):
        for number, found in enumerate(damage.in_children(partial(shifted, cases, start), AT_ONCE)):
            yield start + number, found
            if time.monotonic() > end:
                return


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m imgstore.tests.faults.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15, help="for each backend; default: 15")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="may repeat; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--keep", type=Path, help="a folder for the files of cases that failed")
    options = parser.parse_args()
    os.nice(10)
    for backend in options.backend or BACKENDS:
        with damage.memory_directory() as root:
            report(fuzz(backend, options.seed, root), options)


def report(cases: Fuzz, options: argparse.Namespace) -> None:
    counts: Counter[str] = Counter()
    for number, found in run(cases, 60 * options.minutes, options.first):
        kind = re.sub(r"/dev/shm\S*|/tmp/\S*|\d+", "…", found)
        counts[kind] += 1
        if found not in (READ, REFUSED) and counts[kind] <= SHOWN:
            of, name, data, mutation, _ = cases.case(number)
            print(f"{cases.store.format} {number}: {Path(name).name} of {of}, {mutation}: {found}", flush=True)
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{cases.store.format}-{number}-{of}-{Path(name).name}").write_bytes(data)
    print(f"{cases.store.format}: {counts.total()} cases, seed {cases.seed}: {dict(counts.most_common())}", flush=True)


if __name__ == "__main__":
    main()
