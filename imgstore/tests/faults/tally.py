"""How often each fault is tried, and the table of what came of it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from imgstore.tests.faults.changes import OURS, STORES, WHOLE, Aftermath, Store


class Tries(NamedTuple):
    """A number for each form of the tests: for ours, and for what it is compared with."""

    long: int
    short: int
    long_plain: int
    short_plain: int

    def of(self, store: Store, is_long: bool) -> int:
        if store.ours:
            return self.long if is_long else self.short
        return self.long_plain if is_long else self.short_plain


class Tally:
    """What came of each fault: (fault, store) -> outcome -> times."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, Store], Counter[str]] = {}

    def add(self, fault: str, store: Store, outcome: str) -> None:
        self.counts.setdefault((fault, store), Counter())[outcome] += 1

    def judge(self, fault: str, store: Store, answer: Any) -> None:
        """Add the outcome of an aftermath in a child. For ours it must be whole, and leave nothing behind."""
        outcome = answer.outcome if isinstance(answer, Aftermath) else type(answer).__name__.lower()
        self.add(fault, store, outcome)
        assert not store.ours or (outcome in WHOLE and not answer.litter), answer

    def rows(self) -> Iterator[str]:
        """A table in Markdown: ours beside plain."""
        yield "| fault | format | imgstore: times tried, outcome | plain: times tried, outcome |"
        yield "| --- | --- | --- | --- |"
        for fault in dict.fromkeys(fault for fault, _ in self.counts):
            for ours, plain in zip(OURS, STORES[len(OURS) :], strict=True):
                cells = " | ".join(_shown(self.counts.get((fault, store))) for store in (ours, plain))
                yield f"| {fault} | {ours.format} | {cells} |"


def _shown(outcomes: Counter[str] | None) -> str:
    if not outcomes:
        return "not tried"
    return f"{outcomes.total()}: " + ", ".join(f"{times} {outcome}" for outcome, times in sorted(outcomes.items()))
