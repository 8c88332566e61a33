"""Which rows a step learns from: a pure function of (seed, epoch, index), so nothing about the order is ever saved."""

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

GROUPED_BATCHES = 50  # rows of like length are looked for among so many batches


@dataclass(frozen=True)
class Plan:
    """The order of a whole run."""

    num_rows: int
    batch_size: int
    num_microbatches: int
    """Parts that each batch is cut into."""
    epochs: int
    max_steps: int | None
    seed: int
    lengths_N: np.ndarray | None = None
    """The rows' lengths, where rows of like length are to share a batch."""
    _orders: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_rows / self.batch_size)

    @property
    def num_steps(self) -> int:
        whole = self.epochs * self.steps_per_epoch
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def microbatches(self, step: int) -> list[np.ndarray]:
        """The row indices of each forward pass of an optimizer step; an epoch's last batch may be smaller."""
        epoch, index = divmod(step, self.steps_per_epoch)
        batch = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        return [part for part in np.array_split(batch, self.num_microbatches) if len(part)]

    def ends_epoch(self, num_steps_done: int) -> bool:
        return num_steps_done % self.steps_per_epoch == 0

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = epoch_order(self.seed, epoch, self.num_rows)
            if self.lengths_N is not None:
                order = group_by_length(order, self.lengths_N, self.batch_size, seed=self.seed, epoch=epoch)
            for old in list(self._orders):  # other threads change it meanwhile
                if abs(old - epoch) > 1:
                    self._orders.pop(old, None)
            self._orders[epoch] = order
        return order


def epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """A permutation of `range(num_rows)`: rows sorted by a hash of (seed, epoch, row), the same on every machine.

    numpy's own permutations may change from one version to the next, which would break resuming after an upgrade.
    """
    return _permutation(num_rows, derive_seed(seed, "order", epoch))


def group_by_length(order: np.ndarray, lengths_N: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> np.ndarray:
    """`order` with rows of like length side by side within each stretch of many batches, the batches shuffled again.

    The epoch's last batch, which may be smaller, stays last.
    """
    stretch = GROUPED_BATCHES * batch_size
    parts = [order[start : start + stretch] for start in range(0, len(order), stretch)]
    by_length = np.concatenate([part[np.argsort(-lengths_N[part], kind="stable")] for part in parts])
    num_whole = len(order) // batch_size
    whole = by_length[: num_whole * batch_size].reshape(num_whole, batch_size)
    shuffled = whole[_permutation(num_whole, derive_seed(seed, "batches", epoch))].reshape(-1)
    return np.concatenate([shuffled, by_length[num_whole * batch_size :]])


def derive_seed(seed: int, *use: str | int) -> int:
    """A 63-bit seed for one use, independent of every other use's."""
    return int.from_bytes(hashlib.sha256(repr((seed, *use)).encode()).digest()[:8], "big") >> 1


def _permutation(count: int, seed: int) -> np.ndarray:
    return np.argsort(_splitmix64(np.arange(count, dtype=np.uint64) + np.uint64(seed)), kind="stable")


def _splitmix64(values: np.ndarray) -> np.ndarray:
    """Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", fig. 17."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
