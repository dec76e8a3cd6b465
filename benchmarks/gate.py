"""`pytest benchmarks --against REF`: whether the working tree is slower than another commit, and which cells.

`python -m benchmarks.gate --prove` measures how often its verdicts are right.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contest import HARNESS, PACKAGE, CannotStartError, Contest, Key, Trees, copy_package
from benchmarks.images import Source
from benchmarks.proving import KINDS, prove
from benchmarks.runs import rank
from benchmarks.verdicts import FASTER, INCONCLUSIVE, NOT_COMPARABLE, SAME, SLOWER, Row, percent
from benchmarks.workloads import OPERATIONS, Terms

REQUIREMENTS = "requirements.txt"
RESULTS = Path(".benchmarks", "proving.json")  # not in the repository: they are of one machine
DEFAULT_BUDGET = 600.0
DEFAULT_CUTOFFS = (10, 100, 1000)
VERDICTS = (SLOWER, FASTER, SAME, INCONCLUSIVE, NOT_COMPARABLE)
REPORTS = (".md", ".json")
TITLES = ("cell", "change in %", "95% interval", "pairs", "verdict")


class GateError(Exception):
    """There is nothing to compare with, or nothing that measures: one line says why and what to do."""


@dataclass(frozen=True)
class Reference:
    """A commit of the repository that `root` lies in; `name` is what the user called it."""

    root: Path
    name: str
    commit: str

    @classmethod
    def of(cls, root: Path, name: str) -> "Reference":
        if not name or name[0] in "-^":
            raise GateError(f"{name!r} names no commit")
        try:
            found = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            if found.returncode == 0:
                return cls(root, name, found.stdout.decode().strip())
            shallow = _git(root, "rev-parse", "--is-shallow-repository")
        except OSError as error:
            raise GateError(f"git is needed, and cannot be run ({error.strerror})") from None
        if shallow.returncode:
            raise GateError(_said(shallow.stderr))
        if shallow.stdout.strip() == b"true":
            raise GateError(f"{name} is not in this shallow clone; get all commits with: git fetch --unshallow")
        raise GateError(f"there is no commit {name!r} in this repository")

    def extract(self, directory: str) -> None:
        """Write its `imgstore` below `directory`.

        An archive leaves no trace in the repository, not even while it is read, and runs none of its hooks; a
        worktree of git's own would do both.
        """
        made = _git(self.root, "archive", "--format=tar", self.commit, PACKAGE)
        if made.returncode:
            raise GateError(f"{self.name} has no {PACKAGE} to compare with ({_said(made.stderr)})")
        with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
            archive.extractall(directory, filter="data")

    def requirements_differ(self) -> bool:
        there = _git(self.root, "show", f"{self.commit}:./{REQUIREMENTS}").stdout.decode()
        path = self.root / REQUIREMENTS
        return _packages(there) != _packages(path.read_text(encoding="utf-8") if path.exists() else "")


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, stdin=subprocess.DEVNULL)


def _said(output: bytes) -> str:
    return " ".join(output.decode(errors="replace").split()) or "git gave no reason"  # what to do may be on line two


def _packages(text: str) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {line for line in lines if line}


@dataclass(frozen=True)
class Outcome:
    """What a comparison found."""

    reference: Reference
    rows: Mapping[Key, Row]
    pairs: int
    seconds: float
    requirements_differ: bool

    @property
    def slower(self) -> list[Key]:
        return [key for key, row in self.rows.items() if row.verdict == SLOWER]

    def counts(self) -> dict[str, int]:
        counted = Counter(row.verdict for row in self.rows.values())
        return {verdict: counted[verdict] for verdict in VERDICTS if counted[verdict]}


def compare(
    reference: Reference,
    keys: list[Key],
    directory: str,
    source: Source,
    terms: Terms,
    budget: float,
    progress: Callable[[str, int, float], None],
) -> Outcome:
    """Measure the cells `keys` of the working tree, as it is now, against those of `reference`.

    directory: an empty one, where both packages, what measures them and all stores go. budget: seconds.
    """
    start = time.monotonic()
    trees = Trees(os.path.join(directory, "new"), os.path.join(directory, "ref"))
    copy_package(reference.root / PACKAGE, trees.new)
    reference.extract(trees.ref)
    requirements_differ = reference.requirements_differ()
    for tree in trees:
        copy_package(HARNESS, tree)
    contest = Contest(trees, directory, source, terms, budget, progress)
    try:
        rows = contest.run(sorted(keys, key=place))
    except CannotStartError as error:
        raise GateError(f"nothing can be measured: {error}") from None
    return Outcome(reference, rows, contest.pairs, time.monotonic() - start, requirements_differ)


def place(key: Key) -> tuple[Any, ...]:
    """Where the cell stands in the table."""
    return list(OPERATIONS).index(key.operation), key.cutoff, rank(key.backend)


def sentence(outcome: Outcome) -> str:
    """The verdict in words."""
    name, counts, total = outcome.reference.name, outcome.counts(), len(outcome.rows)
    slower = [(key, row.change) for key, row in outcome.rows.items() if row.verdict == SLOWER and row.change]
    if slower:
        text = f"Slower than {name}: {', '.join(f'{key} by {percent(change.mean)[1:]}%' for key, change in slower)}"
    elif counts.get(NOT_COMPARABLE) == total:
        text = f"Nothing can be compared with {name}"
    elif not {SAME, FASTER} & counts.keys():
        text = f"Nothing could be shown against {name} in the time"
    else:
        text = f"No slowdown against {name} was found"
    unknown = (verdict for verdict in (INCONCLUSIVE, NOT_COMPARABLE) if verdict in counts)
    open_ = [f"{counts[verdict]} of {total} cells {verdict}" for verdict in unknown]
    text += f" ({', '.join(open_)})." if open_ else "."
    if outcome.requirements_differ:
        text += f" {REQUIREMENTS} differs: both sides ran with the packages that are installed."
    return text


def entries(key: Key, row: Row) -> tuple[str, ...]:
    """The texts of a line of the table."""
    verdict = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
    if row.change is None:
        return str(key), "", "", "", verdict
    change = row.change
    interval = f"{percent(change.low)} to {percent(change.high)}"
    return str(key), percent(change.mean), interval, str(change.pairs), verdict


def table(outcome: Outcome) -> Iterator[str]:
    """The lines for a terminal: the cells, a blank line, the sentence."""
    lines = [TITLES, *(entries(key, row) for key, row in outcome.rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TITLES) - 1)]
    for cell, *figures, verdict in lines:
        aligned = (text.rjust(width) for text, width in zip(figures, widths[1:], strict=True))
        yield "  ".join((cell.ljust(widths[0]), *aligned, verdict))
    yield ""
    yield sentence(outcome)


def markdown(outcome: Outcome) -> str:
    """The same for a pull request: the sentence first, what changed, and the rest folded away."""
    quiet = [entries(key, row) for key, row in outcome.rows.items() if row.verdict == SAME]
    loud = [entries(key, row) for key, row in outcome.rows.items() if row.verdict != SAME]
    commit, ref = outcome.reference.commit[:12], outcome.reference.name
    parts = [f"### imgstore against {ref}", sentence(outcome)]
    parts += [_markdown_table(loud)] if loud else []
    if quiet:
        parts.append(f"<details><summary>{len(quiet)} cells: same</summary>\n\n{_markdown_table(quiet)}\n\n</details>")
    parts.append(f"{ref} is {commit}; {outcome.pairs} pairs of processes in {outcome.seconds:.0f} s.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(lines: list[tuple[str, ...]]) -> str:
    escaped = [tuple(text.replace("|", "\\|") for text in line) for line in lines]
    rows = [TITLES, ("---", "---:", "---:", "---:", "---"), *escaped]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Changes in percent."""
    return {
        "against": outcome.reference.name,
        "commit": outcome.reference.commit,
        "sentence": sentence(outcome),
        "slower": [str(key) for key in outcome.slower],
        "requirements_differ": outcome.requirements_differ,
        "pairs": outcome.pairs,
        "seconds": round(outcome.seconds, 1),
        "cells": [_cell_as_json(key, row) for key, row in outcome.rows.items()],
    }


