"""Tests of the statistics: known values, and how often simulated series are called what they are not."""

import math
from collections.abc import Callable
from random import Random

import pytest

from benchmarks.gate.verdicts import (
    ERROR_RATE,
    FASTER,
    INCONCLUSIVE,
    MARGIN,
    NOT_COMPARABLE,
    SAME,
    SLOWER,
    Change,
    Row,
    Series,
    holm,
    judge,
    looks_changed,
    p_slower,
    percent,
    settled,
    strength,
    t_quantile,
    t_tail,
    trimmed,
    welch_freedom,
    wilson,
)

SUITES = 60
UNSETTLED = [-0.2, 0.2, -0.2, 0.2]
LEFT_OPEN = Series(UNSETTLED)
STILL = [0.001, -0.001, 0.002, -0.002, 0.0, 0.001, -0.001, 0.0]


def shifted(change: float) -> list[float]:
    """Eight pairs that hardly spread around a log-ratio."""
    return [change + ratio for ratio in STILL]


def cell(fresh: list[float] | None = None, control: list[float] | None = None) -> Series:
    return Series(screened=UNSETTLED, fresh=fresh or [], control=STILL if control is None else control)


def verdict(series: Series, floor: list[float], cells: int = 12, other: Series = LEFT_OPEN) -> Row:
    """On this cell, beside others."""
    others = {f"other {i}": other for i in range(cells - 1)}
    return judge({"cell": series} | others, {"cell": floor})["cell"]


# Student's table, as printed in statistics textbooks.
@pytest.mark.parametrize(
    ("probability", "freedom", "t"),
    [
        (0.95, 1, 6.314),
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.99, 3, 4.541),
        (0.975, 4, 2.776),
        (0.9995, 7, 5.408),
        (0.999, 10, 4.144),
        (0.975, 30, 2.042),
        (0.995, 60, 2.660),
    ],
)
def test_t_is_as_tabulated(probability: float, freedom: int, t: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(t, abs=5e-4)
    assert t_tail(t, freedom) == pytest.approx(1 - probability, rel=1e-3)
    assert t_tail(-t, freedom) == pytest.approx(probability, rel=1e-3)


@pytest.mark.parametrize("freedom", [1, 2, 3, 8])
def test_half_of_t_lies_above_nothing(freedom: int) -> None:
    assert t_tail(0, freedom) == pytest.approx(0.5)


def test_few_pairs_are_not_trimmed() -> None:
    mean, error, freedom = trimmed([1.0, 2.0, 3.0, 4.0])
    assert (mean, freedom) == (2.5, 3) and error == pytest.approx(math.sqrt(5 / 3) / 2)


def test_a_trimmed_mean_is_yuens() -> None:
    # 1 to 10 without 1 and 10; winsorised 2, 2, 3 ... 9, 9 has the sum of squares 66.5, so s = sqrt(66.5 / 9)
    mean, error, freedom = trimmed([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 10.0, 4.0, 8.0, 6.0])
    assert mean == 5.5 and freedom == 7
    assert error == pytest.approx(math.sqrt(66.5 / 9) / (0.8 * math.sqrt(10)))


# By hand: variances of a mean of 4 and 1 with 9 degrees of freedom each give 25 / (16/9 + 1/9) = 13.2.
@pytest.mark.parametrize(
    ("error", "freedom", "other", "other_freedom", "both"),
    [(2.0, 9, 1.0, 9, 13), (1.0, 5, 1.0, 5, 10), (1.0, 7, 0.0, 2, 7), (0.0, 7, 1.0, 2, 2), (0.0, 3, 0.0, 3, 1)],
)
def test_degrees_of_freedom_of_a_difference_are_welchs(
    error: float, freedom: int, other: float, other_freedom: int, both: int
) -> None:
    assert welch_freedom(error, freedom, other, other_freedom) == both


def test_a_pair_that_strayed_hardly_counts() -> None:
    assert p_slower(shifted(0.05) + shifted(0.05)) < 1e-6
    assert p_slower(shifted(0.05) + shifted(0.05)[:-1] + [-3.0]) < 1e-6


def test_a_change_has_a_t_interval() -> None:
    change = Change.of([1.0, 2.0, 3.0, 4.0])
    half = 3.182 * math.sqrt(5 / 3) / 2
    assert (change.low, change.high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-3)
    with pytest.raises(ValueError, match="two pairs"):
        Change.of([1.0])


@pytest.mark.parametrize(("ratios", "p"), [([0.05] * 4, 0.0), ([0.01] * 4, 1.0), ([0.5] * 3, 1.0), ([], 1.0)])
def test_p_without_spread_or_pairs(ratios: list[float], p: float) -> None:
    assert p_slower(ratios) == p


def test_p_is_that_of_the_margin() -> None:
    assert p_slower([MARGIN + ratio for ratio in (-0.01, 0.01, -0.02, 0.02)]) == pytest.approx(0.5)
    assert p_slower([ratio + 0.01 for ratio in STILL]) > 0.99


@pytest.mark.parametrize(
    ("p_values", "found"),
    [
        # Holm's steps: 0.05 / 4, / 3, / 2, / 1
        ({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, {"a", "d"}),
        ({"a": 0.012, "b": 0.016, "c": 0.024, "d": 0.05}, {"a", "b", "c", "d"}),
        ({"a": 0.013, "b": 0.001, "c": 1.0, "d": 1.0}, {"a", "b"}),
        ({"a": 0.013, "b": 1.0, "c": 1.0, "d": 1.0}, set()),
        ({"a": 0.0, "b": 0.04}, {"a", "b"}),
        ({}, set()),
    ],
)
def test_holm_steps_down(p_values: dict[str, float], found: set[str]) -> None:
    assert holm(p_values) == found


# Wilson's interval: 0 of 40 and 29 of 30 as R's binom.wilson and the formula by hand give them.
@pytest.mark.parametrize(
    ("found", "tried", "low", "high"),
    [(0, 40, 0.0, 0.0876), (29, 30, 0.8333, 0.9941), (5, 10, 0.2366, 0.7634), (0, 0, 0.0, 1.0), (7, 7, 0.6457, 1.0)],
)
def test_wilson(found: int, tried: int, low: float, high: float) -> None:
    assert wilson(found, tried) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "expected"), [(0.1, SLOWER), (-0.1, FASTER), (0.0, SAME), (0.015, SAME), (-0.015, SAME)]
)
def test_verdicts(change: float, expected: str) -> None:
    assert verdict(cell(shifted(change)), STILL).verdict == expected


