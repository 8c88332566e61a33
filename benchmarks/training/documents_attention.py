"""Causal attention within each document of a flat row of tokens: nothing is computed that a mask would hide.

One operator to torch.compile, so that documents of any length leave the compiled shapes alone.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_within_documents(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    ends: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer; query, key and value are (1, heads, tokens, size), `ends` from 0."""
    return attend(query, key, value, ends, scaling)[0].transpose(1, 2), None


@torch.library.custom_op("bench::attend", mutates_args=())
def attend(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The attended values, and the log of each softmax's sum (1, heads, tokens)."""
    out, log_sums = _like(query), query.new_empty(query.shape[:3])
    for document in _documents(ends):
        part, log_sum = FORWARD(query[document], key[document], value[document], 0.0, True, scale=scale)
        out[document], log_sums[document] = part, log_sum
    return out, log_sums


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _like(query), query.new_empty(query.shape[:3])


@torch.library.custom_op("bench::attend_backward", mutates_args=())
def attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sums: Tensor,
    ends: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _like(query), _like(key), _like(value)
    for document in _documents(ends):
        saved = (tensor[document] for tensor in (gradient, query, key, value, out, log_sums))
        for whole, part in zip(gradients, BACKWARD(*saved, 0.0, True, scale=scale), strict=True):
            whole[document] = part
    return gradients


@attend_backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sums: Tensor,
    ends: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ends, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, ends)


def _differentiate(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *attend_backward(gradient, *context.saved_tensors, context.scale), None, None


attend.register_autograd(_differentiate, setup_context=_keep)


def _documents(ends: Tensor) -> list[tuple[slice, slice, slice]]:
    places = ends.tolist()
    return [(slice(None), slice(None), slice(a, b)) for a, b in pairwise(places) if b > a]


def _like(tensor: Tensor) -> Tensor:
    """An empty tensor whose heads lie beside each other, token by token, as the next projection reads them."""
    batch, heads, tokens, size = tensor.shape
    return tensor.new_empty(batch, tokens, heads, size).transpose(1, 2)
