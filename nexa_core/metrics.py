"""Scores of classifiers and language models, each with its 95% interval, and a note for each that is absent.

Axes: N rows, K classes, B resamples, M filled cells of the confusion matrix, T classes that occur in the targets.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nexa_core import intervals
from nexa_core.intervals import Interval

NUM_CALIBRATION_BINS = 15
MAX_CONFUSION_CLASSES = 1000  # a larger matrix is megabytes of zeros in every metrics.json
SUM_TOLERANCE = 1e-3  # half-precision softmax rows are off by about this much
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)  # as scikit-learn's log_loss


@dataclass(frozen=True)
class Metric:
    """A score with its 95% interval; `interval` names the method, ``none`` where the rows cannot bound it."""

    value: float
    low: float
    high: float
    num_rows: int
    interval: str

    def as_json(self) -> dict[str, Any]:
        """A JSON object; an unbounded side is null, because JSON has no infinity."""
        return {
            "value": self.value,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "num_rows": self.num_rows,
            "interval": self.interval,
        }


@dataclass(frozen=True)
class Scores:
    """Scores by name, and in `notes` why a score is absent or its interval is to be read with care."""

    metrics: dict[str, Metric]
    confusion_matrix: tuple[tuple[int, ...], ...] | None  # [target][prediction]
    notes: tuple[str, ...]


def classification_scores(targets_N: ArrayLike, probabilities_NK: ArrayLike, *, seed: int = 0) -> Scores:
    """Scores of the most probable class (of equals, the lowest) and of the probabilities themselves.

    The macro scores and `auroc` are means over the classes that occur in the targets, as scikit-learn gives them with
    ``labels=np.unique(targets), zero_division=0``: a class that was never predicted has precision 0, and one that was
    predicted but never occurs counts only as an error of the others. `auroc` is one class against the rest; with K = 2
    it is that of class 1.

    Raises:
        ValueError: no rows, lengths that differ, a target outside 0..K-1, or a row that is not a distribution.
    """
    targets, probabilities = _checked_classification(targets_N, probabilities_NK)
    num_rows, num_classes = probabilities.shape
    predictions = probabilities.argmax(axis=1)
    sheet = _Sheet()
    num_correct = int((targets == predictions).sum())
    sheet.add("accuracy", num_correct / num_rows, intervals.wilson(num_correct, num_rows), num_rows)
    cells, counts = np.unique(targets * num_classes + predictions, return_counts=True)
    _add_macro_scores(sheet, cells // num_classes, cells % num_classes, counts, seed=seed)
    _add_log_loss(sheet, targets, probabilities)
    _add_calibration_error(sheet, targets == predictions, probabilities.max(axis=1), seed=seed)
    _add_auroc(sheet, targets, probabilities)
    return sheet.scores(_confusion_matrix(sheet, cells, counts, num_classes))


def language_model_scores(
    *,
    nll_N: ArrayLike,
    num_tokens_N: ArrayLike,
    num_bytes_N: ArrayLike,
    exact_match_N: ArrayLike | None = None,
    unigram_nll_N: ArrayLike | None = None,
    seed: int = 0,
) -> Scores:
    """Scores of rows of text from their summed negative log-likelihoods, in nats.

    Args:
        nll_N: each row's sum over its supervised tokens; never negative.
        num_tokens_N: how many those are. Rows without any are noted and left out of all but `exact_match`.
        num_bytes_N: the UTF-8 bytes that these tokens stand for.
        exact_match_N: 1 where the generated text is the expected one, 0 where not, NaN where none was generated.
        unigram_nll_N: as `nll_N`, from token frequencies alone; gives `unigram_loss` and `gain_over_unigram`,
            the loss that the model saves, compared row by row.

    Raises:
        ValueError: no rows, lengths that differ, or a value outside these ranges.
    """
    nll = _checked_column("nll_N", nll_N, None)
    num_tokens = _checked_counts("num_tokens_N", num_tokens_N, len(nll))
    num_bytes = _checked_counts("num_bytes_N", num_bytes_N, len(nll))
    unigram = None if unigram_nll_N is None else _checked_column("unigram_nll_N", unigram_nll_N, len(nll))
    exact_match = None if exact_match_N is None else _checked_matches(exact_match_N, len(nll))
    sheet = _Sheet()
    _add_losses(sheet, nll, num_tokens, num_bytes, unigram, seed=seed)
    _add_exact_match(sheet, exact_match)
    return sheet.scores(None)


@dataclass
class _Sheet:
    """What has been scored so far."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, interval: Interval, num_rows: int) -> None:
        # A percentile interval can miss its own estimate, by rounding or where resampling shifts the statistic.
        low, high = min(interval.low, value), max(interval.high, value)
        self.metrics[name] = Metric(value, low, high, num_rows, interval.method)
        if interval.method == "none":
            self.notes.append(f"{name} has no interval: one row cannot show how much rows differ")
        elif high - low <= 1e-12 * max(1.0, abs(value)):
            self.notes.append(
                f"{name} has an interval without width: its {num_rows} rows do not differ, other rows may"
            )

    def leave_out(self, names: str, reason: str) -> None:
        self.notes.append(f"{names} left out: {reason}")

    def scores(self, confusion_matrix: tuple[tuple[int, ...], ...] | None) -> Scores:
        return Scores(self.metrics, confusion_matrix, tuple(self.notes))


