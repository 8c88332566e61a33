"""The room for checkpoints that training asks for: what is really written, and what is not there already."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nexa_core.config.training import Adam, AdamW, Optimizer, Sgd
from nexa_core.paths import Layout
from nexa_models.lora import saved_state
from nexa_models.table import build_model
from nexa_ops.preflight import examine
from nexa_train.distributed.world import World
from nexa_train.job import make_job
from nexa_train.optim import build_optimizer, state_bytes
from nexa_train.room import checkpoint_bytes, count_checkpoints, room_needed
from nexa_train.train import run
from tests import folders
from tests.labs import make_config


@pytest.mark.parametrize(
    "chosen",
    [Adam(name="adam"), AdamW(name="adamw"), Sgd(name="sgd"), Sgd(name="sgd", momentum=0.0)],
    ids=["adam", "adamw", "sgd", "sgd without momentum"],
)
def test_what_an_optimizer_will_keep_is_known_before_its_first_step(chosen: Optimizer) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, chosen)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    kept = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    assert state_bytes(model, chosen) == sum(value.nbytes for value in kept if value is not None)


def test_of_a_model_with_adapters_the_base_takes_no_room(tmp_path: Path) -> None:
    folders.llama(tmp_path)
    spec = folders.spec_of(tmp_path, lora={"rank": 2})
    model = build_model(spec)
    adapters = [weight for weight in model.parameters() if weight.requires_grad]
    buffers = [tensor for name, tensor in saved_state(model, spec).items() if "lora" not in name]
    wanted = sum(3 * weight.nbytes + 4 for weight in adapters) + sum(tensor.nbytes for tensor in buffers)
    assert checkpoint_bytes(model, spec, AdamW(name="adamw")) == wanted
    assert wanted < sum(weight.nbytes for weight in model.parameters()) / 2


def test_weights_that_are_one_take_room_once(lab: Layout) -> None:
    result = run(make_config("causal_lm", training={"max_steps": 2}), layout=lab)
    job = make_job(make_config("causal_lm"), lab, world=World(), source=None)
    size = checkpoint_bytes(job.model, job.spec, job.config.training.optimizer)
    spec_and_index = 30_000
    assert size < result.checkpoint.stat().st_size < size + spec_and_index


@pytest.mark.parametrize("training", [{"epochs": 5}, {"epochs": 5, "early_stopping": {"patience_epochs": 1}}])
def test_a_run_asks_for_what_preflight_asks_for(lab: Layout, training: dict[str, Any]) -> None:
    config = make_config("mlp", training=training)
    job = make_job(config, lab, world=World(), source=None)
    said = examine(config, lab).forecast
    assert said is not None
    num_epochs = 2 if "early_stopping" in training else 5
    asked = room_needed(job, folder=None)
    assert asked == said.checkpoints.needed_bytes == num_epochs * said.checkpoints.size_bytes


def test_a_sharded_run_needs_room_for_the_file_that_is_made_of_its_result(lab: Layout) -> None:
    job = make_job(make_config("mlp"), lab, world=World(), source=None)  # two epochs, both kept
    whole, sharded = room_needed(job, folder=None), room_needed(replace(job, is_sharded=True), folder=None)
    assert sharded == whole * 3 / 2


def test_a_run_that_goes_on_asks_only_for_what_is_not_there_yet(lab: Layout) -> None:
    config = make_config("mlp", training={"epochs": 5})
    folder = run(config, layout=lab).run.checkpoints
    job = make_job(config, lab, world=World(), source=None)
    size = checkpoint_bytes(job.model, job.spec, config.training.optimizer)
    whole = count_checkpoints(job.plan, config.training, job.spec, tensor_bytes=size, is_sharded=False)

    def asked() -> int:
        return room_needed(job, folder=folder)

    assert asked() == whole.size_bytes  # all are there: only the one that takes the place of an older one
    for epoch in (2, 3, 4):
        (folder / f"checkpoint_epoch{epoch}.pt").unlink()
    there = sum((folder / f"checkpoint_epoch{epoch}.pt").stat().st_size for epoch in (0, 1))
    assert asked() == whole.needed_bytes - there
