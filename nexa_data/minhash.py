"""MinHash: a short signature of a text's shingles, from which near texts are found without comparing all with all."""

import numpy
from numpy.typing import NDArray

from nexa_data.runs import Hashes, mixed
from nexa_data.shingles import Shingles, shingle
from nexa_data.words import Texts, blocks

NUM_PERMUTATIONS = 112
NUM_BANDS = 14
NO_KEY = numpy.uint64(0)
"""The band keys of a text without shingles, which is near no other."""

Signatures = NDArray[numpy.uint32]

_MULTIPLIERS = mixed(numpy.arange(NUM_PERMUTATIONS, dtype=numpy.uint64)).astype(numpy.uint32) | numpy.uint32(1)
_EMPTY = numpy.uint32(0xFFFFFFFF)


def signatures(texts: Texts) -> Signatures:
    """The signature of each text, (rows, 112): two agree in each place with the probability of the texts' Jaccard similarity.

    A text's signature depends on nothing but the text, so those of blocks may be made anywhere and be put together.
    """
    parts = [_signatures(shingle(block)) for block in blocks(texts)]
    return numpy.concatenate(parts) if parts else numpy.empty((0, NUM_PERMUTATIONS), numpy.uint32)


def band_keys(signatures: Signatures) -> Hashes:
    """A key of each of a signature's bands, (rows, 14): texts are candidates where a key is equal in the same band.

    A pair of Jaccard similarity s becomes a candidate with the probability 1 - (1 - s^8)^14: 0.56 at 0.7, 0.92 at 0.8,
    0.9995 at 0.9.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.
    """
    keys = numpy.empty((len(signatures), NUM_BANDS), numpy.uint64)
    width = NUM_PERMUTATIONS // NUM_BANDS
    for band in range(NUM_BANDS):
        key = numpy.zeros(len(signatures), numpy.uint64)
        for place in range(band * width, (band + 1) * width):
            key = mixed(key ^ signatures[:, place])
        keys[:, band] = numpy.maximum(key, NO_KEY + numpy.uint64(1))
    keys[(signatures == _EMPTY).all(axis=1)] = NO_KEY
    return keys


def _signatures(shingles: Shingles) -> Signatures:
    """Of each text the smallest of its shingles' hashes in 112 orders; the largest number everywhere where it has none.

    An order is (low * multiplier) ^ high over the halves of a shingle's hash. The agreement of two signatures varies as
    that of 112 random permutations does.
    """
    has_shingles = numpy.diff(shingles.bounds) > 0
    made = numpy.full((NUM_PERMUTATIONS, len(has_shingles)), _EMPTY, numpy.uint32)
    if not has_shingles.any():
        return made.T
    begins = shingles.bounds[:-1][has_shingles]
    low, high = shingles.hashes.astype(numpy.uint32), (shingles.hashes >> numpy.uint64(32)).astype(numpy.uint32)
    values = numpy.empty_like(low)
    for place, multiplier in enumerate(_MULTIPLIERS):
        numpy.multiply(low, multiplier, out=values)
        values ^= high
        made[place, has_shingles] = numpy.minimum.reduceat(values, begins)
    return made.T
