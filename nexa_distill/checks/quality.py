"""The data engine's quality steps as checks of pairs."""

from collections.abc import Sequence

import numpy as np

from nexa_core.config.quality import QualityStep
from nexa_data.quality import looked_at, open_step
from nexa_distill.checks import Check, Pair, Rejection


def check_quality(settings: QualityStep) -> Check:
    step, text_of = open_step(settings), looked_at("pairs", settings.of)

    def check(pairs: Sequence[Pair]) -> list[Rejection | None]:
        if not pairs:
            return []
        scores_RS = np.array([step.measure(text_of(pair.row)) for pair in pairs], dtype=float)
        scores = {name: scores_RS[:, index] for index, name in enumerate(step.names)}
        found: list[Rejection | None] = []
        for row, reason in enumerate(step.reasons(scores).tolist()):
            measured = reason.split(" ")[0]
            found.append(Rejection(reason, f"{scores[measured][row]:g}") if reason else None)
        return found

    return check
