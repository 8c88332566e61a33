"""Many processes: the same bytes as one, stopped and continued at another number, told to end, killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store

from nexa_core.config import RunConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_core.trackers import read_json_lines
from nexa_models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nexa_models.encoding import Batch
from nexa_models.spec import ModelSpec
from nexa_train.checkpoints import newest_checkpoint
from nexa_train.distributed.group import Group, join
from nexa_train.distributed.strategies import Exact, sum_strided
from nexa_train.distributed.world import World, read_world
from nexa_train.feed import StepData
from nexa_train.finish import PASS_SECONDS
from nexa_train.start import require_shared
from nexa_train.train import run
from tests.labs import make_config, write_config
from tests.ranks import Ranks, free_port
from tests.test_training import files_of, only_run

LAUNCH = Path(__file__).parent.parent / "scripts" / "launch_ddp.sh"
MARGIN_SECONDS = 10.0  # for a machine that is busy with other tests
LANGUAGE_MODEL: dict[str, Any] = {"training": {"epochs": 3, "checkpoints": {"every_steps": 3}, "packing": {}}}


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of it."""
    root = tmp_path_factory.mktemp("alone") / "lab"
    shutil.copytree(prepared, root)
    return files_of(run(config_of(1), layout=Layout(root)).run.path)


def config_of(world_size: int, **training: Any) -> RunConfig:
    changes = {**LANGUAGE_MODEL["training"], "batch_size": 16, "distributed": {"world_size": world_size}, **training}
    return make_config("causal_lm", training=changes)


