"""The small convolutional network over images."""

from torch import Tensor, nn

from nexa_core.config.model import CnnParameters
from nexa_core.errors import UserError
from nexa_models.spec import ModelSpec


class Cnn(nn.Module):
    """Blocks of 3x3 convolution, ReLU, 2x2 pooling; then a hidden layer and the classes."""

    def __init__(self, parameters: CnnParameters, *, image_shape: tuple[int, ...], num_classes: int):
        super().__init__()
        channels, height, width = image_shape
        blocks: list[nn.Module] = []
        for out_channels in parameters.channels:
            blocks += [nn.Conv2d(channels, out_channels, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels, height, width = out_channels, height // 2, width // 2
        if min(height, width) < 1:
            raise UserError(
                f"Model 'cnn' halves the image after each of its {len(parameters.channels)} convolutions and an image "
                f"of {image_shape[1]}x{image_shape[2]} is too small for that; give fewer `channels`."
            )
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, parameters.hidden_size),
            nn.ReLU(),
            nn.Dropout(parameters.dropout),
            nn.Linear(parameters.hidden_size, num_classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (rows, classes) of images (rows, channels, height, width)."""
        return self.head(self.blocks(features))


def build(spec: ModelSpec) -> Cnn:
    parameters = CnnParameters.model_validate_json(spec.parameters_json)
    return Cnn(parameters, image_shape=spec.feature_shape or (), num_classes=len(spec.labels))
