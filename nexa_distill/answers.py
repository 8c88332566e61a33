"""The final answer in a solution that is written out."""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\w))?(?:/\d+)?%?"
PLAIN = re.compile(rf"[-+]?{DIGITS}")
IN_TEXT = re.compile(rf"(?<![\w.])[-+\N{{MINUS SIGN}}]?{DIGITS}")
MARKED_LINE = re.compile(r"####[ \t]*(\S[^\n]*)(?P<end>\s*\Z)?")
CURRENCY = re.compile(r"[$€£]")
BOXED = "\\boxed{"
EMPHASIS = "*_` \t\r"


def final_answer(text: str) -> str | None:
    """What stands behind the last `####`, in the last `\\boxed{}`, or else the last number; None where there is none of them."""
    if BOXED in text or _last_line(text) is not None:
        return marked_answer(text)
    found = IN_TEXT.findall(text)
    return found[-1] if found else None


def marked_answer(text: str) -> str | None:
    """What stands behind the last `####` or in the last `\\boxed{}`, whichever comes later; None where a box never closes."""
    line, start = _last_line(text), text.rfind(BOXED)
    if line is not None and line.start() > start:
        return line[1].strip(EMPHASIS) or None
    return None if start < 0 else _inside(text, start + len(BOXED))


def as_number(answer: str) -> Fraction | None:
    """The number that an answer is, without currency, thousands' commas and a full stop; None where it is something else."""
    text = answer.replace("\\$", "$").replace("\\%", "%").replace("\N{MINUS SIGN}", "-")
    text = CURRENCY.sub("", text).strip().rstrip(".").strip()
    if not PLAIN.fullmatch(text):
        return None
    text = text.replace(",", "")
    scale = Fraction(1, 100) if text.endswith("%") else Fraction(1)
    whole, _, below = text.rstrip("%").partition("/")
    try:
        return Fraction(Decimal(whole)) / Fraction(below or 1) * scale
    except (InvalidOperation, ZeroDivisionError):
        return None


def same_number(one: str, other: str) -> bool | None:
    """Whether two answers are the same number; 50% is 0.5, and 50 as well. None where one of them is no plain number."""
    first, second = as_number(one), as_number(other)
    if first is None or second is None:
        return None
    if ("%" in one) != ("%" in other):  # who is asked for per cent may leave the sign out
        bare, other_bare = (text.replace("\\%", "").replace("%", "") for text in (one, other))
        return first == second or as_number(bare) == as_number(other_bare)
    return first == second


def canonical(answer: str) -> str:
    """The same text for answers that are the same number, or the same words."""
    number = as_number(answer)
    return str(number) if number is not None else normalised(answer)


def normalised(text: str) -> str:
    """Without differences of white space, case, and a full stop at the end."""
    return " ".join(text.split()).rstrip(".").casefold()


def _last_line(text: str) -> re.Match[str] | None:
    """The last line behind `####` that is an answer: it ends the text, or is a number. Others are headings of Markdown."""
    last = None
    for line in MARKED_LINE.finditer(text):
        if line["end"] is not None or as_number(line[1].strip(EMPHASIS)) is not None:
            last = line
    return last


def _inside(text: str, start: int) -> str | None:
    """What stands from `start` to the brace that closes."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end].strip() or None
    return None
