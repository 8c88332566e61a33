"""Losses beside a teacher: equal to a NumPy reference and to TRL's, 0 at a match, with true gradients, small in memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nexa_models import distillation_loss
from nexa_models.distillation_loss import (
    Learned,
    Opinion,
    TopOpinion,
    WholeOpinion,
    loss_of_logits,
    loss_of_states,
)
from nexa_models.divergences import Divergence

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


def counted(student: Tensor) -> Learned:
    return Learned(torch.ones(len(student)))


def divergence_of(student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    return loss_of_logits(student, WholeOpinion.of_logits(teacher), divergence, counted(student))[0]


def top_of(logits: Tensor, count: int) -> TopOpinion:
    top_logprobs, top_ids = torch.log_softmax(logits, -1).topk(count, -1)
    return TopOpinion(top_ids, top_logprobs, (1 - top_logprobs.exp().sum(-1)).clamp(min=0))


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_values_are_those_of_the_papers(divergence: Divergence) -> None:
    student, teacher = logits(1), logits(2)
    wanted = reference(student.numpy(), teacher.numpy(), divergence).sum()
    assert divergence_of(student, teacher, divergence).item() == pytest.approx(wanted, rel=1e-12)
    assert divergence_of(student.float(), teacher.float(), divergence).item() == pytest.approx(wanted, rel=2e-6)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_a_perfect_match_costs_nothing_and_moves_nothing(divergence: Divergence) -> None:
    student = logits(3).float().requires_grad_()
    loss = divergence_of(student, student.detach().clone() + 5.0, divergence)  # a constant changes no probability
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


def test_values_are_those_of_trl() -> None:
    """Made by tests/golden/make_generalized_jsd.py with TRL itself; ours has the factor T * T besides."""
    golden: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    assert len(golden) >= 6
    for case in golden:
        divergence = Divergence("jsd", beta=case["beta"], temperature=case["temperature"])
        found = divergence_of(torch.tensor(case["student"]), torch.tensor(case["teacher"]), divergence)
        assert found.item() / case["temperature"] ** 2 == pytest.approx(case["sum"], rel=1e-5, abs=1e-7)


def three_places_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation_loss, "CHUNK_BYTES", {"cpu": 4 * 11 * 3})
    monkeypatch.setattr(distillation_loss, "LEAST_PLACES", 1)


def learned_in_part(seed: int = 0) -> Learned:
    """Some places count for the divergence, some for their targets, some for both."""
    draw = torch.Generator().manual_seed(seed)
    of_divergence, of_targets = torch.rand(2, 7, generator=draw, dtype=torch.float64)
    of_divergence[2], of_targets[4] = 0.0, 0.0
    return Learned(of_divergence, torch.randint(11, (7,), generator=draw), of_targets)


@pytest.mark.parametrize(
    ("divergence", "top"),
    [(each, top) for each in ALL for top in (None, 1, 4, 11) if top is None or each.temperature == 1.0],
    ids=str,
)
def test_gradients_are_true(divergence: Divergence, top: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against differences of the values."""
    three_places_a_chunk(monkeypatch)
    teacher = logits(5)
    opinion: Opinion = WholeOpinion.of_logits(teacher) if top is None else top_of(teacher, top)

    def loss(student: Tensor) -> Tensor:
        return loss_of_logits(student, opinion, divergence, learned_in_part())[0] * 0.3

    assert torch.autograd.gradcheck(loss, logits(4).requires_grad_())


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_states_and_of_the_output_layer_are_true(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    three_places_a_chunk(monkeypatch)
    torch.manual_seed(0)
    student, teacher = (nn.Linear(width, 11, bias=bias, dtype=torch.float64) for width in (5, 8))
    opinion = WholeOpinion.of_states(torch.randn(7, 8, dtype=torch.float64), teacher)
    divergence = Divergence("jsd", beta=0.3, temperature=2.0)

    def loss(states: Tensor, *weights: Tensor) -> Tensor:
        return loss_of_states(states, student, opinion, divergence, learned_in_part())[0] * 0.3

    states = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (states, *student.parameters()))
    assert all(weight.grad is None for weight in teacher.parameters())
    whole = loss_of_logits(student(states), opinion, divergence, learned_in_part())
    torch.testing.assert_close(whole, loss_of_states(states, student, opinion, divergence, learned_in_part()))


def test_what_is_measured_is_told_beside_the_loss() -> None:
    student, teacher, learned = logits(11), logits(12), learned_in_part()
    divergence = Divergence("forward_kl", temperature=2.0)
    assert learned.targets is not None
    assert learned.cross_entropy is not None
    values = torch.from_numpy(reference(student.numpy(), teacher.numpy(), divergence))
    losses = nn.functional.cross_entropy(student, learned.targets, reduction="none")
    wanted = [
        (values * learned.divergence).sum() + (losses * learned.cross_entropy).sum(),
        values[learned.divergence > 0].sum(),
        losses.sum(),
    ]
    found = loss_of_logits(student, WholeOpinion.of_logits(teacher), divergence, learned)
    assert found.tolist() == pytest.approx([each.item() for each in wanted])


