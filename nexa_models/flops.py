"""Floating-point operations of training, to hold a run's speed against what the device could do."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from nexa_models.encoding import Encoded, PackedRows
from nexa_models.token_rows import TokenRows

# Dense peaks in operations per second for (bfloat16, float32), by what the device's name contains; the first that fits.
# Source: NVIDIA's data sheets of each product (H100 and H200: SXM; without sparsity; float32 without tensor cores).
PEAKS = {
    "H200": (989.4e12, 66.9e12),
    "H100 PCIe": (756e12, 51.2e12),
    "H100": (989.4e12, 66.9e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
}


def peak_flops(device: torch.device, precision: str, *, num_devices: int) -> float | None:
    """The peak of so many such devices; None where it is not known, as for processors."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    return None if found is None else num_devices * found[0 if precision == "bfloat16" else 1]


def training_flops_per_token(model: nn.Module, *, mean_length: float) -> float:
    """Operations of a forward and backward pass for each token of sequences of `mean_length`.

    Six for each weight that tokens are multiplied with, but four for a frozen one, which gets no gradient of its own;
    and 6 x length x width in each causal attention layer: half of the square. Source: Chowdhery et al. 2022 (PaLM),
    arXiv:2204.02311, appendix B, which counts the whole square.
    """
    for_weights = sum(
        num_weights * (6.0 if layer.weight.requires_grad else 4.0) for layer, num_weights in _multiplied(model)
    )
    config = getattr(getattr(model, "transformer", None), "config", None)
    width = getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)
    return for_weights + 6.0 * mean_length * width


def attended_lengths(data: Encoded) -> np.ndarray:
    """The lengths of what tokens attend to each other in: rows, also where several share a pack, or parts of documents."""
    if isinstance(data, TokenRows):
        return data.piece_lengths
    return (data.sequences if isinstance(data, PackedRows) else data).token_counts_N


def mean_length(lengths_N: np.ndarray) -> float:
    """The mean over all tokens of the length of the sequence that they are in: attention costs each length's square."""
    num_tokens = int(lengths_N.sum())
    return float((lengths_N.astype(np.float64) ** 2).sum() / num_tokens) if num_tokens else 0.0


def _multiplied(model: nn.Module) -> Iterator[tuple[Any, int]]:
    """Each layer that multiplies with a matrix, and the matrix's weights; those in 4 bits lie two in a byte."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            yield layer, layer.in_features * layer.out_features
        elif type(layer).__name__ == "Conv1D":
            yield layer, layer.get_parameter("weight").numel()
