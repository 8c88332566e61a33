"""What a microbatch's loss is: the seam between the loop and what is learned."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from nexa_models.encoding import Batch
from nexa_models.loss import summed_loss


@dataclass(frozen=True)
class Moment:
    """Where in a run a microbatch is; whatever is drawn at random is a function of it."""

    seed: int
    step: int
    index: int
    """The number of the microbatch in its step."""


class Objective(Protocol):
    def __call__(self, model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        """The loss in nats, summed over the batch's targets; float32. The model's weights are what it is differentiated by."""


def cross_entropy(model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
    """How unlikely the model finds the targets."""
    return summed_loss(model(**batch.inputs), batch.targets)
