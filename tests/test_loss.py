"""The loss in chunks: the same number and gradients as over all logits at once."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from nexa_models import loss
from nexa_models.encoding import IGNORED


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_chunks_give_the_loss_and_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bound: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(50, 11, generator=draw)).to(dtype).requires_grad_()
    targets = torch.randint(11, (50,), generator=draw)
    targets[::7] = IGNORED
    monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", 4 * 11 * 8)  # chunks of 8 rows, the last of 2
    in_chunks = loss.summed_loss(logits, targets)
    (of_chunks,) = torch.autograd.grad(in_chunks / 3, logits)
    whole = cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    (of_whole,) = torch.autograd.grad(whole / 3, logits)
    assert "Chunked" in type(in_chunks.grad_fn).__name__
    assert float(in_chunks.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    assert torch.allclose(of_chunks, of_whole, rtol=bound, atol=1e-7)
