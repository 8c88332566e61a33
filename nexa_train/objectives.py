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
    @property
    def parts(self) -> tuple[str, ...]:
        """What is measured beside the loss, each a mean over the targets that it is known of."""

    def __call__(self, model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        """(1 + 2 parts,) float32: the loss in nats, summed over the batch's targets, then of each part its sum and its targets.

        Only the loss is differentiated, by the model's weights.
        """


@dataclass(frozen=True)
class CrossEntropy:
    """How unlikely the model finds the targets."""

    @property
    def parts(self) -> tuple[str, ...]:
        return ()

    def __call__(self, model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        return summed_loss(model(**batch.inputs), batch.targets)[None]


cross_entropy = CrossEntropy()
