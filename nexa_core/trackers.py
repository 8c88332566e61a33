"""Where a run's numbers go while it runs: one small protocol, a table of trackers, and a composite of several."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nexa_core import durable
from nexa_core.errors import not_built_yet

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes scalars by optimizer step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """Appends ``{"step": n, ...}`` lines; what lies beyond `resume_step` is cut off first, so a line is never there twice."""

    def __init__(self, path: Path, *, resume_step: int):
        kept = [line for line in read_json_lines(path) if line["step"] <= resume_step]
        durable.write_json_lines(path, kept)
        self._file = durable.Appender(path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write({"step": step, **values})

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardTracker:
    """Writes TensorBoard events; `tensorboard --logdir logs/` shows them."""

    def __init__(self, folder: Path):
        from tensorboard.summary import Writer

        self._writer = Writer(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Trackers:
    """Passes everything on to several trackers; one that fails is reported once and left out, the run goes on."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._each("log", step, values)

    def flush(self) -> None:
        self._each("flush")

    def close(self) -> None:
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                if isinstance(tracker, JsonlTracker):
                    raise  # these lines are the run's own record: it must not go on without them
                self._trackers.remove(tracker)
                logger.warning("%s failed and is left out from here on: %s", type(tracker).__name__, error)


def refuse_missing_trackers(environment: Mapping[str, str]) -> None:
    """Raises UserError when the environment asks for a tracker that this version does not have."""
    if "MLFLOW_TRACKING_URI" in environment:
        raise not_built_yet("Logging to MLflow", "MLFLOW_TRACKING_URI is set: unset it to train without.")
    if "WANDB_API_KEY" in environment and environment.get("WANDB_MODE") != "disabled":
        instead = "WANDB_API_KEY is set: unset it or set WANDB_MODE=disabled to train without."
        raise not_built_yet("Logging to Weights & Biases", instead)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; a last line that a crash tore is left out, a missing file is empty."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]
