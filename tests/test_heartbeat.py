"""The heartbeat: a run that stands still ends in time, on every rank, and says who held it up; a healthy one goes on."""

import ctypes
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from nexa_train.distributed import heartbeat as heartbeat_module
from nexa_train.distributed import meeting
from nexa_train.distributed.group import join
from nexa_train.distributed.heartbeat import Heartbeat
from nexa_train.distributed.stall import Beat, Stall, Watch
from nexa_train.distributed.world import World
from tests.ranks import Ranks, free_port

TIMEOUT_SECONDS = 1.0
IN_TIME_SECONDS = TIMEOUT_SECONDS + 5


# The judgement alone, in a time of its own.


def watch_of(*ranks: int) -> Watch:
    return Watch(ranks, timeout_seconds=10, now=0)


def test_the_rank_with_the_fewest_beats_is_the_one_that_holds_the_others_up() -> None:
    watch = watch_of(0, 1, 2)
    for now in range(12):
        waiting, hanging = Beat(now, 7, 1, "summing"), Beat(now, 7, 0, "computing")
        watch.see({0: waiting, 1: hanging, 2: waiting}, now)
        assert watch.stuck(now) == (Stall((1,), False) if now == 11 else None)
    assert watch.silent(11) is None


def test_ranks_that_wait_for_an_excused_one_are_not_blamed_during_or_after_its_phase() -> None:
    watch = watch_of(0, 1)
    for now in range(100):
        watch.see({0: Beat(now, 7, 1, "checkpoint", excused=now < 80), 1: Beat(now, 7, 1, "summing")}, now)
        assert (watch.stuck(now) is None) == (now < 90)


