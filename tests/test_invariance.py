"""What only makes training faster or smaller must not change what is learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_models.checkpoint import load_checkpoint
from nexa_train.order import Plan, group_by_length
from nexa_train.train import run
from tests.labs import make_config
from tests.test_training import files_of, losses_of

COMPILED_BOUND = 1e-4  # of a loss: a compiled model adds in another order


def losses_with(lab: Layout, *, dropout: float = 0.0, **training: Any) -> list[float]:
    parameters = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_tokens": 32, "dropout": dropout}
    model = {"name": "causal_lm", "parameters": parameters}
    config = make_config("causal_lm", model=model, training={"max_steps": 6, "batch_size": 32, **training})
    return losses_of(run(config, layout=lab).run)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activations_computed_again_are_the_same(lab: Layout, dropout: float) -> None:
    assert losses_with(lab, dropout=dropout, activation_checkpointing=True) == losses_with(lab, dropout=dropout)


def test_a_compiled_model_learns_the_same_within_the_stated_bound(lab: Layout) -> None:
    compiled = losses_with(lab, compile=True, packing={})
    assert compiled == pytest.approx(losses_with(lab, packing={}), rel=COMPILED_BOUND)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_compiled_model_reads_rows_of_any_length(lab: Layout, architecture: str) -> None:
    """Of 100 tokens at most, which is no multiple of anything, in batches of two widths."""
    parameters = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 100, "architecture": architecture}
    model = {"name": "causal_lm", "parameters": parameters}
    padded, compiled = (
        losses_of(run(make_config("causal_lm", model=model, training={"epochs": 1, "compile": wanted}), layout=lab).run)
        for wanted in (False, True)
    )
    assert compiled == pytest.approx(padded, rel=COMPILED_BOUND)


def test_a_compiled_classifier_learns_the_same_from_batches_filled_up(lab: Layout) -> None:
    """The epoch's last batch is smaller than the others."""
    model = {"name": "text_classifier", "parameters": {"dropout": 0.0, "token_dropout": 0.0}}
    plain, compiled = (
        losses_of(
            run(
                make_config("text_classifier", model=model, training={"batch_size": 48, "compile": wanted}), layout=lab
            ).run
        )
        for wanted in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=COMPILED_BOUND)


@pytest.mark.parametrize("data_workers", [0, 4])
def test_the_number_of_data_workers_changes_no_byte(lab: Layout, data_workers: int) -> None:
    one, other = (
        run(make_config("causal_lm", training={"packing": {}, "data_workers": count}), layout=lab).run
        for count in (1, data_workers)
    )
    assert files_of(one.path) == files_of(other.path)


@pytest.mark.parametrize("num_microbatches", [1, 2, 8])
def test_packs_cut_into_any_number_of_microbatches_learn_the_same(lab: Layout, num_microbatches: int) -> None:
    whole = losses_with(lab, packing={}, gradient_accumulation_steps=4)
    cut = losses_with(lab, packing={}, gradient_accumulation_steps=num_microbatches)
    assert cut == pytest.approx(whole, rel=1e-5)


def test_adapters_in_packs_learn_what_they_learn_one_row_after_the_other(lab: Layout, tmp_path: Path) -> None:
    """The same rows in the same step: all of them."""
    from tests.folders import llama

    llama(tmp_path / "llama")
    model = {"name": "causal_lm", "path": str(tmp_path / "llama"), "lora": {}, "parameters": {"max_tokens": 64}}
    weights = []
    for training in ({"packing": {"max_tokens": 256}}, {}):
        config = make_config("causal_lm", model=model, training={"epochs": 2, "batch_size": 1000, **training})
        weights.append(load_checkpoint(run(config, layout=lab).checkpoint).model)
    assert any("lora_" in name for name in weights[0])
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5)


def test_rows_of_like_length_share_a_batch_and_none_is_lost() -> None:
    lengths_N = np.random.default_rng(0).integers(1, 200, size=1003)
    order = np.random.default_rng(1).permutation(1003)
    grouped = group_by_length(order, lengths_N, 10, seed=0, epoch=0)
    assert sorted(grouped) == list(range(1003))

    def mean_spread(rows: np.ndarray) -> float:
        return float(np.mean([np.ptp(lengths_N[rows[start : start + 10]]) for start in range(0, 1000, 10)]))

    assert mean_spread(grouped) < 0.2 * mean_spread(order)
    longest = [lengths_N[grouped[start : start + 10]].max() for start in range(0, 1000, 10)]
    assert longest != sorted(longest, reverse=True)
    plan = Plan(1003, 10, 1, epochs=1, max_steps=None, seed=0, lengths_N=lengths_N)
    rows = np.concatenate([batch for step in range(plan.num_steps) for batch in plan.microbatches(step)])
    assert sorted(rows) == list(range(1003))


@pytest.mark.parametrize(
    ("model", "training", "why"),
    [
        ("mlp", {"packing": {}}, "rows of features are all of one length"),
        ("mlp", {"length_grouping": True}, "rows of features are all of one length"),
        ("text_classifier", {"packing": {}}, "reads one text a row"),
        ("mlp", {"activation_checkpointing": True}, "is for transformers"),
        ("causal_lm", {"packing": {"max_tokens": 8}}, "does not fit into packs of 8"),
        ("causal_lm", {"distributed": {"world_size": 3, "determinism": "exact"}}, "needs 1, 2, 4, 8"),
        ("causal_lm", {"distributed": {"world_size": 4}, "gradient_accumulation_steps": 2}, "nothing to do"),
    ],
)
def test_a_setting_without_an_effect_is_refused(lab: Layout, model: str, training: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        run(make_config(model, training=training), layout=lab)
    assert not lab.runs.exists()
