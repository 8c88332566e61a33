"""Launching the processes of a run on this machine, by torch elastic."""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from nexa_core import durable
from nexa_core.config import RunConfig
from nexa_core.endings import ENDINGS, HANDLED_SIGNALS, Interrupts, raise_when_told
from nexa_core.errors import NexaError, NodeError
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder

WORKER = "nexa_train.distributed.worker"
# A worker that is told to end finishes its step and saves; then it has had its time.
SECONDS_TO_END = 120


def launch(
    config: RunConfig,
    *,
    layout: Layout,
    config_path: Path | None,
    resume: bool | str,
    resume_from: Path | None,
    is_trial: bool = False,
) -> RunFolder:
    """Run `config` in `training.distributed.world_size` processes; returns the folder of the run that they finished.

    Args:
        is_trial: the run is one of a search, and is shown nowhere when it has finished.

    Raises:
        NexaError: of the kind that the first process to fail ended with.
    """
    with tempfile.TemporaryDirectory(prefix="nexa-launch-") as temporary:
        order, done = Path(temporary) / "order.json", Path(temporary) / "done.json"
        durable.write_json(
            order,
            {
                "config": config.resolved(),
                "root": str(layout.root),
                "apart": None if layout.apart is None else str(layout.apart),
                "config_path": None if config_path is None else str(config_path),
                "resume": resume,
                "is_trial": is_trial,
                "resume_from": None if resume_from is None else str(resume_from),
                "done": str(done),
            },
        )
        _run_workers(config.training.distributed.world_size, [str(order)])
        return RunFolder(Path(json.loads(done.read_bytes())["run_dir"]))


def _run_workers(count: int, arguments: list[str]) -> None:
    # Imported here: the launcher's modules take longer to load than most commands run.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in (
        "torch.distributed.elastic",
        "torch.distributed.elastic.agent.server.api",
    ):  # which has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong is said once, by the worker
    threads = str(max(1, (os.cpu_count() or 1) // count))
    os.environ.setdefault(
        "OMP_NUM_THREADS", threads
    )  # else as many as cores in each process, which then get in the way
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="nexa",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
        shutdown_timeout=SECONDS_TO_END,
        signals_to_handle=HANDLED_SIGNALS,
    )
    # Torch elastic takes these signals over and keeps them: whoever called gets its own handlers back.
    handlers = {
        number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, HANDLED_SIGNALS.split(","))
    }
    try:
        with Interrupts(SignalException):
            elastic_launch(settings, sys.executable)("-m", WORKER, *arguments)
    except ChildFailedError as error:
        raise _ending(error) from None
    except SignalException as error:
        raise_when_told(error)
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:  # one that was not set from Python cannot be set again from it
                    signal.signal(number, handler)


def _ending(error: Any) -> NexaError:
    rank, failure = error.get_first_failure()
    code = failure.exitcode
    if code in ENDINGS:
        return ENDINGS[code](f"training process {rank} ended with exit code {code}; what it said is above")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return NodeError(f"Training process {rank} {how}; the same command with --resume continues at the last checkpoint.")
