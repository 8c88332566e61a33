"""What two models' predictions of the same rows say of each other: a paired difference of every score that has rows."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nexa_core.metrics import SMALLEST_PROBABILITY
from nexa_core.paired import PairedDifference, compare_means, compare_proportions
from nexa_distill.answers import canonical, final_answer, marked_answer

MORE_IS_BETTER = {
    "accuracy": True,
    "log_loss": False,
    "final_answer": True,
    "exact_match": True,
    "loss": False,
    "bits_per_byte": False,
}
"""The scores that are compared row by row. `final_answer`: what stands behind `####` or in `\\boxed{}` is the reference's."""


def compare_predictions(first: pa.Table, second: pa.Table, labels: Sequence[str]) -> dict[str, PairedDifference]:
    """By name the scores that both have, on the rows that both have them of.

    Args:
        labels: the classes in the order of the probabilities; none of language models.
    """
    return _compare_classes(first, second, labels) if labels else _compare_texts(first, second)


def right_rows(predictions: pa.Table) -> list[bool | None]:
    """Whether each row's answer is right: by its final answer where the reference marks one; None where none was asked for."""
    if "loss" not in predictions.column_names:
        return [value == 1 for value in _hits(predictions).tolist()]
    finals, exact = _final_answers(predictions), _exact_matches(predictions)
    values = np.where(np.isnan(finals), exact, finals)
    return [None if math.isnan(value) else value == 1 for value in values.tolist()]


def _compare_classes(first: pa.Table, second: pa.Table, labels: Sequence[str]) -> dict[str, PairedDifference]:
    ours, theirs = _log_losses(first, labels), _log_losses(second, labels)
    return {
        "accuracy": compare_proportions(_hits(first), _hits(second)),
        "log_loss": compare_means(ours, theirs, np.ones(first.num_rows), less_is_better=True),
    }


def _compare_texts(first: pa.Table, second: pa.Table) -> dict[str, PairedDifference]:
    found: dict[str, PairedDifference] = {}
    for name, measure in (("final_answer", _final_answers), ("exact_match", _exact_matches)):
        ours, theirs = measure(first), measure(second)
        both = ~np.isnan(ours) & ~np.isnan(theirs)
        if both.any():
            found[name] = compare_proportions(ours[both], theirs[both])
    ours, theirs = _column(first, "loss"), _column(second, "loss")
    tokens, bytes_ = _column(first, "num_tokens"), _column(first, "num_bytes")
    # Of other tokens, losses per token are of other things; a text's bytes are the same for all.
    if np.array_equal(tokens, _column(second, "num_tokens")) and tokens.sum() > 0:
        found["loss"] = compare_means(ours, theirs, tokens, less_is_better=True)
    if np.array_equal(bytes_, _column(second, "num_bytes")) and bytes_.sum() > 0:
        found["bits_per_byte"] = compare_means(ours / math.log(2), theirs / math.log(2), bytes_, less_is_better=True)
    return found


def _hits(predictions: pa.Table) -> NDArray[np.float64]:
    pairs = zip(predictions["target"].to_pylist(), predictions["prediction"].to_pylist(), strict=True)
    return np.array([float(target == prediction) for target, prediction in pairs])


def _log_losses(predictions: pa.Table, labels: Sequence[str]) -> NDArray[np.float64]:
    """Of each row, in nats, as `nexa_core.metrics` has their mean."""
    index = {label: place for place, label in enumerate(labels)}
    flat = predictions["probabilities"].combine_chunks().flatten().to_numpy()
    targets_N = np.array([index[label] for label in predictions["target"].to_pylist()])
    chosen_N = flat.reshape(-1, len(labels))[np.arange(len(targets_N)), targets_N]
    return np.maximum(-np.log(np.maximum(chosen_N, SMALLEST_PROBABILITY)), 0.0)


def _exact_matches(predictions: pa.Table) -> NDArray[np.float64]:
    """1 or 0; NaN where no text was asked for."""
    pairs = zip(predictions["target"].to_pylist(), predictions["prediction"].to_pylist(), strict=True)
    return np.array([math.nan if text is None else float(text.strip() == target.strip()) for target, text in pairs])


def _final_answers(predictions: pa.Table) -> NDArray[np.float64]:
    """1 or 0; NaN where no text was asked for, or the reference marks no final answer."""
    pairs = zip(predictions["target"].to_pylist(), predictions["prediction"].to_pylist(), strict=True)
    return np.array([_has_final(target, text) for target, text in pairs])


def _has_final(target: str, text: str | None) -> float:
    wanted = marked_answer(target)
    if text is None or wanted is None:
        return math.nan
    given = final_answer(text)
    return float(given is not None and canonical(given) == canonical(wanted))


def _column(predictions: pa.Table, name: str) -> NDArray[np.float64]:
    return predictions[name].to_numpy().astype(np.float64)
