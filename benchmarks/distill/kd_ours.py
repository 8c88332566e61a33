"""NexaCompute's contestant of `kd.py`: a whole run, with its checkpoints, metrics and manifest.

python kd_ours.py root result.json
"""

import json
import resource
import sys
import time
from pathlib import Path

from nexa_core import durable
from nexa_core.config import RunConfig
from nexa_core.paths import Layout
from nexa_train import hooks, train
from nexa_train.loop import State, StepResult


class TimedTracking(hooks.Tracking):
    """The run's own tracking, which also notes when each step ended and what it held."""

    ends: list[float] = []  # noqa: RUF012
    tokens: list[int] = []  # noqa: RUF012
    losses: list[float] = []  # noqa: RUF012

    def __call__(self, state: State, result: StepResult) -> None:
        super().__call__(state, result)
        self.losses.append(float(result.loss))
        self.tokens.append(result.num_tokens)
        self.ends.append(time.perf_counter())


def main() -> None:
    root, out = map(Path, sys.argv[1:])
    train.Tracking = TimedTracking  # type: ignore[misc]
    config = RunConfig.model_validate_json((root / "run.json").read_text(encoding="utf-8"))
    peaks: list[int] = []
    finish = train.finish_run

    def finish_run(*given: object, **named: object) -> object:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # before the scores add their own
        return finish(*given, **named)  # type: ignore[arg-type]

    train.finish_run = finish_run  # type: ignore[assignment]
    train.run(config, layout=Layout(root))
    watch = TimedTracking
    durable.write_json(
        out,
        {
            "tokens_per_second": sum(watch.tokens[1:]) / (watch.ends[-1] - watch.ends[0]),
            "losses": watch.losses,
            "peak_memory_bytes": peaks[0],
        },
    )
    print(json.dumps(watch.losses))


if __name__ == "__main__":
    main()
