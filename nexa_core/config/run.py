"""Settings of a run: data, model, training, evaluation, tracking."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from nexa_core.config.base import NAME_PATTERN, Settings
from nexa_core.config.distillation import Distillation
from nexa_core.config.model import ModelConfig
from nexa_core.config.training import Distributed, Training
from nexa_core.config.tune import Tune


class Data(Settings):
    """The prepared dataset a run reads."""

    dataset: str
    version: str = "v1"
    category: Literal["training", "distillation"] = "training"
    """distillation: pairs that `filter-pairs` made, of data/processed/distillation/sft_datasets."""
    prepare: str | None = None
    """The data config that makes the dataset when it has not been prepared yet."""

    @property
    def key(self) -> str:
        return f"{self.dataset}_{self.version}"


class Generation(Settings):
    """Greedy completions of a language model, for exact match."""

    max_rows: Annotated[int, Field(gt=0)] = 64
    """Rows with a prompt that are completed, the first of the split."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 32


class Evaluation(Settings):
    split: Annotated[str, Field(pattern="^(val|test)$")] = "test"
    """The split that the final scores are of: test or val."""
    batch_size: Annotated[int, Field(gt=0)] = 256
    """Rows per forward pass; fewer where they are so long that it would take gigabytes."""
    save_predictions: bool = True
    """Write `predictions.parquet`, a row for each evaluated one."""
    generation: Generation | None = None
    rubric: str | None = None
    """The rubric that `judge` applies, a name or a YAML file; without it the built-in one for the model's task."""


class Tracking(Settings):
    tensorboard: bool = True
    """Write TensorBoard events under `logs/<run_id>/`."""
    mlflow_uri: str | None = None
    """Address of an MLflow server to log to, e.g. http://127.0.0.1:5000; MLFLOW_TRACKING_URI goes before it."""
    prometheus: bool = False
    """Keep `logs/<run_id>.prom` while the run lasts, for Prometheus's node_exporter (textfile collector)."""
    wait_seconds: Annotated[float, Field(ge=0)] = 10.0
    """Seconds that the end of a run may wait for MLflow and W&B; `nexa track-sync` sends what they lack then."""
    every_steps: Annotated[int, Field(gt=0)] = 1
    """Optimizer steps between two lines of `metrics.jsonl`."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.mlflow_uri is not None and "@" in self.mlflow_uri:
            yield (
                ("mlflow_uri",),
                "it is written into every run's config.yaml, so no credentials here: put MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD into .env.local",
            )


class Cost(Settings):
    usd_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of the machine; without it a run's cost is known in seconds only."""


class RunConfig(Settings):
    """Everything that decides a training run."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Begins the run's id: `<name>_<YYYYMMDD>_<HHMMSS>`."""
    experiment: Annotated[str, Field(pattern=NAME_PATTERN)]
    """The folder of `artifacts/runs/` that the run goes to."""
    data: Data
    model: ModelConfig
    training: Training = Training()
    distillation: Distillation | None = None
    """Learning from a teacher, beside or in place of the rows' own targets."""
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    cost: Cost = Cost()
    tune: Tune | None = None

    def deciding(self, *, exact: bool) -> dict[str, Any]:
        """The resolved settings, with the defaults in place of those that only say how the work is shared out.

        Args:
            exact: whether any number of processes gives the same bytes, so that theirs is one of those.
        """
        return deciding(self.resolved(), exact=exact)

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.distillation is not None and self.model.name != "causal_lm":
            yield ("distillation",), f"a {self.model.name} has no teacher here; only causal_lm does"
        if self.data.category == "distillation" and self.data.prepare is not None:
            yield ("data", "prepare"), "pairs of a teacher are made by `nexa filter-pairs`"
        if self.evaluation.generation is not None and self.model.name != "causal_lm":
            yield ("evaluation", "generation"), f"a {self.model.name} writes no text; only causal_lm does"


def deciding(resolved: dict[str, Any], *, exact: bool) -> dict[str, Any]:
    """`RunConfig.deciding` of a config that was written down."""
    training = {**resolved["training"], "data_workers": Training.model_fields["data_workers"].default}
    shared = {"timeout_seconds", "world_size"} if exact else {"timeout_seconds"}
    neutral = {name: Distributed.model_fields[name].default for name in shared}
    found = {**resolved, "training": {**training, "distributed": {**training["distributed"], **neutral}}}
    if found.get("distillation") is None:  # so that a run without a teacher is what it was before there were any
        found.pop("distillation", None)
    found.pop("tune", None)
    if found["data"].get("category") == "training":
        found["data"] = {name: value for name, value in found["data"].items() if name != "category"}
    return found
