"""The compiled twin of `attend_within`: `attention.cpp`, built once by the compiler that torch.compile uses.

Twice as fast in bfloat16, with scores in float32, and 1.3 times in float32 (docs/benchmarks.md). For processors with
AVX-512; built and kept where torch.compile keeps what it builds.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nexa_core.errors import UserError
from nexa_models.operators import like, make_differentiable

SOURCE = Path(__file__).with_name("attention.cpp")


def is_kernel_available() -> bool:
    """Whether this processor has what the kernel is fast with; builds it.

    Raises:
        UserError: there is no compiler to build it with.
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and bool(_library().is_fast())


@torch.library.custom_op("nexa::attend_within_compiled", mutates_args=())
def attend_within_compiled(
    query: Tensor, key: Tensor, value: Tensor, documents: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The attention's result, zero at padding, and the logarithm of its denominators for the backward pass.

    Args:
        query: (rows, heads, tokens, width); width is even in bfloat16.
        key: (rows, key heads, tokens, width), as many heads or a divisor of them; value likewise.
        documents: (rows, tokens), as in `attend`.
    """
    if (
        key.shape != value.shape
        or key.shape[-1] != query.shape[-1]
        or query.dtype not in (torch.bfloat16, torch.float32)
    ):
        raise ValueError("the kernel takes keys and values of the queries' width, in bfloat16 or float32")
    out, lse = like(query).zero_(), query.new_zeros(query.shape[:3], dtype=torch.float32)
    _call(_library().attend, [query, key, value, out], key.shape[1], documents, lse, scale)
    return out, lse


@torch.library.custom_op("nexa::attend_within_compiled_backward", mutates_args=())
def attend_within_compiled_backward(
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
    of_query, of_key, of_value = (like(tensor).zero_() for tensor in (query, key, value))
    tensors = [gradient, query, key, value, out, of_query, of_key, of_value]
    _call(_library().attend_backward, tensors, key.shape[1], documents, lse, scale)
    return of_query, of_key, of_value


make_differentiable(attend_within_compiled, attend_within_compiled_backward)


@cache
def _library() -> ctypes.CDLL:
    from torch._inductor.codecache import CppCodeCache  # takes seconds to load
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        # Inductor writes its loops as vectors and keeps the compiler from doing so; this file relies on it.
        library = CppCodeCache.load(
            SOURCE.read_text(encoding="utf-8"), needs_vec_isa=True, extra_flags=("-ftree-loop-vectorize",)
        )
    except (CppCompileError, InvalidCxxCompiler) as error:
        raise UserError(
            f"training.compile needs a C++ compiler that works: {str(error).strip().splitlines()[0]}. Install g++, or set "
            "training.compile: false."
        ) from None
    library.is_fast.restype = ctypes.c_bool
    library.attend.restype = library.attend_backward.restype = None
    return library


def _call(
    function: Any, tensors: Sequence[Tensor], num_key_heads: int, documents: Tensor, lse: Tensor, scale: float
) -> None:
    """`function` of attention.cpp on tensors of (rows, heads, tokens, width), of which the first has the queries' shape."""
    tensors = [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]
    documents = documents.contiguous()
    rows, heads, tokens, width = tensors[0].shape
    strides = [stride for tensor in tensors for stride in tensor.stride()[:3]]
    function(
        ctypes.c_bool(tensors[0].dtype == torch.bfloat16),
        (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors)),
        (ctypes.c_int64 * len(strides))(*strides),
        (ctypes.c_int64 * 5)(rows, heads, num_key_heads, tokens, width),
        ctypes.c_void_p(documents.data_ptr()),
        ctypes.c_void_p(lse.data_ptr()),
        ctypes.c_float(scale),
    )
