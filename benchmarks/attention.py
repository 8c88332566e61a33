"""What attention inside packs costs, forward and backward: PyTorch's own with a mask, document by document, and compiled.

python benchmarks/attention.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nexa_core.environment import cpu_name
from nexa_models.attention import attend_within
from nexa_models.attention_kernel import attend_within_compiled, is_kernel_available
from nexa_models.causal_lm import block_diagonal_mask

PACK_TOKENS, HEADS, WIDTH = 512, 4, 64
LENGTHS = ((129, 129, 129, 125), (176, 176, 160), (190, 190, 132), (147, 147, 147, 71), (257, 255))
"""Of the documents in five packs: one microbatch of `benchmarks/training`."""
ROUNDS, WARMUP = 40, 5
SCALE = WIDTH**-0.5


def by_mask(query: Tensor, key: Tensor, value: Tensor, documents: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=block_diagonal_mask(documents), scale=SCALE)


def by_document(query: Tensor, key: Tensor, value: Tensor, documents: Tensor) -> Tensor:
    return attend_within(query, key, value, documents, SCALE)[0]


def compiled(query: Tensor, key: Tensor, value: Tensor, documents: Tensor) -> Tensor:
    return attend_within_compiled(query, key, value, documents, SCALE)[0]


def milliseconds(attend: Callable[..., Tensor], tensors: list[Tensor], documents: Tensor) -> list[float]:
    """Of each round but the first few."""
    *given, gradient = tensors
    query, key, value = (tensor.requires_grad_() for tensor in given)
    taken = []
    for _ in range(WARMUP + ROUNDS):
        began = time.perf_counter()
        torch.autograd.grad(attend(query, key, value, documents), (query, key, value), gradient)
        taken.append(1000 * (time.perf_counter() - began))
    return taken[WARMUP:]


def main() -> None:
    documents = torch.zeros(len(LENGTHS), PACK_TOKENS, dtype=torch.int64)
    for row, lengths in zip(documents, LENGTHS, strict=True):
        row[: sum(lengths)] = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))
    ways: dict[str, Callable[..., Tensor]] = {"SDPA with a mask": by_mask, "document by document": by_document}
    if is_kernel_available():
        ways["compiled kernel"] = compiled
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}; median of {ROUNDS}")
    for dtype in (torch.float32, torch.bfloat16):
        draw = torch.Generator().manual_seed(0)
        shape = (len(LENGTHS), PACK_TOKENS, HEADS, WIDTH)
        tensors = [torch.randn(shape, generator=draw).to(dtype).transpose(1, 2) for _ in range(4)]
        for name, attend in ways.items():
            taken = milliseconds(attend, tensors, documents)
            print(f"{dtype}, {name}: {statistics.median(taken):.1f} ms ({min(taken):.1f} to {max(taken):.1f})")


if __name__ == "__main__":
    main()
