"""Checks of a teacher's answers: each looks at pairs and says which are rejected, and why."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexa_core.config.distill_filter import (
    AgreementCheck,
    ArithmeticCheck,
    JudgeCheck,
    MathCheck,
    OwnCheck,
    ReferenceCheck,
)
from nexa_core.lookup import look_up
from nexa_core.paths import Layout

CHECKS = {
    "math": "nexa_distill.checks.math:check_math",
    "reference": "nexa_distill.checks.reference:check_reference",
    "arithmetic": "nexa_distill.checks.arithmetic:check_arithmetic",
    "agreement": "nexa_distill.checks.agreement:check_agreement",
    "judge": "nexa_distill.checks.judge:check_judge",
}
"""Of a step's name: what makes a check of (settings, layout)."""


@dataclass(frozen=True)
class Pair:
    """A prompt with an answer: a row of the teacher's outputs."""

    row: Mapping[str, Any]

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
        return replace(self, row={**self.row, "completion": text})


@dataclass(frozen=True)
class Rejection:
    """Why a pair is left out: one of few reasons, and what is particular to the pair."""

    reason: str
    detail: str = ""


Check = Callable[[Sequence[Pair]], list[Rejection | None]]
"""For each pair why it is rejected, or None. All samples of a prompt that are left come together."""


def open_check(settings: Any, layout: Layout) -> Check:
    """The check that a step's settings name.

    Raises:
        UserError: a file that they name is not there, or a user's own function cannot be imported.
    """
    if isinstance(settings, MathCheck | ReferenceCheck | ArithmeticCheck | AgreementCheck | JudgeCheck):
        check: Check = look_up(CHECKS, settings.name, what="check")(settings, layout)
        return check
    if isinstance(settings, OwnCheck):
        from nexa_distill.checks.own import check_own

        return check_own(settings)
    from nexa_distill.checks.quality import check_quality

    return check_quality(settings)
