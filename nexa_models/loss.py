"""Cross entropy over many classes without a float32 copy of all logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nexa_models.encoding import IGNORED

CHUNK_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
"""Of float32 logits that are looked at together: on a processor what its cache holds, on a GPU what keeps it busy."""


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats of logits (n, classes), summed over the targets (n,) that are not `IGNORED`; float32."""
    most = _chunk_rows(logits)
    if len(logits) <= most:
        return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    loss: Tensor = _ChunkedCrossEntropy.apply(logits, targets, most)
    return loss


def target_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats of logits (n, classes) with each of the targets (n,), 0 for those that are `IGNORED`; float32."""
    most = _chunk_rows(logits)
    pairs = zip(logits.split(most), targets.split(most), strict=True)
    chunks = [functional.cross_entropy(a.float(), b, ignore_index=IGNORED, reduction="none") for a, b in pairs]
    return torch.cat(chunks)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The same chunk by chunk: 4.5 times as fast as whole on a processor, for bfloat16 logits (1,700, 4,096)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, chunk_rows: int) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        denominators = []
        for chunk, wanted in zip(logits.split(chunk_rows), targets.split(chunk_rows), strict=True):
            scores = chunk.float()
            denominators.append(scores.logsumexp(-1))
            losses = denominators[-1] - scores.gather(1, _places(wanted))[:, 0]
            total += losses.where(wanted != IGNORED, 0.0).sum()
        ctx.save_for_backward(logits, targets, torch.cat(denominators))
        ctx.chunk_rows = chunk_rows
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, denominators = ctx.saved_tensors
        of_logits = torch.empty_like(logits)
        for out, chunk, wanted, denominator in zip(
            *(tensor.split(ctx.chunk_rows) for tensor in (of_logits, logits, targets, denominators)), strict=True
        ):
            scores = chunk.float().sub(denominator[:, None]).exp_()
            scores.scatter_add_(1, _places(wanted), scores.new_full((len(wanted), 1), -1.0))
            out.copy_(scores.mul_((gradient * (wanted != IGNORED))[:, None]))
        return of_logits, None, None


def _chunk_rows(logits: Tensor) -> int:
    return max(1, CHUNK_BYTES.get(logits.device.type, CHUNK_BYTES["cuda"]) // (4 * logits.shape[-1]))


def _places(targets: Tensor) -> Tensor:
    """(n, 1) where in each row its target stands; any place for those that are left out."""
    return targets.clamp(min=0)[:, None]
