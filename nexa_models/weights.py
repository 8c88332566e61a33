"""A model's weights as safetensors bytes and back; tied weights are stored once."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from nexa_core.errors import GateError


def weights_to_bytes(model: nn.Module) -> bytes:
    """The state dict as safetensors; names that share one tensor are listed in the file's metadata."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first_name: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and place in first_name:
            tied[name] = first_name[place]
        else:
            first_name[place] = name
            kept[name] = tensor.detach().cpu().contiguous()
    return safetensors.torch.save(kept, metadata={"tied": json.dumps(tied, sort_keys=True)})


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` with the weights at `path`.

    Raises:
        GateError: they are not this model's: a name or shape is missing, extra or different.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tied = json.loads((file.metadata() or {}).get("tied", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a dict
        weights |= {name: weights[other] for name, other in tied.items()}
        model.load_state_dict(weights)
    except (safetensors.SafetensorError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise GateError(f"{path.name} does not hold this model's weights: {str(error).splitlines()[0]}") from None
