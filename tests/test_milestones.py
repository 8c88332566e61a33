"""A checkpoint holds the state of its step, though half of it is copied beside the next one."""

import threading
from pathlib import Path

import pytest
import torch
from torch import nn, optim

from nexa_models.checkpoint import Checkpoint, load_checkpoint
from nexa_models.spec import ModelSpec
from nexa_train.distributed.group import Group
from nexa_train.distributed.world import World
from nexa_train.milestones import WholeState
from nexa_train.saving import Writer

SPEC = ModelSpec({"name": "mlp"}, "features", (), None, None)
SHORT_SECONDS = 0.2


def step(model: nn.Module, optimizer: optim.Optimizer) -> None:
    model(torch.ones(2, 300)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_next_step_waits_until_the_optimizer_is_copied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(300, 200)
    optimizer = optim.AdamW(model.parameters(), fused=True)
    step(model, optimizer)
    checkpoint = Checkpoint({}, SPEC, {}, "", 1, (), model.state_dict(), optimizer.state_dict())
    weight, moment = model.weight.detach().clone(), optimizer.state[model.weight]["exp_avg"].clone()
    write = WholeState(Group(World()), check=lambda: None).copy(checkpoint, model, optimizer)
    assert write is not None
    training = threading.Thread(target=step, args=(model, optimizer))
    training.start()
    training.join(SHORT_SECONDS)
    assert training.is_alive()  # at the update: nothing is copied yet
    assert torch.equal(model.weight, weight)
    write(tmp_path / "one.pt")
    training.join()
    assert not torch.equal(model.weight, weight)
    saved = load_checkpoint(tmp_path / "one.pt")
    assert torch.equal(saved.model["weight"], weight)
    assert torch.equal(saved.optimizer["state"][0]["exp_avg"], moment)


def test_a_step_without_a_checkpoint_waits_for_nobody(tmp_path: Path) -> None:
    model = nn.Linear(300, 200)
    optimizer = optim.AdamW(model.parameters(), fused=True)
    keeper = WholeState(Group(World()), check=lambda: None)
    for number in range(2):
        checkpoint = Checkpoint({}, SPEC, {}, "", number, (), model.state_dict(), optimizer.state_dict())
        write = keeper.copy(checkpoint, model, optimizer)
        assert write is not None
        write(tmp_path / f"{number}.pt")
        step(model, optimizer)
        step(model, optimizer)
    assert not load_checkpoint(tmp_path / "0.pt").optimizer["state"]
    assert int(load_checkpoint(tmp_path / "1.pt").optimizer["state"][0]["step"]) == 2


def test_a_write_that_fails_before_it_copies_ends_the_training() -> None:
    model = nn.Linear(300, 200)
    optimizer = optim.AdamW(model.parameters(), fused=True)
    step(model, optimizer)
    checkpoint = Checkpoint({}, SPEC, {}, "", 1, (), model.state_dict(), optimizer.state_dict())
    with pytest.raises(OSError, match="no room"), Writer() as writer:
        WholeState(Group(World()), check=writer.check).copy(checkpoint, model, optimizer)
        writer.begin(fail)
        step(model, optimizer)


def fail() -> None:
    raise OSError("no room")