@pytest.mark.parametrize(
    ("fresh", "control"),
    [([], []), (shifted(0.5)[:3], STILL), (shifted(0.5), STILL[:3]), (shifted(-0.5), STILL), (STILL, STILL)],
)
def test_what_cannot_run_is_not_comparable(fresh: list[float], control: list[float]) -> None:
    row = verdict(Series(fresh=fresh, control=control, reason="REF: no"), STILL)
    assert row == Row(NOT_COMPARABLE, reason="REF: no")


def test_what_failed_after_it_was_found_slower_is_slower() -> None:
    series = Series(fresh=shifted(0.5), control=STILL, reason="working tree: no")
    assert verdict(series, STILL) == Row(SLOWER, Change.of(series.fresh), "working tree: no")


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        (Series(), "too little time for two pairs"),
        (Series(screened=[0.5]), "too little time for two pairs"),
        (Series(screened=shifted(0.5)), "too little time to confirm it"),
        (Series(screened=shifted(0.5), fresh=shifted(0.5)[:3], control=STILL), "too little time to confirm it"),
        (Series(fresh=[-0.3, 0.3, -0.2, 0.2], control=STILL), ""),
    ],
)
def test_what_is_not_known_is_inconclusive(series: Series, reason: str) -> None:
    row = verdict(series, STILL)
    assert (row.verdict, row.reason) == (INCONCLUSIVE, reason)


def test_the_pairs_that_screened_are_not_tested() -> None:
    series = Series(screened=shifted(0.5), fresh=shifted(0.0), control=STILL)
    row = verdict(series, STILL)
    assert row.verdict == SAME and row.change == Change.of(series.fresh)


@pytest.mark.parametrize("change", [0.1, -0.1])
@pytest.mark.parametrize(
    ("moved", "reason"),
    [
        (1.0, "the control moved: {name} changed by"),
        (0.3, "the control moved: {name} changed by"),
        (-1.0, "the control moved: {name} changed by"),
    ],
)
@pytest.mark.parametrize("name", ["the floor", "REF against REF"])
def test_a_control_that_moved_withholds_the_verdict(change: float, moved: float, reason: str, name: str) -> None:
    beside = shifted(change * moved)
    controls = (beside, STILL) if name == "the floor" else (STILL, beside)
    row = verdict(cell(shifted(change), controls[1]), controls[0])
    assert row.verdict == INCONCLUSIVE and row.reason.startswith(reason.format(name=name))


@pytest.mark.parametrize("change", [0.05, -0.05])
def test_a_control_that_may_have_moved_as_far_withholds_the_verdict(change: float) -> None:
    row = verdict(cell(shifted(change), [0.1, -0.1, 0.12, -0.12]), STILL)
    assert row.verdict == INCONCLUSIVE and row.reason.startswith("not clear of the control: REF against REF gave")


@pytest.mark.parametrize(("floor", "control"), [([], STILL), (STILL, []), (STILL[:3], STILL), (STILL, STILL[:3])])
def test_without_controls_there_is_no_finding(floor: list[float], control: list[float]) -> None:
    row = verdict(cell(shifted(0.1), control), floor)
    assert row.verdict == INCONCLUSIVE and row.reason.endswith("was not measured often enough")