def start(config: RunConfig, lab: Layout, tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """`train` as a user starts it."""
    path = write_config(tmp_path / f"run_{config.training.distributed.world_size}.yaml", config)
    command = [sys.executable, "-m", "nexa_train.train", "--config", str(path), "--resume", *options]
    environment = {**os.environ, "NEXA_ROOT": str(lab.root)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(lab: Layout, step: int) -> None:
    """Until the run has a checkpoint of that step or a later one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for last in lab.runs.glob("*/*/checkpoints/last.pt"):
            if load_checkpoint(last).step >= step:
                return
        time.sleep(0.05)
    raise AssertionError("the run did not come that far")


def worker_of_rank(launcher: int, rank: int) -> int:
    """The process id of a launcher's worker."""
    workers = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=True).stdout.split()
    for worker in workers:
        if f"RANK={rank}".encode() in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0"):
            return int(worker)
    raise AssertionError(f"no worker of rank {rank}")


# One run and one checkpoint for all


def step_checkpoints(folder: Path, *, weight: float = 0.0) -> Path:
    """A folder with the checkpoints of steps 1 and 2; returns the newest."""
    spec = ModelSpec({"name": "mlp"}, "features", (), None, None)
    for step in (1, 2):
        path = folder / f"checkpoint_step{step}.pt"
        save_checkpoint(path, Checkpoint({}, spec, {}, "", step, (), {"weight": torch.tensor(weight)}, {}))
    return path


def find_newest(world: World, store: Store, folders: list[Path]) -> None:
    with join(world, store=store, device=torch.device("cpu"), timeout_seconds=10) as group:
        found = newest_checkpoint(folders[world.rank], 10, group)
        assert found is not None
        print(f"step {found[1].step}")
        group.wait_for_all()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("damaged", "checkpoint_step2.pt is damaged"),
        ("gone", "No checkpoint"),
        ("another", "checkpoint_step2.pt has the digest"),
    ],
)
def test_a_process_that_does_not_find_rank_0s_checkpoint_is_named_and_none_goes_on(
    tmp_path: Path, fault: str, says: str
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    step_checkpoints(folders[0])
    newest = step_checkpoints(folders[1], weight=float(fault == "another"))
    if fault == "damaged":
        damage(newest)
    if fault == "gone":
        newest.unlink()
    with Ranks(tmp_path, find_newest, folders) as ranks:
        assert ranks.wait() == {0: 4, 1: 4}
        said = ranks.said(0)
        assert said == ranks.said(1)
    assert said.startswith("error: rank 1 of 2 (node 0): ")
    assert says in said
    assert "Rank 0 continues at its own checkpoint_step2.pt" in said


def test_all_processes_fall_back_together_where_rank_0s_newest_checkpoint_is_damaged(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    damage(step_checkpoints(folders[0]))
    step_checkpoints(folders[1])
    with Ranks(tmp_path, find_newest, folders) as ranks:
        assert ranks.wait() == {0: 0, 1: 0}
        assert ranks.said(1).endswith("step 1\n")


def share(world: World, store: Store, folders: list[Path]) -> None:
    with join(world, store=store, device=torch.device("cpu"), timeout_seconds=10) as group:
        require_shared(RunFolder(folders[world.rank % len(folders)]), group, wait_seconds=0.2)
        group.wait_for_all()


def test_a_process_that_does_not_see_the_run_folder_of_rank_0_is_named(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with Ranks(tmp_path, share, folders[:1]) as ranks:
        assert ranks.wait() == {0: 0, 1: 0}
    assert not list(folders[0].iterdir())
    with Ranks(tmp_path, share, folders) as ranks:
        assert ranks.wait() == {0: 4, 1: 4}
        says = f"error: rank 1 of 2 (node 0): does not see what rank 0 writes to {folders[1]}. Let every node share"
        assert says in ranks.said(0)


def start_rank(rank: int, port: int, lab: Layout, tmp_path: Path, config: RunConfig) -> subprocess.Popen[str]:
    """`train` as a launcher starts one of two processes, each on a node of its own."""
    path = write_config(tmp_path / f"rank_{rank}.yaml", config)
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NEXA_ROOT": str(lab.root),
    }
    command = [sys.executable, "-m", "nexa_train.train", "--config", str(path), "--resume"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("finished", [False, True])
def test_a_node_with_a_stale_copy_of_the_laboratory_is_named_before_anything_is_trained(
    lab: Layout, tmp_path: Path, finished: bool
) -> None:
    stale = Layout(tmp_path / "stale")
    shutil.copytree(lab.root, stale.root)
    config = config_of(2, distributed={"world_size": 2, "timeout_seconds": 30}, max_steps=1)
    done = run(config_of(1, max_steps=1), layout=lab)
    if not finished:
        done.manifest_path.unlink()
    port = free_port()
    ranks = [start_rank(rank, port, where, tmp_path, config) for rank, where in enumerate((lab, stale))]
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [4, 4], said
    theirs = f"{done.run.run_id}{', which is finished' if finished else ''}"
    for says in said:
        assert f"run: differs: rank 1 (host {os.uname().nodename}) has a new one; rank 0 has {theirs}" in says


# Who cannot begin


def train_as_rank(world: World, store: Store, root: Path, port: int, configs: list[RunConfig]) -> None:
    os.environ |= {"RANK": str(world.rank), "WORLD_SIZE": str(world.size), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"GROUP_RANK": str(world.rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run(configs[world.rank], layout=Layout(root))


SOUND: dict[str, Any] = {"training": {"device": "cpu"}}
WITHOUT_GPU: dict[str, Any] = {"training": {"device": "cuda"}}
WRONG: dict[str, Any] = {"data": {"dataset": "no_such_data"}}
NO_GPU = "start: training.device is cuda and no GPU is visible to torch; check nvidia-smi, or set it to auto or cpu.\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ([SOUND, WITHOUT_GPU], 4, f"): {NO_GPU}"),
        ([WITHOUT_GPU, SOUND], 4, f"): {NO_GPU}"),
        ([WITHOUT_GPU, WITHOUT_GPU], 4, NO_GPU.removeprefix("start: ")),
        ([SOUND, WRONG], 4, "start: No training dataset no_such_data"),
        ([WRONG, WRONG], 2, "error: No training dataset no_such_data"),
    ],
    ids=["a GPU is missing", "rank 0's is", "all are", "one has no dataset", "none has"],
)
def test_what_keeps_one_process_from_beginning_is_heard_by_all_and_a_mistake_of_all_is_the_users(
    lab: Layout, tmp_path: Path, changes: list[dict[str, Any]], code: int, says: str
) -> None:
    configs = [make_config("mlp", **change) for change in changes]
    with Ranks(tmp_path, train_as_rank, lab.root, free_port(), configs) as ranks:
        assert ranks.wait() == {0: code, 1: code}
        for rank in (0, 1):
            assert says in ranks.said(rank)
            assert "differs" not in ranks.said(rank)
    kept = lab.logs / "test_mlp_health.json"
    assert kept.exists() == (SOUND in changes)
    if kept.exists():
        found = json.loads(kept.read_text())
        assert not found["fit"]
        assert len(found["nodes"]) == 2
        assert says.removeprefix("): ").rstrip() in found["problems"][0]


def test_every_batch_of_the_scoring_is_a_sign_of_progress(lab: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr("nexa_train.distributed.heartbeat.Heartbeat.renew", lambda self, limit: limits.append(limit))
    result = run(make_config("mlp", training={"max_steps": 1}, evaluation={"batch_size": 10}), layout=lab)
    num_rows = pq.read_metadata(result.run.predictions).num_rows
    assert limits.count(PASS_SECONDS) >= num_rows // 10
    assert limits[-1] > PASS_SECONDS


# The sum


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 13])
def test_the_tree_adds_the_same_pairs_for_any_number_of_processes(count: int) -> None:
    """Held on floats whose sum depends on the order."""
    leaves = np.random.default_rng(count).normal(size=count).astype(np.float32)

    def leaf(index: int, onto: np.float32 | None) -> np.float32:
        return leaves[index] if onto is None else onto + leaves[index]

    def of_class(start: int, stride: int) -> np.float32 | None:
        return sum_strided(leaf, lambda one, other: one + other, start, stride, count)

    whole = of_class(0, 1)
    for size in (2, 4, 8):
        parts = [of_class(rank, size) for rank in range(size)]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [
                one if other is None else one + other for one, other in zip(parts[:half], parts[half:], strict=True)
            ]
        assert parts == [whole]


def test_a_weight_that_a_microbatch_does_not_reach_gets_the_same_gradient_wherever_it_is_added() -> None:
    """Held on minus zero, which plus zero would change."""
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    minus_zero = torch.tensor([-0.0])

    def learn(model: nn.Module, batch: Batch, index: int, *, weight: float = 1.0) -> Tensor:
        (weights[index % 2] * minus_zero).sum().backward()
        return torch.tensor(1.0)

    for count in (1, 2, 3, 4):
        for each in weights:
            each.grad = None
        batch = Batch(inputs={}, targets=torch.zeros(0))
        step = StepData(0, dict.fromkeys(range(count), batch), count, count, count, 0, None)
        loss = Exact(nn.Module(), weights, Group(World())).run(step, learn)
        assert loss == count
        for each in weights:
            assert each.grad is not None
            assert torch.signbit(each.grad)


# The processes


def test_a_launchers_variables_say_which_process_this_is() -> None:
    assert read_world({}) == World()
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
    assert read_world(variables) == World(5, 8, 1, 4, node=1, num_nodes=2)
    with pytest.raises(UserError, match="have to be numbers"):
        read_world({**variables, "RANK": "first"})
    with pytest.raises(UserError, match="rank 9 of 8"):
        read_world({**variables, "RANK": "9"})


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_processes_gives_the_bytes_of_one(lab: Layout, alone: dict[str, bytes], world_size: int) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    result = run(config_of(world_size), layout=lab)
    assert files_of(result.run.path) == alone
    assert signal.getsignal(signal.SIGTERM) == handler


def test_two_nodes_give_the_bytes_of_one(lab: Layout, alone: dict[str, bytes], tmp_path: Path) -> None:
    """Two rendezvous on the loopback interface, each with a launcher and a process of its own."""
    path = write_config(tmp_path / "run.yaml", config_of(1))
    port = free_port()
    nodes = [
        subprocess.Popen(
            ["bash", str(LAUNCH), "--config", str(path)],
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "NEXA_ROOT": str(lab.root),
                "NPROC_PER_NODE": "1",
                "NNODES": "2",
                "NODE_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert files_of(only_run(lab)) == alone
    assert "manifest runs/manifests/" in said[0][0]
    assert said[1][0] == ""  # one process speaks for all
    health = json.loads((only_run(lab) / "health.json").read_text())
    assert [node["node"] for node in health["nodes"]] == [0, 1]


def test_a_run_told_to_end_at_two_processes_is_continued_by_one(
    lab: Layout, alone: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(config_of(2), lab, tmp_path)
    wait_for_step(lab, 3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert not list(lab.run_manifests.glob("*.json"))
    result = run(config_of(1), layout=lab, resume=True)
    assert files_of(result.run.path) == alone
    lines = read_json_lines(result.run.step_metrics)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


def test_a_run_of_two_processes_that_is_interrupted_ends_as_one_of_one_does(lab: Layout, tmp_path: Path) -> None:
    process = start(config_of(2, epochs=400), lab, tmp_path)
    wait_for_step(lab, 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("error: interrupted, and so were this node's workers; the same command")
    assert said.count("error:") == 1, "said by one process, not by each"


def test_a_killed_process_ends_all_and_the_same_command_goes_on(
    lab: Layout, alone: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(config_of(2), lab, tmp_path)
    wait_for_step(lab, 3)
    os.kill(worker_of_rank(process.pid, 1), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 4, said
    assert "was killed by signal 9" in said
    again = start(config_of(2), lab, tmp_path)
    out, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert files_of(only_run(lab)) == alone
    assert out.splitlines()[-1].startswith("manifest runs/manifests/causal_lm_")


def test_a_stopped_process_is_named_and_all_end_in_time(lab: Layout, tmp_path: Path) -> None:
    timeout_seconds = 4.0
    config = config_of(2, epochs=400, distributed={"world_size": 2, "timeout_seconds": timeout_seconds})
    process = start(config, lab, tmp_path)
    wait_for_step(lab, 3)
    stopped = worker_of_rank(process.pid, 1)
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    _, said = process.communicate(timeout=120)
    took = time.monotonic() - began
    assert process.returncode == 4, said
    assert "rank 1" in said
    assert "step" in said
    assert took < timeout_seconds + 5 + MARGIN_SECONDS, said
    assert not Path(f"/proc/{stopped}").exists()
    health = json.loads((only_run(lab) / "health.json").read_text())
    assert health["fit"] is True


def test_a_process_told_to_end_finishes_its_step_and_says_how_to_go_on(
    lab: Layout, alone: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(config_of(1), lab, tmp_path)
    wait_for_step(lab, 1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "the same command with --resume continues there" in said
    result = run(config_of(1), layout=lab, resume=True)
    assert files_of(result.run.path) == alone


@pytest.mark.parametrize("strategy", ["ddp"])
def test_the_fast_reduction_learns_the_same_within_rounding(lab: Layout, strategy: str) -> None:
    without_dropout = {"parameters": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 32}}
    runs = {}
    for size in (1, 2):
        distributed = {"world_size": size, "determinism": "fast", "strategy": strategy}
        training = {**LANGUAGE_MODEL["training"], "distributed": distributed, "max_steps": 5}
        config = make_config("causal_lm", training=training, model=without_dropout)
        runs[size] = run(config, layout=lab)
    one, other = (load_checkpoint(result.checkpoint) for result in runs.values())
    assert [entry["loss"] for entry in one.history] == pytest.approx(
        [entry["loss"] for entry in other.history], rel=1e-4
    )
    lineage = json.loads(runs[2].run.lineage.read_text())
    assert lineage["inputs"]["numerics"]["determinism"] == "fast, 2 processes"
