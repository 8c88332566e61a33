"""Scores equal scikit-learn's, intervals cover what they say they cover, and nothing is silently absent."""

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nexa_core import intervals, metrics
from nexa_core.metrics import Scores, classification_scores, language_model_scores

LABELLED = ("accuracy", "macro_f1", "macro_precision", "macro_recall")


def rows_of(
    num_rows: int, num_classes: int, *, seed: int, overconfidence: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Targets drawn from a softmax, and that softmax sharpened: 1 is perfectly calibrated."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(num_rows, num_classes))
    targets = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    exponentials = np.exp(overconfidence * logits)
    return targets, exponentials / exponentials.sum(axis=1, keepdims=True)


def text_rows(num_rows: int, *, seed: int) -> dict[str, Any]:
    """Rows whose expected loss is 2 nats and whose expected gain over the unigram model is 1.5."""
    rng = np.random.default_rng(seed)
    num_tokens = rng.integers(1, 40, num_rows)
    difficulty = rng.gamma(4, 0.5, num_rows)
    return {
        "nll_N": num_tokens * difficulty,
        "num_tokens_N": num_tokens,
        "num_bytes_N": 4 * num_tokens,
        "unigram_nll_N": num_tokens * (difficulty + rng.gamma(9, 1.5 / 9, num_rows)),
    }


def reference_scores(targets: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score, roc_auc_score

    predictions = probabilities.argmax(axis=1)
    occurring = np.unique(targets)
    macro: dict[str, Any] = {"labels": occurring, "average": "macro", "zero_division": 0}
    return {
        "accuracy": accuracy_score(targets, predictions),
        "macro_f1": f1_score(targets, predictions, **macro),
        "macro_precision": precision_score(targets, predictions, **macro),
        "macro_recall": recall_score(targets, predictions, **macro),
        "log_loss": log_loss(targets, probabilities, labels=list(range(probabilities.shape[1]))),
        "auroc": float(np.mean([roc_auc_score(targets == index, probabilities[:, index]) for index in occurring])),
    }


def calibration_error_by_hand(targets: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Guo et al. 2017, equation 3, read off the page."""
    confidence, is_correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    error = 0.0
    for lower, upper in itertools.pairwise(np.linspace(0, 1, 16)):
        inside = (confidence > lower) & (confidence <= upper)
        if inside.any():
            error += inside.mean() * abs(is_correct[inside].mean() - confidence[inside].mean())
    return error


def share_covered(true_value: float, found: list[metrics.Metric]) -> float:
    return sum(metric.low <= true_value <= metric.high for metric in found) / len(found)


@pytest.mark.parametrize(("num_rows", "num_classes"), [(50, 2), (300, 3), (2000, 10)])
def test_values_equal_those_of_scikit_learn(num_rows: int, num_classes: int) -> None:
    targets, probabilities = rows_of(num_rows, num_classes, seed=num_classes, overconfidence=1.7)
    scores = classification_scores(targets, probabilities)
    expected = reference_scores(targets, probabilities)
    assert {name: scores.metrics[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    assert scores.metrics["calibration_error"].value == pytest.approx(calibration_error_by_hand(targets, probabilities))
    assert set(scores.metrics) == {*expected, "calibration_error"}
    assert scores.notes == ()


def test_auroc_equals_scikit_learn_over_all_classes_at_once() -> None:
    from sklearn.metrics import roc_auc_score

    targets, probabilities = rows_of(400, 5, seed=5)
    expected = roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
    assert classification_scores(targets, probabilities).metrics["auroc"].value == pytest.approx(expected, abs=1e-12)


def test_macro_scores_equal_scikit_learn_when_classes_have_no_rows_or_no_predictions() -> None:
    targets, probabilities = rows_of(200, 6, seed=9)
    targets = np.where(targets == 2, 0, targets)  # 2 is predicted and never occurs
    probabilities[:, 1] = 0.0  # 1 occurs and is never predicted
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = classification_scores(targets, probabilities).metrics
    expected = reference_scores(targets, probabilities)
    names = (*LABELLED, "auroc")
    assert {name: found[name].value for name in names} == pytest.approx({name: expected[name] for name in names})


def test_auroc_counts_ties_as_half() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    positive = rng.integers(0, 5, 300) / 4  # five distinct scores only
    targets = (rng.random(300) < 0.3 + 0.4 * positive).astype(int)
    found = classification_scores(targets, np.stack([1 - positive, positive], axis=1)).metrics["auroc"]
    assert found.value == pytest.approx(roc_auc_score(targets, positive), abs=1e-12)


def test_calibration_bins_hold_their_upper_edge() -> None:
    """0.6 is 9/15 and so in another bin than 0.65; in one bin the gaps of +0.4 and -0.65 would cancel."""
    scores = classification_scores([0, 1], [[0.6, 0.4], [0.65, 0.35]])
    assert scores.metrics["calibration_error"].value == pytest.approx((0.4 + 0.65) / 2)


def test_equal_probabilities_predict_the_lowest_class() -> None:
    scores = classification_scores([0, 1, 2], [[0.4, 0.4, 0.2], [0.2, 0.4, 0.4], [0.4, 0.2, 0.4]])
    assert scores.confusion_matrix == ((1, 0, 0), (0, 1, 0), (1, 0, 0))


def test_confusion_matrix_counts_every_row_by_target_and_prediction() -> None:
    from sklearn.metrics import confusion_matrix

    targets, probabilities = rows_of(500, 4, seed=4)
    expected = confusion_matrix(targets, probabilities.argmax(axis=1), labels=range(4))
    assert classification_scores(targets, probabilities).confusion_matrix == tuple(map(tuple, expected.tolist()))


def test_confusion_matrix_of_very_many_classes_is_left_out_with_a_note() -> None:
    targets, probabilities = rows_of(20, metrics.MAX_CONFUSION_CLASSES + 1, seed=1)
    scores = classification_scores(targets, probabilities)
    assert scores.confusion_matrix is None
    assert any(note.startswith("confusion_matrix left out: 1001 classes") for note in scores.notes)


def test_log_loss_of_a_target_probability_of_zero_is_bounded_and_noted() -> None:
    from sklearn.metrics import log_loss

    targets, probabilities = np.array([0, 1, 1]), np.array([[0.9, 0.1], [1.0, 0.0], [0.3, 0.7]])
    scores = classification_scores(targets, probabilities)
    assert scores.metrics["log_loss"].value == pytest.approx(log_loss(targets, probabilities))
    assert any(note.startswith("log_loss counts 1 target probabilities as 2.2e-16") for note in scores.notes)


@pytest.mark.parametrize(
    ("num_successes", "num_rows", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_the_published_one(num_successes: int, num_rows: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3."""
    found = intervals.wilson(num_successes, num_rows)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_t_interval_equals_scipy() -> None:
    from scipy import stats

    values = np.random.default_rng(0).exponential(size=12)
    expected = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    found = intervals.mean_t(values)
    assert (found.low, found.high) == pytest.approx(expected)


def test_auroc_interval_equals_delong_by_pairs() -> None:
    """DeLong et al. 1988, equations 4 to 6, with every pair of rows compared, on the logit scale."""
    targets, probabilities = rows_of(60, 2, seed=8)
    probabilities = probabilities.round(1)  # makes ties
    positive, negative = probabilities[targets == 1, 1], probabilities[targets == 0, 1]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    area = wins.mean()
    variance = wins.mean(axis=1).var(ddof=1) / len(positive) + wins.mean(axis=0).var(ddof=1) / len(negative)
    half = 1.959964 * math.sqrt(variance) / (area * (1 - area))
    expected = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + side * half))) for side in (-1, 1)]
    found = classification_scores(targets, probabilities).metrics["auroc"]
    assert [found.low, found.high] == pytest.approx(expected, abs=1e-6)


