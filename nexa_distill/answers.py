"""The final answer in a solution that is written out."""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

PLAIN = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?%?")
IN_TEXT = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?")
AFTER_MARK = re.compile(r"####\s*(.+)")
BOXED = "\\boxed{"


def final_answer(text: str) -> str | None:
    """What stands behind the last `####`, in the last `\\boxed{}`, or else the last number; None where there is none of them."""
    if AFTER_MARK.search(text) or BOXED in text:
        return marked_answer(text)
    found = IN_TEXT.findall(text)
    return found[-1] if found else None


def marked_answer(text: str) -> str | None:
    """What stands behind the last `####`, or in the last `\\boxed{}`."""
    if marked := AFTER_MARK.findall(text):
        return str(marked[-1]).strip() or None
    start = text.rfind(BOXED)
    return None if start < 0 else _inside(text, start + len(BOXED))


def as_number(answer: str) -> Fraction | None:
    """The number that an answer is, without currency, thousands' commas and a full stop; None where it is something else."""
    text = answer.strip().strip("$€£ ").rstrip(".").replace(",", "").replace("\\$", "").strip()
    if not PLAIN.fullmatch(text):
        return None
    scale = Fraction(1, 100) if text.endswith("%") else Fraction(1)
    whole, _, below = text.rstrip("%").partition("/")
    try:
        return Fraction(Decimal(whole)) / Fraction(below or 1) * scale
    except (InvalidOperation, ZeroDivisionError):
        return None


def canonical(answer: str) -> str:
    """The same text for answers that are the same number, or the same words."""
    number = as_number(answer)
    return str(number) if number is not None else normalised(answer)


def normalised(text: str) -> str:
    """Without differences of white space, case, and a full stop at the end."""
    return " ".join(text.split()).rstrip(".").casefold()


def _inside(text: str, start: int) -> str | None:
    """What stands from `start` to the brace that closes."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end].strip() or None
    return None
