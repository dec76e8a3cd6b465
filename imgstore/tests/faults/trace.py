"""What a recorded trace of system calls leaves open to a power cut."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

UNNEEDED = frozenset({"LOCK", "lock.mdb", "SINGLES"})  # what no reader needs

_LINE = re.compile(
    r"\d+ +(?P<name>\w+)\((?P<arguments>.*)\) += (?:0x)?[0-9a-f]+"
    r"(<(?P<opened>[^>]*)>)?(?P<injected> \(INJECTED\))?"
)
_FILE = re.compile(r"^\d+<([^>]*)>")  # the first argument, a descriptor
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"')
_MAPPED = re.compile(r"PROT_WRITE.*MAP_SHARED\w*, \d+<([^>]*)>")
_WRITES = frozenset({"write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate", "sendfile"})
_SYNCS = {"fsync": "sync", "fdatasync": "sync", "syncfs": "sync_all", "sync": "sync_all"}

_OF_NAMES = {"mkdir": "make", "link": "make", "symlink": "make", "unlink": "remove", "rmdir": "remove"}


class Event(NamedTuple):
    """What a call did: write, map, make, rename (`path` to `to`), remove, sync, sync_all, left_out, returned."""

    verb: str
    path: str
    to: str = ""


RETURNED = Event("returned", "")


def events(log: Path) -> list[Event]:
    """What the calls that succeeded did, up to the answer of the traced child: `returned`."""
    lines = map(_LINE.fullmatch, log.read_text().splitlines())
    every = [event for line in lines if line for event in _of_call(line)]
    return every[: every.index(RETURNED) + 1]


def _of_call(line: re.Match[str]) -> Iterator[Event]:
    name, arguments, opened = line.group("name", "arguments", "opened")
    file, mapped = _FILE.match(arguments), _MAPPED.search(arguments)
    paths = [os.path.join(folder, path) for folder, path in _PATH.findall(arguments)]
    if line["injected"] and file:
        yield Event("left_out", file[1])
    elif name in _SYNCS:
        yield Event(_SYNCS[name], file[1] if file else "")
    elif name in _WRITES and file:
        yield RETURNED if file[1].startswith("socket:") else Event("write", file[1])
    elif name == "mmap" and mapped:
        yield Event("map", mapped[1])
    elif opened and "O_CREAT" in arguments:
        yield Event("make", opened)
    elif name.startswith("rename"):
        yield Event("rename", *paths)
    else:
        yield from (Event(verb, paths[-1]) for start, verb in _OF_NAMES.items() if name.startswith(start))


class Ledger:
    """What is not on the disk yet while events pass by, and the faults in their order.

    The strict reading of POSIX: what a file holds, and each name in a folder, is kept from the next sync of
    the file, or of the folder; what is not synced is kept or lost in no order.
    """

    def __init__(self, root: Path, unsynced: Collection[str] = ()) -> None:
        self.below, self.root, self.current = f"{root.parents[1]}/", f"{root}/", f"{root}/CURRENT"
        self.contents, self.names = set(unsynced), set(unsynced)
        self.made: set[str] = set()
        self.faults: list[str] = []

    def read(self, events: list[Event]) -> list[str]:
        for verb, path, *to in events:
            if os.path.basename(path) not in UNNEEDED and f"{path or self.below}/".startswith(self.below):
                getattr(self, verb)(path, *filter(None, to))
        return self.faults

    def write(self, path: str) -> None:
        self.contents.add(path)

    def map(self, path: str) -> None:
        self.faults.append(f"{path} is written through a map, where no trace sees it")

    def make(self, path: str) -> None:
        if path == self.current:
            self.faults.append(f"{path} is written in place")
        for each in self.contents, self.names, self.made:
            each.add(path)

    def rename(self, path: str, to: str) -> None:
        if to == self.current:
            needed = sorted((self.contents | self.names) - {path})
            self.faults += [f"{each} is not synced when CURRENT names it" for each in needed if self.root in each]
        if path in self.contents:
            self.faults.append(f"{path} is not synced when it is renamed")
        self.contents.discard(path)
        self.names.discard(path)
        self.names.add(to)
        self.made.add(to)

    def remove(self, path: str) -> None:
        switched = self.current in self.made - self.names
        if path.startswith(self.root) and path not in self.made and not switched:
            self.faults.append(f"{path} is removed before what replaces it is synced")
        self.contents.discard(path)
        self.names.discard(path)

    def sync(self, path: str) -> None:
        self.contents.discard(path)
        self.names -= {name for name in self.names if os.path.dirname(name) == path}

    def sync_all(self, path: str = "") -> None:
        self.contents.clear()
        self.names.clear()

    def left_out(self, path: str) -> None:
        pass

    def returned(self, path: str = "") -> None:
        self.faults += [f"{each} is not synced when the call returns" for each in sorted(self.contents | self.names)]
