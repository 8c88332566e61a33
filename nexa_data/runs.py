"""Hashes, and hashes of runs of hashes: the arithmetic under shingles and n-grams, the same on every machine."""

from functools import cache

import numpy
from numpy.typing import NDArray

Hashes = NDArray[numpy.uint64]
Indices = NDArray[numpy.int64]

MULTIPLIER = numpy.uint64(0x9E3779B97F4A7C15)
INVERSE = numpy.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
SMALLEST_TABLE = 1 << 18


def mixed(values: Hashes) -> Hashes:
    """A hash of each value; distinct ones stay distinct.

    Source: splitmix64 (Vigna), https://prng.di.unimi.it/splitmix64.c
    """
    values = values + MULTIPLIER
    values ^= values >> numpy.uint64(30)
    values *= numpy.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> numpy.uint64(27)
    values *= numpy.uint64(0x94D049BB133111EB)
    values ^= values >> numpy.uint64(31)
    return values


def runs(hashes: Hashes, counts: Indices, size: int) -> tuple[Hashes, Indices, Indices]:
    """A hash of each run of `size` hashes inside a row, the index at which it begins, and how many runs each row has.

    A row that is shorter has one run, of all its hashes; an empty row has none.

    Args:
        hashes: of all rows, one row after another.
        counts: how many each row has.
    """
    bounds = bounds_of(counts)
    num_runs = numpy.minimum(counts, numpy.maximum(counts - size + 1, 1))
    begins = ranges(bounds[:-1], num_runs)
    ends = numpy.minimum(begins + size, numpy.repeat(bounds[1:], num_runs))
    growing, shrinking = powers(len(hashes))
    sums = numpy.zeros(len(hashes) + 1, numpy.uint64)
    numpy.cumsum(hashes * growing, out=sums[1:])
    return mixed((sums[ends] - sums[begins]) * shrinking[begins]), begins, num_runs


def powers(num_powers: int) -> tuple[Hashes, Hashes]:
    """The first powers of the multiplier and of its inverse, modulo 2^64."""
    tables = _tables(max(SMALLEST_TABLE, 1 << num_powers.bit_length()))
    return tables[0][:num_powers], tables[1][:num_powers]


@cache
def _tables(size: int) -> tuple[Hashes, Hashes]:
    growing, shrinking = (numpy.full(size, base, numpy.uint64) for base in (MULTIPLIER, INVERSE))
    for table in (growing, shrinking):
        table[0] = 1
        numpy.cumprod(table, out=table)
    return growing, shrinking


def bounds_of(counts: Indices) -> Indices:
    """Where each of several rows of `counts` values begins, and where the last one ends."""
    bounds = numpy.zeros(len(counts) + 1, numpy.int64)
    numpy.cumsum(counts, out=bounds[1:])
    return bounds


def ranges(begins: Indices, counts: Indices) -> Indices:
    """The numbers of several ranges one after another: from each begin on, as many as its count says."""
    return numpy.arange(counts.sum()) + numpy.repeat(begins - bounds_of(counts)[:-1], counts)
