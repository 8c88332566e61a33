"""The unigram model: what a language model has to beat to have learned more than which tokens are frequent."""

import numpy as np
import torch
from torch import Tensor

from nexa_models.encoding import PackedRows, Sequences
from nexa_models.token_rows import TokenRows


def unigram_log_probs(encoded: Sequences | PackedRows | TokenRows, num_tokens: int) -> Tensor:
    """Log frequency (num_tokens,) of each token among the learned targets, each counted once more (Laplace)."""
    if isinstance(encoded, TokenRows):
        counts = 1 + encoded.count_targets(num_tokens)
    else:
        counts = 1 + np.bincount(encoded.targets, minlength=num_tokens)
    return torch.from_numpy(np.log(counts / counts.sum())).float()
