"""What each row is judged by, by itself: the quality steps, and the evaluation texts that it repeats."""

from dataclasses import dataclass

import numpy as np

from nexa_core.config.data import DatasetConfig
from nexa_data.batches import Batch, score_name
from nexa_data.evaluation_sets import Overlap
from nexa_data.quality import open_step, step_names

DECONTAMINATE, NEAR_DUPLICATES = "decontaminate", "near_duplicates"
REPEATS = "repeats an evaluation text"
MAX_SHOWN_CHARS = 120


@dataclass(frozen=True)
class LeftOut:
    """A canonical row, the `index`-th of its batch, that the step `step` leaves out."""

    index: int
    step: str
    reason: str
    detail: str = ""
    kept: str = ""
    """The id of the row that is kept in its place."""


class Judge:
    """Decides which rows of a batch are good enough to be kept, whatever the other rows are."""

    def __init__(self, config: DatasetConfig):
        self._steps = list(zip(step_names(config), map(open_step, config.quality), strict=True))
        self._removes_overlaps = config.decontaminate is not None and config.decontaminate.action == "remove"

    def __call__(self, batch: Batch) -> tuple[list[LeftOut], np.ndarray]:
        """What is left out, each row by the first step that it fails; and which rows are kept."""
        left_out: list[LeftOut] = []
        is_kept = np.ones(len(batch.ids), dtype=bool)
        for index, (name, step) in enumerate(self._steps):
            reasons = step.reasons({score: batch.scores[score_name(index, score)] for score in step.names})
            for row in np.flatnonzero(is_kept & (reasons != "")).tolist():
                measured = str(reasons[row]).split(" ")[0]
                value = batch.scores[score_name(index, measured)][row]
                left_out.append(LeftOut(row, name, str(reasons[row]), f"{value:g}"))
            is_kept &= reasons == ""
        if self._removes_overlaps:
            left_out += [_repeats(overlap) for overlap in batch.overlaps if is_kept[overlap.row]]
            is_kept[[overlap.row for overlap in batch.overlaps]] = False
        return left_out, is_kept


def _repeats(overlap: Overlap) -> LeftOut:
    text = " ".join(overlap.text.split())
    shown = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
    detail = f"{overlap.evaluation_ids[0]}, {overlap.coverage:.0%}: {shown}"
    return LeftOut(overlap.row, DECONTAMINATE, REPEATS, detail)
