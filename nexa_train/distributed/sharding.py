"""A model cut into shards (FSDP2): every process holds its part of each weight, and gathers a layer when it needs it.

Source: Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277; torch's `fully_shard`.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from nexa_core.config.training import Training
from nexa_models.causal_lm import CausalLm
from nexa_models.numerics import never_fall_back_to_eager
from nexa_train.distributed.world import World


def shard(model: nn.Module, training: Training, *, world: World, device: torch.device, packed: bool) -> None:
    """Cut the model, which lies on the CPU, in place; what is gathered together is a transformer's layer, an embedding
    or an output layer of its own, and all the rest.

    With `precision: bfloat16` weights are gathered, and all computed, in bfloat16; shards, the sums of gradients and the
    optimizer stay float32.
    """
    mesh = init_device_mesh(device.type, (world.size,))
    bfloat16 = training.precision == "bfloat16"
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if bfloat16
        else MixedPrecisionPolicy()
    )
    if training.compile:
        _compile(model, device, packed=packed)
    head = _output_layer(model)
    for unit in _units(model):
        # The output layer is the backward pass's first: it would be gathered again at once.
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=unit is not head)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def reduction_of(model: nn.Module) -> Callable[[bool], None]:
    """Says of the next backward pass whether it ends in a reduction.

    Where it does not, the gathered weights stay for the next forward pass.
    """
    assert isinstance(model, FSDPModule)

    def expect(wanted: bool) -> None:
        model.set_requires_gradient_sync(wanted)
        model.set_reshard_after_backward(wanted)

    return expect


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """What is gathered by itself, inner ones first; never a weight that something outside shares."""
    transformer = getattr(model, "transformer", None)
    if transformer is None:
        return
    layers = list(_layers(transformer))
    ends = [transformer.get_input_embeddings(), _output_layer(model)]
    names = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for unit in [*(end for end in ends if end is not None), *reversed(layers)]:
        if all(names[id(weight)] == 1 for weight in unit.parameters()):
            yield unit


def _layers(transformer: nn.Module) -> Iterator[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return (module for module in transformer.modules() if isinstance(module, GradientCheckpointingLayer))


def _output_layer(model: nn.Module) -> nn.Module | None:
    transformer = getattr(model, "transformer", None)
    return None if transformer is None else transformer.get_output_embeddings()


def _compile(model: nn.Module, device: torch.device, *, packed: bool) -> None:
    """Compile what is gathered together, so that the gathering stays outside."""
    never_fall_back_to_eager()
    if isinstance(model, CausalLm):
        model.prepare_compilation(packed=packed, device=device)
    transformer = getattr(model, "transformer", None)
    for part in [model] if transformer is None else list(_layers(transformer)):
        part.forward = torch.compile(part.forward, dynamic=False)
