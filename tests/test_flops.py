"""What training computes, and the share of the devices' peak that it reaches, against numbers worked out by hand."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nexa_core.cost import CostMeter
from nexa_core.paths import Layout
from nexa_models.encoding import PackedRows
from nexa_models.flops import mean_length, training_flops_per_token
from nexa_models.table import build_model
from nexa_train.distributed.world import World
from nexa_train.job import make_job
from nexa_train.loop import State, StepResult
from nexa_train.optim import build_optimizer
from nexa_train.train import _measure
from tests import folders
from tests.labs import make_config

# Of the tiny models in `folders`: 32 wide, two layers.
LLAMA_LAYER = (
    32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
)  # queries; keys and values of two heads; output; three of the MLP
ADAPTERS_OF_A_LAYER = 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 48))  # rank 2, at each of these
GPT2_LAYER = 32 * 96 + 32 * 32 + 2 * 32 * 128
ATTENTION = 6 * 10 * 2 * 32  # of sequences of ten tokens


def model_of(folder: Path, make: Any, **settings: Any) -> Any:
    make(folder)
    return build_model(folders.spec_of(folder, **settings))


@pytest.mark.parametrize(("make", "layer"), [(folders.llama, LLAMA_LAYER), (folders.gpt2, GPT2_LAYER)])
def test_each_weight_costs_six_operations_a_token(tmp_path: Path, make: Any, layer: int) -> None:
    model = model_of(tmp_path, make)
    head = 32 * len(model.unigram_log_probs_V)
    assert training_flops_per_token(model, mean_length=10) == 6 * (2 * layer + head) + ATTENTION


def test_a_frozen_weight_costs_four(tmp_path: Path) -> None:
    model = model_of(tmp_path, folders.llama, lora={"rank": 2})
    head = 32 * len(model.unigram_log_probs_V)
    wanted = 4 * (2 * LLAMA_LAYER + head) + 6 * 2 * ADAPTERS_OF_A_LAYER + ATTENTION
    assert training_flops_per_token(model, mean_length=10) == wanted


def test_a_token_counts_with_the_length_of_its_own_sequence() -> None:
    assert mean_length(np.array([10, 30])) == (10 * 10 + 30 * 30) / 40
    assert mean_length(np.array([], dtype=np.int64)) == mean_length(np.zeros(3, dtype=np.int64)) == 0


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("packing", [None, {}])
def test_the_utilisation_is_of_all_devices_and_of_rows_not_packs(
    lab: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int, packing: dict[str, Any] | None
) -> None:
    config = make_config("causal_lm", training={"packing": packing})
    job = make_job(config, lab, world=World(), source=None)
    lengths_N = (
        job.train_data.sequences if isinstance(job.train_data, PackedRows) else job.train_data
    ).token_counts_N.astype(float)
    assert (packing is None) == (len(lengths_N) == len(job.train_data))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    job = replace(job, device=torch.device("cuda"))
    world = World(size=world_size, local_size=world_size)
    throughput = _measure(job, CostMeter(tmp_path / "cost.json", usd_per_hour=None), world)
    state = State(job.model, build_optimizer(job.model, config.training.optimizer))
    result = StepResult(torch.zeros(()), torch.zeros(()), 0.01, 64, 640, 1_000_000, 0.0)
    clock = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    throughput(state, result)  # is left out
    clock = 102.0
    throughput(state, result)
    num_weights = 4 * 16 * 16 + 3 * 16 * 64 + 16 * len(job.model.get_buffer("unigram_log_probs_V"))
    length = (lengths_N**2).sum() / lengths_N.sum()
    done = 1_000_000 * (6 * num_weights + 6 * length * 16)
    assert throughput.report()["model_flops_utilisation"] == pytest.approx(done / 2 / (world_size * 19.5e12))