def _add_macro_scores(
    sheet: _Sheet,
    target_M: NDArray[np.int64],
    prediction_M: NDArray[np.int64],
    counts_M: NDArray[np.int64],
    *,
    seed: int,
) -> None:
    """Adds macro F1, precision and recall; cells come sorted by target and then prediction."""
    table = _MacroTable.of(target_M, prediction_M)
    num_rows = int(counts_M.sum())
    value_3 = table.scores(counts_M[None])[0]
    found_B3 = np.empty((0, 3))
    if num_rows > 1:
        found_B3 = np.concatenate([table.scores(block) for block in intervals.resampled_counts(counts_M, seed=seed)])
    method = "bootstrap"
    if 0 < len(found_B3) < intervals.NUM_RESAMPLES:
        method = f"bootstrap with {len(found_B3)} resamples"
    for index, name in enumerate(("macro_f1", "macro_precision", "macro_recall")):
        interval = Interval(0.0, 1.0, "none")
        if num_rows > 1:
            interval = intervals.percentile(found_B3[:, index], num_rows=num_rows, method=method)
        sheet.add(name, float(value_3[index]), interval, num_rows)


@dataclass(frozen=True)
class _MacroTable:
    """Where in a list of cells the row sums, column sums and diagonal of the confusion matrix are found."""

    target_starts: NDArray[np.int64]
    by_prediction: NDArray[np.int64]  # the order of cells that puts equal predictions together
    prediction_starts: NDArray[np.int64]
    predicted_from: NDArray[np.int64]  # occurring predictions that are also occurring targets ...
    predicted_to: NDArray[np.int64]  # ... and the positions of these among the targets
    hit_cells: NDArray[np.int64]  # cells on the diagonal ...
    hit_to: NDArray[np.int64]  # ... and their positions among the targets

    @classmethod
    def of(cls, target_M: NDArray[np.int64], prediction_M: NDArray[np.int64]) -> "_MacroTable":
        classes_T, target_starts = np.unique(target_M, return_index=True)
        by_prediction = np.argsort(prediction_M, kind="stable")
        predicted, prediction_starts = np.unique(prediction_M[by_prediction], return_index=True)
        _, predicted_from, predicted_to = np.intersect1d(predicted, classes_T, return_indices=True)
        hit_cells = np.flatnonzero(target_M == prediction_M)
        hit_to = np.searchsorted(classes_T, target_M[hit_cells])
        return cls(target_starts, by_prediction, prediction_starts, predicted_from, predicted_to, hit_cells, hit_to)

    def scores(self, counts_BM: NDArray[np.int64]) -> NDArray[np.float64]:
        """Macro F1, precision and recall (B, 3), each over the classes that occur in that resample's targets."""
        support_BT = np.add.reduceat(counts_BM, self.target_starts, axis=1)
        sums = np.add.reduceat(counts_BM[:, self.by_prediction], self.prediction_starts, axis=1)
        predicted_BT = np.zeros_like(support_BT)
        predicted_BT[:, self.predicted_to] = sums[:, self.predicted_from]
        hits_BT = np.zeros_like(support_BT)
        hits_BT[:, self.hit_to] = counts_BM[:, self.hit_cells]
        # Without rows of a class its hits are 0, so it adds nothing to a sum and is left out of the divisor.
        num_classes_B = (support_BT > 0).sum(axis=1)
        rates = ((2 * hits_BT, predicted_BT + support_BT), (hits_BT, predicted_BT), (hits_BT, support_BT))
        return np.stack([_ratio(top, bottom, 0.0).sum(axis=1) / num_classes_B for top, bottom in rates], axis=1)


def _add_log_loss(sheet: _Sheet, targets: NDArray[np.int64], probabilities: NDArray[Any]) -> None:
    chosen_N = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    num_clipped = int((chosen_N < SMALLEST_PROBABILITY).sum())
    loss_N = -np.log(np.maximum(chosen_N, SMALLEST_PROBABILITY))
    # A row may sum to a little over 1, and a probability over 1 must not earn a negative loss.
    loss_N = np.maximum(loss_N, 0.0)
    sheet.add("log_loss", float(loss_N.mean()), intervals.mean_t(loss_N, lowest=0.0), len(loss_N))
    if num_clipped:
        sheet.notes.append(
            f"log_loss counts {num_clipped} target probabilities as {SMALLEST_PROBABILITY:.1e}: they were smaller"
        )


