"""How much of a text repeats itself: lines, paragraphs and sequences of words.

Source: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1 and table A1.
"""

import re
from collections import Counter
from collections.abc import Sequence

from nexa_core.config.quality import RepetitionStep
from nexa_data.quality import Limit, Step

PARAGRAPH_END = re.compile(r"\n\s*\n")
TOP_SIZES, DUPLICATE_SIZES = range(2, 5), range(5, 11)


def repetition(settings: RepetitionStep) -> Step:
    top = [f"top_{size}_gram_char_share" for size in TOP_SIZES]
    duplicate = [f"duplicate_{size}_gram_char_share" for size in DUPLICATE_SIZES]
    limits = {
        "duplicate_line_share": settings.max_duplicate_line_share,
        "duplicate_paragraph_share": settings.max_duplicate_paragraph_share,
        "duplicate_line_char_share": settings.max_duplicate_line_char_share,
        "duplicate_paragraph_char_share": settings.max_duplicate_paragraph_char_share,
        **dict(zip(top, settings.max_top_ngram_char_shares, strict=True)),
        **dict(zip(duplicate, settings.max_duplicate_ngram_char_shares, strict=True)),
    }
    return Step(tuple(limits), _measure, tuple(Limit(name, most=most) for name, most in limits.items()))


def _measure(text: str) -> Sequence[float]:
    num_chars = max(1, len(text))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paragraphs = [part.strip() for part in PARAGRAPH_END.split(text) if part.strip()]
    (line_share, line_chars), (paragraph_share, paragraph_chars) = map(_repeated, (lines, paragraphs))
    words = text.split()
    return (
        line_share,
        paragraph_share,
        line_chars / num_chars,
        paragraph_chars / num_chars,
        *(_top_chars(words, size) / num_chars for size in TOP_SIZES),
        *(_duplicate_chars(words, size) / num_chars for size in DUPLICATE_SIZES),
    )


def _repeated(parts: Sequence[str]) -> tuple[float, int]:
    """The share of the parts that stand earlier as well, and their characters."""
    seen: set[str] = set()
    count = chars = 0
    for part in parts:
        if part in seen:
            count, chars = count + 1, chars + len(part)
        seen.add(part)
    return count / max(1, len(parts)), chars


def _top_chars(words: Sequence[str], size: int) -> int:
    """Characters in all places of the sequence of `size` words that comes most often; 0 where none comes twice."""
    counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
    if not counts:
        return 0
    most = max(counts.values())
    longest = max(sum(map(len, ngram)) for ngram, count in counts.items() if count == most)
    return most * longest if most > 1 else 0


def _duplicate_chars(words: Sequence[str], size: int) -> int:
    """Characters of the words in sequences of `size` that stand earlier as well, each word counted once."""
    seen: set[tuple[str, ...]] = set()
    chars = place = 0
    while place + size <= len(words):
        ngram = tuple(words[place : place + size])
        if ngram in seen:
            chars += sum(map(len, ngram))
            place += size
        else:
            seen.add(ngram)
            place += 1
    return chars
