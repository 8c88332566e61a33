"""A user's own check."""

from collections.abc import Sequence

from nexa_core.config.distill_filter import OwnCheck
from nexa_core.errors import UserError
from nexa_core.lookup import look_up
from nexa_distill.checks import KEPT, Check, Pair, Verdict, rejected

PREFIX = "check:"


def check_own(settings: OwnCheck) -> Check:
    """Raises UserError where the function cannot be imported; while it runs, where it gives anything but a text or None."""
    name = settings.name.removeprefix(PREFIX)
    function = look_up({}, name, what="check")

    def judge(pair: Pair) -> Verdict:
        try:
            said = function(pair.prompt, pair.completion, pair.extra, **settings.parameters)
        except Exception as error:  # whatever a user's function raises, the row it was given is what has to be seen
            raise UserError(f"{settings.name} failed at row {pair.group}: {type(error).__name__}: {error}") from error
        if said is not None and not isinstance(said, str):
            raise UserError(
                f"{settings.name} gave {said!r} for row {pair.group}; it has to give a reason, or None to keep it."
            )
        return rejected(said) if said else KEPT

    def check(pairs: Sequence[Pair]) -> list[Verdict]:
        return [judge(pair) for pair in pairs]

    return check
