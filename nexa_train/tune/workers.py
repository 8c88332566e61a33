"""Several workers of a search on this machine: processes that do what one does, each with its share of processors and GPUs."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from nexa_core import durable
from nexa_core.endings import ENDINGS
from nexa_core.errors import Interrupted, NodeError, Preempted
from nexa_core.progress import Progress
from nexa_train.tune.records import Trial, best_of
from nexa_train.tune.search import Search, ending_text

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_END = 600
"""For a worker that is told to end: it finishes its step and saves."""
NUM_LINES_SHOWN = 20


def work_together(search: Search, command: Sequence[str], *, num_workers: int, max_trials: int) -> None:
    """Start workers with `command`, and tell of the trials until all of them have ended.

    A worker that is lost leaves its trial to the others; they end with the process that started them, however it ends.

    Raises:
        NexaError: all workers ended before the search was done; of the kind that the last one ended with.
        Preempted: this process was told to end; the workers have saved. Interrupted where it was by Ctrl-C, and the second
            one killed them.
    """
    total = search.num_trials(max_trials)
    ended = {trial.number for trial in search.trials()[:total] if trial.ending is not None}
    with (
        _told_to_end() as told,
        _started(search, command, num_workers) as workers,
        Progress("search", total=total, unit="trials", start=len(ended)) as progress,
    ):
        seen, look_at = object(), 0.0
        while told.by is None:
            running = [process for process, _ in workers if process.poll() is None]
            stamp = search.storage.stamp()
            is_news = stamp != seen if stamp is not None else time.monotonic() >= look_at
            if is_news or not running:
                seen, look_at = stamp, time.monotonic() + search.storage.seconds_between_looks
                _tell(search, search.trials()[:total], ended)
                progress.update(len(ended))
            if len(ended) >= total:
                return
            if not running:
                raise _all_gone(workers)
            told.wait(SECONDS_BETWEEN_LOOKS)
    if told.by == signal.SIGINT:
        raise Interrupted("interrupted, and so were the workers; the same command goes on")
    raise Preempted("told to end, and so were the workers; the same command goes on")


def end_with_parent() -> None:
    """Have this worker end, saved, when what started it is gone: then nobody holds its standard input any more."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _tell(search: Search, trials: list[Trial], ended: set[int]) -> None:
    best = best_of(search.study, trials)
    for trial in trials:
        if trial.ending is not None and trial.number not in ended:
            ended.add(trial.number)
            logger.info("%s", ending_text(search.study, trial, best))


@contextlib.contextmanager
def _started(
    search: Search, command: Sequence[str], num_workers: int
) -> Iterator[list[tuple[subprocess.Popen[bytes], Path]]]:
    workers = []
    try:
        for number in range(num_workers):
            log = search.folder / "logs" / f"worker_{socket.gethostname()}_{number}.log"
            with durable.open_log(log) as stream:
                environment = {**os.environ, **_gpu_of(number, search)}
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=stream,
                    start_new_session=True,  # what the terminal sends is for this process, which passes it on
                )
            workers.append((process, log))
        logger.info("%d workers, whose words are in %s", num_workers, search.folder / "logs")
        yield workers
    finally:
        _end([process for process, _ in workers])


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
    until = time.monotonic() + SECONDS_TO_END
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("a worker has not ended within %d s, and is killed", SECONDS_TO_END)
            _kill([process])
        except KeyboardInterrupt:
            _kill(processes)
            raise Interrupted("stopped at once; the same command goes on from what was saved") from None


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    """With what each has started itself: it leads a group."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _gpu_of(number: int, search: Search) -> dict[str, str]:
    """One GPU for each worker, in turn, where there are any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if search.config.training.device == "cpu" or visible == "":
        return {}
    if visible is None:
        import torch

        gpus = [str(index) for index in range(torch.cuda.device_count())]
    else:
        gpus = visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}


def _all_gone(workers: list[tuple[subprocess.Popen[bytes], Path]]) -> Exception:
    process, log = next(((each, log) for each, log in workers if each.returncode), workers[-1])
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    kind = ENDINGS.get(process.returncode, NodeError) if said else NodeError
    how = f"killed by signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    told = (
        said[-1] if said else "\n".join([f"All workers are gone ({how}). The end of {log}:", *lines[-NUM_LINES_SHOWN:]])
    )
    return kind(told)


class _Told:
    """Whether this process has been told to end, and by what."""

    def __init__(self) -> None:
        self.by: int | None = None
        self._set = threading.Event()

    def hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.by is not None:
                raise KeyboardInterrupt
            os.write(2, b"interrupted: the workers finish their step and save it; Ctrl-C again stops at once\n")
        self.by = self.by or number
        self._set.set()

    def wait(self, seconds: float) -> None:
        self._set.wait(seconds)


@contextlib.contextmanager
def _told_to_end() -> Iterator[_Told]:
    """Hears SIGTERM, and Ctrl-C, of which the second interrupts whatever waits."""
    told = _Told()
    before = {number: signal.signal(number, told.hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
