"""A linear model, as a user's own, of which one step takes minutes inside of a single native call."""

import hashlib
import math
from typing import Any

import torch

SLOW_PASS = 5
NUM_ROUNDS = 10**9


def make_model(spec: Any) -> torch.nn.Module:
    class Slow(torch.nn.Linear):
        num_passes = 0

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            self.num_passes += self.training
            if self.num_passes == SLOW_PASS:
                hashlib.pbkdf2_hmac("sha256", b"", b"", NUM_ROUNDS)  # lets other threads go on
            return super().forward(features.flatten(1))

    return Slow(math.prod(spec.feature_shape), len(spec.labels))
