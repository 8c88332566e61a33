"""Sharded models: they learn what whole ones do, and their checkpoints are whole, verified and free of their number."""

import gc
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from nexa_core import durable
from nexa_core.config import RunConfig
from nexa_core.config.training import AdamW, Training
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_models import numerics
from nexa_models.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint, model_of
from nexa_models.lora import saved_state
from nexa_models.sharded import ABOUT, check_files, consolidate, is_sharded, open_checkpoint, read_about
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model
from nexa_train.checkpoints import list_checkpoints, newest_checkpoint
from nexa_train.distributed.group import Group
from nexa_train.distributed.sharding import shard
from nexa_train.distributed.shards import FolderWriter, Shards, load_whole_optimizer, read_shards
from nexa_train.distributed.world import World
from nexa_train.finish import _score, release
from nexa_train.job import make_job
from nexa_train.loop import State
from nexa_train.optim import build_optimizer
from nexa_train.train import run
from scripts.cli import main
from tests import folders
from tests.labs import make_config
from tests.ranks import Ranks, free_port
from tests.test_distributed import start, worker_of_rank
from tests.test_training import losses_of

CPU = torch.device("cpu")
ALONE = World()
PLAIN = Training()
INPUTS = {"ids": torch.arange(24).reshape(2, 12), "at": torch.arange(24)}
SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_tokens": 32}


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    gc.collect()  # other tests fork, and a child that came to free the group would wait for threads it does not have


# How a model is cut


def cut(folder: Path, make: Any = folders.llama, *, training: Training = PLAIN, **settings: Any) -> Any:
    make(folder)
    spec = folders.spec_of(folder, **settings)
    model = build_model(spec, seed=0)
    shard(model, training, world=ALONE, device=CPU, packed=False)
    return model, spec


def units_of(model: nn.Module) -> set[str]:
    return {name.removeprefix("transformer.") for name, unit in model.named_modules() if isinstance(unit, FSDPModule)}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("tied", [True, False])
def test_layers_are_gathered_one_by_one_and_a_shared_embedding_with_the_rest(tmp_path: Path, tied: bool) -> None:
    def make(folder: Path) -> Any:
        return folders.llama(folder, tie_word_embeddings=tied)

    model, _ = cut(tmp_path, make)
    layers = {"", "model.layers.0", "model.layers.1"}
    assert units_of(model) == (layers if tied else layers | {"model.embed_tokens", "lm_head"})
    assert (model.transformer.lm_head.weight is model.transformer.model.embed_tokens.weight) == tied


@pytest.mark.usefixtures("one_process")
def test_in_bfloat16_the_weights_are_gathered_so_and_kept_in_float32(tmp_path: Path) -> None:
    model, _ = cut(tmp_path, training=Training(precision="bfloat16"))
    logits = model(**INPUTS)
    logits.float().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert {weight.grad.dtype for weight in model.parameters() if weight.grad is not None} == {torch.float32}


# The folder


def trained(folder: Path, **settings: Any) -> tuple[Any, torch.optim.Optimizer, ModelSpec]:
    model, spec = cut(folder, **settings)
    optimizer = build_optimizer(model, AdamW(name="adamw", lr=0.01))
    step(model, optimizer)
    return model, optimizer, spec


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.functional.cross_entropy(model(**INPUTS), torch.full((24,), 7)).backward()
    optimizer.step()
    optimizer.zero_grad()


def described(model: nn.Module, optimizer: torch.optim.Optimizer, spec: ModelSpec) -> Checkpoint:
    return Checkpoint({}, spec, {}, "", 1, (), saved_state(model, spec), optimizer.state_dict())


def whole(value: Any) -> Any:
    """A copy of `value` with shards put together."""
    match value:
        case dict():
            return {key: whole(item) for key, item in value.items()}
        case list():
            return [whole(item) for item in value]
        case torch.Tensor():
            return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        case _:
            return value


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


