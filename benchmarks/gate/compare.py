"""`pytest benchmarks --against REF`: whether the working tree is slower than another commit, and which cells.

`python -m benchmarks.gate --prove` measures how often its verdicts are right.
"""

import os
import time
from collections.abc import Callable

from benchmarks.gate.contest import HARNESS, PACKAGE, CannotStartError, Contest, Key, Trees, copy_package
from benchmarks.gate.reference import GateError, Reference
from benchmarks.gate.tables import Outcome, place
from benchmarks.measure.cell import Terms
from benchmarks.measure.images import Source

DEFAULT_BUDGET = 600.0
DEFAULT_CUTOFFS = (10, 100, 1000)


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
