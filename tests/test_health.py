"""Health: each planted fault is found, on every rank, with the node named and what to do about it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import is_nccl_available
from torch.distributed.distributed_c10d import PrefixStore, Store

from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_ops.doctor_distributed import examine_together
from nexa_train.distributed import node_checks
from nexa_train.distributed.collectives import (
    check_collectives,
    find_partner,
    partners_of,
    seeded_product,
    swap_with,
)
from nexa_train.distributed.facts import describe_node, driver_version
from nexa_train.distributed.gpu_errors import memory_errors, xid_errors
from nexa_train.distributed.health import Check, name_ranks, share_health
from nexa_train.distributed.node_checks import check_node
from nexa_train.distributed.store import read_endpoint
from nexa_train.distributed.world import World
from scripts.lab_commands import doctor
from tests.labs import make_config, write_config
from tests.ranks import Ranks, free_port

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
TIMEOUT_SECONDS = 10.0  # where nobody is missing it is never waited for
SHORT_TIMEOUT_SECONDS = 1.0
ALONE = World()


class Usage(NamedTuple):
    total: int
    used: int
    free: int


# One node, before it joins.


def checks_of(tmp_path: Path, *, world: World = ALONE, device: torch.device = CPU, **changes: int) -> dict[str, Check]:
    checks = check_node(world, folder=tmp_path, device=device, endpoint=None, **{"need_bytes": 0, **changes})
    return {check.name: check for check in checks}


def test_a_sound_node_passes_every_check_and_nothing_is_left_behind(tmp_path: Path) -> None:
    checks = checks_of(tmp_path / "not" / "there")
    assert [name for name, check in checks.items() if check.failed] == []
    assert {"device", "memory", "disk", "fsync", "shared memory", "open files"} <= checks.keys()
    assert not list(tmp_path.iterdir())


def test_too_little_disk_memory_or_open_files_is_named_with_both_numbers(tmp_path: Path) -> None:
    needy = checks_of(tmp_path, need_bytes=2**60, need_memory_bytes=2**60)
    assert needy["disk"].failed
    assert "(1073741824.0 GiB needed)" in needy["disk"].says
    assert needy["memory"].failed
    many = checks_of(tmp_path, world=World(size=10**9))
    assert many["open files"].failed
    assert "ulimit -n 4000000508" in many["open files"].do


def test_a_nearly_full_disk_fails_even_when_little_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**40, 2**40 - 2**20, 2**20))
    assert checks_of(tmp_path)["disk"].failed
    assert not checks_of(tmp_path)["shared memory"].failed  # ranks on CPUs use none
    assert checks_of(tmp_path, world=World(0, 2, 0, 2), device=GPU)["shared memory"].failed


def test_a_folder_where_fsync_fails_or_takes_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    failed = checks_of(tmp_path / "file")["fsync"]
    assert (failed.passed, failed.says) == (False, f"{tmp_path / 'file'}: Not a directory")
    monkeypatch.setattr(node_checks, "FSYNC_LIMIT_SECONDS", 0.0)
    assert checks_of(tmp_path)["fsync"].failed


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_torch_cannot_see_is_named(tmp_path: Path) -> None:
    check = checks_of(tmp_path, device=GPU)["device"]
    assert check.failed
    assert "0 GPUs are visible" in check.says
    assert "CUDA_VISIBLE_DEVICES" in check.do


def test_a_port_that_does_not_answer_and_a_host_without_address_are_named(tmp_path: Path) -> None:
    def rendezvous(host: str, port: int, node: int = 1) -> Check:
        world = World(1, 2, 0, 1, node=node, num_nodes=2)
        checks = check_node(
            world, folder=tmp_path, need_bytes=0, device=CPU, endpoint=(host, port), endpoint_seconds=0.3
        )
        return checks[-1]

    port = free_port()
    closed = rendezvous("127.0.0.1", port)
    assert closed.failed
    assert f"127.0.0.1:{port} does not answer within 0.3 s: Connection refused" in closed.says
    assert "MASTER_ADDR" in closed.do
    assert rendezvous("no-such-host.invalid", port).failed
    with socket.create_server(("127.0.0.1", port)):
        assert rendezvous("127.0.0.1", port).passed
    assert rendezvous("127.0.0.1", port, node=0).name != "rendezvous"  # rank 0's own node opens it


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Put programs of these names, and shell code for each, in front of the real ones."""
    for name, code in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("code", "passed", "says"),
    [
        ("echo '0, GPU-a, 0, No, No'", True, "no uncorrected errors on 1 GPU"),
        ("echo '0, GPU-a, 3, No, No'", False, "GPU 0 (GPU-a) has 3 uncorrected memory errors since"),
        ("echo '0, GPU-a, 0, Yes, No'", False, "Yes memory rows waiting to be remapped"),
        ("echo '0, GPU-a, 0, No, No'; echo '1, GPU-b, 9, No, No'", True, "no uncorrected errors on 1 GPU"),
        ("echo '0, GPU-a, [N/A], [N/A], [N/A]'", None, "not readable: 1 GPUs count no memory errors"),
        ("echo '0, GPU-a, 0, No, No'; echo 'WARNING: infoROM is corrupted'", True, "no uncorrected errors on 1 GPU"),
        ("echo 'WARNING: infoROM'; echo '0, GPU-a, 3, No, No'", False, "GPU 0 (GPU-a) has 3 uncorrected"),
        ("echo 'No devices were found'", None, "not readable: nvidia-smi said 'No devices were found'"),
        ("echo '0, GPU-a, 0'", None, "not readable: nvidia-smi said '0, GPU-a, 0'"),
        ("true", None, "not readable: nvidia-smi said 'no output'"),
        ("echo 'Unable to determine the device handle'; exit 15", False, "nvidia-smi ended with 15: Unable to"),
    ],
)
def test_a_gpus_memory_errors_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, passed: bool | None, says: str
) -> None:
    plant(tmp_path, monkeypatch, nvidia_smi=code)
    check = memory_errors("GPU-a")
    assert (check.passed, says in check.says) == (passed, True), check.says


