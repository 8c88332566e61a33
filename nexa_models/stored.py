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
