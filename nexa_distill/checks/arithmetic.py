"""Whether the sums that an answer writes out are right: a check that needs no reference."""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

from nexa_core.config.distill_filter import ArithmeticCheck
from nexa_core.paths import Layout
from nexa_distill.answers import as_number, final_answer
from nexa_distill.checks import KEPT, Check, Pair, Verdict, rejected

NO_SUM, WRONG_SUM, OTHER_RESULT = "no sum", "wrong sum", "the final answer is not the last result"
TIMES, OVER = "*x\u00d7", "/\u00f7"
SIGN = f"[-+{TIMES}{OVER}]"
NUMBER = r"[$\u20ac\u00a3]?\d+(?:,\d{3})*(?:\.\d+)?%?"
GOES_ON = rf"[\w%]|[.,]\d|\s*%|\s*{SIGN}\s*[$\u20ac\u00a3(\w]|\s+(?:and\s+)?\(?\d"
SUM = re.compile(rf"(?P<left>{NUMBER}(?:\s*{SIGN}\s*{NUMBER})+)\s*=\s*(?P<right>-?\s*{NUMBER})(?!{GOES_ON})")
PIECE = re.compile(rf"{NUMBER}|{SIGN}")
BEFORE_A_PART = tuple(f"+-{TIMES}{OVER}.,%)0123456789")


def check_arithmetic(settings: ArithmeticCheck, layout: Layout) -> Check:
    require_sums, ends_with_last = settings.require_sums, settings.ends_with_last

    def judge(pair: Pair) -> Verdict:
        results = []
        for shown, is_right, result in sums_in(pair.completion):
            if not is_right:
                return rejected(WRONG_SUM, shown)
            results.append(result)
        if not results:
            return rejected(NO_SUM) if require_sums else KEPT
        final = as_number(final_answer(pair.completion) or "")
        if ends_with_last and final != results[-1]:
            return rejected(OTHER_RESULT, f"{final} instead of {results[-1]}")
        return KEPT

    def check(pairs: Sequence[Pair]) -> list[Verdict]:
        return [judge(pair) for pair in pairs]

    return check


def sums_in(text: str) -> Iterator[tuple[str, bool, Fraction]]:
    """Each `7 * 6 = 42` in a text: as it stands there, whether it is right, and the result that it states.

    Of what stands in brackets, or goes on to the left or to the right, nothing is said; nor of mixed numbers such as 1 1/2. A
    result with decimals may be rounded.
    """
    for found in SUM.finditer(text):
        if text[: found.start()].rstrip().endswith(BEFORE_A_PART):
            continue
        stated = _number(found["right"])
        computed = _value(PIECE.findall(found["left"]))
        if computed is None or stated is None:
            continue
        yield found[0], abs(computed - stated) <= _rounding(found["right"]), stated


def _value(pieces: list[str]) -> Fraction | None:
    """What numbers with signs between them give, products first; None for a division by zero."""
    terms: list[Fraction] = []
    numbers = [_number(piece) for piece in pieces[::2]]
    for operator, number in zip(["+", *pieces[1::2]], numbers, strict=True):
        if number is None or (operator in OVER and number == 0):
            return None
        if operator in TIMES:
            terms[-1] *= number
        elif operator in OVER:
            terms[-1] /= number
        else:
            terms.append(-number if operator == "-" else number)
    return sum(terms, Fraction(0))


def _number(text: str) -> Fraction | None:
    return as_number(re.sub(r"[\s$\u20ac\u00a3]", "", text))


def _rounding(stated: str) -> Fraction:
    """Half of the last place of a number with decimals; nothing of a whole one."""
    bare = re.sub(r"[\s$\u20ac\u00a3,%-]", "", stated)
    scale = Fraction(1, 100) if "%" in stated else Fraction(1)
    places = -int(Decimal(bare).as_tuple().exponent)
    return Fraction(1, 2 * 10**places) * scale if places > 0 else Fraction(0)
