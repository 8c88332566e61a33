"""A running run's numbers as a text file for Prometheus (node_exporter's textfile collector)."""

import time
from collections.abc import Mapping
from pathlib import Path

from nexa_core import durable
from nexa_core.trackers.record import Tracker

SECONDS_BETWEEN_WRITES = 5.0
HELP = {
    "step": "Optimizer steps made.",
    "loss": "Training loss of the newest logged step.",
    "lr": "Learning rate of the newest logged step.",
    "gradient_norm": "Norm of the gradient of the newest logged step.",
    "val_loss": "Newest validation loss.",
    "val_accuracy": "Newest validation accuracy.",
    "steps_per_second": "Optimizer steps a second, over the last second or so.",
    "rows_per_second": "Rows a second, over the last second or so.",
    "useful_tokens_per_second": "Tokens a second without padding, over the last second or so.",
    "updated_timestamp_seconds": "When these numbers were written: one that stands still is of a run that was killed.",
}


class PrometheusFile(Tracker):
    """`logs/<run_id>.prom` while the run lasts; replaced whole every few seconds, gone at its end."""

    def __init__(self, path: Path, *, labels: Mapping[str, str]):
        self._path = path
        self._labels = ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())
        self._values: dict[str, float] = {}
        self._written_at = 0.0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._values.update(values, step=step)

    def pace(self, step: int, rates: Mapping[str, float]) -> None:
        self._values.update(rates, step=step)
        if time.monotonic() - self._written_at >= SECONDS_BETWEEN_WRITES:
            self._written_at = time.monotonic()
            with durable.create(self._path, flush=False) as file:
                file.write(self._text().encode())

    def close(self) -> None:
        durable.remove(self._path)

    def _text(self) -> str:
        lines = []
        for name, value in {**self._values, "updated_timestamp_seconds": round(time.time(), 3)}.items():
            metric = f"nexa_run_{name}"
            lines += [
                f"# HELP {metric} {HELP.get(name, f'Newest value of {name}.')}",
                f"# TYPE {metric} gauge",
                f"{metric}{{{self._labels}}} {value!r}",
            ]
        return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
