"""The unigram model: what a language model has to beat to have learned more than which tokens are frequent."""

import numpy as np
import torch
from torch import Tensor

from nexa_models.encoding import Encoded


def unigram_log_probs(encoded: Encoded, num_tokens: int) -> Tensor:
    """Log frequency (num_tokens,) of each token among the learned targets, each counted once more (Laplace)."""
    counts = np.ones(num_tokens, dtype=np.int64)
    for start in range(0, len(encoded), 1024):
        targets = encoded.batch(np.arange(start, min(start + 1024, len(encoded)))).targets.numpy()
        counts += np.bincount(targets, minlength=num_tokens)
    return torch.from_numpy(np.log(counts / counts.sum())).float()
