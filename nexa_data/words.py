"""The words of texts, as hashes: how texts are read where they are compared.

Every character is taken by itself: in its compatibility form, without case and without an accent where that is one
character, so that a word keeps its place in the text. Words are runs of letters, marks and digits. A symbol (`+`, `$`, an
emoji) and each character of a script that is written without spaces (Chinese, Japanese, Thai, ...) is a word of its own.
Space and punctuation separate words and are dropped.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy
import pyarrow
from numpy.typing import NDArray

from nexa_data.runs import Hashes, Indices, bounds_of, mixed, powers

Texts: TypeAlias = Sequence[str] | pyarrow.Array | pyarrow.ChunkedArray

BLOCK_CHARACTERS = 1 << 17
"""Of texts that are read at once: their arrays fit a processor's cache."""
NO_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters."""
ACCENTS = (0x0300, 0x036F)
VARIANTS = (0xFE00, 0xFE0F)
"""Selectors of how the character before is drawn."""
OPERATORS = "*/%"
"""Punctuation that calculates: `3*4` is not `3/4`."""
LAST_WITH_FORMS = 0x1FFFF
"""Characters beyond it have no case; those that are assigned are Chinese."""

DROPPED, SEPARATOR, SPACE, LETTER, DIGIT, ALONE, SYMBOL = range(7)
"""Kinds of characters; those from LETTER on make words."""


@dataclass(frozen=True)
class Characters:
    """The characters of a block of texts that are not dropped; `places` are theirs in the block, None where all are kept.

    Each text is followed by a line end, so that no word goes on in the next one; `bounds` are of texts with it.
    """

    codes: NDArray[numpy.uint32]
    kinds: NDArray[numpy.uint8]
    places: Indices | None
    bounds: Indices

    def folded(self) -> NDArray[numpy.uint32]:
        """What each character counts as."""
        return _tables().folded[self.codes]


@dataclass(frozen=True)
class Words:
    """The words of a block's texts one after another; `counts` says how many each text has.

    `hashes` are equal for equal words; `begins` are their first characters among those that are not dropped.
    """

    hashes: Hashes
    begins: Indices
    counts: Indices


def blocks(texts: Texts, max_characters: int = BLOCK_CHARACTERS) -> Iterator[list[str]]:
    """`texts` in order, in lists of few characters or one text each."""
    block: list[str] = []
    size = 0
    for text in texts.to_pylist() if isinstance(texts, pyarrow.Array | pyarrow.ChunkedArray) else texts:
        if block and size + len(text) > max_characters:
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text) + 1
    if block:
        yield block


def read(block: list[str], *, symbols: bool = True) -> Characters:
    """The characters of a block of texts; without `symbols` these are read as space."""
    joined = "\n".join([*block, ""])
    codes = numpy.frombuffer(joined.encode("utf-32-le"), dtype="<u4")
    kinds, bounds = _tables().kinds[codes], bounds_of(_lengths(block) + 1)
    if not symbols:
        is_symbol = kinds == SYMBOL
        codes, kinds = numpy.where(is_symbol, numpy.uint32(ord(" ")), codes), numpy.where(is_symbol, SPACE, kinds)
    is_kept = kinds != DROPPED
    if is_kept.all():
        return Characters(codes, kinds, None, bounds)
    places = numpy.flatnonzero(is_kept)
    return Characters(codes[is_kept], kinds[is_kept], places, numpy.searchsorted(places, bounds))


def words_of(characters: Characters) -> Words:
    """The words of each text."""
    begins = numpy.flatnonzero(_begins_word(characters.kinds))
    counts = numpy.diff(numpy.searchsorted(begins, characters.bounds))
    growing, shrinking = powers(len(characters.codes))
    weights = _tables().weights[characters.codes]
    weights *= growing
    sums = numpy.add.reduceat(weights, begins) if len(begins) else numpy.empty(0, numpy.uint64)
    return Words(mixed(sums * shrinking[begins]), begins, counts)


def places_of(words: Words, characters: Characters, block: list[str]) -> tuple[Indices, Indices]:
    """Where in its text each word begins and ends."""
    is_last = characters.kinds >= LETTER
    is_last[:-1] &= (characters.kinds[1:] < LETTER) | _begins_word(characters.kinds)[1:]
    begins, lasts = words.begins, numpy.flatnonzero(is_last)
    if characters.places is not None:
        begins, lasts = characters.places[begins], characters.places[lasts]
    text_begins = numpy.repeat(bounds_of(_lengths(block) + 1)[:-1], words.counts)
    return begins - text_begins, lasts + 1 - text_begins


def _lengths(block: list[str]) -> Indices:
    return numpy.fromiter(map(len, block), numpy.int64, len(block))


def _begins_word(kinds: NDArray[numpy.uint8]) -> NDArray[numpy.bool_]:
    begins = kinds >= LETTER
    goes_on = (kinds == LETTER) | (kinds == DIGIT)
    begins[1:] &= ~(goes_on[1:] & goes_on[:-1])
    return begins


@dataclass(frozen=True)
class _Tables:
    """Of each code point: its kind, what it counts as, and that one's hash, 0 where it belongs to no word."""

    kinds: NDArray[numpy.uint8]
    folded: NDArray[numpy.uint32]
    weights: Hashes


@cache
def _tables() -> _Tables:
    kinds = numpy.full(0x110000, SEPARATOR, numpy.uint8)
    folded = numpy.arange(0x110000, dtype=numpy.uint32)
    for code in range(LAST_WITH_FORMS + 1):
        plain = _folded(chr(code))
        kinds[code], folded[code] = _kind(chr(code), plain), ord(plain)
    for first, last in NO_SPACES:
        table = kinds[first : last + 1]
        table[(table >= LETTER) | (first > LAST_WITH_FORMS)] = ALONE
    return _Tables(kinds, folded, numpy.where(kinds >= LETTER, mixed(folded.astype(numpy.uint64)), 0))


def _folded(character: str) -> str:
    """The character without case, accent and compatibility form, or itself where that is several characters."""
    plain = unicodedata.normalize("NFKD", character).casefold()
    if len(plain) > 1:
        plain = "".join(other for other in plain if not _is_accent(other))
    return plain if len(plain) == 1 else character


def _is_accent(character: str) -> bool:
    return ACCENTS[0] <= ord(character) <= ACCENTS[1]


def _kind(character: str, plain: str) -> int:
    category = unicodedata.category(plain)
    if _is_accent(character) or category == "Cf" or VARIANTS[0] <= ord(character) <= VARIANTS[1]:
        return DROPPED
    if category[0] in "LM":
        return LETTER
    if category[0] == "N":
        return DIGIT
    if category[0] == "S" or plain in OPERATORS:
        return SYMBOL
    return SPACE if category[0] == "Z" or category == "Cc" else SEPARATOR
