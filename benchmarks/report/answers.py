"""Which backend for which use: what the figures of one run say, and by how much.

The rules are in `USES` and stand on the page; nothing but the run's own cells goes into an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.measure.floor import FLOOR
from benchmarks.report.runs import Cell, Place, Spread
from imgstore import BACKENDS

READABLE = ("disk", "hdf5")  # PNG, which everything opens, and plain datasets, which any HDF5 tool reads
COUNTED = 0.005  # bytes on disk are counted, not timed: up to twice as much apart is no difference


class Use(NamedTuple):
    """What somebody does with a store. operations: those whose times add up, for an image; none for its bytes."""

    title: str
    operations: tuple[str, ...]
    unit: str
    rule: str
    only: tuple[str, ...] | None = None


USES = (
    Use(
        "Store once, read in order",
        ("store_many", "read_many"),
        "images/s",
        "least time for store_many and read_many together",
    ),
    Use("Random batches", ("read_batch",), "images/s", "least time for read_batch"),
    Use("One image now and then", ("read_single",), "s", "least time for read_single, which opens the store each time"),
    Use("Least disk space", (), "bytes/image", "fewest bytes on disk for an image, in whole blocks"),
    Use(
        "Readable by other tools",
        ("read_many",),
        "images/s",
        "of PNG files (disk) and plain HDF5 datasets (hdf5), which other programs open, least time for read_many",
        READABLE,
    ),
)


@dataclass(frozen=True)
class Answer:
    """For one use, with so many images in the store.

    best: the first and those that do not differ from it, with the seconds or bytes that an image takes. after: the
    next backend, and how many times as much it takes as the first. beaten_by: another format that takes less, and
    how many times as much the first takes. elsewhere: with other numbers of images, where others are best.
    """

    use: Use
    cutoff: int
    best: Mapping[str, float]
    after: tuple[str, float] | None
    beaten_by: tuple[str, float] | None
    elsewhere: Mapping[int, tuple[str, ...]]


def answer(use: Use, cells: Mapping[Place, Cell]) -> Answer | None:
    """At the most images that most of our backends were measured with; None for a use that was not measured."""
    measured = {cutoff: prices(use, cutoff, cells) for cutoff in sorted({place.cutoff for place in cells})}
    ours = {cutoff: {name: of[name] for name in use.only or BACKENDS if name in of} for cutoff, of in measured.items()}
    most = max(map(len, ours.values()), default=0)
    if most < 2:
        return None
    full = {cutoff: of for cutoff, of in ours.items() if len(of) == most}
    cutoff = max(full)
    best = no_difference(full[cutoff])
    first, others = full[cutoff][best[0]], set() if use.only else measured[cutoff].keys() - BACKENDS.keys()
    less = {name: price for name in others if (price := measured[cutoff][name]).high < first.low}
    return Answer(
        use,
        cutoff,
        {name: full[cutoff][name].median for name in best},
        cheapest(first, {name: price for name, price in full[cutoff].items() if name not in best}),
        cheapest(first, less),
        {count: names for count, of in full.items() if set(names := no_difference(of)) != set(best)},
    )


def prices(use: Use, cutoff: int, cells: Mapping[Place, Cell]) -> dict[str, Spread]:
    """What an image costs with each backend but the floor: seconds, or bytes."""
    backends = dict.fromkeys(place.backend for place in cells if place.cutoff == cutoff and place.backend != FLOOR)
    found: dict[str, Spread] = {}
    for backend in backends:
        if not use.operations:
            found |= disk_price(cutoff, backend, cells)
            continue
        parts = [cells.get(Place(operation, cutoff, backend)) for operation in use.operations]
        if all(parts):
            found[backend] = Spread.together(part.seconds.times(1 / part.images) for part in parts if part)
    return found


def disk_price(cutoff: int, backend: str, cells: Mapping[Place, Cell]) -> dict[str, Spread]:
    """By the backend, where it is known; all cells of a backend and a cutoff share one store."""
    size = next(cell.disk_bytes for place, cell in cells.items() if (place.cutoff, place.backend) == (cutoff, backend))
    return {backend: Spread(size * (1 - COUNTED), size, size * (1 + COUNTED))} if size else {}


def no_difference(prices: Mapping[str, Spread]) -> tuple[str, ...]:
    """The backend with the least median, and those whose intervals overlap its own."""
    ordered = sorted(prices, key=lambda name: prices[name].median)
    return tuple(name for name in ordered if prices[name].overlaps(prices[ordered[0]]))


def cheapest(first: Spread, prices: Mapping[str, Spread]) -> tuple[str, float] | None:
    """The one with the least median, and how many times as much it takes as the first, or the first as it."""
    if not prices:
        return None
    name = min(prices, key=lambda name: prices[name].median)
    ratio = prices[name].median / first.median
    return name, max(ratio, 1 / ratio)