@pytest.fixture
def folder(one_process: None, tmp_path: Path) -> Path:
    """A sharded checkpoint."""
    model, optimizer, spec = trained(tmp_path / "llama")
    path = tmp_path / "run" / "checkpoint_step1.sharded"
    Shards().copy(described(model, optimizer, spec), model, optimizer)(path)
    return path


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 2}}])
def test_a_sharded_checkpoint_holds_what_a_file_holds(tmp_path: Path, settings: dict[str, Any]) -> None:
    model, optimizer, spec = trained(tmp_path / "llama", **settings)
    wanted = whole(vars(described(model, optimizer, spec)))
    path = tmp_path / "checkpoint_step1.sharded"
    write = Shards().copy(described(model, optimizer, spec), model, optimizer)
    step(model, optimizer)  # the copy is of the step before
    write(path)
    found = open_checkpoint(path)
    assert equal(found.model, wanted["model"])
    assert found.optimizer["param_groups"] == wanted["optimizer"]["param_groups"]
    for number, kept in wanted["optimizer"]["state"].items():
        assert all(torch.equal(found.optimizer["state"][number][what], kept[what]) for what in kept)
    assert not [file for file in path.iterdir() if file.suffix not in (".json", ".safetensors")]


@pytest.mark.usefixtures("one_process")
def test_the_same_state_gives_the_same_files(tmp_path: Path) -> None:
    model, optimizer, spec = trained(tmp_path / "llama")
    shards = Shards()
    files = []
    for name in ("one", "two"):
        shards.copy(described(model, optimizer, spec), model, optimizer)(tmp_path / f"{name}.sharded")
        files.append({file.name: file.read_bytes() for file in (tmp_path / f"{name}.sharded").iterdir()})
    assert files[0] == files[1]


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("form", ["sharded", "file"])
def test_a_model_goes_on_from_either_form_as_if_it_had_never_stopped(tmp_path: Path, form: str) -> None:
    model, optimizer, spec = trained(tmp_path / "llama")
    path = tmp_path / "checkpoint_step1.sharded"
    Shards().copy(described(model, optimizer, spec), model, optimizer)(path)
    step(model, optimizer)
    again = build_model(spec, seed=1)
    checkpoint = load_checkpoint(consolidate(path))
    if form == "file":
        again.load_state_dict(checkpoint.model)
    shard(again, Training(), world=ALONE, device=CPU, packed=False)
    other = build_optimizer(again, AdamW(name="adamw", lr=0.01))
    if form == "file":
        load_whole_optimizer(other, checkpoint.optimizer)
    else:
        read_shards(path, again, other, spec, Group(ALONE, dist.group.WORLD))
    step(again, other)
    assert equal(whole(again.state_dict()), whole(model.state_dict()))


def test_a_sharded_checkpoint_is_made_one_file_that_works_by_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    durable.publish(folder, folder.parent / "last.sharded")
    with pytest.raises(UserError, match="nexa consolidate --checkpoint"):
        load_checkpoint(folder.parent / "last.sharded")
    with pytest.raises(SystemExit) as ended:
        main(["consolidate", "--checkpoint", str(folder.parent / "last.sharded")])
    assert ended.value.code == 0
    file = folder.with_suffix(".pt")
    assert capsys.readouterr().out.strip() == str(file)
    assert torch.isfinite(model_of(load_checkpoint(file))(**INPUTS)).all()
    with pytest.raises(UserError, match="one file already"):
        consolidate(file)
    with pytest.raises(UserError, match=r"say which file to write, for example .*last\.pt"):
        consolidate(folder.parent / "last.sharded", folder.parent)


