"""Which rows a step learns from: a pure function of (seed, epoch, index), so nothing about the order is ever saved."""

import functools
import hashlib
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """The order of a whole run."""

    num_rows: int
    batch_size: int
    accumulation: int
    epochs: int
    max_steps: int | None
    seed: int

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
        batch = epoch_order(self.seed, epoch, self.num_rows)[index * self.batch_size : (index + 1) * self.batch_size]
        return [part for part in np.array_split(batch, self.accumulation) if len(part)]

    def ends_epoch(self, num_steps_done: int) -> bool:
        return num_steps_done % self.steps_per_epoch == 0


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """A permutation of `range(num_rows)`: rows sorted by a hash of (seed, epoch, row), the same on every machine.

    numpy's own permutations may change from one version to the next, which would break resuming after an upgrade.
    """
    keys = _splitmix64(np.arange(num_rows, dtype=np.uint64) + np.uint64(derive_seed(seed, "order", epoch)))
    return np.argsort(keys, kind="stable")


def derive_seed(seed: int, *use: str | int) -> int:
    """A 63-bit seed for one use, independent of every other use's."""
    return int.from_bytes(hashlib.sha256(repr((seed, *use)).encode()).digest()[:8], "big") >> 1


def _splitmix64(values: np.ndarray) -> np.ndarray:
    """Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", fig. 17."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