def test_a_gpu_that_hangs_and_a_missing_nvidia_smi_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexa_train.distributed.gpu_errors.COMMAND_SECONDS", 0.2)
    plant(tmp_path, monkeypatch, nvidia_smi="exec sleep 5")
    assert memory_errors(None).says == "nvidia-smi has not answered for 0.2 s"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert memory_errors(None).passed is None


@pytest.mark.parametrize(
    ("line", "passed"),
    [
        ("[99000.5] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.", False),
        ("[99000.5] NVRM: Xid (PCI:0000:3b:00): 31, pid=1, a program's own fault", True),
        ("[10.5] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, long ago", True),
    ],
)
def test_fatal_driver_errors_of_the_last_day_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, passed: bool
) -> None:
    (tmp_path / "uptime").write_text("100000.0 1.0")
    monkeypatch.setattr("nexa_train.distributed.gpu_errors.UPTIME", tmp_path / "uptime")
    plant(tmp_path, monkeypatch, dmesg=f'echo "{line}"')
    check = xid_errors()
    assert check.passed is passed
    assert passed or "Xid 79 (GPU has fallen off the bus) on 0000:3b:00" in check.says


def test_a_kernel_log_that_may_not_be_read_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, dmesg="echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1")
    check = xid_errors()
    assert check.passed is None
    assert "Operation not permitted" in check.says


def test_facts_name_each_setting_and_package(tmp_path: Path) -> None:
    facts = describe_node(device=CPU, config={"training": {"batch_size": 8}}, dataset_fingerprint="f")
    assert facts["config training.batch_size"] == "8"
    assert facts["dataset"] == "f"
    assert {"code", "python", "package torch"} <= facts.keys()
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (x)  Thu Feb 22\n"
    )
    assert driver_version(tmp_path / "version") == "550.54.14"
    assert driver_version(tmp_path / "none") == "none"


@pytest.mark.skipif(is_nccl_available(), reason="for builds of torch without NCCL")
def test_a_build_without_nccl_says_so() -> None:
    assert describe_node(device=GPU)["nccl"] == "none"


def test_ranks_are_named_in_spans() -> None:
    assert [name_ranks([3]), name_ranks([5, 0, 2, 3, 4])] == ["rank 3", "ranks 0, 2-5"]


