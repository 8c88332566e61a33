"""Shingles: the overlapping runs of words, or of characters in short texts, whose share two texts are compared by."""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from nexa_data.runs import Hashes, Indices, bounds_of, mixed, runs
from nexa_data.words import DIGIT, SPACE, Characters, Texts, Words, blocks, read, words_of

SHINGLE_WORDS = 5
SHINGLE_CHARACTERS = 5
"""Of texts of fewer than `SHINGLE_WORDS` words."""


@dataclass(frozen=True)
class Shingles:
    """Hashes of the shingles of some texts one after another, repeated ones too; text i has those from `bounds[i]` on."""

    hashes: Hashes
    bounds: Indices


def shingle(texts: Texts) -> Shingles:
    """The shingles of each text: its word 5-grams, or of fewer than 5 words its character 5-grams; a text without words has none.

    In these short texts punctuation counts, and those with other numbers have no shingle in common: `page 1012` is not
    near `page 1013`. Of fewer than 5 characters the whole text is the one shingle.
    """
    hashes, counts = [numpy.empty(0, numpy.uint64)], [numpy.empty(0, numpy.int64)]
    for block in blocks(texts):
        block_hashes, block_counts = _shingle(block)
        hashes.append(block_hashes)
        counts.append(block_counts)
    return Shingles(numpy.concatenate(hashes), bounds_of(numpy.concatenate(counts)))


def _shingle(block: list[str]) -> tuple[Hashes, Indices]:
    """The shingles of a block's texts, and how many each has."""
    characters = read(block)
    words = words_of(characters)
    hashes, _, counts = runs(words.hashes, words.counts, SHINGLE_WORDS)
    is_short = (words.counts > 0) & (words.counts < SHINGLE_WORDS)
    if not is_short.any():
        return hashes, counts
    is_of_long = numpy.repeat(~is_short, counts)
    short_hashes, counts[is_short] = _short_shingles(characters, words, is_short)
    of_short = numpy.repeat(is_short, counts)
    joined = numpy.empty(len(of_short), numpy.uint64)
    joined[of_short], joined[~of_short] = short_hashes, hashes[is_of_long]
    return joined, counts


def _short_shingles(characters: Characters, words: Words, is_short: NDArray[numpy.bool_]) -> tuple[Hashes, Indices]:
    """The shingles of the short texts, and how many each has."""
    lengths = numpy.diff(characters.bounds)
    text_of = numpy.repeat(numpy.arange(len(lengths)), lengths)
    is_space = characters.kinds == SPACE
    is_more_space = is_space & numpy.append(True, is_space[:-1])
    used = is_short[text_of] & ~is_more_space
    codes = numpy.where(is_space[used], ord(" "), characters.folded()[used]).astype(numpy.uint64)
    counts = numpy.bincount(text_of[used], minlength=len(lengths))[is_short]
    hashes, _, counts = runs(mixed(codes), counts, SHINGLE_CHARACTERS)
    return mixed(hashes ^ numpy.repeat(_numbers(characters, words)[is_short], counts)), counts


def _numbers(characters: Characters, words: Words) -> Hashes:
    """Of each text a hash of its words with digits, in their order; 0 where it has none."""
    has_digit = numpy.logical_or.reduceat(characters.kinds == DIGIT, words.begins)
    text_of = numpy.repeat(numpy.arange(len(words.counts)), words.counts)
    counts = numpy.bincount(text_of[has_digit], minlength=len(words.counts))
    hashes = numpy.zeros(len(counts), numpy.uint64)
    hashes[counts > 0] = runs(words.hashes[has_digit], counts, max(int(counts.max()), 1))[0]
    return hashes
