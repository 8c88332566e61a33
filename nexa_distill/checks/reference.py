"""Whether an answer is the reference."""

from collections.abc import Sequence
from typing import Any

from nexa_core.config.distill_filter import ReferenceCheck
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_core.paths import Layout
from nexa_distill.answers import normalised
from nexa_distill.checks import KEPT, Check, Pair, Verdict, rejected

MAX_SHOWN_CHARS = 80


def check_reference(settings: ReferenceCheck, layout: Layout) -> Check:
    def judge(pair: Pair) -> Verdict:
        wanted = reference_of(pair, settings.reference)
        if normalised(pair.completion) == normalised(wanted):
            return KEPT
        return rejected("not the reference", f"{shown(pair.completion)!r} instead of {shown(wanted)!r}")

    def check(pairs: Sequence[Pair]) -> list[Verdict]:
        return [judge(pair) for pair in pairs]

    return check


def reference_of(pair: Pair, key: str) -> str:
    """Raises UserError where the prompt came without it."""
    extra = pair.extra
    if key not in extra or extra[key] is None:
        raise UserError(
            f"Row {pair.group} has no reference '{key}' in extra_json.{did_you_mean(key, extra)} It has "
            f"{', '.join(extra) or 'nothing'}."
        )
    value: Any = extra[key]
    return value if isinstance(value, str) else f"{value}"


def shown(text: str) -> str:
    """A text's end, where final answers stand."""
    return text if len(text) <= MAX_SHOWN_CHARS else f"...{text[-MAX_SHOWN_CHARS:]}"