def test_auroc_interval_of_many_classes_agrees_with_resampling_rows() -> None:
    """Rows drawn anew within each class, as DeLong holds class sizes fixed; checks the covariance between classes."""
    targets, probabilities = rows_of(240, 3, seed=2)
    found = classification_scores(targets, probabilities).metrics["auroc"]
    rng = np.random.default_rng(0)
    by_class = [np.flatnonzero(targets == index) for index in range(3)]
    areas = []
    for _ in range(400):
        drawn = np.concatenate([rng.choice(rows, len(rows)) for rows in by_class])
        columns = [probabilities[drawn, index] for index in range(3)]
        areas.append(intervals.delong(columns, range(3), targets[drawn])[0])
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(areas), rel=0.15)


def test_intervals_of_a_classifier_cover_its_true_scores_about_95_percent_of_the_time() -> None:
    truth = classification_scores(*rows_of(400_000, 3, seed=100)).metrics
    repeats = [classification_scores(*rows_of(150, 3, seed=1000 + index)).metrics for index in range(200)]
    for name, metric in truth.items():
        covered = share_covered(metric.value, [repeat[name] for repeat in repeats])
        # Three standard errors of 200 repeats are 0.046; the calibration error's interval is conservative by design.
        assert 0.90 <= covered <= (1.0 if name == "calibration_error" else 0.99), name