def _add_calibration_error(
    sheet: _Sheet, is_correct_N: NDArray[np.bool_], confidence_N: NDArray[Any], *, seed: int
) -> None:
    """Adds the expected calibration error over 15 equal-width bins (lower, upper] of the top probability.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3.
    """
    bin_N = np.clip(np.ceil(confidence_N * NUM_CALIBRATION_BINS).astype(np.int64) - 1, 0, NUM_CALIBRATION_BINS - 1)
    gap_N = is_correct_N.astype(np.float64) - confidence_N
    error = float(np.abs(np.bincount(bin_N, weights=gap_N)).sum()) / len(gap_N)
    sheet.add("calibration_error", error, intervals.absolute_gaps(bin_N, gap_N, seed=seed), len(gap_N))


def _add_auroc(sheet: _Sheet, targets: NDArray[np.int64], probabilities: NDArray[Any]) -> None:
    occurring, sizes = np.unique(targets, return_counts=True)
    if len(occurring) == 1:
        sheet.leave_out("auroc", f"the rows hold a single class, {occurring[0]}")
        return
    classes = [1] if probabilities.shape[1] == 2 else [int(index) for index in occurring]
    columns = [np.ascontiguousarray(probabilities[:, index]) for index in classes]
    value, interval = intervals.delong(columns, classes, targets)
    sheet.add("auroc", value, interval, len(targets))
    alone = [str(index) for index, size in zip(occurring, sizes, strict=True) if size == 1]
    if alone:
        sheet.notes.append(f"auroc has a wide interval: a single row of class {', '.join(alone)} shows no spread")


def _confusion_matrix(
    sheet: _Sheet, cells: NDArray[np.int64], counts: NDArray[np.int64], num_classes: int
) -> tuple[tuple[int, ...], ...] | None:
    if num_classes > MAX_CONFUSION_CLASSES:
        sheet.leave_out("confusion_matrix", f"{num_classes} classes, and it is kept for up to {MAX_CONFUSION_CLASSES}")
        return None
    matrix = np.zeros(num_classes * num_classes, dtype=np.int64)
    matrix[cells] = counts
    return tuple(tuple(row) for row in matrix.reshape(num_classes, num_classes).tolist())


def _add_losses(
    sheet: _Sheet,
    nll: NDArray[np.float64],
    num_tokens: NDArray[np.float64],
    num_bytes: NDArray[np.float64],
    unigram: NDArray[np.float64] | None,
    *,
    seed: int,
) -> None:
    kept = num_tokens > 0
    _check("nll_N", nll, kept | (nll == 0), "0 in a row without supervised tokens")
    if not kept.any():
        sheet.leave_out("all losses and perplexity", "no row has a supervised token")
        return
    if not kept.all():
        sheet.notes.append(f"{int((~kept).sum())} rows without a supervised token are in no loss")
    columns = [column[kept] for column in (nll, num_tokens, num_bytes)]
    columns.append(np.zeros_like(columns[0]) if unigram is None else unigram[kept])
    nll_sum, tokens_sum, bytes_sum, unigram_sum = (float(column.sum()) for column in columns)
    num_rows = len(columns[0])
    sums_BC = intervals.resampled_sums(columns, seed=seed) if num_rows > 1 else np.empty((0, 4))
    nll_B, tokens_B, bytes_B, unigram_B = sums_BC.T

    def ratio_interval(top_B: NDArray[np.float64], bottom_B: NDArray[np.float64], lowest: float) -> Interval:
        if num_rows == 1:
            return Interval(lowest, math.inf, "none")
        # Nothing drawn that could be divided by bounds nothing: that resample is infinite.
        ratio_B = _ratio(top_B, bottom_B, math.inf)
        return intervals.percentile(ratio_B, num_rows=num_rows, method=intervals.resampling_method(num_rows))

    loss = nll_sum / tokens_sum
    sheet.add("loss", loss, ratio_interval(nll_B, tokens_B, 0.0), num_rows)
    _add_perplexity(sheet)
    if bytes_sum > 0:
        bits = ratio_interval(nll_B / math.log(2), bytes_B, 0.0)
        sheet.add("bits_per_byte", nll_sum / math.log(2) / bytes_sum, bits, num_rows)
    else:
        sheet.leave_out("bits_per_byte", "the supervised tokens stand for no bytes")
    if unigram is None:
        sheet.leave_out("unigram_loss, gain_over_unigram", "no unigram model was given")
        return
    unigram_loss = unigram_sum / tokens_sum
    sheet.add("unigram_loss", unigram_loss, ratio_interval(unigram_B, tokens_B, 0.0), num_rows)
    sheet.add(
        "gain_over_unigram", unigram_loss - loss, ratio_interval(unigram_B - nll_B, tokens_B, -math.inf), num_rows
    )


