"""How far a student's distribution is from its teacher's: divergences over the vocabulary, summed over places, in chunks.

Axes: n places, V tokens of the vocabulary, H width of the hidden states, K most likely tokens.

With a temperature T both distributions are softmax(logits / T), and the divergence is multiplied by T * T, so that its
gradient does not shrink with T. Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Name = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]
CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20, "mps": 64 * 2**20}
"""Of float32 logits that are looked at together."""


@dataclass(frozen=True)
class Divergence:
    """Which divergence of the student q from the teacher p.

    forward_kl: KL(p, q), which covers all that the teacher may say. Source: Kim and Rush 2016, arXiv:1606.07947, for words.
    reverse_kl: KL(q, p), which keeps to what the teacher would say. Source: Gu et al. 2023, arXiv:2306.08543.
    jsd: beta KL(p, m) + (1 - beta) KL(q, m) with m = beta p + (1 - beta) q; at 0 and 1 its limits are taken, forward and reverse
    KL. Source: Agarwal et al. 2023, arXiv:2306.13649, equation 1, and TRL's `generalized_jsd_loss` for the limits.
    skew_kl: KL(p, alpha p + (1 - alpha) q). skew_reverse_kl: KL(q, alpha q + (1 - alpha) p). Source: Ko et al. 2024,
    arXiv:2402.03898, section 3.1.
    """

    name: Name
    temperature: float = 1.0
    beta: float = 0.5
    """Of jsd."""
    alpha: float = 0.1
    """Of the skew ones."""

    def __call__(self, student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
        """(n,) divergences of log probabilities (n, outcomes), in nats and without the factor T * T."""
        q, p = student_log_probs, teacher_log_probs
        match self.name:
            case "forward_kl":
                return _kl(p, q)
            case "reverse_kl":
                return _kl(q, p)
            case "skew_kl":
                return _kl(p, _mixture(p, q, self.alpha))
            case "skew_reverse_kl":
                return _kl(q, _mixture(q, p, self.alpha))
            case "jsd":
                if self.beta in (0.0, 1.0):
                    return _kl(p, q) if self.beta == 0.0 else _kl(q, p)
                mixture = _mixture(p, q, self.beta)
                return self.beta * _kl(p, mixture) + (1 - self.beta) * _kl(q, mixture)


def _kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one, other) of log probabilities; an outcome that `one` rules out adds nothing."""
    terms = one.exp() * (one - other)
    return terms.where(one != -torch.inf, 0.0).sum(-1)


def _mixture(one: Tensor, other: Tensor, share: float) -> Tensor:
    """The log probabilities of `share` of one distribution and the rest of the other."""
    if share in (0.0, 1.0):
        return one if share == 1.0 else other
    log_share = torch.tensor(share, dtype=one.dtype, device=one.device).log()
    log_rest = torch.tensor(1 - share, dtype=one.dtype, device=one.device).log()
    return torch.logaddexp(one + log_share, other + log_rest)


def summed_divergence(
    student_logits: Tensor, teacher_logits: Tensor, divergence: Divergence, weights: Tensor | None = None
) -> Tensor:
    """Divergence of logits (n, V) from a teacher's, summed over the places; float32.

    Args:
        weights: (n,) what each place counts; 1 without it.
    """

    def teacher(start: int, stop: int) -> Tensor:
        return functional.log_softmax(teacher_logits[start:stop].float() / divergence.temperature, dim=-1)

    loss: Tensor = _OfLogits.apply(student_logits, teacher, divergence, _ones(student_logits, weights))
    return loss


