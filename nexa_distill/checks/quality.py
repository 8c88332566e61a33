"""The data engine's quality steps as checks of pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nexa_core.config.quality import QualityStep
from nexa_data.quality import look_of, open_step
from nexa_distill.checks import Check, Pair, Rejection, Verdict


def check_quality(settings: QualityStep) -> Check:
    step, text_of = open_step(settings), look_of("pairs", settings)

    def check(pairs: Sequence[Pair]) -> list[Verdict]:
        if not pairs:
            return []
        scores_RS = np.array([step.measure(text_of(_columns(pair))) for pair in pairs], dtype=float)
        scores = {name: scores_RS[:, index] for index, name in enumerate(step.names)}
        found: list[Verdict] = []
        for row, reason in enumerate(step.reasons(scores).tolist()):
            measured = dict(zip(step.names, scores_RS[row].tolist(), strict=True))
            rejection = Rejection(reason, f"{measured[reason.split(' ')[0]]:g}") if reason else None
            found.append(Verdict(rejection, measured))
        return found

    return check


def _columns(pair: Pair) -> dict[str, Any]:
    """The pair as the data engine's canonical row, without digests, which look like keys and phone numbers."""
    return {"prompt": pair.prompt, "completion": pair.completion, "extra_json": pair.row["extra_json"]}