def test_an_address_that_a_launcher_did_not_give_is_refused() -> None:
    assert read_endpoint({"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}) == ("node0", 29500)
    with pytest.raises(UserError, match="use torchrun"):
        read_endpoint({"MASTER_ADDR": "node0"})


# All nodes, through the store.


def meet(
    world: World,
    store: Store,
    facts: dict[int, dict[str, str]],
    checks: dict[int, Check],
    skew: float,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Check together as host a (rank 0), b, ...; print what rank 0 would write."""
    health = share_health(
        store,
        world,
        facts.get(world.rank, {"code": "1111"}),
        [checks[world.rank]] if world.rank in checks else [Check("disk", True, "9 GiB free")],
        timeout_seconds=timeout_seconds,
        host="abc"[world.rank],
        clock=lambda: time.time() + (skew if world.rank else 0.0),
    )
    health.require_pass()
    print(json.dumps(health.as_json()))


def test_fit_ranks_agree_and_rank_0_knows_them_all(tmp_path: Path) -> None:
    with Ranks(tmp_path, meet, {}, {}, 0.5) as ranks:
        assert ranks.wait() == {0: 0, 1: 0}
        known = json.loads(ranks.said(0))
    assert known["fit"]
    assert known["facts"] == {"code": "1111"}
    assert [(node["host"], node["checks"][0]["says"]) for node in known["nodes"]] == [
        ("a", "9 GiB free"),
        ("b", "9 GiB free"),
    ]
    assert [check["name"] for check in known["together"]] == ["clocks", "facts"]


@pytest.mark.parametrize(
    ("facts", "checks", "skew", "message"),
    [
        (
            {1: {"code": "2222"}},
            {},
            0.0,
            "code: differs: rank 1 (host b) has 2222; rank 0 has 1111. Put the same commit on every node.",
        ),
        (
            {0: {"run": "base_1", "code": "1111"}, 1: {"run": "base_1, which is finished"}},
            {},
            0.0,
            "processes cannot train together:\n  run: differs: rank 1 (host b) has base_1, which is finished; rank 0 has "
            "base_1. Let every node share one laboratory folder (NEXA_ROOT), or bring the copies up to date.\n",
        ),
        (
            {},
            {1: Check("disk", False, "0.1 GiB free (1.0 GiB needed)", "Free some.")},
            0.0,
            "rank 1 (node 0, host b): disk: 0.1 GiB free (1.0 GiB needed). Free some.",
        ),
        ({}, {}, -60.0, "rank 1 (node 0, host b) is 60.0 s behind rank 0's; 2 s are allowed. Start a time service"),
    ],
    ids=["facts", "run", "check", "clock"],
)
def test_every_rank_ends_with_the_same_words_about_the_unfit_one(
    tmp_path: Path, facts: dict[int, dict[str, str]], checks: dict[int, Check], skew: float, message: str
) -> None:
    with Ranks(tmp_path, meet, facts, checks, skew) as ranks:
        assert ranks.wait() == {0: 4, 1: 4}
        assert message in ranks.said(0)
        assert ranks.said(0) == ranks.said(1)


@pytest.mark.parametrize("absent", [0, 2])
def test_a_rank_that_never_comes_is_named_by_all_others_in_time(tmp_path: Path, absent: int) -> None:
    late = (meet, {}, {}, 0.0, SHORT_TIMEOUT_SECONDS)
    with Ranks(tmp_path, *late, size=3, absent=[absent], launcher_has_store=True) as ranks:
        assert set(ranks.wait().values()) == {4}
        for rank in ranks.processes:
            assert ranks.seconds(rank) < SHORT_TIMEOUT_SECONDS + 5
            assert f"rank {absent} of 3 (node 0) did not report within 1 s" in ranks.said(rank)


def meet_a_stopped_rank_0(world: World, store: Store) -> None:
    store.set(f"connected/{world.rank}", "")
    if world.is_main:
        store.wait(["connected/1"])
        os.kill(os.getpid(), signal.SIGSTOP)
    meet(world, store, {}, {}, 0.0, SHORT_TIMEOUT_SECONDS)


def test_a_stopped_host_of_the_store_holds_nobody_up(tmp_path: Path) -> None:
    """Every call on its store blocks for ever, whatever timeout the call was given."""
    with Ranks(tmp_path, meet_a_stopped_rank_0) as ranks:
        assert ranks.wait(1) == {1: 4}
        assert ranks.seconds(1) < SHORT_TIMEOUT_SECONDS + 5
        assert "rank 0's process or machine, which holds it or whose launcher does" in ranks.said(1)


# All nodes, joined.


def wrong_product(device: torch.device) -> Tensor:
    product = seeded_product(device)
    product[0, 0] += 1
    return product


def slow_swap(values: Tensor, partner: int, timeout: timedelta) -> None:
    time.sleep(0.3)
    swap_with(values, partner, timeout)


def compute_and_exchange(world: World, store: Store, wrong: int | None, slow: int | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    checks = check_collectives(
        store,
        world,
        CPU,
        timeout_seconds=5,
        product=wrong_product if world.rank == wrong else seeded_product,
        swap=slow_swap if world.rank == slow else swap_with,
    )
    print("\n".join(f"{check.passed} {check.name}: {check.says}" for check in checks))
    store.set(f"done/{world.rank}", "")
    store.wait([f"done/{rank}" for rank in range(world.size)])
    dist.destroy_process_group()


def test_equal_machines_that_compute_the_same_pass(tmp_path: Path) -> None:
    with Ranks(tmp_path, compute_and_exchange, None, None) as ranks:
        assert ranks.wait() == {0: 0, 1: 0}
        lines = ranks.said(0).splitlines()
        assert [line.partition(":")[0] for line in lines] == ["True product", "True all-reduce", "True links"]
        assert ranks.said(0) == ranks.said(1)


def test_a_wrong_product_and_a_slow_link_are_named_on_every_rank(tmp_path: Path) -> None:
    with Ranks(tmp_path, compute_and_exchange, 1, 2, size=3) as ranks:
        assert ranks.wait() == {0: 0, 1: 0, 2: 0}
        said = ranks.said(0)
        assert said == ranks.said(1) == ranks.said(2)
    assert "False product: rank 1 computed" in said
    assert "and ranks 0, 2" in said
    (links,) = (line for line in said.splitlines() if "links" in line)
    assert links.startswith("False links: 4 MiB there and back took rank 2 3")
    assert "rank 0" not in links
    assert "rank 1" not in links


@pytest.mark.parametrize("size", range(2, 10))
def test_in_a_tournament_everyone_meets_everyone_once(size: int) -> None:
    rounds = size - 1 if size % 2 == 0 else size
    met = []
    for index in range(rounds):
        partners = {rank: find_partner(rank, index, size) for rank in range(size)}
        assert all(partners[partner] == rank for rank, partner in partners.items() if partner is not None)
        met += [(rank, partner) for rank, partner in partners.items() if partner is not None]
    assert sorted(met) == [(one, other) for one in range(size) for other in range(size) if one != other]


def test_the_links_that_are_timed_lead_to_other_nodes_where_there_are_any() -> None:
    partners = {}
    for rank in range(8):
        world = World(rank, 8, rank % 2, 2, node=rank // 2, num_nodes=4)
        partners[rank] = partners_of(world)
        assert sorted(partners[rank]) == [other for other in range(8) if other != rank and other % 2 == rank % 2]
    assert all(partners[found[index]][index] == rank for rank, found in partners.items() for index in range(3))
    assert partners_of(World(1, 2, 1, 2)) == [0]


def test_a_health_record_reads_well_and_says_what_is_bad(tmp_path: Path) -> None:
    with Ranks(tmp_path, show_health) as ranks:
        ranks.wait()
        said = ranks.said(0)
    assert "  BAD  rank 1   disk           full" in said
    assert "  ?    rank 0   kernel log     hidden" in said
    assert "  BAD  all      links          slow" in said
    assert "error: 2 processes cannot train together:\n  rank 1 (node 0, host b): disk: full. Free some.\n" in said
    assert said.endswith("  links: slow. Look at it.\n")


def show_health(world: World, store: Store) -> None:
    check = Check("disk", False, "full", "Free some.") if world.rank else Check("kernel log", None, "hidden")
    health = share_health(store, world, {}, [check], timeout_seconds=TIMEOUT_SECONDS, host="ab"[world.rank])
    health = health.with_checks([Check("links", False, "slow", "Look at it.")])
    print(health.as_text())
    health.require_pass()


# The command.


def test_a_config_without_distributed_is_refused() -> None:
    with pytest.raises(UserError, match="go with --distributed"):
        doctor(config=Path("configs/default.yaml"))


def test_the_doctor_examines_a_node_alone_and_writes_nothing(tmp_path: Path) -> None:
    health = examine_together(Layout(tmp_path), config_path=None, overrides=[], environment={})
    health.require_pass()
    assert {"facts", "product"} == {check.name for check in health.together}
    assert "1 process fit to train" in health.as_text()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_under_torchrun_every_rank_says_which_setting_differs_and_exits_with_4(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", make_config("mlp"))
    command = (
        f"nexa doctor --distributed --config {config} --override training.batch_size=$((32 * (RANK + 1)))"
        f" > {tmp_path}/out$RANK 2> {tmp_path}/err$RANK; echo $? > {tmp_path}/code$RANK"
    )
    programs = Path(sys.executable).parent
    torchrun = [programs / "torchrun", "--standalone", "--nproc-per-node", "2", "--no-python", "bash", "-c", command]
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "NEXA_ROOT": str(tmp_path)}
    subprocess.run(torchrun, env=environment, capture_output=True, check=True)
    for rank in (0, 1):
        assert (tmp_path / f"code{rank}").read_text() == "4\n"
        said = (tmp_path / f"err{rank}").read_text()
        assert "config training.batch_size: differs: rank 1 (host " in said
        assert "has 64; rank 0 has 32. Start every node with the same config file and overrides." in said
    assert "BAD  all      config training.batch_size" in (tmp_path / "out0").read_text()
    assert (tmp_path / "out1").read_text() == ""
