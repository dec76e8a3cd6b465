"""What pairs of processes say of a cell: t tests on log-ratios, Holm's correction, the verdict. Pure functions.

A log-ratio is log(seconds of the working tree / seconds of REF), one number a pair; positive is slower.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, stdev
from typing import Literal, TypeVar

SLOWER: "Verdict" = "slower"
FASTER: "Verdict" = "faster"
SAME: "Verdict" = "same"
INCONCLUSIVE: "Verdict" = "inconclusive"
NOT_COMPARABLE: "Verdict" = "not comparable"
Verdict = Literal["slower", "faster", "same", "inconclusive", "not comparable"]
Key = TypeVar("Key", bound=Hashable)

MARGIN = math.log(1.02)  # a smaller change than 2% is no finding
SAME_WITHIN = math.log(1.10)  # "same" excludes a larger change than 10%
ERROR_RATE = 0.05  # of a single false "slower" among all cells of a run; the same of "faster"
CONFIDENCE = 0.95
FEWEST_PAIRS = 4
TRIMMED = 0.1  # of the pairs, at either end


@dataclass(frozen=True)
class Change:
    """Trimmed mean of log-ratios with its confidence interval."""

    mean: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Change":
        if len(ratios) < 2:
            raise ValueError("a confidence interval needs two pairs or more")
        mean, error, freedom = trimmed(ratios)
        half = t_quantile((1 + CONFIDENCE) / 2, freedom) * error
        return cls(mean, mean - half, mean + half, len(ratios))

    @property
    def settled(self) -> bool:
        """Neither looks like more than the margin, nor could be much more."""
        return abs(self.mean) <= MARGIN and self.low > -SAME_WITHIN and self.high < SAME_WITHIN


@dataclass
class Series:
    """Log-ratios of one cell: of the pairs that screened it, of fresh ones, and of REF against REF.

    reason: why it cannot be compared, if it cannot.
    """

    screened: list[float] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    reason: str | None = None

    @property
    def latest(self) -> list[float]:
        return self.fresh if len(self.fresh) >= FEWEST_PAIRS else self.screened


@dataclass(frozen=True)
class Row:
    """The verdict on a cell; `reason` says more where there is more to say."""

    verdict: Verdict
    change: Change | None = None
    reason: str = ""


def t_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t: the finite sums for whole degrees of freedom, Abramowitz and Stegun 26.7.3-4."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for i in range(2 + odd, freedom, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    inside = sine * total if freedom > 1 else 0.0
    return (1 - (2 / math.pi * (angle + inside) if odd else inside)) / 2


def t_quantile(probability: float, freedom: int) -> float:
    """The t that T stays below with this probability, at least 0.5, by bisection."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - probability else (low, middle)
    return high


def trimmed(ratios: Sequence[float]) -> tuple[float, float, int]:
    """Mean without the extremes, its standard error, the degrees of freedom for a t test of it (Yuen 1974).

    On a busy machine a few pairs stray far, and an ordinary t test then finds hardly anything.
    """
    cut, ordered = int(TRIMMED * len(ratios)), sorted(ratios)
    kept = ordered[cut : len(ordered) - cut]
    winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
    error = stdev(winsorised) * math.sqrt(len(ratios)) / len(kept)
    return fmean(kept), error, len(kept) - 1


def welch_freedom(error: float, freedom: int, other_error: float, other_freedom: int) -> int:
    """Degrees of freedom of the difference of two means, rounded down (Welch 1947); 1 where neither has an error."""
    square, other = error**2, other_error**2
    return int((square + other) ** 2 / (square**2 / freedom + other**2 / other_freedom)) if square + other else 1


def p_slower(ratios: Sequence[float], margin: float = MARGIN) -> float:
    """One-sided t test: how likely such ratios are where the true change is `margin`. 1 for too few pairs."""
    if len(ratios) < FEWEST_PAIRS:
        return 1.0
    mean, error, freedom = trimmed(ratios)
    if error == 0:
        return 0.0 if mean > margin else 1.0
    return t_tail((mean - margin) / error, freedom)