def test_a_rank_that_moves_on_is_never_stuck_however_slow() -> None:
    watch = watch_of(0, 1)
    for now in range(100):
        watch.see({0: Beat(now, now // 9), 1: Beat(now, now // 9 + 1)}, now)
        assert watch.stuck(now) is None


def test_silent_ranks_are_found_whatever_they_were_doing_and_together() -> None:
    watch = watch_of(0, 1, 2, 3)
    for now in range(13):
        quiet, quiet_soon_after = Beat(min(now, 1), 3, excused=True), Beat(min(now, 4), 3)
        watch.see({0: Beat(now, 4), 1: quiet, 2: quiet_soon_after, 3: Beat(1, 3, left="")}, now)
        assert watch.silent(now) == (Stall((1, 2), True) if now == 12 else None)


def test_a_rank_that_never_began_is_silent() -> None:
    watch = watch_of(0, 1)
    for now in range(12):
        watch.see({0: Beat(now)}, now)
    assert watch.silent(11) == Stall((1,), True)


def test_an_observer_that_was_itself_stopped_blames_nobody_for_it() -> None:
    watch = watch_of(0, 1)
    watch.see({0: Beat(1), 1: Beat(1)}, 1)
    watch.forgive(500)
    assert watch.silent(505) is None
    assert watch.stuck(505) is None
    assert watch.silent(512) == Stall((0, 1), True)


# Real processes.


def train(world: World, store: Store, fault: str, num_steps: int, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Steps of 50 ms that each wait for all ranks, as a gradient's sum does; rank 1 has the fault in step 5."""
    dist.init_process_group(
        "gloo",
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=60),
    )
    with Heartbeat(store, world, timeout_seconds=timeout_seconds) as heartbeat:
        for step in range(num_steps):
            heartbeat.beat(step)
            time.sleep(0.05)
            if step == 5:
                suffer(fault, world, heartbeat)
            heartbeat.beat(step, "summing")
            dist.all_reduce(torch.zeros(1))
            print(f"step {step} done")
    print("finished")


def suffer(fault: str, world: World, heartbeat: Heartbeat) -> None:
    if fault == "long phases":
        with heartbeat.phase("validation"):
            time.sleep(1.3 * TIMEOUT_SECONDS)
        if world.is_main:
            with heartbeat.phase("checkpoint"):
                time.sleep(1.5 * TIMEOUT_SECONDS)
    if fault == "endless checkpoint" and world.is_main:
        with heartbeat.phase("checkpoint", limit_seconds=0.2):
            wait_for_a_lost_disk()
    if fault == "hang" and world.rank == 1:
        read_a_batch_for_ever()
    if fault == "native call" and world.rank == 1:
        hold_the_interpreter()


def wait_for_a_lost_disk() -> None:
    time.sleep(60)


def hold_the_interpreter() -> None:
    """Read what never comes; unlike a sleep, this goes on after a signal."""
    reading, _ = os.pipe()
    ctypes.PyDLL(None).read(reading, ctypes.create_string_buffer(1), 1)


def read_a_batch_for_ever() -> None:
    time.sleep(60)


def test_a_healthy_run_ends_well_whatever_takes_long_in_it(tmp_path: Path) -> None:
    with Ranks(tmp_path, train, "long phases", 10) as ranks:
        assert ranks.wait() == {0: 0, 1: 0}
        assert ranks.said(0).endswith("finished\n")
        assert "error" not in ranks.said(1)


def test_a_hanging_rank_is_named_by_all_with_its_step_and_stack(tmp_path: Path) -> None:
    with Ranks(tmp_path, train, "hang", 100) as ranks:
        ranks.wait_until_said(1, "step 4 done")
        began = time.monotonic()
        assert ranks.wait() == {0: 4, 1: 4}
        assert time.monotonic() - began < IN_TIME_SECONDS
        for rank in (0, 1):
            said = ranks.said(rank)
            assert (
                f"rank 1 of 2 (host {os.uname().nodename}) has not moved for 1 s; it is at step 5 (computing)" in said
            )
            assert "in read_a_batch_for_ever\n    time.sleep(60)" in said
            assert "The others wait, the furthest of them at step 5 (summing)." in said
            assert "start the same command again with --resume" in said


def test_a_phase_beyond_its_limit_is_a_stall_with_its_stack(tmp_path: Path) -> None:
    with Ranks(tmp_path, train, "endless checkpoint", 100) as ranks:
        assert ranks.wait() == {0: 4, 1: 4}
        assert "at step 5 (checkpoint)" in ranks.said(1)
        assert "in wait_for_a_lost_disk" in ranks.said(1)


def ended_by(tmp_path: Path, number: signal.Signals, rank: int, **options: Any) -> str:
    """What the other one of two ranks says when this one gets a signal; it has to end in time."""
    with Ranks(tmp_path, train, "", 10_000, **options) as ranks:
        ranks.wait_until_said(1 - rank, "step 12 done")
        ranks.send(rank, number)
        assert ranks.wait(seconds=IN_TIME_SECONDS) == {1 - rank: 4, rank: -signal.SIGKILL}
        if number == signal.SIGSTOP:
            assert "has been stopped, or a native call has held its interpreter, for 2 s" in ranks.said(rank)
        return ranks.said(1 - rank)


def test_a_stopped_process_is_named_with_its_last_step(tmp_path: Path) -> None:
    said = ended_by(tmp_path, signal.SIGSTOP, 1)
    assert "rank 1 of 2" in said
    assert "has given no sign of life for 1 s; its last came at step" in said
    assert "Its stack cannot be had: the process is stopped" in said


def test_a_stopped_rank_0_is_named_although_it_holds_the_store(tmp_path: Path) -> None:
    said = ended_by(tmp_path, signal.SIGSTOP, 0)
    assert "rank 0's store has not answered for 1 s" in said
    assert "rank 0 was last heard of at step" in said


def test_a_stopped_rank_0_is_named_where_a_launcher_holds_the_store(tmp_path: Path) -> None:
    said = ended_by(tmp_path, signal.SIGSTOP, 0, launcher_has_store=True)
    assert "rank 0 of 2" in said
    assert "has given no sign of life for 1 s; its last came at step" in said


def test_a_native_call_that_holds_the_interpreter_is_ended_and_leaves_its_stack(tmp_path: Path) -> None:
    with Ranks(tmp_path, train, "native call", 100) as ranks:
        ranks.wait_until_said(1, "step 4 done")
        assert ranks.wait(seconds=IN_TIME_SECONDS) == {0: 4, 1: -signal.SIGKILL}
        assert "rank 1 of 2" in ranks.said(0)
        assert "in hold_the_interpreter" in ranks.said(1)


def hold_on(world: World, store: Store) -> None:
    """Beat without any collective, which would notice a lost peer by itself."""
    heartbeat_module.LINGER_SECONDS = heartbeat_module.LOOK_SECONDS = 0.2
    with Heartbeat(store, world, timeout_seconds=TIMEOUT_SECONDS) as heartbeat:
        for step in range(10_000):
            heartbeat.beat(step)
            print(f"step {step} done")
            time.sleep(0.05)


def test_a_killed_rank_is_named_long_before_the_timeout_where_a_collective_fails(tmp_path: Path) -> None:
    with Ranks(tmp_path, train, "", 10_000, 300.0) as ranks:
        ranks.wait_until_said(0, "step 25 done")
        ranks.send(1, signal.SIGKILL)
        assert ranks.wait(0, seconds=IN_TIME_SECONDS) == {0: 4}
        assert "error: rank 0 of 2 (node 0) cannot go on at step" in ranks.said(0)
        assert "rank 1 is gone, its last sign of life came at step" in ranks.said(0)


def test_a_killed_host_of_the_store_is_named(tmp_path: Path) -> None:
    with Ranks(tmp_path, hold_on) as ranks:
        ranks.wait_until_said(1, "step 20 done")
        ranks.send(0, signal.SIGKILL)
        assert ranks.wait(1, seconds=IN_TIME_SECONDS) == {1: 4}
        assert "rank 0's store is gone" in ranks.said(1)


def score_alone(world: World, store: Store, seconds: float, hangs: bool) -> None:
    """Rank 0 works and shows progress, while the others wait ahead of it."""
    with (
        Heartbeat(store, world, timeout_seconds=TIMEOUT_SECONDS) as heartbeat,
        join(world, store=store, device=torch.device("cpu"), timeout_seconds=10) as group,
    ):
        heartbeat.beat(0)
        if world.is_main:
            with heartbeat.phase("scoring"):
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    heartbeat.renew(0.3)
                    time.sleep(0.05)
                if hangs:
                    read_a_batch_for_ever()
        else:
            heartbeat.beat(1, "waiting for the scores")
        group.wait_for_all()


def test_a_phase_lasts_as_long_as_it_shows_progress(tmp_path: Path) -> None:
    with Ranks(tmp_path, score_alone, 3 * TIMEOUT_SECONDS, False) as ranks:
        assert ranks.wait() == {0: 0, 1: 0}


def test_a_phase_that_shows_no_more_progress_is_soon_a_stall_of_that_rank_alone(tmp_path: Path) -> None:
    with Ranks(tmp_path, score_alone, 0.2, True) as ranks:
        assert ranks.wait() == {0: 4, 1: 4}
        assert "rank 0 of 2" in ranks.said(1)
        assert "it is at step 0 (scoring)" in ranks.said(1)
        assert "in read_a_batch_for_ever" in ranks.said(1)
        assert "rank 1 of 2" not in ranks.said(1)


# Joining


def join_or_not(world: World, store: Store, absent: int) -> None:
    """Join, and then hear of who does something else for longer than joining may take."""
    if world.rank == absent:
        time.sleep(60)
    with join(world, store=store, device=torch.device("cpu"), timeout_seconds=TIMEOUT_SECONDS) as group:
        time.sleep(1.5 * TIMEOUT_SECONDS * world.rank)
        group.wait_for_all()
        group.sum(torch.zeros(1))


@pytest.mark.parametrize("absent", [0, 1])
def test_who_waits_in_vain_for_others_to_join_ends_in_time(tmp_path: Path, absent: int) -> None:
    with Ranks(tmp_path, join_or_not, absent) as ranks:
        assert ranks.wait(1 - absent, seconds=IN_TIME_SECONDS) == {1 - absent: 4}
        assert "could not join the process group: " in ranks.said(1 - absent)
        assert "Traceback" not in ranks.said(1 - absent)


def test_who_has_joined_may_wait_for_long(tmp_path: Path) -> None:
    with Ranks(tmp_path, join_or_not, -1) as ranks:
        assert ranks.wait() == {0: 0, 1: 0}


def stop_before_joining(world: World, store: Store, folder: Path, port: int) -> None:
    """Rank 1 is stopped when all have been found fit."""
    if world.rank == 1:
        meeting.join = lambda *_, **__: os.kill(os.getpid(), signal.SIGSTOP)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with meeting.meet(
        world,
        environment=environment,
        folder=folder,
        need_bytes=0,
        device=torch.device("cpu"),
        config={},
        dataset_fingerprint="",
        facts={},
        unfit_path=folder / "health.json",
        timeout_seconds=2 * TIMEOUT_SECONDS,
    ):
        print("met")


def test_a_process_that_is_stopped_before_it_joins_is_named_and_ended(tmp_path: Path) -> None:
    with Ranks(tmp_path, stop_before_joining, tmp_path, free_port()) as ranks:
        assert ranks.wait() == {0: 4, 1: -signal.SIGKILL}
        assert "rank 1 of 2" in ranks.said(0)
        assert "has given no sign of life for 2 s" in ranks.said(0)


def leave_with_an_error(world: World, store: Store) -> None:
    with Heartbeat(store, world, timeout_seconds=TIMEOUT_SECONDS) as heartbeat:
        for step in range(100):
            heartbeat.beat(step)
            time.sleep(0.05)
            if world.rank == 1 and step == 5:
                raise ValueError("a bad row")


def test_a_rank_that_ended_with_an_error_is_named_with_it(tmp_path: Path) -> None:
    with Ranks(tmp_path, leave_with_an_error) as ranks:
        assert ranks.wait() == {0: 4, 1: 1}
        assert "rank 1 of 2" in ranks.said(0)
        assert "ended at step 5 (computing) with ValueError: a bad row" in ranks.said(0)


def test_a_run_that_was_suspended_as_a_whole_goes_on(tmp_path: Path) -> None:
    """As a batch system does it; whoever wakes first finds all others silent."""
    with Ranks(tmp_path, train, "", 40) as ranks:
        ranks.wait_until_said(1, "step 3 done")
        for rank in (0, 1):
            ranks.send_to_guardian(rank, signal.SIGSTOP)
            ranks.send(rank, signal.SIGSTOP)
        time.sleep(2.5 * TIMEOUT_SECONDS)
        for wake in (ranks.send_to_guardian, ranks.send):
            for rank in (0, 1):
                wake(rank, signal.SIGCONT)
                time.sleep(0.2)
        assert ranks.wait() == {0: 0, 1: 0}
        assert "Thread" not in ranks.said(0) + ranks.said(1)  # nobody was asked for a stack


def leave_one_after_the_other(world: World, store: Store) -> None:
    """Rank 1 is still busy when rank 0, which holds the store, has done its part."""
    heartbeat_module.LINGER_SECONDS = heartbeat_module.LOOK_SECONDS = 0.1
    with Heartbeat(store, world, timeout_seconds=TIMEOUT_SECONDS) as heartbeat:
        heartbeat.beat(0)
        if not world.is_main:
            with heartbeat.phase("upload"):
                time.sleep(1.5 * TIMEOUT_SECONDS)


def test_a_rank_that_needs_longer_at_the_end_is_waited_for(tmp_path: Path) -> None:
    with Ranks(tmp_path, leave_one_after_the_other) as ranks:
        assert ranks.wait() == {0: 0, 1: 0}


def test_a_beat_costs_next_to_nothing() -> None:
    heartbeat = Heartbeat(None, World(), timeout_seconds=1)
    with heartbeat:
        began = time.perf_counter()
        for step in range(10_000):
            heartbeat.beat(step)
        assert (time.perf_counter() - began) / 10_000 < 20e-6
