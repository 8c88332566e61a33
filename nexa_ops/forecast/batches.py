"""The batches of a run as they will be laid out: how full they are, and which take most memory."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nexa_models.encoding import Batch, Encoded
from nexa_models.predict import cut_rows
from nexa_train.order import Plan

MOST_LAID_OUT = 256
"""Steps of the first epoch that are laid out to see how full they are; of a longer one, so many evenly spread."""


@dataclass(frozen=True)
class Microbatch:
    """A place in the plan."""

    step: int
    rows: np.ndarray


@dataclass(frozen=True)
class Fill:
    """How much of what the model computes is worth it."""

    num_steps: int
    """Steps that were laid out for it."""
    slots_per_step: float
    """Tokens that all processes compute in a step, padding among them; rows where rows have no tokens."""
    padding_share: float


def measure_fill(data: Encoded, plan: Plan) -> Fill:
    """The fill of the first epoch's steps."""
    num_steps = min(plan.steps_per_epoch, plan.num_steps)
    steps = np.unique(np.linspace(0, num_steps - 1, min(num_steps, MOST_LAID_OUT)).astype(np.int64))
    num_slots = num_tokens = num_rows = 0
    for step in steps.tolist():
        for rows in plan.microbatches(step):
            batch = data.batch(rows)
            num_slots, num_tokens, num_rows = (
                num_slots + batch.num_slots,
                num_tokens + batch.num_tokens,
                num_rows + len(rows),
            )
    if num_slots == 0:
        return Fill(len(steps), num_rows / len(steps), 0.0)
    return Fill(len(steps), num_slots / len(steps), 1 - num_tokens / num_slots)


def find_heaviest(data: Encoded, plan: Plan) -> list[Microbatch]:
    """The microbatches of the first epoch with the most tokens to compute, the most targets, and the most of both."""
    steps = range(min(plan.steps_per_epoch, plan.num_steps))
    return _heaviest(data, (Microbatch(step, rows) for step in steps for rows in plan.microbatches(step)))


def find_heaviest_looked_at(data: Encoded, batch_size: int) -> list[Batch]:
    """Likewise of the batches of a split that is only looked at; none where it has no rows."""
    cut = (Microbatch(0, rows) for rows in cut_rows(data, batch_size))
    return [data.batch(each.rows) for each in _heaviest(data, cut)]


def _heaviest(data: Encoded, microbatches: Iterable[Microbatch]) -> list[Microbatch]:
    tokens_N, targets_N = data.token_counts_N, data.target_counts_N
    found = list(microbatches)
    if not found:
        return []
    slots = np.array([len(each.rows) * max(int(tokens_N[each.rows].max()), 1) for each in found], dtype=np.float64)
    targets = np.array([targets_N[each.rows].sum() for each in found], dtype=np.float64)
    both = slots / slots.max() + targets / max(targets.max(), 1)
    return [found[index] for index in sorted({int(value.argmax()) for value in (slots, targets, both)})]
