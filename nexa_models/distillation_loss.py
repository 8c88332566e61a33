"""A student's loss beside its teacher, chunk by chunk: memory does not grow with places times vocabulary.

Axes: n places, c places of a chunk, V tokens of the vocabulary, H width of the hidden states, K likeliest tokens.

Of a place i the loss is `divergence_i * T * T * D_i + cross_entropy_i * CE_i`. With a temperature T both distributions are
softmax(logits / T), and the factor T * T keeps the gradient from shrinking with it. Source: Hinton et al. 2015,
arXiv:1503.02531, section 2. The cross entropy is that of temperature 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from nexa_models.divergences import Divergence

CHUNK_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
"""Of float32 logits that are looked at together: on a processor what its cache holds, on a GPU what keeps it busy."""
LEAST_PLACES = 64
"""Of a chunk: an output layer is read whole for each."""
LEAST_TAIL = 1e-7
"""Probability of the tokens that are not stored: one that is less was lost in rounding to float32, and is not nought."""


class Opinion(Protocol):
    """What is known of a teacher's distributions at some places."""

    def compare(self, student_cV: Tensor, start: int, stop: int, divergence: Divergence) -> tuple[Tensor, Tensor]:
        """Divergences (c,) at the places `start:stop`, and their gradients (c, V), of log probabilities at its temperature."""


@dataclass(frozen=True)
class Learned:
    """What counts how much at each place."""

    divergence: Tensor
    """(n,)"""
    targets: Tensor | None = None
    """(n,) the tokens of the answer; None where there is none to be learned."""
    cross_entropy: Tensor | None = None
    """(n,) None where the targets' cross entropy is only measured."""


@dataclass(frozen=True)
class WholeOpinion:
    """All of the teacher's distribution."""

    logits: Callable[[int, int], Tensor]
    """(c, V or more) for places `start:stop`; ids beyond the student's, which no text has, are left out."""

    @classmethod
    def of_states(cls, states: Tensor, head: nn.Module) -> "WholeOpinion":
        """Of hidden states (n, H), to which the output layer is applied chunk by chunk."""
        return cls(lambda start, stop: head(states[start:stop]))

    @classmethod
    def of_logits(cls, logits: Tensor) -> "WholeOpinion":
        return cls(lambda start, stop: logits[start:stop])

    def compare(self, student_cV: Tensor, start: int, stop: int, divergence: Divergence) -> tuple[Tensor, Tensor]:
        logits = self.logits(start, stop)[:, : student_cV.shape[-1]]
        teacher = functional.log_softmax(logits.to(student_cV.dtype) / divergence.temperature, dim=-1)
        return divergence.compare(student_cV, teacher)


@dataclass(frozen=True)
class TopOpinion:
    """Its K likeliest tokens at temperature 1, and the probability of all others together: K + 1 outcomes.

    By the data processing inequality the divergence is at most that over the whole vocabulary.
    """

    top_ids: Tensor
    """(n, K), the likeliest first; places with fewer tokens are filled up with -1."""
    top_logprobs: Tensor
    """(n, K)"""
    tail_mass: Tensor
    """(n,)"""

    def compare(self, student_cV: Tensor, start: int, stop: int, divergence: Divergence) -> tuple[Tensor, Tensor]:
        if divergence.temperature != 1.0:
            raise ValueError("stored log probabilities are of temperature 1")
        top_ids, num_tokens = self.top_ids[start:stop], student_cV.shape[-1]
        is_there = top_ids >= 0
        has_top = is_there[:, :1]
        ids = torch.where(is_there, top_ids, top_ids[:, :1]).clamp(min=0)
        of_ids = student_cV.gather(1, ids)
        top = of_ids.masked_fill(~is_there, -torch.inf)
        without_top = student_cV.scatter(1, ids, torch.where(has_top, -torch.inf, of_ids))
        # Where all tokens are stored there are no others.
        has_rest = (is_there.sum(-1) < num_tokens)[:, None]
        rest = without_top.logsumexp(-1, keepdim=True).where(has_rest, -torch.inf)
        student = torch.cat([top, rest], -1)
        values, slopes = divergence.compare(student, self._teacher(start, stop, is_there, has_rest, student.dtype))
        # What pulls at the others together pulls at each by its share of them.
        pull = (slopes[:, -1:] / rest.exp()).where(has_rest & (rest.exp() > 0), 0.0)
        gradient = without_top.exp_().mul_(pull)
        return values, gradient.scatter_add_(1, ids, slopes[:, :-1].masked_fill(~is_there, 0.0))

    def _teacher(self, start: int, stop: int, is_there: Tensor, has_rest: Tensor, kind: torch.dtype) -> Tensor:
        """(c, K + 1) log probabilities, which add up to 1."""
        top = self.top_logprobs[start:stop].to(kind).masked_fill(~is_there, -torch.inf)
        tail = self.tail_mass[start:stop, None].to(kind).clamp(LEAST_TAIL, 1).log().masked_fill(~has_rest, -torch.inf)
        return torch.cat([top, tail], -1).log_softmax(-1)