def _cell_as_json(key: Key, row: Row) -> dict[str, Any]:
    change = row.change
    values = (change.mean, change.low, change.high) if change else ()
    figures = {name: float(percent(value)) for name, value in zip(("change", "low", "high"), values, strict=False)}
    return {"cell": str(key), **key._asdict(), **figures, "verdict": row.verdict, "reason": row.reason}


def write_reports(outcome: Outcome, paths: list[str]) -> None:
    for path in paths:
        text = markdown(outcome) if path.endswith(".md") else json.dumps(as_json(outcome), indent=1) + "\n"
        Path(path).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--prove", action="store_true", required=True, help="judge planted changes and print the rates")
    parser.add_argument("--against-budget", metavar="SECONDS", type=float, default=60, help="of a run; default: 60")
    most = max(kind.runs for kind in KINDS)
    parser.add_argument(
        "--runs", metavar="N", type=int, default=most, help="at most so many of each kind; default: all"
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        type=Path,
        default=RESULTS,
        help="what is kept, and gone on with; default: %(default)s",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        prove(options.results, options.against_budget, options.runs, partial(print, flush=True))
    except ValueError as error:
        parser.error(f"--results: {error}")
    except KeyboardInterrupt:
        parser.exit(130, f"stopped; {options.results} keeps the runs that are done, and the same command goes on\n")


if __name__ == "__main__":
    main()
