"""What two operators that attend inside documents share: shapes, autograd and autocast."""

from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef


def make_differentiable(forward: CustomOpDef, backward: CustomOpDef) -> None:
    """Tell torch what `forward` and `backward` give, for compilation, autograd and autocast.

    `forward` takes query, key, value (rows, heads, tokens, width), documents and a scale, and gives the result, of the
    query's shape, and (rows, heads, tokens) in float32 for `backward`. That takes the result's gradient, what `forward` took
    and gave, and gives the gradients of query, key and value.
    """

    def shape_forward(
        query: Tensor, key: Tensor, value: Tensor, documents: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        return like(query), query.new_empty(query.shape[:3], dtype=torch.float32)

    def shape_backward(
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        documents: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return like(query), like(key), like(value)

    def set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, documents, scale = inputs
        ctx.save_for_backward(query, key, value, *output, documents)
        ctx.scale = scale

    def pass_back(ctx: Any, gradient: Tensor, _lse: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, documents = ctx.saved_tensors
        return (*backward(gradient, query, key, value, out, lse, documents, ctx.scale), None, None)

    forward.register_fake(shape_forward)
    backward.register_fake(shape_backward)
    forward.register_autograd(pass_back, setup_context=set_up)
    forward.register_autocast("cpu", torch.bfloat16)


def like(tensor: Tensor) -> Tensor:
    """Room for a result of (rows, heads, tokens, width) that lies in memory as (rows, tokens, heads, width)."""
    rows, heads, tokens, width = tensor.shape
    return tensor.new_empty(rows, tokens, heads, width).transpose(1, 2)
