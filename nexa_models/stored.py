"""A teacher's log probabilities as they were collected with its answers, beside the tokens that a student learns."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class StoredTop:
    """The likeliest tokens at some places (m of them), K at each."""

    index: np.ndarray
    """For every token of the sequences, the place that is stored of it; -1 where none is."""
    top_ids: np.ndarray
    """(m, K) int32; -1 where there are fewer."""
    top_logprobs: np.ndarray
    """(m, K) float32"""
    tail_mass: np.ndarray
    """(m,) float32: the probability of all other tokens."""

    def of(self, tokens: np.ndarray) -> dict[str, Tensor]:
        """What a batch carries for these tokens: `is_stored`, `top_ids`, `top_logprobs` and `tail_mass`."""
        found = self.index[tokens]
        place = np.maximum(found, 0)  # of one that is not stored any, which nobody looks at
        return {
            "is_stored": torch.from_numpy(found >= 0),
            "top_ids": torch.from_numpy(self.top_ids[place].astype(np.int64)),
            "top_logprobs": torch.from_numpy(self.top_logprobs[place]),
            "tail_mass": torch.from_numpy(self.tail_mass[place]),
        }


class PlacesInTheMaking:
    """The arrays of a `StoredTop`, filled place by place; what is not filled takes no memory."""

    def __init__(self, *, at_most: int):
        self._at_most, self._num_places = at_most, 0
        self._top_ids, self._top_logprobs = np.empty((0, 0), dtype=np.int32), np.empty((0, 0), dtype=np.float32)
        self._tail_mass = np.empty(at_most, dtype=np.float32)

    def add(self, top_ids: np.ndarray, top_logprobs: np.ndarray, tail_mass: np.ndarray) -> np.ndarray:
        """The numbers of these new places, with (m, K) and (m,) of their tokens."""
        width = top_ids.shape[1]
        if width > self._top_ids.shape[1]:
            self._widen(width)
        new = slice(self._num_places, self._num_places + len(tail_mass))
        self._top_ids[new, :width], self._top_ids[new, width:] = top_ids, -1
        self._top_logprobs[new, :width], self._top_logprobs[new, width:] = top_logprobs, 0.0
        self._tail_mass[new] = tail_mass
        self._num_places = new.stop
        return np.arange(new.start, new.stop)

    def done(self, index: np.ndarray) -> StoredTop:
        end = self._num_places
        return StoredTop(index, self._top_ids[:end], self._top_logprobs[:end], self._tail_mass[:end])

    def _widen(self, width: int) -> None:
        num_places, before = self._num_places, self._top_ids.shape[1]
        for name, filling in (("_top_ids", -1), ("_top_logprobs", 0.0)):
            old: np.ndarray = getattr(self, name)
            wider = np.empty((self._at_most, width), dtype=old.dtype)
            wider[:num_places, :before], wider[:num_places, before:] = old[:num_places], filling
            setattr(self, name, wider)
