"""Paired comparisons: p-values against scipy's, intervals that cover, no difference where there is none."""

import math

import numpy as np
import pytest
from scipy import stats

from nexa_core.paired import MOST_UNITS, compare_means, compare_proportions, mcnemar, sign_flips


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (5, 5), (3, 11), (40, 8), (300, 2)])
def test_mcnemar_is_the_binomial_test_of_the_rows_that_differ(counts: tuple[int, int]) -> None:
    wanted = stats.binomtest(counts[0], sum(counts), 0.5).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(wanted, rel=1e-9)
    assert mcnemar(*counts) == mcnemar(*reversed(counts))


def test_sign_flips_agree_with_the_exact_test() -> None:
    differences = np.array([0.4, -0.1, 0.3, 0.25, 0.05, -0.2, 0.6, 0.1, 0.35, 0.2])
    exact = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=math.inf, vectorized=False
    )
    assert sign_flips(differences) == pytest.approx(exact.pvalue, abs=0.005)
    assert sign_flips(differences) == sign_flips(-differences)
    assert sign_flips(np.zeros(5)) == 1.0


def test_many_rows_are_grouped_and_the_p_value_stays() -> None:
    draw = np.random.default_rng(0)
    differences = draw.normal(0.02, 1.0, size=4 * MOST_UNITS)
    wanted = stats.ttest_1samp(differences, 0.0).pvalue
    assert sign_flips(differences) == pytest.approx(wanted, abs=0.02)


def test_the_interval_of_a_difference_covers_the_true_one() -> None:
    draw, num_covered = np.random.default_rng(1), 0
    for seed in range(100):
        hard = draw.random(200) < 0.3  # what makes the two models right or wrong together
        first = np.where(hard, draw.random(200) < 0.5, draw.random(200) < 0.9).astype(float)
        second = np.where(hard, draw.random(200) < 0.2, draw.random(200) < 0.8).astype(float)
        found = compare_proportions(first, second, seed=seed)
        num_covered += found.low <= 0.3 * 0.3 + 0.7 * 0.1 <= found.high
    assert 89 <= num_covered <= 100


def test_a_proportion_counts_rows_and_says_who_is_better_on_them() -> None:
    found = compare_proportions(np.array([1.0, 1, 1, 0, 1, 0]), np.array([1.0, 0, 0, 0, 0, 1]))
    assert (found.first, found.second) == (pytest.approx(4 / 6), pytest.approx(2 / 6))
    assert (found.num_first, found.num_second, found.num_rows) == (3, 1, 6)
    assert found.p_value == pytest.approx(stats.binomtest(3, 4).pvalue)


def test_means_are_weighted_and_fewer_may_be_better() -> None:
    losses, others, weights = np.array([1.0, 2.0, 6.0]), np.array([2.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])
    found = compare_means(losses, others, weights, less_is_better=True)
    assert found.difference == pytest.approx((9 - 13) / 6)
    assert (found.num_first, found.num_second) == (2, 0)
    assert (compare_means(losses, others, weights, less_is_better=False).num_second) == 2


def test_one_row_bounds_nothing_and_no_rows_are_refused() -> None:
    assert compare_proportions(np.ones(1), np.zeros(1)).as_json()["low"] is None
    with pytest.raises(ValueError, match="one or more"):
        compare_proportions(np.ones(0), np.ones(0))
    with pytest.raises(ValueError, match="same number"):
        compare_proportions(np.ones(2), np.ones(3))