def test_more_cells_ask_for_more() -> None:
    series = cell([0.02 + MARGIN + ratio for ratio in (-0.02, 0.02, -0.01, 0.01, -0.02, 0.02, 0.0, 0.0)])
    assert ERROR_RATE / 12 < p_slower(series.fresh) < ERROR_RATE
    assert verdict(series, STILL, cells=1).verdict == SLOWER
    assert verdict(series, STILL, cells=12).verdict == INCONCLUSIVE
    assert verdict(series, STILL, cells=12, other=Series(screened=STILL)).verdict == SLOWER
    assert verdict(series, STILL, cells=12, other=Series(reason="REF: no")).verdict == SLOWER


@pytest.mark.parametrize(
    ("series", "changed", "done"),
    [
        (Series(), True, False),
        (Series(screened=[0.0]), True, False),
        (Series(screened=shifted(0.0)), False, True),
        (Series(screened=shifted(0.03)), True, False),
        (Series(screened=shifted(-0.03)), True, False),
        (Series(screened=[-0.2, 0.2, -0.2, 0.2]), False, False),
        (Series(screened=shifted(0.03), fresh=STILL[:3]), True, False),
        (Series(screened=shifted(0.03), fresh=STILL[:4]), False, True),
        (Series(screened=STILL, fresh=shifted(0.03)), True, False),
    ],
)
def test_what_is_measured_on(series: Series, changed: bool, done: bool) -> None:
    assert (looks_changed(series), settled(series.latest)) == (changed, done)


def test_strength_counts_standard_errors() -> None:
    assert strength(Series(screened=[-1.0, -2.0, -3.0, -4.0])) == pytest.approx(2.5 / (math.sqrt(5 / 3) / 2))
    assert strength(Series(screened=[0.1])) == strength(Series(screened=[0.1, 0.1])) == math.inf


@pytest.mark.parametrize(("ratio", "text"), [(math.log(1.21), "+21.0"), (math.log(0.5), "-50.0"), (0.0, "+0.0")])
def test_percent(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def quiet(draw: Random) -> float:
    return draw.gauss(0, 0.025)


def stray(draw: Random) -> float:
    """One pair in seven is far off."""
    return draw.gauss(0, 0.12 if draw.random() < 1 / 7 else 0.025)


def calls(noise: Callable[[Random], float], change: float, of: int = 1, pairs: int = 20) -> tuple[int, int]:
    """In how many of simulated suites of 12 cells one of the first `of`, all changed, is called slower, and any other.

    Each is screened, and has fresh pairs where that does not settle it.
    """
    found = false = 0
    for seed in range(SUITES):
        draw = Random(seed)
        cells = {}
        for key in range(12):
            ratios = [noise(draw) + (change if key < of else 0) for _ in range(4 + pairs)]
            fresh = [] if settled(ratios[:4]) else ratios[4:]
            cells[key] = Series(ratios[:4], fresh, control=[noise(draw) for _ in range(pairs // 2)])
        floor = [noise(draw) for _ in range(pairs)]
        called = {key for key, row in judge(cells, dict.fromkeys(cells, floor)).items() if row.verdict == SLOWER}
        found += any(key < of for key in called)
        false += any(key >= of for key in called)
    return found, false


@pytest.mark.parametrize("noise", [quiet, stray])
def test_simulated_suites_of_identical_code_raise_no_alarm(noise: Callable[[Random], float]) -> None:
    assert calls(noise, 0.0) == (0, 0)


@pytest.mark.parametrize("pairs", [4, 8, 16])
@pytest.mark.parametrize("moved", ["the floor", "REF against REF"])
def test_what_moves_a_control_as_far_is_seldom_found(moved: str, pairs: int) -> None:
    found = 0
    for seed in range(SUITES):
        draw = Random(seed)
        ratios, floor, control = ([quiet(draw) for _ in range(pairs)] for _ in range(3))
        other = floor if moved == "the floor" else control
        other[:] = [ratio + 0.1 for ratio in other]
        found += verdict(cell([ratio + 0.1 for ratio in ratios], control), floor).verdict == SLOWER
    assert found <= ERROR_RATE * SUITES


@pytest.mark.parametrize("of", [1, 12])
@pytest.mark.parametrize("noise", [quiet, stray])
def test_simulated_changes_as_small_as_the_margin_are_seldom_found(noise: Callable[[Random], float], of: int) -> None:
    found, false = calls(noise, MARGIN, of)
    assert found <= ERROR_RATE * SUITES and not false


@pytest.mark.parametrize(("change", "least"), [(0.05, 0.8), (0.1, 1.0)])
def test_simulated_slowdowns_are_found(change: float, least: float) -> None:
    found, false = calls(quiet, math.log1p(change))
    assert found >= least * SUITES and not false
