"""The loss on held-out rows: the same number however many processes share the work."""

import contextlib
import math

import torch
from torch import nn

from nexa_core.errors import UserError
from nexa_models.encoding import IGNORED, Encoded
from nexa_models.loss import summed_loss
from nexa_models.predict import cut_rows
from nexa_train.distributed.group import Group


def validate(
    model: nn.Module, encoded: Encoded, *, batch_size: int, group: Group, device: torch.device, compiled: bool
) -> tuple[float, float]:
    """Loss in nats and accuracy, both a mean over the learned targets.

    Batch i goes to process i modulo their number; the sums of the batches are added up in the batches' order.

    Raises:
        UserError: there is nothing learned in any row.
    """
    model.eval()
    cut, world = cut_rows(encoded, batch_size), group.world
    sums = torch.zeros(len(cut), 3, dtype=torch.float64)  # of each batch its loss, right answers and targets
    # Every process makes as many passes as the others: a sharded model's weights are gathered in each.
    num_passes = -(-len(cut) // world.size)
    # Its batches have other shapes than the training's: not worth compiling for.
    stance = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with torch.no_grad(), stance:
        for index in range(world.rank, num_passes * world.size, world.size):
            batch = encoded.batch(cut[min(index, len(cut) - 1)]).to(device)
            logits = model(**batch.inputs)
            if index < len(cut):
                is_right = (logits.argmax(-1) == batch.targets).sum()
                loss = summed_loss(logits, batch.targets)
                sums[index] = torch.stack([loss.double(), is_right, (batch.targets != IGNORED).sum()]).cpu()
    total_loss, num_right, num_targets = (math.fsum(column) for column in group.sum_on_host(sums).T.tolist())
    if num_targets == 0:
        raise UserError(
            f"None of the {len(encoded)} validation rows has a target: their prompts alone fill model.parameters.max_tokens. "
            "Give the model more tokens, or prepare rows with shorter prompts."
        )
    return total_loss / num_targets, num_right / num_targets
