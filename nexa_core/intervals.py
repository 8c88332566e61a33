"""95% intervals around scores: Wilson, Student t, seeded bootstrap and DeLong.

Axes: N rows, C columns or classes, B resamples, M cells of a table of counts.

Resampling never goes through BLAS: its summation order may change with the number of threads, and equal input has
to give equal bytes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_Z = 1.959963984540054  # the normal quantile of 0.975

NUM_RESAMPLES = 2000
# More rows than this are first put at random into this many groups and the groups are resampled: a sum over rows keeps
# its variance (to within about 1%), and the cost stops growing with the data.
MAX_RESAMPLED_UNITS = 20_000
# A table with more filled cells than MAX_CELL_DRAWS / NUM_RESAMPLES gets fewer resamples, but never under the minimum.
MAX_CELL_DRAWS = 40_000_000
MIN_RESAMPLES = 200
_CHUNK_ELEMENTS = 2_000_000  # 16 MB of float64: bounds the memory of every loop below


@dataclass(frozen=True)
class Interval:
    """Bounds of a 95% interval; `method` is how they came about, and ``none`` where the data cannot bound the score."""

    low: float
    high: float
    method: str


def wilson(num_successes: int, num_rows: int) -> Interval:
    """The score interval of a proportion, sound at 0%, at 100% and for few rows.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953; method 3 of Newcombe 1998.
    """
    share, z2 = num_successes / num_rows, _Z * _Z
    centre = (share + z2 / (2 * num_rows)) / (1 + z2 / num_rows)
    half = _Z / (1 + z2 / num_rows) * math.sqrt(share * (1 - share) / num_rows + z2 / (4 * num_rows**2))
    # At the ends the formula is exactly 0 or 1; rounding must not say otherwise.
    low = 0.0 if num_successes == 0 else centre - half
    high = 1.0 if num_successes == num_rows else centre + half
    return Interval(low, high, "wilson")


def mean_t(values_N: NDArray[np.float64], *, lowest: float = -math.inf) -> Interval:
    """Student's interval of a mean, cut off at `lowest`; one row bounds nothing."""
    num_rows = len(values_N)
    if num_rows < 2:
        return Interval(lowest, math.inf, "none")
    mean = float(values_N.mean())
    half = _t_quantile(num_rows) * float(values_N.std(ddof=1)) / math.sqrt(num_rows)
    return Interval(max(lowest, mean - half), mean + half, "t")


def ratio_t(
    *, num_units: int, top: float, bottom: float, top_squared: float, product: float, bottom_squared: float
) -> Interval:
    """Student's interval of a ratio of two sums over units that were drawn together, as rows are with their tokens.

    With `bottom` 1 in each unit it is the interval of a mean. One unit bounds nothing.

    Args:
        num_units: those with something below the line.
        top, bottom: the two sums over the units; `top_squared`, `product` and `bottom_squared` those of the squares and
            of top times bottom.

    Source: Cochran 1977, Sampling Techniques, section 6.4 (the linearised variance of a ratio).
    """
    if num_units < 2:
        return Interval(-math.inf, math.inf, "none")
    ratio = top / bottom
    squares = max(0.0, top_squared - 2 * ratio * product + ratio * ratio * bottom_squared)
    half = _t_quantile(num_units) * math.sqrt(squares * num_units / (num_units - 1)) / bottom
    return Interval(ratio - half, ratio + half, "t")


def resampled_sums(columns: Sequence[NDArray[Any]], *, seed: int) -> NDArray[np.float64]:
    """Sums of each column over NUM_RESAMPLES draws of rows with replacement, the same draws for all columns (B, C).

    Shared draws are what makes a difference or a ratio of two columns a paired comparison.
    """
    rng = np.random.default_rng(seed)
    units_CU = _units(columns, rng)
    num_units = units_CU.shape[1]
    sums_BC = np.empty((NUM_RESAMPLES, len(columns)))
    for chunk in _chunks(NUM_RESAMPLES, num_units):
        size = chunk.stop - chunk.start
        draws = rng.integers(0, num_units, size=(size, num_units), dtype=np.int64)
        draws += np.arange(size)[:, None] * num_units
        weights = np.bincount(draws.ravel(), minlength=size * num_units).reshape(size, num_units).astype(np.float64)
        sums_BC[chunk] = np.einsum("bu,cu->bc", weights, units_CU)
    return sums_BC


