"""The multi-layer perceptron over a row's numbers."""

import math

from torch import Tensor, nn

from nexa_core.config.model import MlpParameters
from nexa_models.spec import ModelSpec


class Mlp(nn.Module):
    """Hidden layers of Linear, ReLU, Dropout; then one Linear to the classes."""

    def __init__(self, parameters: MlpParameters, *, num_features: int, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        size = num_features
        for hidden_size in parameters.hidden_sizes:
            layers += [nn.Linear(size, hidden_size), nn.ReLU(), nn.Dropout(parameters.dropout)]
            size = hidden_size
        self.layers = nn.Sequential(*layers, nn.Linear(size, num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (rows, classes) of features (rows, ...)."""
        return self.layers(features.flatten(1))


def build(spec: ModelSpec) -> Mlp:
    parameters = MlpParameters.model_validate_json(spec.parameters_json)
    return Mlp(parameters, num_features=math.prod(spec.feature_shape or ()), num_classes=len(spec.labels))
