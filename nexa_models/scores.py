"""The scores that each kind of model gets: their names, which way is better, how their intervals are printed."""

from collections.abc import Collection

CLASSIFIER_SCORES = {
    "accuracy": True,
    "macro_f1": True,
    "macro_precision": True,
    "macro_recall": True,
    "log_loss": False,
    "calibration_error": False,
    "auroc": True,
}
LANGUAGE_MODEL_SCORES = {
    "loss": False,
    "perplexity": False,
    "bits_per_byte": False,
    "unigram_loss": False,
    "gain_over_unigram": True,
    "exact_match": True,
}
MORE_IS_BETTER = {**CLASSIFIER_SCORES, **LANGUAGE_MODEL_SCORES}


def main_score(names: Collection[str]) -> str | None:
    """The one of these scores that stands for the model; None when it is not among them."""
    return next((name for name in ("accuracy", "bits_per_byte") if name in names), None)


def score_text(name: str, value: float, low: float | None, high: float | None) -> str:
    """`accuracy 0.9500 (0.9400 to 0.9600)`."""
    interval = "interval unknown" if low is None and high is None else interval_text(low, high)
    return f"{name} {value:.4f} ({interval})"


def interval_text(low: float | None, high: float | None) -> str:
    """`0.9400 to 0.9700`; an end that is None has no bound."""
    low_text = "-infinity" if low is None else f"{low:.4f}"
    high_text = "infinity" if high is None else f"{high:.4f}"
    return f"{low_text} to {high_text}"
