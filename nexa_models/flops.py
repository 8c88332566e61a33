"""Floating-point operations of training, to hold a run's speed against what the device could do."""

import torch
from torch import nn

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


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak; None where it is not known, as for processors."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    return None if found is None else found[0 if precision == "bfloat16" else 1]


def training_flops_per_token(model: nn.Module, *, mean_length: float) -> float:
    """Operations of a forward and backward pass for each token of sequences of `mean_length`.

    Six for each weight that tokens are multiplied with, and 6 x length x width in each causal attention layer: half
    of the square. Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B, which counts the whole square.
    """
    linear = [each for each in model.modules() if isinstance(each, nn.Linear) or type(each).__name__ == "Conv1D"]
    num_weights = sum(weight.numel() for each in linear for weight in each.parameters(recurse=False) if weight.ndim > 1)
    config = getattr(getattr(model, "transformer", None), "config", None)
    width = getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)
    return 6.0 * num_weights + 6.0 * mean_length * width
