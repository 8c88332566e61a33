"""Near duplicates: texts that share most of their shingles, found in clusters of which one row is kept.

    keys = band_keys(signatures(texts))                       # of each block of rows, anywhere
    removed = find_near_duplicates(keys, row_ids, texts_of, settings)   # of all rows together

Two texts are linked when their Jaccard similarity, the share of shingles that both have among those that either has, is
`settings.threshold` or more; rows that are linked through others are one cluster, and the row with the smallest id is kept. The
order of rows has no influence.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from nexa_core.config.overlaps import NearDuplicates
from nexa_core.environment import num_cores
from nexa_data.minhash import NO_KEY
from nexa_data.runs import Hashes, Indices, ranges
from nexa_data.shingles import Shingles, shingle

PAIRS_AT_ONCE = 256
PAIRS_OF_A_SMALL_BUCKET = 1024
MIN_LEADERS = 4

Similarities = NDArray[numpy.float64]
TextsOf = Callable[[Indices], Sequence[str]]
"""The texts of the rows with these numbers."""


@dataclass(frozen=True)
class Removed:
    """Rows that are near duplicates, in ascending order; each with the row that is kept in its place.

    `jaccard` is a row's similarity with the kept one. It is below the threshold for a row that others link to it.
    """

    rows: Indices
    kept: Indices
    jaccard: Similarities


def find_near_duplicates(
    keys: Hashes, row_ids: Sequence[str] | Hashes, texts_of: TextsOf, settings: NearDuplicates
) -> Removed:
    """The rows to leave out, so that no two rows that are left were seen to be near.

    Every pair of candidates is compared in buckets (rows with one key in one band) of up to 32 rows. In larger ones, such
    as boilerplate makes, only the 4 to 31 rows with the smallest ids are compared with all others: the time stays
    linear, and a pair among the others is found in another bucket or not at all.

    Args:
        keys: (rows, 14), as `band_keys` gives them.
        row_ids: the id of each row, all different, as texts or as numbers.
        texts_of: gives the texts of a few rows at a time.
    """
    order = numpy.argsort(numpy.asarray(row_ids), kind="stable")
    clusters = _Clusters(len(order), lambda ranks: texts_of(order[ranks]), settings.threshold)
    for band in range(keys.shape[1]):
        buckets = _buckets(keys[order, band])
        for left, right in _rounds(buckets):
            clusters.link(left, right)
    ranks, kept, jaccard = clusters.removed()
    rows = order[ranks]
    ascending = numpy.argsort(rows)
    return Removed(rows[ascending], order[kept][ascending], jaccard[ascending])


def jaccard_of(shingles: Shingles, left: Indices, right: Indices) -> Similarities:
    """The exact Jaccard similarity of each pair of texts, over their sets of shingles; 0 where both have none."""
    distinct, ids = numpy.unique(shingles.hashes, return_inverse=True)
    base = max(len(distinct), 1)
    counts = numpy.diff(shingles.bounds)
    members = numpy.repeat(numpy.arange(len(counts)), counts) * base + ids
    members.sort()
    members = members[numpy.append(True, members[1:] != members[:-1])[: len(members)]]
    sets = Shingles(members % base, numpy.searchsorted(members, numpy.arange(len(counts) + 1) * base))
    both = numpy.concatenate([_members(sets, left, base), _members(sets, right, base)])
    both.sort()
    shared = numpy.bincount(both[1:][both[1:] == both[:-1]] // base, minlength=len(left))
    sizes = numpy.diff(sets.bounds)
    return shared / numpy.maximum(sizes[left] + sizes[right] - shared, 1)


@dataclass(frozen=True)
class _Buckets:
    """Rows that have a key in common, one bucket after another, in each the smallest row first."""

    rows: Indices
    bounds: Indices


class _Clusters:
    """Rows in clusters, each known by its smallest row; rows are numbered in the order of their ids."""

    def __init__(self, num_rows: int, texts_of: TextsOf, threshold: float):
        self._texts_of, self._threshold = texts_of, threshold
        self._parents = numpy.arange(num_rows)
        self._compared_with = numpy.full(num_rows, -1)
        self._jaccard = numpy.zeros(num_rows)
        self._unlike = numpy.empty(0, numpy.int64)

    def link(self, smaller: Indices, larger: Indices) -> None:
        """Compare the pairs that are not in one cluster and were not compared yet, and join those that are near."""
        is_open = (self._roots(smaller) != self._roots(larger)) & ~self._are_known(smaller, larger)
        unlike = [self._unlike]
        for left, right, jaccard in self._compared(smaller[is_open], larger[is_open]):
            is_near = jaccard >= self._threshold
            unlike.append(self._numbers(left[~is_near], right[~is_near]))
            left, right = left[is_near], right[is_near]
            for pair in zip(left.tolist(), right.tolist(), strict=True):
                self._join(*pair)
            self._compared_with[right], self._jaccard[right] = left, jaccard[is_near]
        self._unlike = numpy.sort(numpy.concatenate(unlike))

    def _are_known(self, smaller: Indices, larger: Indices) -> NDArray[numpy.bool_]:
        """Which pairs were compared before and are not near: most candidates meet in several bands."""
        if len(self._unlike) == 0:
            return numpy.zeros(len(smaller), numpy.bool_)
        pairs = self._numbers(smaller, larger)
        places = numpy.minimum(numpy.searchsorted(self._unlike, pairs), len(self._unlike) - 1)
        return self._unlike[places] == pairs

    def _numbers(self, smaller: Indices, larger: Indices) -> Indices:
        return smaller * len(self._parents) + larger

    def removed(self) -> tuple[Indices, Indices, Similarities]:
        """The rows that are not their cluster's smallest, the smallest of each, and how similar the two are."""
        roots = self._roots(numpy.arange(len(self._parents)))
        rows = numpy.flatnonzero(roots != numpy.arange(len(roots)))
        kept, jaccard = roots[rows], self._jaccard[rows]
        unknown = numpy.flatnonzero(self._compared_with[rows] != kept)
        found = [values for _, _, values in self._compared(kept[unknown], rows[unknown])]
        jaccard[unknown] = numpy.concatenate([numpy.empty(0), *found])
        return rows, kept, jaccard

    def _compared(self, left: Indices, right: Indices) -> Iterator[tuple[Indices, Indices, Similarities]]:
        """The pairs with their similarities, a batch at a time and in order, made by all cores."""
        batches = list(_batches(left, right))
        with ThreadPoolExecutor(num_cores()) as pool:
            for pair, jaccard in zip(batches, pool.map(lambda pair: self._compare(*pair), batches), strict=True):
                yield *pair, jaccard

    def _compare(self, left: Indices, right: Indices) -> Similarities:
        rows, places = numpy.unique(numpy.concatenate([left, right]), return_inverse=True)
        return jaccard_of(shingle(self._texts_of(rows)), places[: len(left)], places[len(left) :])

    def _roots(self, rows: Indices) -> Indices:
        roots = self._parents[rows]
        while not numpy.array_equal(above := self._parents[roots], roots):
            roots = above
        self._parents[rows] = roots
        return roots

    def _join(self, left: int, right: int) -> None:
        first, second = sorted((self._root(left), self._root(right)))
        self._parents[second] = first

    def _root(self, row: int) -> int:
        while (parent := int(self._parents[row])) != row:
            row = parent
        return row


