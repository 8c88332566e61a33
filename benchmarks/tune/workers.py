"""What workers of a study cost each other: the processors' time of those that wait, and how long one holds the study's lock.

python -m benchmarks.tune.workers wait
python -m benchmarks.tune.workers hold
"""

import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.samplers import BaseSampler, GPSampler

from benchmarks.tune.overhead import CONFIG, TINY, prepare
from nexa_core.paths import Layout
from nexa_train.tune.records import Ending
from nexa_train.tune.search import Search
from scripts.hyperparameter_search import TABLES

NUM_TRIALS = 200
STRATEGIES = ("tpe", "cmaes", "benchmarks.tune.workers:gp")


def gp(seed: int, space: Any) -> BaseSampler:
    """A Gaussian process, as a strategy of a user's own."""
    return GPSampler(seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["wait", "hold"])
    parser.add_argument("--trials", type=int, default=NUM_TRIALS)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nexa-tune-") as folder:
        layout = Layout(Path(folder))
        prepare(layout.root)
        if arguments.what == "wait":
            wait(layout, arguments.trials, arguments.workers, arguments.seconds)
        else:
            print("| strategy | the lock's longest hold | all, until the next trial begins |\n| --- | ---: | ---: |")
            for strategy in STRATEGIES:
                hold(layout, strategy, arguments.trials)


def open_study(layout: Layout, strategy: str, study: str) -> Search:
    own = ["tune.parallel=1", f"tune.strategy={strategy}", f"tune.study={study}"]
    return Search(CONFIG, layout, tables=TABLES, overrides=[*TINY, *own])


def fill(search: Search, trials: int) -> None:
    """Trials that have ended, without training any."""
    draw = random.Random(0)
    for number in range(trials):
        known = search.trials()
        values = search.mirror.draw(number, known)
        with search.storage.locked():
            begun = search.storage.begin_trial(number, values)
            assert begun is not None
            search.storage.end_trial(number, Ending("complete", draw.random(), (draw.random(),) * 8))
            begun.release()


def wait(layout: Layout, trials: int, workers: int, seconds: float) -> None:
    """Workers that have nothing to do while one trial, the last, is being trained elsewhere."""
    search = open_study(layout, "tpe", "waiting")
    fill(search, trials)
    with search.storage.locked():
        begun = search.storage.begin_trial(trials, search.mirror.draw(trials, search.storage.read_trials()))
    assert begun is not None
    children = [fork_worker(layout, trials + 2) for _ in range(workers)]
    time.sleep(8.0)  # they begin, and come to wait
    before = [cpu_seconds(child) for child in children]
    time.sleep(seconds)
    used = [cpu_seconds(child) - start for child, start in zip(children, before, strict=True)]
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    share = sum(used) / seconds
    print(
        f"{workers} waiting workers, {trials} trials: {sum(used):.2f} CPU s in {seconds:.0f} s, {share:.2%} of a core"
    )


def fork_worker(layout: Layout, trials: int) -> int:
    child = os.fork()
    if not child:
        open_study(layout, "tpe", "waiting").work(trials)
        os._exit(0)
    return child


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def hold(layout: Layout, strategy: str, trials: int) -> None:
    """A worker that is new to the study takes its next trial: some strategies draw all earlier ones once more."""
    study = f"held_{strategy.rpartition(':')[2]}"
    fill(open_study(layout, strategy, study), trials)
    search, held = open_study(layout, strategy, study), []
    locked = search.storage.locked

    @contextlib.contextmanager
    def timed() -> Iterator[None]:
        with locked():
            began = time.perf_counter()
            yield
            held.append(time.perf_counter() - began)

    search.storage.locked = timed  # type: ignore[method-assign]
    search.train = stop  # type: ignore[method-assign,assignment]
    began = time.perf_counter()
    with contextlib.suppress(_Enough):
        search.work(trials + 1)
    seconds = time.perf_counter() - began
    name = strategy.rpartition(":")[2]
    print(f"| {name} | {1000 * max(held):,.1f} ms | {seconds:,.2f} s |", flush=True)


class _Enough(Exception):
    """The trial would begin now."""


def stop(*_: Any, **__: Any) -> Ending:
    raise _Enough


if __name__ == "__main__":
    main()
