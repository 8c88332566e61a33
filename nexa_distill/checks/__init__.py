"""Checks of a teacher's answers: each looks at pairs and says which are rejected, and why."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow

from nexa_core.config.distill_filter import (
    AgreementCheck,
    ArithmeticCheck,
    ExactCheck,
    JudgeCheck,
    MathCheck,
    OwnCheck,
    ReferenceCheck,
)
from nexa_core.lookup import look_up
from nexa_core.paths import Layout
from nexa_llm.spent import Spent

if TYPE_CHECKING:  # what only a judge needs
    from nexa_llm.ask import Teachers

CHECKS = {
    "math": "nexa_distill.checks.math:check_math",
    "exact": "nexa_distill.checks.exact:check_exact",
    "reference": "nexa_distill.checks.reference:check_reference",
    "arithmetic": "nexa_distill.checks.arithmetic:check_arithmetic",
    "agreement": "nexa_distill.checks.agreement:check_agreement",
}
"""Of a step's name: what makes a check of (settings, layout)."""


@dataclass(frozen=True)
class Pair:
    """A prompt with an answer: a row of the teacher's outputs."""

    row: Mapping[str, Any]
    """All of its columns but those of `logprobs`."""
    logprobs: pyarrow.RecordBatch | None = field(default=None, compare=False)
    """The LOGPROBS columns of the batch that it came in: Python's numbers would take ten times the memory."""
    place: int = 0
    """Its row of them."""
    is_edited: bool = False
    """Whether the answer is a person's."""

    @property
    def prompt(self) -> str:
        return str(self.row["prompt"])

    @property
    def completion(self) -> str:
        return str(self.row["completion"] or "")

    @property
    def group(self) -> str:
        """What samples of the same prompt share."""
        return str(self.row["row_id"])

    @property
    def extra(self) -> Mapping[str, Any]:
        """The prompt's further columns."""
        return dict(json.loads(self.row["extra_json"] or "{}"))

    def with_completion(self, text: str) -> "Pair":
        """A person's own words, of whose tokens nobody knows the teacher's probabilities."""
        return Pair({**self.row, "completion": text}, is_edited=True)


@dataclass(frozen=True)
class Rejection:
    """Why a pair is left out: one of few reasons, and what is particular to the pair."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a check makes of a pair: kept where there is no rejection; with what it measured, if anything."""

    rejection: Rejection | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


KEPT = Verdict()

Check = Callable[[Sequence[Pair]], list[Verdict]]
"""A verdict for each pair. All samples of a prompt that are left come together."""


def rejected(reason: str, detail: str = "", **scores: float) -> Verdict:
    return Verdict(Rejection(reason, detail), scores)


def open_check(
    settings: Any,
    layout: Layout,
    *,
    purpose: str = "judge",
    spent: Spent | None = None,
    teachers: "Teachers | None" = None,
) -> Check:
    """The check that a step's settings name.

    Args:
        purpose: what a judge's answers are bought for, as the ledger has it.
        spent: is told what a judge was asked.
        teachers: hold a judge open between the calls of its check.

    Raises:
        UserError: a file that they name is not there, or a user's own function cannot be imported.
    """
    if isinstance(settings, MathCheck | ExactCheck | ReferenceCheck | ArithmeticCheck | AgreementCheck):
        check: Check = look_up(CHECKS, settings.name, what="check")(settings, layout)
        return check
    if isinstance(settings, JudgeCheck):
        from nexa_distill.checks.judge import check_judge

        return check_judge(settings, layout, purpose=purpose, spent=spent, teachers=teachers)
    if isinstance(settings, OwnCheck):
        from nexa_distill.checks.own import check_own

        return check_own(settings)
    from nexa_distill.checks.quality import check_quality

    return check_quality(settings)