def _buckets(keys: Hashes) -> _Buckets:
    """The buckets of two rows and more of one band."""
    rows = numpy.flatnonzero(keys != NO_KEY)
    by_key = rows[numpy.argsort(keys[rows])]
    is_first = numpy.ones(len(by_key) + 1, numpy.bool_)
    is_first[1:-1] = keys[by_key[1:]] != keys[by_key[:-1]]
    is_shared = ~(is_first[:-1] & is_first[1:])
    by_key = by_key[is_shared]
    by_key = by_key[numpy.lexsort((by_key, keys[by_key]))]
    begins = numpy.flatnonzero(numpy.concatenate([[True], keys[by_key[1:]] != keys[by_key[:-1]]])[: len(by_key)])
    return _Buckets(by_key, numpy.append(begins, len(by_key)))


def _rounds(buckets: _Buckets) -> Iterator[tuple[Indices, Indices]]:
    """Pairs to compare: of every bucket its first row with the later ones, then its second row with those after it, ..."""
    sizes = numpy.diff(buckets.bounds)
    num_leaders = numpy.minimum(numpy.maximum(PAIRS_OF_A_SMALL_BUCKET // sizes, MIN_LEADERS), sizes - 1)
    for place in range(num_leaders.max(initial=0)):
        is_open = num_leaders > place
        leaders, counts = buckets.bounds[:-1][is_open] + place, sizes[is_open] - place - 1
        yield buckets.rows[numpy.repeat(leaders, counts)], buckets.rows[ranges(leaders + 1, counts)]


def _batches(left: Indices, right: Indices) -> Iterator[tuple[Indices, Indices]]:
    for begin in range(0, len(left), PAIRS_AT_ONCE):
        yield left[begin : begin + PAIRS_AT_ONCE], right[begin : begin + PAIRS_AT_ONCE]


def _members(sets: Shingles, rows: Indices, base: int) -> Indices:
    """The members of each row's set, told apart from those of other rows by the row's place in `rows`."""
    counts = numpy.diff(sets.bounds)[rows]
    members = sets.hashes[ranges(sets.bounds[rows], counts)]
    return numpy.repeat(numpy.arange(len(rows)), counts) * base + members
