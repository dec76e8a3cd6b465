"""The order of formats in every table."""

from benchmarks.measure.floor import FLOOR
from imgstore import BACKENDS


def rank(backend: str) -> tuple[int, str]:
    """The floor first, then ours as they are registered, then other formats by name."""
    ours = [FLOOR, *BACKENDS]
    return (ours.index(backend) if backend in ours else len(ours)), backend
