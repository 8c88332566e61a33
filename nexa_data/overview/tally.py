"""How often each value came, in memory that does not grow with the number of rows."""

from collections.abc import Sequence

import numpy as np

NUM_BINS = 40


class Tally:
    """Exact counts of whole numbers: what is held grows with how many different ones there are."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)

    def add(self, values: np.ndarray) -> None:
        found, counts = np.unique(values.astype(np.int64), return_counts=True)
        merged, places = np.unique(np.concatenate([self._values, found]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        np.add.at(total, places, np.concatenate([self._counts, counts]))
        self._values, self._counts = merged, total

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        return float(np.dot(self._values, self._counts)) / self.count

    def quantile(self, share: float) -> int:
        """The least value that at least this share of all do not exceed; the least and the greatest at 0 and 1."""
        reached = np.searchsorted(np.cumsum(self._counts), max(1, np.ceil(share * self.count)))
        return int(self._values[reached])

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """How many lie in each bin, from one edge up to and without the next."""
        inside = (self._values >= edges[0]) & (self._values < edges[-1])
        bins = np.searchsorted(edges, self._values[inside], side="right") - 1
        return np.bincount(bins, weights=self._counts[inside], minlength=len(edges) - 1).astype(np.int64)


def log_edges(tallies: Sequence[Tally]) -> np.ndarray:
    """Edges of bins around all values, as nearly equally wide on a logarithmic axis as whole numbers can be.

    No bin is narrower than the one before it. Where values begin at 0 the first bin holds only those.
    """
    least = min(tally.quantile(0) for tally in tallies)
    most = max(tally.quantile(1) for tally in tallies)
    ratio = ((most + 1) / max(1, least)) ** (1 / NUM_BINS)
    edges, width = [max(1, least)], 1
    while edges[-1] <= most:
        width = max(width, round(edges[-1] * (ratio - 1)))
        edges.append(edges[-1] + width)
    return np.array([0, *edges] if least == 0 else edges)
