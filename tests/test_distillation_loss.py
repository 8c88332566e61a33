"""Divergences of a student from its teacher: equal to a NumPy reference and to TRL's, 0 at a perfect match, small in memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nexa_models import distillation_loss
from nexa_models.distillation_loss import (
    Divergence,
    summed_divergence,
    summed_divergence_of_states,
    summed_top_divergence,
)

GOLDEN = Path(__file__).parent / "golden" / "generalized_jsd.json"
ALL = [
    Divergence("forward_kl"),
    Divergence("forward_kl", temperature=2.0),
    Divergence("reverse_kl"),
    Divergence("reverse_kl", temperature=0.5),
    *(Divergence("jsd", beta=beta) for beta in (0.0, 0.1, 0.5, 0.9, 1.0)),
    Divergence("jsd", temperature=3.0),
    *(Divergence("skew_kl", alpha=alpha) for alpha in (0.0, 0.1, 0.7)),
    Divergence("skew_reverse_kl"),
    Divergence("skew_reverse_kl", alpha=0.5, temperature=2.0),
]


def logits(seed: int, shape: tuple[int, ...] = (7, 11), scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def reference(student: np.ndarray, teacher: np.ndarray, divergence: Divergence) -> np.ndarray:
    """(n,) in float64, from the papers' formulas over plain probabilities."""

    def softmax(values: np.ndarray) -> np.ndarray:
        shifted = np.exp(values - values.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)

    def kl(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (one * (np.log(one) - np.log(other))).sum(-1)

    q, p = softmax(student / divergence.temperature), softmax(teacher / divergence.temperature)
    alpha, beta = divergence.alpha, divergence.beta
    if divergence.name == "jsd" and beta in (0.0, 1.0):
        value = kl(p, q) if beta == 0.0 else kl(q, p)
    elif divergence.name == "jsd":
        m = beta * p + (1 - beta) * q
        value = beta * kl(p, m) + (1 - beta) * kl(q, m)
    else:
        value = {
            "forward_kl": lambda: kl(p, q),
            "reverse_kl": lambda: kl(q, p),
            "skew_kl": lambda: kl(p, alpha * p + (1 - alpha) * q),
            "skew_reverse_kl": lambda: kl(q, alpha * q + (1 - alpha) * p),
        }[divergence.name]()
    return value * divergence.temperature**2


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_values_are_those_of_the_papers(divergence: Divergence) -> None:
    student, teacher = logits(1), logits(2)
    wanted = reference(student.numpy(), teacher.numpy(), divergence).sum()
    found = summed_divergence(student.float(), teacher.float(), divergence)
    assert found.item() == pytest.approx(wanted, rel=2e-6)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_a_perfect_match_costs_nothing_and_moves_nothing(divergence: Divergence) -> None:
    student = logits(3).float().requires_grad_()
    loss = summed_divergence(student, student.detach().clone() + 5.0, divergence)  # a constant changes no probability
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


def test_values_are_those_of_trl() -> None:
    """Made by tests/golden/make_generalized_jsd.py with TRL itself; ours has the factor T * T besides."""
    golden: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    assert len(golden) >= 6
    for case in golden:
        student, teacher = torch.tensor(case["student"]), torch.tensor(case["teacher"])
        divergence = Divergence("jsd", beta=case["beta"], temperature=case["temperature"])
        found = summed_divergence(student, teacher, divergence) / case["temperature"] ** 2
        assert found.item() == pytest.approx(case["sum"], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_gradients_are_those_of_the_formula(divergence: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation_loss, "CHUNK_BYTES", {"cpu": 4 * 11 * 3})  # three places a chunk
    student, teacher, weights = logits(4).float(), logits(5).float(), torch.rand(7)
    plain = student.clone().requires_grad_()
    q = torch.log_softmax(plain / divergence.temperature, -1)
    p = torch.log_softmax(teacher / divergence.temperature, -1)
    ((divergence(q, p) * weights).sum() * divergence.temperature**2 * 0.3).backward()
    ours = student.clone().requires_grad_()
    (summed_divergence(ours, teacher, divergence, weights) * 0.3).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bias", [False, True])
def test_output_layers_applied_in_chunks_give_the_same(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation_loss, "CHUNK_BYTES", {"cpu": 4 * 11 * 2})
    torch.manual_seed(0)
    heads = [nn.Linear(5, 11, bias=bias), nn.Linear(8, 11, bias=bias)]
    states, teacher_states = torch.randn(7, 5), torch.randn(7, 8)
    divergence = Divergence("jsd", beta=0.3, temperature=2.0)

    def gradients(loss_of: Any) -> list[torch.Tensor]:
        leaf = states.clone().requires_grad_()
        heads[0].zero_grad()
        loss = loss_of(leaf)
        loss.backward()
        return [loss.detach(), leaf.grad, *(weight.grad.clone() for weight in heads[0].parameters())]

    whole = gradients(lambda leaf: summed_divergence(heads[0](leaf), heads[1](teacher_states), divergence))
    parts = gradients(lambda leaf: summed_divergence_of_states(leaf, heads[0], teacher_states, heads[1], divergence))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert all(weight.grad is None for weight in heads[1].parameters())


def test_memory_does_not_grow_with_places_times_vocabulary() -> None:
    """The largest tensor that is made is a chunk, not (n, V)."""
    n, num_tokens, width = 4096, 8192, 16
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    torch.manual_seed(0)
    student, teacher = nn.Linear(width, num_tokens, bias=False), nn.Linear(width, num_tokens, bias=False)
    states = torch.randn(n, width, requires_grad=True)
    with Watch():
        summed_divergence_of_states(
            states, student, torch.randn(n, width), teacher, Divergence("forward_kl")
        ).backward()
    assert largest < n * num_tokens / 20
    assert largest >= 2**20  # chunks are not tiny either


def test_the_likeliest_tokens_with_the_rest_as_one_outcome() -> None:
    student, teacher = logits(6), logits(7)
    log_probs = torch.log_softmax(teacher, -1)
    top_logprobs, top_ids = log_probs.topk(3, -1)
    tail = 1 - top_logprobs.exp().sum(-1)
    q = torch.softmax(student, -1).numpy()
    q_top = np.take_along_axis(q, top_ids.numpy(), 1)
    q_all = np.concatenate([q_top, 1 - q_top.sum(1, keepdims=True)], 1)
    p_all = np.concatenate([top_logprobs.exp().numpy(), tail.numpy()[:, None]], 1)
    wanted = (p_all * (np.log(p_all) - np.log(q_all))).sum()
    divergence = Divergence("forward_kl")
    found = summed_top_divergence(student.float(), top_ids, top_logprobs, tail, divergence)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    assert found < summed_divergence(student.float(), teacher.float(), divergence)
    everything = summed_top_divergence(
        student.float(), torch.arange(11).expand(7, 11), log_probs, torch.zeros(7), divergence
    )
    assert everything.item() == pytest.approx(
        summed_divergence(student.float(), teacher.float(), divergence).item(), rel=1e-5
    )


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"])
def test_places_with_fewer_stored_tokens_have_finite_gradients(name: Any) -> None:
    student = logits(8).float().requires_grad_()
    top_ids = torch.tensor([[1, 2, -1], [3, -1, -1], [4, 5, 6]]).repeat(3, 1)[:7]
    top_logprobs = torch.tensor([[-0.5, -1.5, 0.0], [0.0, 0.0, 0.0], [-1.0, -1.2, -1.4]]).repeat(3, 1)[:7]
    tail = torch.tensor([0.17, 0.0, 0.08]).repeat(3)[:7]
    loss = summed_top_divergence(student, top_ids, top_logprobs, tail, Divergence(name))
    if name in ("reverse_kl", "skew_reverse_kl"):
        loss = summed_top_divergence(student, top_ids, top_logprobs, tail + 0.01, Divergence(name))
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    student, teacher = logits(9).to(torch.bfloat16).requires_grad_(), logits(10).to(torch.bfloat16)
    loss = summed_divergence(student, teacher, Divergence("reverse_kl"))
    loss.backward()
    wanted = reference(student.detach().double().numpy(), teacher.double().numpy(), Divergence("reverse_kl")).sum()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16