def resampling_method(num_rows: int) -> str:
    """What `resampled_sums` did with that many rows."""
    return "bootstrap" if num_rows <= MAX_RESAMPLED_UNITS else f"bootstrap of {MAX_RESAMPLED_UNITS} random groups"


def resampled_counts(counts_M: NDArray[np.int64], *, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks (b, M) of a table's counts under draws of its rows with replacement.

    A multinomial over the cells is that draw exactly, at a cost that depends on the cells and not on the rows.
    """
    rng = np.random.default_rng(seed)
    num_rows = int(counts_M.sum())
    for chunk in _chunks(num_cell_resamples(len(counts_M)), len(counts_M)):
        yield rng.multinomial(num_rows, counts_M / num_rows, size=chunk.stop - chunk.start)


def num_cell_resamples(num_cells: int) -> int:
    return max(MIN_RESAMPLES, min(NUM_RESAMPLES, MAX_CELL_DRAWS // num_cells))


def percentile(statistics_B: NDArray[np.float64], *, num_rows: int, method: str) -> Interval:
    """The expanded percentile interval: tails as far out as Student's t asks for, so that few rows are not flattered.

    Bounds are order statistics and never interpolated, so an infinite resample makes an infinite bound, not NaN.
    Source: Hesterberg 2015, doi:10.1080/00031305.2015.1089789 (expanded percentile).
    """
    rank = tail_rank(len(statistics_B), num_rows=num_rows)
    ordered = np.partition(statistics_B, [rank, len(statistics_B) - 1 - rank])
    return Interval(float(ordered[rank]), float(ordered[-1 - rank]), method)


def tail_rank(num_resamples: int, *, num_rows: int) -> int:
    """How many resamples lie outside the interval on each side."""
    from scipy.special import ndtr

    tail = float(ndtr(-math.sqrt(num_rows / (num_rows - 1)) * _t_quantile(num_rows)))
    return int(tail * num_resamples)


def absolute_gaps(bin_N: NDArray[np.int64], gap_N: NDArray[np.float64], *, seed: int) -> Interval:
    """The interval of a sum over bins of |sum of the bin's gaps| / N, as the calibration error is.

    The estimate lies too high where bins hold few rows, and resampling adds that bias once more: a percentile interval
    covered the true error of a calibrated model in 0 of 200 simulations. So the lower bound rests on the triangle
    inequality, |error - true error| <= sum over bins of |gap - true gap|, whose right side is resampled. The upper
    bound is the percentile, whose bias is to the wide side.

    Source of the bias: Kumar et al. 2019, https://arxiv.org/abs/1909.10155.
    """
    num_rows = len(gap_N)
    if num_rows < 2:
        return Interval(0.0, 1.0, "none")
    columns_CN = [np.where(bin_N == index, gap_N, 0.0) for index in np.unique(bin_N)]
    gaps_C = np.array([column.sum() for column in columns_CN]) / num_rows
    sums_BC = resampled_sums([*columns_CN, np.ones(num_rows)], seed=seed)
    resampled_BC = sums_BC[:, :-1] / sums_BC[:, -1:]
    method = resampling_method(num_rows)
    reach = percentile(np.abs(resampled_BC - gaps_C).sum(axis=1), num_rows=num_rows, method=method).high
    high = percentile(np.abs(resampled_BC).sum(axis=1), num_rows=num_rows, method=method).high
    return Interval(max(0.0, float(np.abs(gaps_C).sum()) - reach), min(1.0, high), method)


def delong(
    scores_CN: Sequence[NDArray[Any]], classes: Sequence[int], targets_N: NDArray[np.int64]
) -> tuple[float, Interval]:
    """The mean one-against-rest AUROC of `classes` and its interval; ties count half.

    `scores_CN[i]` scores class `classes[i]`, which must have rows and not be all rows. With one class the variance is
    DeLong's. With more, a row's terms are added up over the classes before its variance is taken, which keeps the
    covariance between them. The interval is normal on the logit scale. A class with a single row has no spread to
    measure: it is given the largest that a bounded variable can have (Popoviciu), which errs to the wide side.

    Source: DeLong et al. 1988, doi:10.2307/2531595; logit: Qin and Hotilovac 2008, doi:10.1177/0962280207087173.
    """
    num_rows, num_classes = len(targets_N), len(classes)
    values = []
    term_N = np.zeros(num_rows)
    class_sizes = np.bincount(targets_N)
    largest_term = np.zeros(len(class_sizes))
    for class_index, scores_N in zip(classes, scores_CN, strict=True):
        is_positive_N = targets_N == class_index
        num_positives = int(class_sizes[class_index])
        placement_N = _placements(scores_N, is_positive_N)
        values.append(float(placement_N[is_positive_N].mean()))
        term_N += placement_N / np.where(is_positive_N, num_positives, num_rows - num_positives) / num_classes
        weight_by_class = np.full(len(class_sizes), 1 / (num_rows - num_positives))
        weight_by_class[class_index] = 1 / num_positives
        largest_term += weight_by_class / num_classes

    variance = 0.0
    for class_index, size in enumerate(class_sizes.tolist()):
        if size == 0:
            continue
        spread = term_N[targets_N == class_index].var(ddof=1) if size > 1 else largest_term[class_index] ** 2 / 4
        variance += size * float(spread)
    value = float(np.mean(values))
    return value, _logit_normal(value, math.sqrt(variance))


def _placements(scores_N: NDArray[Any], is_positive_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A positive's share of negatives below it, a negative's share of positives above it; ties count half."""
    order = np.argsort(scores_N, kind="stable")
    sorted_scores, sorted_positive = scores_N[order], is_positive_N[order]
    tie_group_N = np.concatenate([[0], np.cumsum(sorted_scores[1:] != sorted_scores[:-1])])
    positives = np.bincount(tie_group_N, weights=sorted_positive)
    negatives = np.bincount(tie_group_N) - positives
    positives_above = positives.sum() - np.cumsum(positives) + positives / 2
    negatives_below = np.cumsum(negatives) - negatives / 2
    placement_N = np.empty(len(scores_N))
    placement_N[order] = np.where(
        sorted_positive,
        (negatives_below / negatives.sum())[tie_group_N],
        (positives_above / positives.sum())[tie_group_N],
    )
    return placement_N


def _logit_normal(value: float, standard_error: float) -> Interval:
    if not 0 < value < 1:  # no logit there, so the normal interval, cut off at the ends
        half = _Z * standard_error
        return Interval(max(0.0, value - half), min(1.0, value + half), "delong")
    centre, half = math.log(value / (1 - value)), _Z * standard_error / (value * (1 - value))
    return Interval(_logistic(centre - half), _logistic(centre + half), "delong")


def _logistic(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))  # unlike 1 / (1 + exp(-x)), never overflows


def _units(columns: Sequence[NDArray[Any]], rng: np.random.Generator) -> NDArray[np.float64]:
    """What is drawn from (C, U): the rows, or their sums in random groups where there are too many rows."""
    num_rows = len(columns[0])
    if num_rows <= MAX_RESAMPLED_UNITS:
        return np.array(columns, dtype=np.float64)
    group_N = rng.permutation(num_rows) % MAX_RESAMPLED_UNITS
    return np.array([np.bincount(group_N, weights=column, minlength=MAX_RESAMPLED_UNITS) for column in columns])


def _chunks(total: int, elements_each: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // elements_each)
    for start in range(0, total, step):
        yield slice(start, min(total, start + step))


def _t_quantile(num_rows: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(num_rows - 1, (1 + CONFIDENCE) / 2))
