"""Packs: the same loss and gradients as one row after the other, in less room."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nexa_core.errors import UserError
from nexa_models.attention import DENSE_TOKENS, attend_within
from nexa_models.causal_lm import CausalLm
from nexa_models.encoding import Batch, PackedRows, Ragged, Sequences, Shapes
from nexa_models.loss import summed_loss
from nexa_models.packing import pack
from nexa_models.predict import MOST_SLOTS, MOST_TARGETS, cut_rows

ALL = np.arange(9)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(40, 90))
def test_every_sequence_is_in_one_pack_that_it_fits_into(lengths: list[int], width: int) -> None:
    packs = pack(np.array(lengths, dtype=np.int64), width)
    assert sorted(index for each in packs for index in each) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in each) <= width for each in packs)
    lower_bound = -(-sum(lengths) // width)
    assert len(packs) <= 11 / 9 * max(lower_bound, 1) + len([each for each in lengths if 2 * each > width]) + 1


def test_the_fullest_pack_that_still_takes_a_sequence_gets_it() -> None:
    assert [each.tolist() for each in pack(np.array([2, 7, 3, 6, 1, 4]), 10)] == [[1, 2], [3, 5], [0, 4]]


def test_a_sequence_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(UserError, match="A row of 11 tokens does not fit into packs of 10"):
        pack(np.array([3, 11]), 10)


@pytest.fixture
def sequences() -> Sequences:
    draw = np.random.default_rng(0)
    tokens = [draw.integers(3, 50, size=size) for size in (12, 5, 9, 1, 7, 3, 16, 2, 8)]
    learned = [draw.random(len(each)) < 0.7 for each in tokens]
    return Sequences(Ragged.of(tokens), np.concatenate(learned), padding_id=0)


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> CausalLm:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if request.param == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        transformer = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
    else:
        transformer = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2))
    return CausalLm(transformer, num_tokens=50).eval()


def loss_and_gradients(model: CausalLm, batches: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    losses = [summed_loss(model(**batch.inputs), batch.targets) for batch in batches]
    torch.stack(losses).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return float(sum(losses).detach()), gradients


@pytest.mark.parametrize("layout", ["packed", "padded", "padded further"])
def test_loss_and_gradients_are_those_of_one_row_after_the_other(
    model: CausalLm, sequences: Sequences, layout: str
) -> None:
    one_by_one = [sequences.batch(np.array([row])) for row in ALL]
    loss, gradients = loss_and_gradients(model, one_by_one)
    if layout == "packed":
        packed = PackedRows.of(sequences, 20)
        assert len(packed) < len(sequences)
        batch = packed.batch(np.arange(len(packed)))
    elif layout == "padded":
        batch = sequences.batch(ALL)
    else:
        wide = Sequences(sequences.tokens, sequences.learned, padding_id=0, shapes=Shapes((64,), 12))
        batch = wide.batch(ALL)
        assert batch.inputs["ids"].shape == (12, 64)
    assert len(batch.targets) == sequences.target_counts_N.sum() == sum(len(each.targets) for each in one_by_one)
    other_loss, other_gradients = loss_and_gradients(model, [batch])
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_packed_row_is_not_touched_by_its_neighbours(model: CausalLm, sequences: Sequences) -> None:
    """No leak: other neighbours in the pack leave the logits as they were."""
    packed = PackedRows.of(sequences, 20)
    rows = np.arange(len(packed))
    batch = packed.batch(rows)
    with torch.inference_mode():
        before = model(**batch.inputs)
        changed = {**batch.inputs, "ids": batch.inputs["ids"].clone()}
        is_first = batch.inputs["documents"] == batch.inputs["documents"][0, 0]
        changed["ids"][is_first] = 1
        after = model(**changed)
    touched = is_first.flatten()[batch.inputs["at"]]
    assert touched.any()
    assert not touched.all()
    assert torch.equal(before[~touched], after[~touched])
    assert not torch.equal(before[touched], after[touched])


def test_packs_learn_in_bfloat16(model: CausalLm, sequences: Sequences) -> None:
    packed = PackedRows.of(sequences, 20)
    batch = packed.batch(np.arange(len(packed)))
    exact, _ = loss_and_gradients(model, [batch])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, gradients = loss_and_gradients(model, [batch])
    assert rounded == pytest.approx(exact, rel=0.02)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients.values())


def test_documents_attend_in_bfloat16_as_in_float32() -> None:
    """Short ones through whole products, a long one through the flash kernel, and nothing at the padding."""
    draw = torch.Generator().manual_seed(0)
    lengths = (9, DENSE_TOKENS + 5, 1)
    documents = torch.repeat_interleave(torch.tensor([1, 2, 3, 0]), torch.tensor([*lengths, 4]))[None]
    shape = (1, 2, documents.shape[1], 8)
    query, key, value, gradient = (torch.randn(shape, generator=draw).bfloat16() for _ in range(4))

    def attended(dtype: torch.dtype) -> list[Tensor]:
        given = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (query, key, value)]
        out, _ = attend_within(*given, documents, 0.3)
        out.backward(gradient.to(dtype))
        return [out, *(tensor.grad for tensor in given if tensor.grad is not None)]

    for rounded, exact in zip(attended(torch.bfloat16), attended(torch.float32), strict=True):
        torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)
        assert not rounded[..., -4:, :].any()


def test_the_counts_of_a_pack_are_those_of_its_rows(sequences: Sequences) -> None:
    packed = PackedRows.of(sequences, 20)
    for index in range(len(packed)):
        batch = packed.batch(np.array([index]))
        assert batch.num_tokens == packed.token_counts_N[index]
        assert len(batch.targets) == packed.target_counts_N[index]
        assert batch.num_slots == 20


def test_the_first_token_of_a_row_is_no_target(sequences: Sequences) -> None:
    everything = Sequences(sequences.tokens, np.ones_like(sequences.learned), padding_id=0)
    assert everything.target_counts_N.tolist() == (sequences.tokens.lengths - 1).tolist()
    batch = everything.batch(np.array([6]))
    assert batch.targets.tolist() == sequences.tokens.flat[sequences.tokens.offsets[6] + 1 :][:15].tolist()


@pytest.mark.parametrize(("longest", "widths"), [(1, (64,)), (99, (64, 100)), (700, (128, 256, 384, 512, 640, 768))])
def test_padded_batches_have_few_widths_none_above_the_models(longest: int, widths: tuple[int, ...]) -> None:
    most = 100 if longest < 100 else 1024
    shapes = Shapes.few(longest=longest, most=most, num_rows=4)
    assert shapes.widths == widths
    assert shapes.of(3, longest) == (4, widths[-1])
    assert shapes.of(3, 0) == (4, widths[0])


def test_rows_that_are_looked_at_are_cut_by_their_number_and_by_their_tokens() -> None:
    def cut(lengths: list[int], batch_size: int) -> list[list[int]]:
        tokens = [np.ones(length, dtype=np.int32) for length in lengths]
        learned = np.ones(sum(lengths), dtype=bool)
        return [rows.tolist() for rows in cut_rows(Sequences(Ragged.of(tokens), learned, padding_id=0), batch_size)]

    assert cut([], 2) == []
    assert cut([3, 2, 5], 2) == [[0, 1], [2]]
    assert cut([MOST_TARGETS // 2 + 1] * 3 + [9], 8) == [[0, 1], [2, 3]]
    assert cut([MOST_TARGETS * 2, 9, MOST_SLOTS // 2 + 1, 9, 9], 8) == [[0], [1], [2], [3, 4]]