def loss_of_logits(logits: Tensor, opinion: Opinion, divergence: Divergence, learned: Learned) -> Tensor:
    """(3,) summed over the places: the loss, the divergences unweighted, the cross entropies; only the loss is differentiable.

    The last two are in nats of those places whose divergence counts, and of all that have a target. The gradient is computed
    in the forward pass, and is the only other (n, V), in the logits' own precision. float64 stays so, all else is float32.
    """
    numbers: Tensor = _OfLogits.apply(logits, opinion, divergence, learned)
    return numbers


def loss_of_states(
    states: Tensor, head: nn.Module, opinion: Opinion, divergence: Divergence, learned: Learned
) -> Tensor:
    """The same of hidden states (n, H), to which the output layer, a plain linear one, is applied chunk by chunk."""
    numbers: Tensor = _OfStates.apply(states, head.weight, getattr(head, "bias", None), opinion, divergence, learned)
    return numbers


class _OfLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, opinion: Opinion, divergence: Divergence, learned: Learned) -> Tensor:
        numbers = torch.zeros(3, dtype=_precise(logits.dtype), device=logits.device)
        gradient = torch.empty_like(logits)
        for start, stop in _chunks(len(logits), logits.shape[-1], logits.device):
            of_chunk, by_logits = _learn(logits[start:stop], start, stop, opinion, divergence, learned)
            numbers += of_chunk
            gradient[start:stop] = by_logits
        ctx.save_for_backward(gradient)
        return numbers

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None


class _OfStates(torch.autograd.Function):
    """Holds the gradients of the hidden states and of the output layer; logits exist for one chunk at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        opinion: Opinion,
        divergence: Divergence,
        learned: Learned,
    ) -> Tensor:
        device = states.device
        kind = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else states.dtype
        inputs, layer, offset = states.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        numbers = torch.zeros(3, dtype=_precise(kind), device=device)
        by_states = torch.empty_like(states)
        by_weight = torch.zeros_like(weight, dtype=_precise(kind)) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias, dtype=_precise(kind)) if bias is not None and ctx.needs_input_grad[2] else None
        for start, stop in _chunks(len(states), len(weight), device):
            logits = functional.linear(inputs[start:stop], layer, offset)
            of_chunk, by_logits = _learn(logits, start, stop, opinion, divergence, learned)
            numbers += of_chunk
            by_logits = by_logits.to(kind)
            by_states[start:stop] = by_logits @ layer
            if by_weight is not None:
                _add_product(by_weight, by_logits.T, inputs[start:stop])
            if by_bias is not None:
                by_bias += by_logits.sum(0, dtype=by_bias.dtype)
        ctx.save_for_backward(by_states, by_weight, by_bias)
        ctx.kind = weight.dtype
        return numbers

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        by_states, by_weight, by_bias = ctx.saved_tensors
        return (
            by_states * outer[0].to(by_states.dtype),
            None if by_weight is None else (by_weight * outer[0]).to(ctx.kind),
            None if by_bias is None else (by_bias * outer[0]).to(ctx.kind),
            None,
            None,
            None,
        )


def _learn(
    logits: Tensor, start: int, stop: int, opinion: Opinion, divergence: Divergence, learned: Learned
) -> tuple[Tensor, Tensor]:
    """The chunk's three numbers, and the gradient (c, V) of its loss by the logits."""
    temperature = divergence.temperature
    logits = logits.to(_precise(logits.dtype))
    softened = functional.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
    values, gradient = opinion.compare(softened, start, stop, divergence)
    values = values * temperature**2
    counts = learned.divergence[start:stop].to(values.dtype)
    is_compared = counts != 0  # what is not may be infinite
    loss = (values * counts).where(is_compared, 0.0).sum()
    gradient.mul_((counts * temperature)[:, None]).masked_fill_(~is_compared[:, None], 0.0)
    measured = values.where(is_compared, 0.0).sum()
    if learned.targets is None:
        return torch.stack([loss, measured, torch.zeros_like(loss)]), gradient
    log_probs = softened if temperature == 1.0 else functional.log_softmax(logits, dim=-1)
    targets = learned.targets[start:stop, None]
    losses = -log_probs.gather(1, targets)[:, 0]
    if learned.cross_entropy is not None:
        counts = learned.cross_entropy[start:stop].to(losses.dtype)
        loss = loss + (losses * counts).sum()
        gradient.addcmul_(log_probs.exp(), counts[:, None]).scatter_add_(1, targets, -counts[:, None])
    return torch.stack([loss, measured, losses.sum()]), gradient


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _precise(kind: torch.dtype) -> torch.dtype:
    return torch.float64 if kind == torch.float64 else torch.float32


def _chunks(num_places: int, num_tokens: int, device: torch.device) -> list[tuple[int, int]]:
    most = CHUNK_BYTES["cpu" if device.type == "cpu" else "cuda"]
    size = max(LEAST_PLACES, most // (4 * num_tokens))
    return [(start, min(start + size, num_places)) for start in range(0, num_places, size)]