def test_a_small_file_limit_only_cuts_the_files(
    one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer, spec = trained(tmp_path / "llama")
    for name, limit in (("one", 2**32), ("many", 2**14)):
        monkeypatch.setattr("nexa_train.distributed.shards.FILE_BYTES", limit)
        Shards().copy(described(model, optimizer, spec), model, optimizer)(tmp_path / f"{name}.sharded")
    assert len(list((tmp_path / "many.sharded").glob("*.safetensors"))) > 3
    one, many = (open_checkpoint(tmp_path / f"{name}.sharded") for name in ("one", "many"))
    assert equal(one.model, many.model)
    assert equal(one.optimizer, many.optimizer)


DAMAGES = ["flipped", "torn", "gone", "added", "about", "about gone"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_reported_and_the_one_before_it_taken(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    older = folder.with_name("checkpoint_step0.sharded")
    durable.copy(folder, older)
    shard_file = next(folder.glob("*.safetensors"))
    content = bytearray(shard_file.read_bytes())
    match damage:
        case "flipped":
            content[len(content) // 2] ^= 1
            shard_file.write_bytes(content)
        case "torn":
            shard_file.write_bytes(content[:-1])
        case "gone":
            shard_file.unlink()
        case "added":
            (folder / "shard-00009-00001.safetensors").write_bytes(content)
        case "about":
            text = (folder / ABOUT).read_text()
            (folder / ABOUT).write_text(text.replace('"step": 1', '"step": 2'))
        case "about gone":
            (folder / ABOUT).unlink()
    with pytest.raises(DamagedCheckpoint):
        open_checkpoint(folder)
    found = newest_checkpoint(folder.parent, 10, Group(ALONE), in_parts=True)
    assert found is not None
    assert found[0] == older
    assert not found[1].model
    assert "damaged" in caplog.text
    assert "Falling back" in caplog.text
    found = newest_checkpoint(folder.parent, 10, Group(ALONE))
    assert found is not None
    assert found[0] == older
    assert found[1].model


def test_processes_share_the_verification(folder: Path) -> None:
    about = read_about(folder)
    next(folder.glob("*.safetensors")).write_bytes(b"")
    check_files(folder, about, share=1, num_shares=2)  # the one file is the other's
    with pytest.raises(DamagedCheckpoint, match="digest"):
        check_files(folder, about, share=0, num_shares=2)


def test_a_folder_that_was_not_finished_is_no_checkpoint_and_is_cleared_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill leaves it: after the shards were written, before the folder had its name."""
    later = folder.with_name("checkpoint_step2.sharded")
    unfinished = durable.begin_folder(later)
    shutil.copy(next(folder.glob("*.safetensors")), unfinished)
    assert list_checkpoints(folder.parent, 10) == [(1, folder)]
    durable.remove_partial_files(folder.parent)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_fails_in_a_process_is_raised_and_leaves_no_checkpoint(
    one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer, spec = trained(tmp_path / "llama")
    write = Shards().copy(described(model, optimizer, spec), model, optimizer)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FolderWriter, "write_data", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "checkpoint_step1.sharded")
    assert list_checkpoints(tmp_path, 10) == []


@pytest.mark.usefixtures("one_process")
def test_a_weight_that_cannot_be_cut_is_named_before_a_run_begins(
    lab: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "import torch\n"
        "def scaled(spec):\n"
        "    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "    model.scale = torch.nn.Parameter(torch.ones(()))\n"
        "    return model\n"
    )
    (tmp_path / "scaled_model.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    config = make_config(
        "mlp",
        model={"name": "scaled_model:scaled", "parameters": {}},
        training={"distributed": {"world_size": 2, "strategy": "fsdp"}},
    )
    with pytest.raises(UserError, match="cannot cut 'scale'"):
        run(config, layout=lab)
    assert not lab.runs.exists()


# The end of a run


@pytest.mark.usefixtures("one_process")
def test_the_optimizer_and_what_was_gathered_are_gone_before_the_result_is_scored(tmp_path: Path) -> None:
    model, optimizer, _ = trained(tmp_path)
    model(**INPUTS)  # the root's weights stay gathered after it
    assert not all(isinstance(weight, DTensor) for weight in model.parameters())
    release(State(model, optimizer), is_sharded=True)
    assert all(isinstance(weight, DTensor) and weight.device == CPU for weight in model.parameters())
    assert not optimizer.state


def test_a_result_too_large_for_one_gpu_is_scored_on_the_processors(
    lab: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(make_config("mlp"), lab, world=ALONE, source=None)
    wanted = _score(job, job.model)
    forward, failed = job.model.forward, []

    def full_at_first(features: torch.Tensor) -> torch.Tensor:
        if not failed:
            failed.append(True)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return cast(torch.Tensor, forward(features))

    monkeypatch.setattr(job.model, "forward", full_at_first)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        _score(job, job.model)
    failed.clear()
    caplog.set_level("INFO")
    predictions, scores = _score(replace(job, is_sharded=True), job.model)
    assert (predictions, scores) == wanted
    assert "scored on the processors" in caplog.text


# Two processes


def fsdp(size: int, model: str = "causal_lm", sections: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    """A run without dropout, whose draws depend on the cut into microbatches."""
    given = {"model": {"parameters": SIZES}} if model == "causal_lm" else {}
    changes = {
        "batch_size": 16,
        "max_steps": 5,
        "max_gradient_norm": 0.5,
        **training,
        "distributed": {"world_size": size, "strategy": "fsdp"},
    }
    return make_config(model, **{**given, **(sections or {})}, training=changes)


def variants(size: int, llama: Path, bert: Path) -> dict[str, RunConfig]:
    adapted = {
        "model": {"name": "causal_lm", "path": str(llama), "lora": {"rank": 4}, "parameters": {"max_tokens": 32}}
    }
    untied = {"model": {"name": "causal_lm", "path": str(llama), "parameters": {"max_tokens": 32}}}
    encoder = {
        "model": {"name": "encoder_classifier", "path": str(bert), "parameters": {"max_tokens": 32}},
        "data": {"dataset": "topics"},
    }
    return {
        "packed": fsdp(size, packing={}, gradient_accumulation_steps=2),
        # Five microbatches: in each step one process makes a pass of no weight.
        "accumulated": fsdp(size, gradient_accumulation_steps=5, activation_checkpointing=True),
        "compiled": fsdp(size, packing={}, gradient_accumulation_steps=2, compile=True),
        "adapters": fsdp(size, sections=adapted, gradient_accumulation_steps=4),
        "untied": fsdp(size, sections=untied, gradient_accumulation_steps=4),
        "encoder": fsdp(size, sections=encoder, gradient_accumulation_steps=2),
        "mlp": fsdp(size, "mlp", gradient_accumulation_steps=2),
        "sgd": fsdp(size, "mlp", gradient_accumulation_steps=2, optimizer={"name": "sgd", "lr": 0.1}),
        "bfloat16": fsdp(size, gradient_accumulation_steps=2, precision="bfloat16"),
    }


def train_all(world: World, store: Any, root: Path, orders: list[tuple[str, int, dict[str, Any]]], done: Path) -> None:
    """One process's part of some runs."""
    torch.set_num_threads(1)
    numerics.has_bfloat16 = lambda device: True  # as in the tests' own process
    place = {"RANK": world.rank, "WORLD_SIZE": world.size, "LOCAL_RANK": world.rank, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in place.items()})
    runs = []
    for config, port, options in orders:
        os.environ["MASTER_PORT"] = str(port)
        result = run(RunConfig.model_validate_json(config), layout=Layout(root), **options)
        runs.append(str(result.run.path))
    if world.is_main:
        done.write_text(json.dumps(runs))


def together(lab: Layout, tmp_path: Path, *orders: tuple[RunConfig, dict[str, Any]]) -> list[Path]:
    """The folders of runs that two processes made, one after the other."""
    tmp_path.mkdir(exist_ok=True)
    listed = [(json.dumps(config.resolved()), free_port(), options) for config, options in orders]
    with Ranks(tmp_path, train_all, lab.root, listed, tmp_path / "done") as ranks:
        codes = ranks.wait(seconds=300)
        assert set(codes.values()) == {0}, [ranks.said(rank)[-3000:] for rank in codes]
    return [Path(path) for path in json.loads((tmp_path / "done").read_text())]


@pytest.mark.slow
def test_two_processes_with_a_shard_each_learn_what_one_learns_with_the_whole(lab: Layout, tmp_path: Path) -> None:
    folders.llama(tmp_path / "llama", tie_word_embeddings=False)
    folders.bert(tmp_path / "bert")
    paths = tmp_path / "llama", tmp_path / "bert"
    sharded = together(lab, tmp_path / "ranks", *((config, {}) for config in variants(2, *paths).values()))
    for (name, config), folder in zip(variants(1, *paths).items(), sharded, strict=True):
        alone = run(config, layout=lab)
        one = load_checkpoint(alone.checkpoint)
        (other,) = (load_checkpoint(path) for path in (folder / "checkpoints").glob("checkpoint_*.pt"))
        bound = 0.02 if name == "bfloat16" else 1e-4
        lines = [
            [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            for path in (alone.run.path, folder)
        ]
        for ours, theirs in zip(*lines, strict=True):
            assert theirs == pytest.approx(ours, rel=bound), name
        assert one.model.keys() == other.model.keys()
        assert list(one.optimizer["state"]) == list(other.optimizer["state"])
        for ours, theirs in zip(one.optimizer["param_groups"], other.optimizer["param_groups"], strict=True):
            assert {**ours, "fused": None} == {**theirs, "fused": None}
        if name != "bfloat16":
            for weight in one.model:
                torch.testing.assert_close(one.model[weight], other.model[weight], rtol=5e-3, atol=1e-4, msg=name)


def sharded_files(folder: Path) -> dict[str, bytes]:
    """What a run has to reproduce, by name: its numbers and every file of its checkpoints."""
    names = ["metrics.json", "metrics.jsonl", "predictions.parquet"]
    files = [path for path in (folder / "checkpoints").rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*(folder / name for name in names), *files]}


def wait_for_file(lab: Layout, name: str) -> None:
    deadline = time.monotonic() + 120
    while not list(lab.runs.glob(f"*/*/checkpoints/{name}")):
        assert time.monotonic() < deadline, f"the run never came to {name}"
        time.sleep(0.02)


LONG: dict[str, Any] = {"packing": {}, "epochs": 4, "max_steps": None, "checkpoints": {"every_steps": 3}}
WITH_DROPOUT = {"model": {"parameters": {**SIZES, "dropout": 0.1}}}


@pytest.mark.slow
def test_a_run_told_to_end_or_killed_goes_on_to_the_bytes_of_an_uninterrupted_one(
    lab: Layout, prepared: Path, tmp_path: Path
) -> None:
    config = fsdp(2, sections=WITH_DROPOUT, **LONG)
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    (uninterrupted,) = together(Layout(other), tmp_path / "ranks", (config, {}))

    process = start(config, lab, tmp_path)
    wait_for_file(lab, "checkpoint_step3.sharded")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said

    process = start(config, lab, tmp_path)
    wait_for_file(lab, "checkpoint_epoch1.sharded")
    os.kill(worker_of_rank(process.pid, 1), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 4, said

    (resumed,) = together(lab, tmp_path / "again", (config, {"resume": True}))
    assert sharded_files(resumed) == sharded_files(uninterrupted)
    assert not list(resumed.rglob(".*.partial"))


@pytest.mark.slow
def test_a_checkpoint_is_continued_at_another_number_of_processes_and_back(lab: Layout, tmp_path: Path) -> None:
    whole = run(fsdp(1, gradient_accumulation_steps=2, epochs=4, max_steps=None, keep="last"), layout=lab)
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "max_steps": None, "keep": "last"}
    (first,) = together(lab, tmp_path / "first", (fsdp(2, **settings, epochs=1), {}))
    begun = first / "checkpoints" / "last.sharded"
    second = run(fsdp(1, **settings, epochs=2), layout=lab, resume_from=begun)
    assert not is_sharded(second.checkpoint)
    (third,) = together(lab, tmp_path / "third", (fsdp(2, **settings, epochs=3), {"resume_from": second.checkpoint}))
    (fourth,) = together(
        lab,
        tmp_path / "fourth",
        (fsdp(2, **settings, epochs=4), {"resume_from": third / "checkpoints" / "last.sharded"}),
    )
    one, other = (load_checkpoint(path / "checkpoints" / "last.pt") for path in (whole.run.path, fourth))
    assert [entry["loss"] for entry in other.history] == pytest.approx(
        [entry["loss"] for entry in one.history], rel=1e-3
    )
    assert losses_of(whole.run)[0] > other.history[-1]["loss"]
    for path in ("last.pt", "checkpoint_epoch3.pt"):
        assert (lab.checkpoints / path).exists()
