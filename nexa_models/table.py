"""The one table of models: building one from its spec, and giving it the weights that it begins with."""

import torch
from torch import nn

from nexa_core.errors import UserError
from nexa_core.lookup import look_up
from nexa_models.spec import ModelSpec

MODELS = {
    "mlp": "nexa_models.mlp:build",
    "cnn": "nexa_models.cnn:build",
    "text_classifier": "nexa_models.text_classifier:build",
    "causal_lm": "nexa_models.causal_lm:build",
    "encoder_classifier": "nexa_models.encoder_classifier:build",
}


def build_model(spec: ModelSpec, *, seed: int = 0) -> nn.Module:
    """A model with fresh weights, which are a function of `seed` alone; `forward(**inputs)` returns logits.

    Raises:
        UserError: a user's own builder refused its parameters or returned something else than a module.
    """
    name, parameters = spec.model["name"], spec.model["parameters"]
    build = look_up(MODELS, name, what="model")
    torch.manual_seed(seed)
    if name in MODELS:
        return build(spec)
    try:
        model = build(spec, **parameters)
    except TypeError as error:
        raise UserError(f"Model '{name}' does not take these parameters: {error}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"Model '{name}' has to return a torch.nn.Module; it returned {type(model).__name__}.")
    return model


def load_pretrained(model: nn.Module, spec: ModelSpec) -> None:
    """Give a model that `build_model` made the weights of its spec's folder; for the beginning of a run only.

    Does nothing for a model whose weights begin at random.

    Raises:
        UserError: the folder is gone or changed, lacks weights, or is of a model that cannot do what is asked of it.
    """
    if spec.pretrained is None:
        return
    from nexa_models.causal_lm import CausalLm, check_causal
    from nexa_models.pretrained import load_weights

    if spec.lora is None or spec.lora.quantization is None:
        load_weights(model.get_submodule("transformer"), spec)
    if isinstance(model, CausalLm):
        check_causal(model)
