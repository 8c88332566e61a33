"""How the gradients of a step's microbatches become one sum: in one order whatever the number of processes, or fast."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nexa_core.config.training import Distributed
from nexa_models.encoding import Batch
from nexa_train.distributed.group import Group
from nexa_train.feed import StepData


class Learn(Protocol):
    def __call__(self, model: nn.Module, batch: Batch, index: int, *, weight: float = 1.0) -> Tensor:
        """Forward and backward of microbatch number `index`, its gradients times `weight`; its part of the step's numbers."""


T = TypeVar("T")


class Strategy(Protocol):
    def run(self, step: StepData, learn: Learn, *, num_numbers: int = 1) -> Tensor:
        """Leave the gradients of the whole step in the weights; returns its numbers, loss first. All processes agree after it."""

    def clip(self, limit: float | None) -> Tensor:
        """Scale the gradients down to a global norm of `limit`; returns the norm before."""


@dataclass(frozen=True)
class Exact:
    """Sums in a binary tree over the microbatches, the same one for any number of processes.

    The sum over the microbatches i, i + m, i + 2m, ... is that over i, i + 2m, ... plus that over i + m, i + 3m, ...
    Process r of W sums those of r, r + W, ... by itself; the processes then add up pairwise, in log2(W) swaps. So every
    addition is of the same two numbers whether one process makes it or two. Beside the gradients at hand it holds
    one partial sum fewer than log2(microbatches of a process): a single microbatch adds onto the sum it belongs to.
    """

    model: nn.Module
    weights: Sequence[Tensor]
    group: Group

    def run(self, step: StepData, learn: Learn, *, num_numbers: int = 1) -> Tensor:
        world, count = self.group.world, step.num_microbatches

        def leaf(index: int, onto: list[Tensor] | None) -> list[Tensor]:
            if onto is not None:
                self._put(onto)  # the backward pass adds to it in place
            numbers = learn(self.model, step.batches[index], index)
            gradients = [self._take(weight) for weight in self.weights]
            return [*gradients, numbers if onto is None else onto[-1] + numbers]

        total = sum_strided(leaf, _add, world.rank, world.size, count)
        stride = world.size
        while stride > 1:
            stride //= 2
            total = self._add_partners(total, stride, count, num_numbers)
        assert total is not None
        self._put(total)
        return total[-1]

    def clip(self, limit: float | None) -> Tensor:
        return _clip(self.weights, limit)

    def _put(self, total: list[Tensor]) -> None:
        for weight, gradient in zip(self.weights, total[:-1], strict=True):
            weight.grad = gradient

    @staticmethod
    def _take(weight: Tensor) -> Tensor:
        # Adding -0.0 changes no number, not even -0.0: a weight without gradient adds nothing, wherever it is added.
        gradient = weight.grad if weight.grad is not None else torch.full_like(weight, -0.0)
        weight.grad = None
        return gradient

    def _add_partners(self, ours: list[Tensor] | None, stride: int, count: int, num_numbers: int) -> list[Tensor]:
        """The sum over this process's class modulo `stride`: its own half and its partner's."""
        rank = self.group.world.rank
        like = ours or [*(torch.zeros_like(weight) for weight in self.weights), self.weights[0].new_zeros(num_numbers)]
        theirs = _split(self.group.swap(torch.cat([part.flatten() for part in like]), rank ^ stride), like)
        if ours is None:  # fewer microbatches than processes: the partner's half is the whole
            return theirs
        return ours if rank % stride + stride >= count else _add(ours, theirs)


def sum_strided(
    leaf: Callable[[int, T | None], T], add: Callable[[T, T], T], start: int, stride: int, count: int
) -> T | None:
    """The sum over the leaves `start`, `start + stride`, ... below `count`, in the tree's order; None of no leaves.

    Args:
        leaf: makes a leaf, and adds it onto a sum where it is given one.
    """
    if start >= count:
        return None
    if start + stride >= count:
        return leaf(start, None)
    left = sum_strided(leaf, add, start, 2 * stride, count)
    if start + 3 * stride >= count:
        return leaf(start + stride, left)
    right = sum_strided(leaf, add, start + stride, 2 * stride, count)
    assert left is not None
    assert right is not None
    return add(left, right)


@dataclass(frozen=True)
class Fast:
    """The library's own reduction, overlapped with the backward pass of the last microbatch only.

    With FSDP2 the weights are shards and the reduction leaves each process the gradients of its own.
    """

    model: nn.Module
    """Wrapped by DistributedDataParallel, sharded by fully_shard, or alone as it is."""
    weights: Sequence[Tensor]
    group: Group
    expect_reduction: Callable[[bool], None]
    """Says of the next backward pass whether it ends in a reduction."""

    def run(self, step: StepData, learn: Learn, *, num_numbers: int = 1) -> Tensor:
        world, total = self.group.world, torch.zeros(num_numbers, device=self.weights[0].device)
        passes = [(index, batch, float(world.size)) for index, batch in step.batches.items()]
        if step.filler is not None:  # every process takes part in every collective
            passes.append((0, step.filler, 0.0))
        for index, batch, weight in passes:
            self.expect_reduction(batch is passes[-1][1])
            # The library averages over the processes; the loss is divided by the targets of all of them already.
            numbers = learn(self.model, batch, index, weight=weight)
            total += numbers * (weight / world.size)
        return self.group.sum(total)

    def clip(self, limit: float | None) -> Tensor:
        norm = _clip(self.weights, limit)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of shards, the norm is one as well


def make_strategy(settings: Distributed, model: nn.Module, group: Group, *, is_exact: bool) -> Strategy:
    """The strategy that the settings choose; the weights are those that learn."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if is_exact:
        return Exact(model, weights, group)
    if group.world.is_alone:
        return Fast(model, weights, group, lambda wanted: None)
    if settings.strategy == "fsdp":
        from nexa_train.distributed.sharding import reduction_of  # takes seconds to load

        return Fast(model, weights, group, reduction_of(model))
    wrapped = DistributedDataParallel(model)

    def expect(wanted: bool) -> None:
        wrapped.require_backward_grad_sync = wanted

    return Fast(wrapped, weights, group, expect)


def _clip(weights: Sequence[Tensor], limit: float | None) -> Tensor:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit is not None:
        nn.utils.clip_grads_with_norm_(weights, limit, norm)
    return norm


def _add(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(left, right)
    return left


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([part.numel() for part in like])
    return [part.view(each.shape) for part, each in zip(parts, like, strict=True)]
