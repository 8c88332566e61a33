"""The one table of models, and building one from its spec."""

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
