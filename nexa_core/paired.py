"""Two models on the same rows: the difference of their scores with its interval, and how likely chance alone makes it.

Axes: N rows, B resamples, U units that rows are grouped into.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nexa_core import intervals
from nexa_core.intervals import Interval

NUM_FLIPS = 20_000
FLIPS_AT_ONCE_ELEMENTS = 2_000_000
MOST_UNITS = 5_000
"""Rows beyond it are grouped at random before signs are flipped; a group's rows then swap models together, which is as valid."""


@dataclass(frozen=True)
class PairedDifference:
    """A score of two models on the same rows, and their difference, first minus second."""

    first: float
    second: float
    difference: float
    low: float
    """Ends of the difference's 95% interval."""
    high: float
    interval: str
    p_value: float
    """Two-sided: how often models that do not differ come out at least so far apart."""
    test: str
    num_rows: int
    num_first: int
    """Rows on which the first is better."""
    num_second: int

    def as_json(self) -> dict[str, Any]:
        """A JSON object; an unbounded side is null, because JSON has no infinity."""
        ends = {
            name: value if math.isfinite(value) else None for name, value in (("low", self.low), ("high", self.high))
        }
        return {**asdict(self), **ends}


def compare_proportions(
    first_N: NDArray[np.float64], second_N: NDArray[np.float64], *, seed: int = 0
) -> PairedDifference:
    """The shares of rows that are 1, of rows that are 0 or 1; a paired bootstrap bounds the difference.

    Raises:
        ValueError: no rows, or not the same number of them.
    """
    _check(first_N, second_N)
    num_first, num_second = int((first_N > second_N).sum()), int((second_N > first_N).sum())
    return _difference(
        first_N,
        second_N,
        np.ones(len(first_N)),
        p_value=mcnemar(num_first, num_second),
        test="exact McNemar",
        counts=(num_first, num_second),
        seed=seed,
    )


def compare_means(
    first_N: NDArray[np.float64],
    second_N: NDArray[np.float64],
    weights_N: NDArray[np.float64],
    *,
    less_is_better: bool,
    seed: int = 0,
) -> PairedDifference:
    """Sums over rows divided by the rows' summed weights, such as losses by tokens.

    Raises:
        ValueError: no rows, or not the same number of them.
    """
    _check(first_N, second_N)
    num_more, num_less = int((first_N > second_N).sum()), int((first_N < second_N).sum())
    return _difference(
        first_N,
        second_N,
        weights_N,
        p_value=sign_flips(first_N - second_N, seed=seed),
        test=f"{NUM_FLIPS:,} random sign flips",
        counts=(num_less, num_more) if less_is_better else (num_more, num_less),
        seed=seed,
    )


def mcnemar(num_first: int, num_second: int) -> float:
    """The two-sided exact p-value where so many rows are right with one model only, and so many with the other only.

    Source: McNemar 1947, doi:10.1007/BF02295996; the exact binomial form, as in Dietterich 1998, doi:10.1162/089976698300017197.
    """
    from scipy.special import bdtr

    total = num_first + num_second
    return 1.0 if total == 0 else min(1.0, 2.0 * float(bdtr(min(num_first, num_second), total, 0.5)))


def sign_flips(differences_N: NDArray[np.float64], *, seed: int = 0) -> float:
    """The two-sided p-value of a sum of differences, against sums in which each row's models are swapped at random.

    The least that it can be is 1 / (NUM_FLIPS + 1). Source: Fisher 1935, The Design of Experiments, 21; the +1: Phipson and
    Smyth 2010, doi:10.2202/1544-6115.1585.
    """
    rng = np.random.default_rng(seed)
    units_U = _units(differences_N, rng)
    observed = abs(float(units_U.sum())) * (1 - 1e-12)  # rounding must not make an equal sum a smaller one
    num_as_far, step = 0, max(1, FLIPS_AT_ONCE_ELEMENTS // len(units_U))
    for start in range(0, NUM_FLIPS, step):
        signs_BU = rng.integers(0, 2, size=(min(step, NUM_FLIPS - start), len(units_U)), dtype=np.int8) * 2 - 1
        num_as_far += int((np.abs(np.einsum("bu,u->b", signs_BU, units_U)) >= observed).sum())
    return (num_as_far + 1) / (NUM_FLIPS + 1)


def _units(differences_N: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    if len(differences_N) <= MOST_UNITS:
        return differences_N
    group_N = rng.permutation(len(differences_N)) % MOST_UNITS
    return np.bincount(group_N, weights=differences_N, minlength=MOST_UNITS).astype(np.float64)


def _difference(
    first_N: NDArray[np.float64],
    second_N: NDArray[np.float64],
    weights_N: NDArray[np.float64],
    *,
    p_value: float,
    test: str,
    counts: tuple[int, int],
    seed: int,
) -> PairedDifference:
    total, num_rows = float(weights_N.sum()), len(first_N)
    first, second = float(first_N.sum()) / total, float(second_N.sum()) / total
    value = float((first_N - second_N).sum()) / total
    interval = Interval(-math.inf, math.inf, "none")
    if num_rows > 1:
        sums_B2 = intervals.resampled_sums([first_N - second_N, weights_N], seed=seed)
        drawn_B = np.divide(sums_B2[:, 0], sums_B2[:, 1], out=np.full(len(sums_B2), math.inf), where=sums_B2[:, 1] > 0)
        method = f"paired {intervals.resampling_method(num_rows)}"
        interval = intervals.percentile(drawn_B, num_rows=num_rows, method=method)
    low, high = min(interval.low, value), max(interval.high, value)
    return PairedDifference(
        first, second, value, low, high, interval.method, p_value, test, num_rows, counts[0], counts[1]
    )


def _check(first_N: NDArray[np.float64], second_N: NDArray[np.float64]) -> None:
    if len(first_N) != len(second_N) or len(first_N) == 0:
        raise ValueError(f"{len(first_N)} and {len(second_N)} rows. Allowed: the same number of both, one or more")
