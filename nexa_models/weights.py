"""A model's weights as safetensors bytes and back; tied weights are stored once."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from nexa_core.errors import GateError

TIED = TypeAdapter(dict[str, str])
"""The safetensors metadata `tied`: the name of each tensor left out, and of the one stored that it shares."""


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


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor by name, the tied ones among them.

    Raises:
        GateError: the file is no safetensors, or its metadata is not what `weights_to_bytes` writes.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tied = TIED.validate_json((file.metadata() or {}).get("tied", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a dict
        return weights | {name: weights[other] for name, other in tied.items()}
    except (safetensors.SafetensorError, ValidationError, KeyError) as error:
        raise GateError(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from None


def check_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Hold names, shapes and types of `weights` against the model's, which may be one without storage (meta).

    Raises:
        GateError: naming the first tensor that differs.
    """
    wanted = model.state_dict()
    for name in sorted({*wanted, *weights}):
        ours, theirs = _kind(wanted.get(name)), _kind(weights.get(name))
        if ours != theirs:
            raise GateError(f"The weights are not this model's: '{name}' has to be {ours} and is {theirs}.")


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
