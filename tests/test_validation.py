"""What a validation measures, and how far that may be off."""

import json

import numpy as np
import pytest
import torch

from nexa_core import intervals
from nexa_core.paths import Layout
from nexa_models.encoding import IGNORED
from nexa_models.loss import CHUNK_BYTES, summed_loss, target_losses
from nexa_train.train import run
from nexa_train.validation import Validated, _sums, _validated
from tests.labs import make_config


def test_a_runs_validation_has_the_intervals_of_its_scores(lab: Layout) -> None:
    """Of a classifier the same as an evaluation of the same rows gives, and every line has them."""
    settings = make_config("mlp", training={"epochs": 2}, evaluation={"split": "val"})
    result = run(settings, layout=lab)
    lines = [json.loads(line) for line in result.run.step_metrics.read_text().splitlines()]
    validations = [line for line in lines if "val_loss" in line]
    assert len(validations) == 2
    best = min(validations, key=lambda line: line["val_loss"])
    scored = result.metrics["metrics"]
    for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
        assert best[f"val_loss{end}"] == pytest.approx(scored["log_loss"][key], rel=1e-5)
        assert best[f"val_accuracy{end}"] == scored["accuracy"][key]
    said = (lab.logs / f"{result.run.run_id}.log").read_text()
    for line in validations:
        loss = f"loss {line['val_loss']:.4f} ({line['val_loss_low']:.4f} to {line['val_loss_high']:.4f})"
        accuracy = (
            f"accuracy {line['val_accuracy']:.4f} ({line['val_accuracy_low']:.4f} to {line['val_accuracy_high']:.4f})"
        )
        assert f"validation {loss}, {accuracy}" in said


def validated(logits: torch.Tensor, targets: torch.Tensor, counts: list[int], *, cut: int) -> Validated:
    """As of rows with so many targets, in batches of `cut` rows."""
    batches, counts_N = [], torch.tensor(counts)
    ends = [0, *torch.cumsum(counts_N, 0).tolist()]
    for start in range(0, len(counts), cut):
        rows = slice(start, min(start + cut, len(counts)))
        flat = slice(ends[rows.start], ends[rows.stop])
        batches.append(_sums(logits[flat], targets[flat], counts_N[rows]))
    return _validated(torch.stack(batches).sum(0).tolist(), num_rows=len(counts))


def test_tokens_of_a_row_are_drawn_together() -> None:
    """Many tokens of few rows that are alike say little: the interval is one of rows, near the bootstrap's."""
    draw = np.random.default_rng(0)
    counts = draw.integers(0, 40, size=60).tolist()
    level = torch.tensor(np.repeat(draw.normal(size=60), counts))[:, None]
    logits = torch.tensor(draw.normal(size=(sum(counts), 7))) + torch.cat([2 * level, torch.zeros(len(level), 6)], 1)
    targets = torch.zeros(len(logits), dtype=torch.int64)
    found = validated(logits, targets, counts, cut=7)
    losses = target_losses(logits, targets).double().numpy()
    right = (logits.argmax(-1) == targets).numpy()
    row_of = np.repeat(np.arange(60), counts)
    for value, interval, each in (
        (found.loss, found.loss_interval, losses),
        (found.accuracy, found.accuracy_interval, right),
    ):
        assert value == pytest.approx(each.mean())
        tops = np.bincount(row_of, weights=each, minlength=60)
        sums = intervals.resampled_sums([tops, np.array(counts)], seed=0)
        bootstrap = intervals.percentile(sums[:, 0] / sums[:, 1], num_rows=60, method="")
        width = bootstrap.high - bootstrap.low
        assert (interval.low, interval.high) == pytest.approx((bootstrap.low, bootstrap.high), abs=0.1 * width)
    alone = intervals.mean_t(losses)
    assert alone.high - alone.low < 0.5 * (found.loss_interval.high - found.loss_interval.low)


@pytest.mark.parametrize("targets", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_rows_that_do_not_differ_prove_nothing_of_all_rows(targets: list[int]) -> None:
    logits = torch.tensor([[3.0, 0.0]] * 4)
    found = validated(logits, torch.tensor(targets), [2, 2], cut=2)
    assert found.accuracy == 1 - targets[0]
    assert found.accuracy_interval == intervals.wilson(2 - 2 * targets[0], 2)


def test_one_row_bounds_no_loss() -> None:
    found = validated(torch.tensor([[3.0, 0.0]] * 2), torch.tensor([0, 1]), [2], cut=1)
    assert "val_loss_low" not in found.as_numbers()
    assert found.as_text() == f"loss {found.loss:.4f} (interval unknown), accuracy 0.5000 (0.0000 to 1.0000)"


def test_losses_of_single_targets_add_up_to_the_loss() -> None:
    """In one piece and in chunks, and those that are left out cost nothing."""
    logits = torch.randn(600, CHUNK_BYTES["cpu"] // (4 * 100), generator=torch.Generator().manual_seed(0))
    targets = torch.arange(600)
    targets[::7] = IGNORED
    for count in (90, 600):
        losses = target_losses(logits[:count], targets[:count])
        assert losses.shape == (count,)
        assert not losses[::7].any()
        assert losses.double().sum().item() == pytest.approx(
            summed_loss(logits[:count], targets[:count]).item(), rel=1e-5
        )
