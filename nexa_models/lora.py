"""LoRA: small matrices beside a model's own, trained in their place, kept apart in checkpoints and merged for packages."""

import copy
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nexa_core.config.model import Lora
from nexa_core.errors import GateError, UserError
from nexa_models.pretrained import check_files, load_weights, transformers_config
from nexa_models.spec import ModelSpec

ADAPTER = "default"
MARK = "lora_"
"""What the names of the adapters' tensors have in them, and no others."""
BOUND, BOUND_QUANTIZED = 1e-4, 2e-2
"""Largest difference between merged and adapter logits, as a share of the largest logit. Sums in another order differ by
some 1e-6 in float32; a quantized base is computed in bfloat16, each step of which rounds by up to 4e-3."""


def adapt(transformer: Any, lora: Lora) -> None:
    """Put adapters, which change nothing at first, beside the layers; only their weights are trained from here on.

    Raises:
        UserError: no layer has one of the names in `target_modules`, or one of them could not be merged.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    targets = lora.target_modules
    ends = {
        name.rpartition(".")[2] for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear | Conv1D)
    }
    if targets is not None and (unknown := sorted(set(targets) - ends)):
        raise UserError(
            f"model.lora.target_modules: no linear layer is called {', '.join(unknown)}. There: {', '.join(sorted(ends))}"
        )
    head = transformer.get_output_embeddings()
    is_tied = head is not None and head.weight is transformer.get_input_embeddings().weight
    names = {name.rpartition(".")[2] for name, layer in transformer.named_modules() if layer is head}
    if is_tied and names & set(targets or ()):
        raise UserError(
            "model.lora.target_modules: the output layer shares its weights with the embedding; leave it out."
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets is None else list(targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in transformer.modules()),
    )
    inject_adapter_in_model(config, transformer, ADAPTER)


def load_quantized(spec: ModelSpec) -> nn.Module:
    """The spec's transformer with its folder's weights in 4 bits, on the GPU.

    Raises:
        UserError: there is no GPU, bitsandbytes is not installed, or the folder is not what the spec was made of.
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "model.lora.quantization: nf4 needs a GPU and bitsandbytes (pip install bitsandbytes); set it to null to keep "
            "the model's own weights as they are."
        )
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        check_files(spec),
        config=transformers_config(spec),
        quantization_config=quantization,
        dtype=torch.float32,
        device_map={"": torch.cuda.current_device()},
        use_safetensors=True,
        local_files_only=True,
    )


def saved_state(model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    """The tensors that a checkpoint of this model holds: all of them, or of one with adapters, all but its base's."""
    state = model.state_dict()
    return state if spec.lora is None else {name: tensor for name, tensor in state.items() if _is_own(name)}


def load_state(model: nn.Module, spec: ModelSpec, state: dict[str, Tensor]) -> None:
    """Put what `saved_state` gave into a model that `build_model` made; the base of adapters comes from its folder.

    Raises:
        UserError: the folder is not what the spec was made of, or the tensors are not those of this model.
    """
    if spec.lora is None:
        model.load_state_dict(state)
        return
    wanted = saved_state(model, spec).keys()
    if differing := sorted(wanted ^ state.keys()):
        raise UserError(f"The adapters are not this model's; they differ in {', '.join(differing[:5])}.")
    if spec.lora.quantization is None:
        load_weights(model.get_submodule("transformer"), spec)
    model.load_state_dict(state, strict=False)


def merged_settings(model: dict[str, Any]) -> dict[str, Any]:
    """The resolved model section of the model that is left once adapters are merged."""
    return {**model, "lora": None} if "lora" in model else model


def merged_spec(spec: ModelSpec) -> ModelSpec:
    """The spec of the merged model."""
    return replace(spec, model=merged_settings(spec.model))


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """A copy of the model whose layers do by themselves what they did with their adapters.

    Raises:
        GateError: a merged weight is NaN or infinite.
    """
    merged = copy.deepcopy(model)
    for name, layer in list(_adapted(merged)):
        plain = _plain_layer(layer)
        plain.weight += layer.get_delta_weight(ADAPTER).to(plain.weight)
        if not plain.weight.isfinite().all():
            raise GateError(f"The adapter cannot be merged: '{name}' becomes NaN or infinite. Nothing is packed.")
        merged.set_submodule(name, plain)
    return merged.requires_grad_(True)


@torch.inference_mode()
def compare_logits(adapted: nn.Module, merged: nn.Module, batches: Iterable[dict[str, Tensor]]) -> tuple[float, float]:
    """On some inputs, the largest difference between the two models' logits, and the largest logit; infinite for NaN."""
    adapted.eval()
    merged.eval()
    difference = largest = 0.0
    for inputs in batches:
        theirs, ours = adapted(**inputs), merged(**inputs)
        if theirs.numel():
            difference = max(difference, _largest(ours - theirs))
            largest = max(largest, _largest(theirs))
    return difference, largest


def _largest(values: Tensor) -> float:
    return float(values.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer))


def _plain_layer(layer: Any) -> Any:
    """The layer under the adapter, with its 4-bit weights written out."""
    base = layer.get_base_layer()
    if getattr(base.weight, "quant_state", None) is None:
        return base
    from peft.utils.integrations import dequantize_bnb_weight

    plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device=base.weight.device)
    plain.weight.copy_(dequantize_bnb_weight(base.weight))
    if base.bias is not None:
        plain.bias.copy_(base.bias)
    return plain


def _is_own(name: str) -> bool:
    return MARK in name or not name.startswith("transformer.")