def test_calibration_interval_covers_zero_error_and_finds_overconfidence() -> None:
    """A percentile bootstrap fails the first half: its interval lies wholly above the error of a calibrated model."""
    calibrated = [classification_scores(*rows_of(400, 2, seed=index)) for index in range(100)]
    assert share_covered(0.0, [scores.metrics["calibration_error"] for scores in calibrated]) >= 0.90
    sharpened = classification_scores(*rows_of(400, 2, seed=7, overconfidence=4.0)).metrics["calibration_error"]
    assert sharpened.low > 0.02


@pytest.mark.parametrize(("num_rows", "num_repeats"), [(12, 1000), (150, 400)])
def test_intervals_of_a_language_model_cover_its_true_scores_about_95_percent_of_the_time(
    num_rows: int, num_repeats: int
) -> None:
    """At 12 rows a plain percentile interval covers 88.5 to 89.5%; the expanded one 92.5 to 93.5% (2,400 repeats)."""
    repeats = [language_model_scores(**text_rows(num_rows, seed=index)).metrics for index in range(num_repeats)]
    truth = {"loss": 2.0, "perplexity": math.exp(2), "bits_per_byte": 2 / math.log(2) / 4, "gain_over_unigram": 1.5}
    for name, value in truth.items():
        assert 0.91 <= share_covered(value, [repeat[name] for repeat in repeats]) <= 0.98, name


def test_gain_is_compared_row_by_row() -> None:
    """Rows differ more among each other than the two models do, so only a paired comparison sees the gain."""
    rng = np.random.default_rng(0)
    nll = rng.exponential(100, 200)
    found = language_model_scores(
        nll_N=nll,
        num_tokens_N=np.full(200, 20),
        num_bytes_N=np.full(200, 80),
        unigram_nll_N=nll + rng.normal(2, 0.5, 200),
    ).metrics
    assert found["loss"].high > found["unigram_loss"].low
    assert 0 < found["gain_over_unigram"].low < 0.1 < found["gain_over_unigram"].high < 0.12


def test_random_groups_leave_the_interval_as_wide_as_single_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = text_rows(6000, seed=1)
    order = np.argsort(rows["nll_N"] / rows["num_tokens_N"])  # neighbours that are alike must not end in one group
    rows = {name: column[order] for name, column in rows.items()}
    by_row = language_model_scores(**rows).metrics["loss"]
    monkeypatch.setattr(intervals, "MAX_RESAMPLED_UNITS", 2500)
    grouped = language_model_scores(**rows).metrics["loss"]
    assert (by_row.interval, grouped.interval) == ("bootstrap", "bootstrap of 2500 random groups")
    assert grouped.value == by_row.value
    assert grouped.high - grouped.low == pytest.approx(by_row.high - by_row.low, rel=0.1)


def test_a_table_of_many_cells_gets_fewer_resamples_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "MAX_CELL_DRAWS", 9 * 500)
    scores = classification_scores(*rows_of(400, 3, seed=0))
    assert scores.metrics["macro_f1"].interval == "bootstrap with 500 resamples"


