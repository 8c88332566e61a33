"""Steps that count: characters, words, symbols, letters."""

import re
from collections.abc import Sequence

from nexa_core.config.quality import LengthStep, SymbolsStep
from nexa_data.quality import Limit, Step

BULLETS = tuple("•‣▶◀◦■□▪▫-*\u2013")
ELLIPSES = ("...", "…")
SYMBOL = re.compile(r"#|\.\.\.|…")


def length(settings: LengthStep) -> Step:
    return Step(
        ("num_chars", "num_words"),
        lambda text: (len(text), len(text.split())),
        (
            Limit("num_chars", settings.min_chars, settings.max_chars),
            Limit("num_words", settings.min_words, settings.max_words),
        ),
    )


def symbols(settings: SymbolsStep) -> Step:
    """Source: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1; the list of bullets is wider."""
    return Step(
        ("symbol_share", "alphabetic_share", "bullet_line_share", "ellipsis_line_share", "mean_word_chars"),
        _measure_symbols,
        (
            Limit("symbol_share", most=settings.max_symbol_share),
            Limit("alphabetic_share", least=settings.min_alphabetic_share),
            Limit("bullet_line_share", most=settings.max_bullet_line_share),
            Limit("ellipsis_line_share", most=settings.max_ellipsis_line_share),
            Limit("mean_word_chars", settings.min_mean_word_chars, settings.max_mean_word_chars),
        ),
    )


def _measure_symbols(text: str) -> Sequence[float]:
    words, lines = text.split(), [line.strip() for line in text.splitlines() if line.strip()]
    num_words, num_lines = max(1, len(words)), max(1, len(lines))
    return (
        len(SYMBOL.findall(text)) / num_words,
        sum(any(map(str.isalpha, word)) for word in words) / num_words,
        sum(line.startswith(BULLETS) for line in lines) / num_lines,
        sum(line.endswith(ELLIPSES) for line in lines) / num_lines,
        sum(map(len, words)) / num_words,
    )