@pytest.mark.parametrize("kind", ["whole", "top"])
def test_memory_does_not_grow_with_places_times_vocabulary(kind: str) -> None:
    """The largest tensor that is made is a chunk, not (n, V); nor do all that are held come near it."""
    num_places, num_tokens, width = 4096, 8192, 16
    torch.manual_seed(0)
    student, teacher = nn.Linear(width, num_tokens, bias=False), nn.Linear(width, num_tokens, bias=False)
    states = torch.randn(num_places, width, requires_grad=True)
    theirs = torch.randn(num_places, width)
    opinion: Opinion = WholeOpinion.of_states(theirs, teacher)
    if kind == "top":
        opinion = top_of(torch.randn(num_places, 300), 20)
    largest, held = 0, 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest, held
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    def note(saved: Tensor) -> Tensor:
        nonlocal held
        held += saved.numel()
        return saved

    with Watch(), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        loss_of_states(states, student, opinion, Divergence("forward_kl"), counted(states))[0].backward()
    assert largest < num_places * num_tokens / 20
    assert largest >= 2**18  # chunks are not tiny either
    assert held < num_places * num_tokens / 20


def test_the_likeliest_tokens_with_the_rest_as_one_outcome() -> None:
    student, teacher = logits(6), logits(7)
    some = top_of(teacher, 3)
    q = torch.softmax(student, -1).numpy()
    q_top = np.take_along_axis(q, some.top_ids.numpy(), 1)
    q_all = np.concatenate([q_top, 1 - q_top.sum(1, keepdims=True)], 1)
    p_all = np.concatenate([some.top_logprobs.exp().numpy(), some.tail_mass.numpy()[:, None]], 1)
    wanted = (p_all * (np.log(p_all) - np.log(q_all))).sum()
    divergence = Divergence("forward_kl")
    found = loss_of_logits(student, some, divergence, counted(student))[0]
    whole = divergence_of(student, teacher, divergence)
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    assert found < whole
    everything = loss_of_logits(student, top_of(teacher, 11), divergence, counted(student))[0]
    assert everything.item() == pytest.approx(whole.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"])
def test_places_with_fewer_stored_tokens_and_lost_tails(name: Any) -> None:
    """A place with one stored token is as if it stood alone, whatever fills it up; a tail rounded away is no infinity."""
    student = logits(8)[:4].float().requires_grad_()
    top_ids = torch.tensor([[3, 2, -1], [0, -1, -1], [4, 5, 6], [-1, -1, -1]])
    top_logprobs = torch.tensor([[-0.5, -1.5, 0.0], [-1e-9, 0.0, 0.0], [-1.0, -1.2, -1.4], [0.0, 0.0, 0.0]])
    tail = torch.tensor([0.17, 0.0, 0.08, 1.0])
    divergence = Divergence(name)
    loss = loss_of_logits(student, TopOpinion(top_ids, top_logprobs, tail), divergence, counted(student))[0]
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    rows = []
    for row in range(4):
        kept = top_ids[row] >= 0
        opinion = TopOpinion(top_ids[row : row + 1, kept], top_logprobs[row : row + 1, kept], tail[row : row + 1])
        if kept.any():
            rows.append(loss_of_logits(student[row : row + 1], opinion, divergence, Learned(torch.ones(1)))[0])
    assert loss.item() == pytest.approx(sum(each.item() for each in rows), rel=1e-5)  # knowing nothing tells nothing


def test_ids_that_only_the_teacher_has_are_left_out() -> None:
    student, teacher = logits(13), logits(14)
    wider = torch.cat([teacher, torch.full((7, 3), 9.0, dtype=torch.float64)], -1)
    divergence = Divergence("reverse_kl")
    assert divergence_of(student, wider, divergence) == divergence_of(student, teacher, divergence)


def test_a_number_that_is_none_stays_none() -> None:
    student = logits(15)
    student[3, 4] = torch.nan
    for divergence in ALL:
        assert torch.isnan(divergence_of(student, logits(16), divergence))


def test_bfloat16_logits_are_summed_in_float32() -> None:
    student, teacher = logits(9).to(torch.bfloat16).requires_grad_(), logits(10).to(torch.bfloat16)
    loss = divergence_of(student, teacher, Divergence("reverse_kl"))
    loss.backward()
    wanted = reference(student.detach().double().numpy(), teacher.double().numpy(), Divergence("reverse_kl")).sum()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16


def test_under_autocast_the_output_layers_are_applied_in_bfloat16() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(16, 11), nn.Linear(16, 11)
    states, theirs = torch.randn(7, 16, requires_grad=True), torch.randn(7, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        opinion = WholeOpinion.of_states(theirs, teacher)
        found = loss_of_states(states, student, opinion, Divergence("jsd"), counted(states))[0]
        wanted = divergence_of(student(states), teacher(theirs), Divergence("jsd"))
    found.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert student.weight.grad is not None
    assert student.weight.grad.dtype == torch.float32