def test_equal_input_gives_equal_bytes_and_the_seed_matters() -> None:
    targets, probabilities = rows_of(300, 4, seed=6)
    texts = text_rows(300, seed=6)

    def as_bytes(scores: Scores) -> bytes:
        return json.dumps(dataclasses.asdict(scores), sort_keys=True, allow_nan=False).encode()

    assert as_bytes(classification_scores(targets, probabilities)) == as_bytes(
        classification_scores(targets.copy(), probabilities.copy())
    )
    assert as_bytes(language_model_scores(**texts)) == as_bytes(language_model_scores(**texts))
    assert as_bytes(language_model_scores(**texts)) != as_bytes(language_model_scores(**texts, seed=1))


def test_chunked_resampling_gives_the_same_sums_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [np.random.default_rng(0).random(50), np.ones(50)]
    whole = intervals.resampled_sums(columns, seed=3)
    monkeypatch.setattr(intervals, "_CHUNK_ELEMENTS", 50 * 7)
    assert np.array_equal(intervals.resampled_sums(columns, seed=3), whole)
    assert np.all(whole[:, 1] == 50)


def test_auroc_of_a_single_class_is_left_out_with_a_note() -> None:
    scores = classification_scores([1, 1, 1], [[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    assert "auroc" not in scores.metrics
    assert "auroc left out: the rows hold a single class, 1" in scores.notes


def test_auroc_with_one_positive_row_bounds_next_to_nothing() -> None:
    scores = classification_scores([1, 0, 0, 0, 0], [[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert scores.metrics["auroc"].value == 1.0
    assert scores.metrics["auroc"].low < 0.1
    assert any(note.startswith("auroc has a wide interval: a single row of class 1") for note in scores.notes)


def test_one_row_has_scores_without_bounds_and_notes() -> None:
    scores = classification_scores([0], [[0.7, 0.3]])
    assert (scores.metrics["macro_f1"].low, scores.metrics["macro_f1"].high) == (0.0, 1.0)
    assert scores.metrics["log_loss"].as_json() == {
        "value": pytest.approx(-math.log(0.7)),
        "low": 0.0,
        "high": None,
        "num_rows": 1,
        "interval": "none",
    }
    assert any(note.startswith("log_loss has no interval") for note in scores.notes)


def test_scores_without_spread_say_so() -> None:
    scores = classification_scores([0, 1, 0, 1], [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]])
    assert any(note.startswith("macro_f1 has an interval without width") for note in scores.notes)
    assert scores.metrics["accuracy"].low < 0.6


def test_losses_by_hand() -> None:
    """Two rows of 3 + 1 tokens: 6 nats over 4 tokens and 12 bytes; the unigram model needs 10 nats."""
    scores = language_model_scores(
        nll_N=[4.0, 2.0],
        num_tokens_N=[3, 1],
        num_bytes_N=[10, 2],
        exact_match_N=[1.0, math.nan],
        unigram_nll_N=[7.0, 3.0],
    )
    values = {name: metric.value for name, metric in scores.metrics.items()}
    assert values == pytest.approx(
        {
            "loss": 1.5,
            "perplexity": 4.4816890703,
            "bits_per_byte": 0.7213475204,  # 6 / 0.6931471806 / 12
            "unigram_loss": 2.5,
            "gain_over_unigram": 1.0,
            "exact_match": 1.0,
        }
    )
    assert scores.metrics["exact_match"].num_rows == 1
    assert scores.metrics["loss"].num_rows == 2
    assert scores.confusion_matrix is None


def test_perplexity_interval_is_the_exponential_of_the_loss_interval() -> None:
    found = language_model_scores(**text_rows(80, seed=0)).metrics
    loss, perplexity = found["loss"], found["perplexity"]
    assert loss.low < loss.value < loss.high
    assert (perplexity.low, perplexity.value, perplexity.high) == tuple(
        map(math.exp, (loss.low, loss.value, loss.high))
    )


def test_what_a_language_model_was_not_asked_is_noted() -> None:
    scores = language_model_scores(
        nll_N=[1.0, 2.0], num_tokens_N=[1, 1], num_bytes_N=[0, 0], exact_match_N=[math.nan] * 2
    )
    assert set(scores.metrics) == {"loss", "perplexity"}
    assert set(scores.notes) == {
        "bits_per_byte left out: the supervised tokens stand for no bytes",
        "unigram_loss, gain_over_unigram left out: no unigram model was given",
        "exact_match left out: no row was generated",
    }


def test_rows_without_supervised_tokens_are_noted_and_change_no_loss() -> None:
    rows: dict[str, Any] = {"nll_N": [1.0, 2.0, 4.0], "num_tokens_N": [1, 1, 2], "num_bytes_N": [3, 4, 5]}
    padded: dict[str, Any] = {"nll_N": [1.0, 0.0, 2.0, 4.0], "num_tokens_N": [1, 0, 1, 2], "num_bytes_N": [3, 9, 4, 5]}
    scores = language_model_scores(**padded)
    assert scores.metrics == language_model_scores(**rows).metrics
    assert "1 rows without a supervised token are in no loss" in scores.notes


def test_a_perplexity_that_no_float_holds_is_left_out_with_a_note() -> None:
    scores = language_model_scores(nll_N=[800.0, 900.0], num_tokens_N=[1, 1], num_bytes_N=[1, 1])
    assert "perplexity" not in scores.metrics
    assert any(note.startswith("perplexity left out: the exponential of a loss of 850.0") for note in scores.notes)


@pytest.mark.parametrize(
    ("targets", "probabilities", "message"),
    [
        ([], np.empty((0, 2)), "no rows"),
        ([0, 1], [[0.5, 0.5]], r"shape \(2,\). Allowed: \(1,\)"),
        ([2], [[0.5, 0.5]], "targets_N is 2 in row 0 .* Allowed: 0 to 1"),
        ([0, -1], [[0.5, 0.5], [0.5, 0.5]], "targets_N is -1 in row 1 .* Allowed: 0 to 1"),
        ([0.0], [[0.5, 0.5]], "float64. Allowed: integers"),
        ([0], [[math.nan, 0.5]], "is nan in row 0"),
        ([0], [[math.inf, 0.5]], "is inf in row 0"),
        ([0], [[1.1, -0.1]], "is -0.1 in row 0 .* Allowed: 0 or more"),
        ([0], [[0.5, 0.498]], "is 0.998 in row 0 .* Allowed: 1 to within 0.001"),
        ([0], [[1.0]], "two or more classes"),
        ([0], [[1, 0]], "Allowed: floats"),
        ([0], [0.5, 0.5], "Allowed: floats, rows by classes"),
    ],
)
def test_bad_classification_input_is_refused_with_what_is_allowed(
    targets: Any, probabilities: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classification_scores(targets, probabilities)


def test_rows_that_sum_to_one_within_half_precision_are_accepted() -> None:
    assert classification_scores([0, 1], [[0.5, 0.4995], [0.4, 0.6005]]).metrics["accuracy"].value == 1.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nll_N": []}, "one row or more"),
        ({"nll_N": [1.0, math.nan]}, "nll_N is nan in row 1 .* Allowed: finite and 0 or more"),
        ({"nll_N": [1.0, -2.0]}, "nll_N is -2.0 in row 1"),
        ({"num_tokens_N": [1]}, r"num_tokens_N has shape \(1,\). Allowed: \(2,\)"),
        ({"num_tokens_N": [1, 1.5]}, "num_tokens_N is 1.5 in row 1 .* Allowed: whole numbers"),
        ({"num_tokens_N": [1, 0]}, "nll_N is 2.0 in row 1 .* Allowed: 0 in a row without supervised tokens"),
        ({"num_bytes_N": [1, math.inf]}, "num_bytes_N is inf in row 1"),
        ({"unigram_nll_N": [1.0]}, "unigram_nll_N has shape"),
        ({"exact_match_N": [1.0, 0.5]}, "exact_match_N is 0.5 in row 1 .* Allowed: 0, 1 or NaN"),
        ({"exact_match_N": [1.0, math.inf]}, "exact_match_N is inf in row 1"),
        ({"exact_match_N": [1.0]}, "exact_match_N has shape"),
    ],
)
def test_bad_language_model_input_is_refused_with_what_is_allowed(changed: dict[str, Any], message: str) -> None:
    rows: dict[str, Any] = {"nll_N": [1.0, 2.0], "num_tokens_N": [1, 1], "num_bytes_N": [3, 4]}
    with pytest.raises(ValueError, match=message):
        language_model_scores(**{**rows, **changed})
