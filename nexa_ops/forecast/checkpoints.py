"""The checkpoints that a run leaves, and the room they take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nexa_core import digests
from nexa_core.config.training import Checkpoints as Settings
from nexa_models.spec import ModelSpec
from nexa_ops.forecast.memory import size_text
from nexa_train.checkpoints import NEWEST_KEPT, is_scheduled
from nexa_train.order import Plan


@dataclass(frozen=True)
class Checkpoints:
    written: int
    kept: int
    size_bytes: int
    """Of each."""
    disk_bytes: int
    """Of all that lie there at once, the one among them that is being written."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        each = size_text(self.size_bytes)
        return f"{self.written:,} written, {self.kept:,} kept, {each} each, {size_text(self.disk_bytes)} at most"


def schedule_checkpoints(plan: Plan, settings: Settings) -> list[int]:
    """The steps after which an undisturbed run writes one."""
    return [step for step in range(1, plan.num_steps + 1) if is_scheduled(plan, settings, step)]


def count_checkpoints(
    plan: Plan, settings: Settings, scheduled: Sequence[int], spec: ModelSpec, *, tensor_bytes: int
) -> Checkpoints:
    """The checkpoints of an undisturbed run.

    Args:
        tensor_bytes: weights and optimizer of one; the tokenizer and all else that describes it is added.
    """
    newest = scheduled[-NEWEST_KEPT:]
    if settings.save_top_k is None:
        kept = len({*newest, *(step for step in scheduled if plan.ends_epoch(step))})
    else:
        kept = min(len(scheduled), settings.save_top_k + len(newest))
    size_bytes = tensor_bytes + len(digests.canonical_json(spec.as_json()))
    return Checkpoints(
        written=len(scheduled),
        kept=kept,
        size_bytes=size_bytes,
        disk_bytes=min(len(scheduled), kept + 1) * size_bytes,
    )
