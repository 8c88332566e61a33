"""Causal attention inside each document of a pack, on a processor: no mask, and no work for pairs that one would hide.

Registered with transformers under `DOCUMENTS`, and under `DOCUMENTS_COMPILED` with the kernel of `attention_kernel.py`. Either is
an operator of its own, so that a compiled model sees one step with fixed shapes however the documents lie.
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from nexa_models.attention_kernel import attend_within_compiled
from nexa_models.operators import like, make_differentiable

DOCUMENTS, DOCUMENTS_COMPILED = "nexa_documents", "nexa_documents_compiled"
DENSE_TOKENS = 512
"""Documents up to here attend through products of whole matrices in bfloat16, where PyTorch's flash kernel is slow."""

Place = tuple[slice, slice, slice]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def register() -> None:
    """Make the attention known to transformers; again is no harm."""
    from transformers import AttentionInterface

    AttentionInterface.register(DOCUMENTS, attend)
    AttentionInterface.register(DOCUMENTS_COMPILED, partial(attend, compiled=True))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Tensor,
    scaling: float | None = None,
    compiled: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (rows, heads, tokens, width) in, (rows, tokens, heads, width) out.

    Args:
        documents: (rows, tokens) which document a token belongs to; 0 is padding, and a document's tokens lie together.
        compiled: whether the compiled kernel does it.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if compiled:
        out, _lse = attend_within_compiled(query, key, value, documents, scale)
        return out.transpose(1, 2), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out, _lse = attend_within(query, key, value, documents, scale)
    return out.transpose(1, 2), None


@torch.library.custom_op("nexa::attend_within", mutates_args=())
def attend_within(query: Tensor, key: Tensor, value: Tensor, documents: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The attention's result, zero at padding, and the logarithm of its denominators for the backward pass."""
    out, lse = like(query).zero_(), query.new_zeros(query.shape[:3], dtype=torch.float32)
    for place in _places(documents):
        if _is_dense(query, place):
            out[place] = _attend(query[place], key[place], value[place], scale)
        else:
            out[place], lse[place] = _forward(query[place], key[place], value[place], 0.0, True, scale=scale)
    return out, lse


@torch.library.custom_op("nexa::attend_within_backward", mutates_args=())
def attend_within_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    documents: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    gradients = tuple(like(query).zero_() for _ in range(3))
    for place in _places(documents):
        given = gradient[place], query[place], key[place], value[place]
        if _is_dense(query, place):
            found = _attend_backward(*given, scale)
        else:
            found = _backward(*given, out[place], lse[place], 0.0, True, scale=scale)
        for whole, part in zip(gradients, found, strict=True):
            whole[place] = part
    return gradients[0], gradients[1], gradients[2]


make_differentiable(attend_within, attend_within_backward)


def _is_dense(query: Tensor, place: Place) -> bool:
    return query.dtype == torch.bfloat16 and place[2].stop - place[2].start <= DENSE_TOKENS


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of one document, (1, heads, tokens, width) each, with all its probabilities at once."""
    query, key, value = _alone(query, key, value)
    return torch.bmm(_probabilities(query, key, scale), value)[None]


def _attend_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    gradient, query, key, value = _alone(gradient, query, key, value)
    probabilities = _probabilities(query, key, scale)
    of_probabilities = torch.bmm(gradient, value.transpose(1, 2))
    of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, query.dtype).mul_(scale)
    of_query, of_key = torch.bmm(of_scores, key), torch.bmm(of_scores.transpose(1, 2), query)
    return of_query[None], of_key[None], torch.bmm(probabilities.transpose(1, 2), gradient)[None]


def _alone(*tensors: Tensor) -> tuple[Tensor, ...]:
    """A document's (heads, tokens, width) in memory of its own; otherwise each product would copy them again."""
    return tuple(tensor[0].contiguous() for tensor in tensors)


def _probabilities(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(heads, tokens, tokens): how much each token looks at which."""
    num_tokens = query.shape[1]
    hidden = _later(query.dtype)[:num_tokens, :num_tokens]
    return torch.baddbmm(hidden, query, key.transpose(1, 2), alpha=scale).softmax(-1)


@cache
def _later(dtype: torch.dtype) -> Tensor:
    """(tokens, tokens): minus infinity where a key is later than its query, so that it is not looked at."""
    return torch.full((DENSE_TOKENS, DENSE_TOKENS), -torch.inf, dtype=dtype).triu_(1)


def _places(documents: Tensor) -> Iterator[Place]:
    """Where each document lies."""
    for row, numbers in enumerate(documents.tolist()):
        begin = 0
        for place in range(1, len(numbers) + 1):
            if place == len(numbers) or numbers[place] != numbers[begin]:
                if numbers[begin]:
                    yield slice(row, row + 1), slice(None), slice(begin, place)
                begin = place
