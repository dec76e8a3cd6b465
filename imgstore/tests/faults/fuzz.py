"""Mutated stores for the readers: python -m imgstore.tests.faults.fuzz --minutes 15 --backend lmdb

Files are mutated one or several at a time, mostly with every checksum made to agree again, so that what was
mutated reaches the parsers. Whatever is read must be as stored, or refused; LMDB's many only once verified.
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

from imgstore import BACKENDS
from imgstore.tests.faults import damage
from imgstore.tests.faults.changes import OURS, Store
from imgstore.tests.faults.damage import READ, REFUSED, Attempt, Places, Reading, Sample

DESCRIPTION = "DESCRIPTION"
MEMORY = 1 << 30
SEALED = 0.8  # of the cases
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


class Fuzz(NamedTuple):
    """Numbered cases: the same for the same backend, seed and samples."""

    store: Store
    samples: list[Sample]
    places: list[Places]
    seed: int
    root: Path

    def case(self, number: int) -> tuple[int, str, bytes, bool]:
        """Which sample, which file of it, what becomes of it, and whether checksums are made to agree."""
        random = Random(f"{self.store.format} {self.seed} {number}")
        of = random.randrange(len(self.samples))
        name, at = self.places[of].draw(random)
        data, is_sealed = self.samples[of].files[name], random.random() < SEALED
        if name.endswith(DESCRIPTION) and is_sealed:
            return of, name, described(data, random), is_sealed
        new = mutated(data, at, random)
        return of, name, damage.sealed(name, new, spans_of(name, data, new)) if is_sealed else new, is_sealed

    def prepare(self) -> Attempt:
        for number, sample in enumerate(self.samples):
            damage.lay_out(self.root / str(number), sample.files)
        return self.attempt

    def attempt(self, number: int) -> str:
        of, name, data, is_sealed = self.case(number)
        sample, root = self.samples[of], self.root / str(of)
        damage.lay(root, {name: data})
        try:
            if is_sealed:
                reseal(root, name)
            with damage.limited_memory(MEMORY):
                return outcome(Reading(self.store, root, sample.held), name)
        finally:
            sealing = [file for file in sample.files if Path(file).name in (damage.CURRENT, DESCRIPTION)]
            damage.lay(root, {file: sample.files[file] for file in {name, *sealing}})


def spans_of(name: str, data: bytes, new: bytes) -> list[slice]:
    """What the format's checksums cover: as in the whole file, where it did not grow, else as the mutated tells."""
    if Path(name).suffix not in damage.SEALS:
        return []
    spans = damage.SEALS[Path(name).suffix][0](data if len(data) == len(new) else new)
    return [span for span in spans if span.stop + 4 <= len(new)]


def reseal(root: Path, name: str) -> None:
    if name.endswith("images.mdb"):
        damage.reseal_tree(root)
    elif name.endswith(DESCRIPTION):
        damage.reseal(root)


def outcome(reading: Reading, name: str) -> str:
    """Problems, or a word; LMDB's many are read only where `imgstore.verify` finds nothing."""
    verified = reading.outcome([], reading.verify)
    if verified == REFUSED and (
        name.endswith("images.mdb") or (reading.store.format == "lmdb" and DESCRIPTION in name)
    ):
        return REFUSED
    return "; ".join(reading.problems()) or verified


def fuzz(backend: str, seed: int, root: Path) -> Fuzz:
    store = next(store for store in OURS if store.format == backend)
    samples = [damage.sample(store, contents) for contents in damage.CONTENTS]
    return Fuzz(store, samples, [Places(sample) for sample in samples], seed, root)


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
            of, name, data, is_sealed = cases.case(number)
            print(f"{cases.store.format} {number}: {Path(name).name} of {of}, sealed {is_sealed}: {found}", flush=True)
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{cases.store.format}-{number}-{of}-{Path(name).name}").write_bytes(data)
    print(f"{cases.store.format}: {counts.total()} cases, seed {cases.seed}: {dict(counts.most_common())}", flush=True)


if __name__ == "__main__":
    main()
