"""What a comparison came to, as a table for the terminal, Markdown and JSON."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gate.contest import Key
from benchmarks.gate.reference import REQUIREMENTS, Reference
from benchmarks.gate.verdicts import FASTER, INCONCLUSIVE, NOT_COMPARABLE, SAME, SLOWER, Row, percent
from benchmarks.measure.operations import OPERATIONS
from benchmarks.measure.order import rank

VERDICTS = (SLOWER, FASTER, SAME, INCONCLUSIVE, NOT_COMPARABLE)
REPORTS = (".md", ".json")
TITLES = ("cell", "change in %", "95% interval", "pairs", "verdict")


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