def _add_perplexity(sheet: _Sheet) -> None:
    loss = sheet.metrics["loss"]
    value, low, high = (_exp(bound) for bound in (loss.value, loss.low, loss.high))
    if math.isinf(value):
        sheet.leave_out("perplexity", f"the exponential of a loss of {loss.value:.1f} is more than a float holds")
        return
    sheet.metrics["perplexity"] = Metric(value, low, high, loss.num_rows, loss.interval)  # loss has the notes already


def _add_exact_match(sheet: _Sheet, exact_match: NDArray[np.float64] | None) -> None:
    generated = np.empty(0) if exact_match is None else exact_match[~np.isnan(exact_match)]
    if len(generated) == 0:
        sheet.leave_out("exact_match", "no row was generated")
        return
    num_matches, num_rows = int(generated.sum()), len(generated)
    sheet.add("exact_match", num_matches / num_rows, intervals.wilson(num_matches, num_rows), num_rows)


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf  # the largest whole exponent of a float


def _ratio(top: NDArray[Any], bottom: NDArray[Any], if_zero: float) -> NDArray[np.float64]:
    result = np.full(bottom.shape, if_zero, dtype=np.float64)
    np.divide(top, bottom, out=result, where=bottom > 0)
    return result


def _checked_classification(
    targets_N: ArrayLike, probabilities_NK: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    targets, probabilities = np.asarray(targets_N), np.asarray(probabilities_NK)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or probabilities.dtype.kind != "f":
        raise ValueError(
            f"probabilities_NK has shape {probabilities.shape} of {probabilities.dtype}. "
            "Allowed: floats, rows by classes, with one column for each of two or more classes"
        )
    if targets.ndim != 1 or len(targets) != len(probabilities):
        raise ValueError(
            f"targets_N has shape {targets.shape}. Allowed: ({len(probabilities)},), as probabilities_NK has rows"
        )
    if len(targets) == 0:
        raise ValueError("targets_N has no rows. Allowed: one or more")
    if targets.dtype.kind not in "iu":
        raise ValueError(f"targets_N is of {targets.dtype}. Allowed: integers")
    last = probabilities.shape[1] - 1
    _check("targets_N", targets, (targets >= 0) & (targets <= last), f"0 to {last}")
    _check_distributions(probabilities)
    return targets.astype(np.int64), probabilities


def _check_distributions(probabilities: NDArray[Any]) -> None:
    # Reductions along the row carry a NaN or an infinity through, and need no second array of the same size.
    least_N, sum_N = probabilities.min(axis=1), probabilities.sum(axis=1, dtype=np.float64)
    _check("the smallest of a row of probabilities_NK", least_N, least_N >= 0, "0 or more, not NaN")
    _check(
        "the sum of a row of probabilities_NK",
        sum_N,
        np.abs(sum_N - 1) <= SUM_TOLERANCE,
        f"1 to within {SUM_TOLERANCE}",
    )


def _checked_column(name: str, given: ArrayLike, num_rows: int | None) -> NDArray[np.float64]:
    column = np.asarray(given, dtype=np.float64)
    if column.ndim != 1 or len(column) == 0 or (num_rows is not None and len(column) != num_rows):
        allowed = "one dimension with one row or more" if num_rows is None else f"({num_rows},), as nll_N has rows"
        raise ValueError(f"{name} has shape {column.shape}. Allowed: {allowed}")
    _check(name, column, np.isfinite(column) & (column >= 0), "finite and 0 or more")
    return column


def _checked_counts(name: str, given: ArrayLike, num_rows: int) -> NDArray[np.float64]:
    column = _checked_column(name, given, num_rows)
    _check(name, column, column == np.floor(column), "whole numbers")
    return column


def _checked_matches(given: ArrayLike, num_rows: int) -> NDArray[np.float64]:
    column = np.asarray(given, dtype=np.float64)
    _checked_column("exact_match_N", np.nan_to_num(column, posinf=math.inf), num_rows)
    _check("exact_match_N", column, np.isnan(column) | (column == 0) | (column == 1), "0, 1 or NaN")
    return column


def _check(name: str, values_N: NDArray[Any], is_allowed_N: NDArray[np.bool_], allowed: str) -> None:
    bad = np.flatnonzero(~is_allowed_N)
    if len(bad):
        raise ValueError(f"{name} is {values_N[bad[0]]} in row {bad[0]} ({len(bad)} such rows). Allowed: {allowed}")