def summed_divergence_of_states(
    student_states: Tensor,
    student_head: nn.Module,
    teacher_states: Tensor,
    teacher_head: nn.Module,
    divergence: Divergence,
    weights: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """The same of hidden states (n, H) and output layers, which are applied chunk by chunk: no (n, V) exists at any time.

    The output layers have to be linear. Gradients are computed in the forward pass.

    Args:
        targets: (n,) tokens; `share` of the divergence is then added to the rest of their cross entropy, at temperature 1.
    """

    def teacher(start: int, stop: int) -> Tensor:
        with torch.no_grad():
            logits = teacher_head(teacher_states[start:stop])
        return functional.log_softmax(logits.float() / divergence.temperature, dim=-1)

    weight, bias = student_head.weight, getattr(student_head, "bias", None)
    loss: Tensor = _OfStates.apply(
        student_states, weight, bias, teacher, divergence, _ones(student_states, weights), targets, share
    )
    return loss


def summed_top_divergence(
    student_logits: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
    tail_mass: Tensor,
    divergence: Divergence,
    weights: Tensor | None = None,
) -> Tensor:
    """Divergence over K + 1 outcomes: the teacher's K most likely tokens, and all others together.

    By the data processing inequality it is at most that over the whole vocabulary. A temperature other than 1 would need the
    whole distribution of the teacher.

    Args:
        student_logits: (n, V).
        top_ids: (n, K); places with fewer tokens are filled up with -1.
        top_logprobs: (n, K) at temperature 1.
        tail_mass: (n,)
    """
    if divergence.temperature != 1.0:
        raise ValueError("stored log probabilities are of temperature 1")
    is_there = top_ids >= 0
    teacher = torch.cat(
        [top_logprobs.float().masked_fill(~is_there, -torch.inf), tail_mass.float().clamp(0, 1).log()[:, None]], -1
    )
    teacher = teacher - teacher.logsumexp(-1, keepdim=True)
    total = student_logits.new_zeros((), dtype=torch.float32)
    ones = _ones(student_logits, weights)
    for start, stop in _chunks(len(student_logits), student_logits.shape[-1], student_logits.device):
        log_probs = functional.log_softmax(student_logits[start:stop].float(), dim=-1)
        there, ids = is_there[start:stop], top_ids[start:stop].clamp(min=0)
        top = log_probs.gather(1, ids).masked_fill(~there, -torch.inf)
        rest = log_probs.scatter(1, ids, torch.where(there, -torch.inf, log_probs.gather(1, ids))).logsumexp(-1)
        student = torch.cat([top, rest[:, None]], -1)
        # An outcome that neither has: no term, and no gradient through -inf - -inf.
        empty = (teacher[start:stop] == -torch.inf) & (student == -torch.inf)
        student = student.masked_fill(empty, 0.0)
        q, p = student, teacher[start:stop].masked_fill(empty, 0.0)
        total = total + ((divergence(q, p) * ones[start:stop]).sum())
    return total


class _OfLogits(torch.autograd.Function):
    """Holds one more (n, V) in the logits' own precision: their gradient, made in the forward pass chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: Callable[[int, int], Tensor], divergence: Divergence, weights: Tensor
    ) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start, stop in _chunks(len(logits), logits.shape[-1], logits.device):
            loss, of_chunk = _loss_and_gradient(
                logits[start:stop], teacher(start, stop), divergence, weights[start:stop], gradient is not None
            )
            total += loss
            if gradient is not None:
                gradient[start:stop].copy_(of_chunk)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None, None


class _OfStates(torch.autograd.Function):
    """Holds the gradients of the hidden states and of the output layer; logits exist for one chunk at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Callable[[int, int], Tensor],
        divergence: Divergence,
        weights: Tensor,
        targets: Tensor | None,
        share: float,
    ) -> Tensor:
        total = states.new_zeros((), dtype=torch.float32)
        of_states = torch.empty_like(states)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        for start, stop in _chunks(len(states), len(weight), states.device):
            chunk = states[start:stop]
            logits = functional.linear(chunk, weight.to(chunk.dtype), None if bias is None else bias.to(chunk.dtype))
            wanted = None if targets is None else targets[start:stop]
            loss, of_logits = _loss_and_gradient(
                logits, teacher(start, stop), divergence, weights[start:stop], True, targets=wanted, share=share
            )
            total += loss
            of_states[start:stop].copy_(of_logits.to(chunk.dtype) @ weight.to(chunk.dtype))
            if of_weight is not None:
                of_weight.addmm_(of_logits.float().T, chunk.float())
            if of_bias is not None:
                of_bias += of_logits.float().sum(0)
        ctx.save_for_backward(of_states, of_weight, of_bias)
        ctx.kinds = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_weight, of_bias = ctx.saved_tensors
        scaled = [
            of_states * outer.to(of_states.dtype),
            None if of_weight is None else (of_weight * outer).to(ctx.kinds),
            None if of_bias is None else (of_bias * outer).to(ctx.kinds),
        ]
        return (*scaled, None, None, None, None, None)


def _loss_and_gradient(
    logits: Tensor,
    teacher_log_probs: Tensor,
    divergence: Divergence,
    weights: Tensor,
    wants_gradient: bool,
    *,
    targets: Tensor | None = None,
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The weighted sum over a chunk, with the factor T * T, and its gradient by the logits (float32)."""
    leaf = logits.detach().float().requires_grad_(wants_gradient)
    with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
        student = functional.log_softmax(leaf / divergence.temperature, dim=-1)
        loss = (divergence(student, teacher_log_probs) * weights).sum() * divergence.temperature**2
        if targets is not None:
            loss = share * loss + (1 - share) * functional.cross_entropy(leaf, targets, reduction="sum")
        gradient = torch.autograd.grad(loss, leaf)[0] if wants_gradient else leaf
    return loss.detach(), gradient


def _chunks(num_places: int, num_tokens: int, device: torch.device) -> list[tuple[int, int]]:
    size = max(1, CHUNK_BYTES[device.type] // (4 * num_tokens))
    return [(start, min(start + size, num_places)) for start in range(0, num_places, size)]


def _ones(like: Tensor, weights: Tensor | None) -> Tensor:
    return torch.ones(len(like), device=like.device) if weights is None else weights.float()
