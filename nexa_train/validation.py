"""The loss on held-out rows, with its interval: the same number however many processes share the work."""

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nexa_core import intervals
from nexa_core.errors import UserError
from nexa_core.intervals import Interval
from nexa_models.encoding import IGNORED, Encoded
from nexa_models.loss import target_losses
from nexa_models.predict import cut_rows
from nexa_models.scores import score_text
from nexa_train.distributed.group import Group

NUM_SUMS = 9


@dataclass(frozen=True)
class Validated:
    """Loss in nats and accuracy, each a mean over the learned targets with its 95% interval; rows are what is drawn."""

    loss: float
    accuracy: float
    loss_interval: Interval
    accuracy_interval: Interval

    def as_numbers(self) -> dict[str, float]:
        """`val_loss`, `val_loss_low`, ...; without an end that is not bounded."""
        ends = {
            f"val_{name}_{end}": getattr(interval, end)
            for name, interval in (("loss", self.loss_interval), ("accuracy", self.accuracy_interval))
            for end in ("low", "high")
        }
        bounded = {name: value for name, value in ends.items() if math.isfinite(value)}
        return {"val_loss": self.loss, "val_accuracy": self.accuracy, **bounded}

    def as_text(self) -> str:
        numbers = self.as_numbers()
        return ", ".join(
            score_text(name, numbers[f"val_{name}"], numbers.get(f"val_{name}_low"), numbers.get(f"val_{name}_high"))
            for name in ("loss", "accuracy")
        )


def validate(
    model: nn.Module, encoded: Encoded, *, batch_size: int, group: Group, device: torch.device, compiled: bool
) -> Validated:
    """Batch i goes to process i modulo their number; the sums of the batches are added up in the batches' order.

    Raises:
        UserError: there is nothing learned in any row.
    """
    model.eval()
    cut, world = cut_rows(encoded, batch_size), group.world
    counts_N = torch.from_numpy(encoded.target_counts_N)
    sums = torch.zeros(len(cut), NUM_SUMS, dtype=torch.float64)
    # Every process makes as many passes as the others: a sharded model's weights are gathered in each.
    num_passes = -(-len(cut) // world.size)
    # Its batches have other shapes than the training's: not worth compiling for.
    stance = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with torch.no_grad(), stance:
        for index in range(world.rank, num_passes * world.size, world.size):
            rows = cut[min(index, len(cut) - 1)]
            batch = encoded.batch(rows).to(device)
            logits = model(**batch.inputs)
            if index < len(cut):
                sums[index] = _sums(logits, batch.targets, counts_N[rows])
    return _validated([math.fsum(column) for column in group.sum_on_host(sums).T.tolist()], num_rows=len(encoded))


def _sums(logits: Tensor, targets: Tensor, counts_R: Tensor) -> Tensor:
    """Of a batch (NUM_SUMS,): its rows with targets, targets, loss, right answers, and the sums over rows of the products
    of the last three.

    Args:
        targets: those of one row lie together, in the rows' order.
        counts_R: how many each row has.
    """
    is_target = targets != IGNORED
    losses = target_losses(logits, targets)[is_target].double().cpu()
    is_right = (logits.argmax(-1) == targets)[is_target].double().cpu()
    row = torch.repeat_interleave(torch.arange(len(counts_R)), counts_R)
    loss_R, right_R = (
        torch.zeros(len(counts_R), dtype=torch.float64).index_add_(0, row, x) for x in (losses, is_right)
    )
    count_R = counts_R.double()
    columns = [(count_R > 0).double(), count_R, loss_R, right_R]
    products = [count_R**2, loss_R * count_R, loss_R**2, right_R * count_R, right_R**2]
    return torch.stack([column.sum() for column in (*columns, *products)])


def _validated(sums: list[float], *, num_rows: int) -> Validated:
    rows, targets, loss, right, targets_squared, loss_targets, loss_squared, right_targets, right_squared = sums
    if targets == 0:
        raise UserError(
            f"None of the {num_rows} validation rows has a target: their prompts alone fill model.parameters.max_tokens. "
            "Give the model more tokens, or prepare rows with shorter prompts."
        )

    def ratio(top: float, squared: float, product: float) -> Interval:
        return intervals.ratio_t(
            num_units=int(rows),
            top=top,
            bottom=targets,
            top_squared=squared,
            product=product,
            bottom_squared=targets_squared,
        )

    of_loss = ratio(loss, loss_squared, loss_targets)
    of_accuracy = ratio(right, right_squared, right_targets)
    if targets == targets_squared:  # one target a row
        of_accuracy = intervals.wilson(int(right), int(targets))
    elif right in (0, targets):  # rows that do not differ are no proof that all rows would be so
        of_accuracy = intervals.wilson(int(rows) if right else 0, int(rows))
    return Validated(
        loss / targets,
        right / targets,
        Interval(max(0.0, of_loss.low), of_loss.high, of_loss.method) if rows > 1 else of_loss,
        Interval(max(0.0, of_accuracy.low), min(1.0, of_accuracy.high), of_accuracy.method),
    )
