"""What a forger makes of a store's files: whole new structures, with every checksum made to agree."""

import json
import struct
from copy import deepcopy
from functools import lru_cache
from random import Random
from typing import Any

import xxhash

from imgstore import BACKENDS
from imgstore.tests.faults import damage, hdf5_forms, lmdb_pages
from imgstore.tests.faults.hdf5_forms import Built

PER_STRUCTURE = 16  # cases that mutate the same file of HDF5, which takes time to build
NUMBERS: list[Any] = [0, 1, 2, 3, 7, 11, 12, 13, 255, 4096, 2**20, 2**31, 2**32, 2**47, 2**60, 2**63 - 1, 2**63, 2**64]
VALUES: list[Any] = [*NUMBERS, -1, -(2**63), 1.5, 1e300, True, None, "", "12", "|u1", "<f8", [], [1], {}, [[]]]
KEYS = ["count", "shape", "dtype", "per_block", "needs", "tree", "metadata", "more"]
IDS = [0, 1, 3, 4, 11, 12, 300, 301, 2**31, 2**62, 2**63 - 2, 2**63 - 1, 2**63, 2**64 - 1]
WORDS: dict[str, list[str]] = {
    "version": ["1", "2", "3", "03", "4", "999", "-3", "", "3.0"],
    "backend": [*BACKENDS, "zip", "os", "DISK", "lmdb2", ""],
    "synced": ["synced", "unsynced", "maybe", ""],
}


def of_hdf5(data: bytes, seed: int, number: int, random: Random) -> bytes:
    """A file in another form, with the same contents; most have some of HDF5's own numbers changed as well."""
    built = _built(data, seed, number // PER_STRUCTURE)
    if not built.numbers or not number % PER_STRUCTURE:
        return built.data
    new = bytearray(built.data)
    for _ in range(random.choice([1, 1, 1, 2, 3, 5])):
        at = random.choice(built.numbers)
        if random.random() < 0.6:
            _number_put(new, at, random)
        else:
            new[at] = random.choice([0, 1, 2, 3, 4, 5, 8, 16, 64, 127, 128, 254, 255, random.randrange(256)])
    return built.sealed(bytes(new[: len(built.data)]))


@lru_cache(maxsize=8)
def _built(data: bytes, seed: int, number: int) -> Built:
    return hdf5_forms.built(data, Random(f"{seed} {number}"))


def _number_put(data: bytearray, at: int, random: Random) -> None:
    width = random.choice([1, 2, 2, 4, 8, 8])
    before = int.from_bytes(data[at : at + width], "little")
    near, flipped = before + random.choice([-8, -1, 1, 2, 8]), before ^ 1 << random.randrange(8 * width)
    value = random.choice([near, flipped, random.choice(NUMBERS), random.randrange(len(data)), at, 2**64 - 1])
    data[at : at + width] = (value % 256**width).to_bytes(width, "little")[: len(data) - at]


def of_lmdb(data: bytes, random: Random) -> bytes:
    return lmdb_pages.mutated(data, random)


def of_description(text: bytes, random: Random) -> bytes:
    """Keys that are gone, new, or have another value, at any depth of two."""
    told = json.loads(text)
    for _ in range(random.choice([1, 1, 2, 3])):
        key = random.choice([*told, *KEYS])
        value = deepcopy(random.choice(VALUES))
        if isinstance(told.get(key), list) and told[key] and random.random() < 0.6:
            told[key][random.randrange(len(told[key]))] = value
        elif random.random() < 0.15:
            told.pop(key, None)
        else:
            told[key] = random.choice([*[value] * len(VALUES), told.get("count"), [20, 20, 3], [9, 11], [2**20, 2**20]])
    return json.dumps(told).encode()


def of_current(words: list[str], random: Random) -> dict[str, str]:
    """Other words for CURRENT."""
    generation = words[3]
    names = [
        generation[:-1],
        generation + "0",
        "imgstore-000000-abcdefabcdef",
        ".",
        "..",
        f"../{generation}",
        "",
        "/tmp",
    ]
    changed = {name: random.choice(values) for name, values in WORDS.items() if random.random() < 0.3}
    return changed | ({"name": random.choice(names)} if random.random() < 0.3 or not changed else {})


def of_singles(data: bytes, random: Random) -> bytes:
    """Other records in SINGLES, each with a check that agrees."""
    ids = [number for number, _ in struct.iter_unpack("<QQ", data[: len(data) // 16 * 16])]
    for _ in range(random.choice([1, 2, 5])):
        if ids and random.random() < 0.4:
            ids.pop(random.randrange(len(ids)))
        else:
            ids.insert(random.randrange(len(ids) + 1), random.choice([*IDS, random.randrange(2**64)]))
    many = random.choice([1, 1, 1, 1000])
    return damage.listed(ids * many) + random.choice([b"", b"", bytes(16), bytes(7), random.randbytes(40)])


def of_shards(text: bytes, random: Random) -> bytes:
    """Other lines in SHARDS, or other words in them."""
    title, *lines = text[:-17].decode().splitlines()
    for _ in range(random.choice([1, 1, 2, 3])):
        at = random.randrange(len(lines)) if lines else 0
        change = random.choice(["drop", "double", "swap", "word", "word", "word", "word", "title"])
        if change == "title":
            title = random.choice([title, title[:-1] + "9", title[:-1], "", title + " "])
        elif not lines or change == "double":
            lines[at:at] = lines[at : at + 1] * random.choice([1, 400])
        elif change == "drop":
            del lines[at]
        elif change == "swap":
            lines.append(lines.pop(at))
        else:
            lines[at] = _other_word(lines[at], random)
    body = "".join(f"{line}\n" for line in (title, *lines)).encode()
    return body + b"%016x\n" % xxhash.xxh3_64_intdigest(body)


def _other_word(line: str, random: Random) -> str:
    words = line.split(" ")
    forms = ["20x20x3", "|u1", "9x11", "<u2", "1x1", "<f8", "999999999999999x9", "20x20", "mixed", "2x2", "|O"]
    others = [*map(str, NUMBERS), "-1", "mixed", *forms, "shard-000000", "shard-000001", "shard-000009", "..", ""]
    words[random.randrange(len(words))] = random.choice(others)
    return " ".join(words)