def holm(p_values: Mapping[Key, float], rate: float = ERROR_RATE) -> set[Key]:
    """Those that are found, with a chance of `rate` that any is a false one (Holm 1979)."""
    found: set[Key] = set()
    for key in sorted(p_values, key=lambda key: p_values[key]):
        if p_values[key] > rate / (len(p_values) - len(found)):
            break
        found.add(key)
    return found


def looks_changed(series: Series) -> bool:
    """By more than the margin, as far as known; fresh pairs must decide."""
    ratios = series.latest
    return len(ratios) < 2 or abs(trimmed(ratios)[0]) > MARGIN


def looks_slower(ratios: Sequence[float]) -> bool:
    """By more than the margin, as far as known."""
    return len(ratios) < 2 or trimmed(ratios)[0] > MARGIN


def strength(series: Series) -> float:
    """How many standard errors it looks changed by; infinite where nothing is known yet."""
    if len(series.latest) < 2:
        return math.inf
    mean, error, _ = trimmed(series.latest)
    return abs(mean) / error if error else math.inf


def settled(ratios: Sequence[float]) -> bool:
    """Whether they do not look changed, and could not be by much."""
    return len(ratios) > 1 and Change.of(ratios).settled


def judge(cells: Mapping[Key, Series], floors: Mapping[Key, Sequence[float]]) -> dict[Key, Row]:
    """The verdict on each cell. `floors`: log-ratios of the cell that runs none of our code, beside each cell.

    What screening settled is not tested, and the tests are of other pairs than those that screened: so those cells
    need no correction. See screen and clean (Wasserman and Roeder 2009).
    """
    tested = {key: series for key, series in cells.items() if not series.reason or len(series.fresh) >= FEWEST_PAIRS}
    in_question = {key: series for key, series in tested.items() if not settled(series.screened)}
    slower = holm({key: p_slower(series.fresh) for key, series in in_question.items()})
    faster = holm({key: p_slower([-ratio for ratio in series.fresh]) for key, series in in_question.items()})
    found: dict[Key, Verdict] = dict.fromkeys(slower, SLOWER) | dict.fromkeys(faster, FASTER)
    return {key: _row(series, found.get(key), floors.get(key, ())) for key, series in cells.items()}


def _row(series: Series, found: Verdict | None, floor: Sequence[float]) -> Row:
    ratios = series.latest
    unsure = found and (withheld(ratios, floor, "the floor") or withheld(ratios, series.control, "REF against REF"))
    if series.reason is not None and (found != SLOWER or unsure):  # slower is what was found so before it failed
        return Row(NOT_COMPARABLE, reason=series.reason)
    if len(ratios) < 2:
        return Row(INCONCLUSIVE, reason="too little time for two pairs")
    change = Change.of(ratios)
    if found:
        return Row(INCONCLUSIVE if unsure else found, change, unsure or series.reason or "")
    if change.settled:
        return Row(SAME, change)
    return Row(INCONCLUSIVE, change, "" if ratios is series.fresh else "too little time to confirm it")


def withheld(ratios: Sequence[float], control: Sequence[float], name: str) -> str:
    """Why a control forbids a finding, or nothing: it moved itself, or the cell did not clearly move farther."""
    if len(control) < FEWEST_PAIRS:
        return f"{name} was not measured often enough"
    beside = Change.of(control)
    if beside.low > MARGIN or beside.high < -MARGIN:
        return f"the control moved: {name} changed by {percent(beside.mean)}%"
    (mean, error, freedom), (mean_beside, error_beside, freedom_beside) = trimmed(ratios), trimmed(control)
    farther = mean - mean_beside if mean > 0 else mean_beside - mean
    both = welch_freedom(error, freedom, error_beside, freedom_beside)
    if farther <= t_quantile(1 - ERROR_RATE, both) * math.hypot(error, error_beside):
        return f"not clear of the control: {name} gave {percent(beside.low)} to {percent(beside.high)}%"
    return ""


def percent(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):+.1f}"


def wilson(found: int, tried: int) -> tuple[float, float]:
    """The 95% interval of a rate (Wilson 1927); 0 to 1 where nothing was tried."""
    if not tried:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    rate, scale = found / tried, 1 + z * z / tried
    middle = (rate + z * z / (2 * tried)) / scale
    half = z * math.sqrt(rate * (1 - rate) / tried + z * z / (4 * tried * tried)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)
