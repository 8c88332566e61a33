"""Steps that look for phrases: refusals, citations, a wanted form."""

import json
import re

from nexa_core.config.quality import CitationsStep, FormatStep, RefusalsStep
from nexa_data.quality import Limit, Step

CURLY = str.maketrans({"\u2019": "'", "\u2013": "-"})
REFUSAL = re.compile(
    r"""(?ix)
    \b(?:i'm|i\ am)\ (?:really\ |very\ )?sorry,?\ (?:but\ )?i\ (?:can't|cannot|am\ unable|'m\ unable|am\ not\ able)
    | \bas\ an?\ (?:ai|artificial\ intelligence)(?:\ (?:language\ )?(?:model|assistant)\b|,|\ i\b)
    | \bi(?:\ can't|\ cannot|\ am\ unable\ to|'m\ unable\ to|\ am\ not\ able\ to|'m\ not\ able\ to)
      \ (?:help(?!\ but\b)|assist|comply|fulfil+|provide|answer|do\ that|complete|create|generate|write|engage|support|discuss)\b
    | \bi(?:\ won't|\ will\ not)\ (?:help|assist|comply|provide|do\ that)\b
    | \bi\ (?:must|have\ to)\ (?:respectfully\ )?decline\b
    | \b(?:i\ do\ not|i\ don't)\ have\ (?:personal\ )?(?:opinions|feelings|beliefs|access\ to\ (?:real|the\ internet))
    """
)
CITATION = re.compile(
    r"""(?x)
    \[\s*\d{1,3}(?:\s*[,;-]\s*\d{1,3})*\s*\]                          # [12], [3, 4], [5-7]
    | \[\s*citation\s+needed\s*\]
    | \([A-Z][\w'-]+(?:\s+(?:et\s+al\.?|(?:and|&)\s+[A-Z][\w'-]+))?,?\s+(?:19|20)\d\d[a-z]?\)   # (Smith et al., 2019)
    """
)


def refusals(settings: RefusalsStep) -> Step:
    return Step(
        ("num_refusals",),
        lambda text: (_count(REFUSAL, text),),
        (Limit("num_refusals", most=settings.max_refusals),),
    )


def citations(settings: CitationsStep) -> Step:
    return Step(
        ("per_100_words",),
        lambda text: (100 * _count(CITATION, text) / max(1, len(text.split())),),
        (Limit("per_100_words", most=settings.max_per_100_words),),
    )


def form(settings: FormatStep) -> Step:
    """Scores are 1 where the text has the form and 0 where it has not."""
    pattern = None if settings.matches is None else re.compile(settings.matches, re.DOTALL)

    def measure(text: str) -> tuple[float, float]:
        matches = pattern is None or pattern.fullmatch(text) is not None
        return float(matches), float(not settings.is_json or _is_json(text))

    return Step(("matches", "is_json"), measure, (Limit("matches", least=1), Limit("is_json", least=1)))


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(" ".join(text.translate(CURLY).split())))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
