"""Whether a final answer equals the reference: as a number, or by math-verify."""

from collections.abc import Sequence

from nexa_core.config.distill_filter import MathCheck
from nexa_core.paths import Layout
from nexa_distill.answers import as_number, final_answer, marked_answer, same_number
from nexa_distill.checks import KEPT, Check, Pair, Verdict, rejected
from nexa_distill.checks.reference import reference_of, shown
from nexa_distill.checks.verifier import Verifier

NO_ANSWER, WRONG, NOT_READ = "no final answer", "wrong final answer", "the final answer is no expression"


def check_math(settings: MathCheck, layout: Layout) -> Check:
    verifier = Verifier(settings.timeout_seconds)

    def judge(pair: Pair) -> Verdict:
        given = final_answer(pair.completion)
        if settings.reference is None:
            return _readable(given, pair, verifier)
        reference = reference_of(pair, settings.reference)
        wanted = marked_answer(reference) or reference
        if given is None:
            return rejected(NO_ANSWER, shown(pair.completion))
        is_same = same_number(given, wanted)  # needs no algebra
        if is_same is None or (not is_same and _is_fraction(given, wanted)):  # 0.333333 may stand for 1/3
            problem = verifier.difference(wanted, given, told=WRONG)
        else:
            problem = None if is_same else WRONG
        return KEPT if problem is None else rejected(problem, f"{shown(given)} instead of {shown(wanted)}")

    def check(pairs: Sequence[Pair]) -> list[Verdict]:
        return [judge(pair) for pair in pairs]

    return check


def _is_fraction(*answers: str) -> bool:
    return any((number := as_number(each)) is not None and number.denominator != 1 for each in answers)


def _readable(given: str | None, pair: Pair, verifier: Verifier) -> Verdict:
    if given is None:
        return rejected(NO_ANSWER, shown(pair.completion))
    problem = None if as_number(given) is not None else verifier.difference(given, None, told=NOT_READ)
    return KEPT if problem is None else rejected(problem, shown(given))
