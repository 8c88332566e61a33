"""The compiled attention inside documents: what attention in double precision gives, on any number of threads."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nexa_models.attention_kernel import attend_within_compiled, is_kernel_available
from nexa_models.causal_lm import block_diagonal_mask

needs_kernel = pytest.mark.skipif(not is_kernel_available(), reason="the kernel is for processors with AVX-512")

BLOCK = 64
LENGTHS = ((BLOCK, 3 * BLOCK + 5, 1), (BLOCK + 1, BLOCK - 1, 7))
"""Of the documents in two packs: whole blocks, more and less than whole ones, and a single token."""
NUM_TOKENS = sum(LENGTHS[0]) + 4
SCALE = 0.1


def make_documents() -> Tensor:
    documents = torch.zeros(len(LENGTHS), NUM_TOKENS, dtype=torch.int64)
    number = 0
    for row, lengths in enumerate(LENGTHS):
        begin = 0
        for length in lengths:
            number += 1
            documents[row, begin : begin + length] = number
            begin += length
    return documents


def make_tensors(*, heads: int, key_heads: int, width: int) -> list[Tensor]:
    """Query, key, value and the gradient of the result."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(len(LENGTHS), NUM_TOKENS, count, width) for count in (heads, key_heads, key_heads, heads)]
    return [torch.randn(shape, generator=draw).transpose(1, 2) for shape in shapes]


def through_kernel(tensors: list[Tensor], documents: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradients of query, key and value."""
    query, key, value = (tensor.to(dtype, copy=True).requires_grad_() for tensor in tensors[:3])
    out, _ = attend_within_compiled(query, key, value, documents, SCALE)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), tensors[3].to(dtype))]


def exactly(tensors: list[Tensor], documents: Tensor) -> list[Tensor]:
    query, key, value = (tensor.double().requires_grad_() for tensor in tensors[:3])
    is_token = (documents != 0)[:, None, :, None]
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=block_diagonal_mask(documents), scale=SCALE, enable_gqa=True
    ).where(is_token, 0.0)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), tensors[3].double())]


@needs_kernel
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 4, 64), (6, 2, 24), (2, 1, 130)])
def test_the_kernel_attends_as_in_double_precision(
    dtype: torch.dtype, bound: float, heads: int, key_heads: int, width: int
) -> None:
    documents = make_documents()
    rounded = [tensor.to(dtype).float() for tensor in make_tensors(heads=heads, key_heads=key_heads, width=width)]
    for found, exact in zip(through_kernel(rounded, documents, dtype), exactly(rounded, documents), strict=True):
        assert (found.double() - exact).norm() <= bound * exact.norm()
        assert not found.transpose(1, 2)[documents == 0].any()


@needs_kernel
def test_the_kernel_gives_the_same_bits_on_one_thread_as_on_two() -> None:
    documents, tensors = make_documents(), make_tensors(heads=4, key_heads=2, width=32)
    before = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(through_kernel(tensors, documents, torch.bfloat16))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_kernel
def test_the_kernel_reads_tensors_however_they_lie() -> None:
    documents, tensors = make_documents(), make_tensors(heads=2, key_heads=2, width=16)
    apart = [tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in tensors]
    assert apart[0].stride(-1) != 1
    one, other = (through_kernel(each, documents, torch.float32) for each in (tensors, apart))
    assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


@needs_kernel
def test_values_of_another_width_are_refused() -> None:
    query, key, value, _ = make_tensors(heads=2, key_heads=2, width=16)
    with pytest.raises(ValueError, match="of the queries' width"):
        attend_within_compiled(query, key, value[..., :8], make_documents(), SCALE)
