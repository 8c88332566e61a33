"""The ids of all rows so far: 12 bytes a row, however many."""

import numpy as np


class Seen:
    """Counts ids. They lie in sorted runs, each at least twice as long as the next, so that few are looked through."""

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def count(self, ids: np.ndarray) -> np.ndarray:
        """How often each id was there before, and adds it.

        Args:
            ids: uint64, in the order in which they come.
        """
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        distinct, first, times = np.unique(ordered, return_index=True, return_counts=True)
        known = self._times_of(distinct)
        before = np.empty(len(ids), dtype=np.int64)
        before[order] = np.repeat(known - first, times) + np.arange(len(ids))
        self._add(distinct, times.astype(np.uint32))
        return before

    def _times_of(self, ids: np.ndarray) -> np.ndarray:
        found = np.zeros(len(ids), dtype=np.int64)
        for run, times in self._runs:
            places = np.minimum(np.searchsorted(run, ids), len(run) - 1)
            found += np.where(run[places] == ids, times[places], 0).astype(np.int64)
        return found

    def _add(self, ids: np.ndarray, times: np.ndarray) -> None:
        if len(ids) == 0:
            return
        while self._runs and len(self._runs[-1][0]) < 2 * len(ids):
            ids, times = _merged(self._runs.pop(), (ids, times))
        self._runs.append((ids, times))


def _merged(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ids, times = np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])
    order = np.argsort(ids, kind="stable")
    ids, times = ids[order], times[order]
    is_first = np.append(True, ids[1:] != ids[:-1])
    return ids[is_first], np.add.reduceat(times, np.flatnonzero(is_first), dtype=np.uint32)
