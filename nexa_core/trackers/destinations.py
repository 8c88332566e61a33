"""Who is sent a run's record, and who asked for it: the shell, `.env.local`, `.env` or the run's config."""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nexa_core.redact import redact
from nexa_core.trackers.story import Story, without_credentials

DESTINATIONS = {
    "tensorboard": "nexa_core.trackers.tensorboard:TensorBoard",
    "mlflow": "nexa_core.trackers.mlflow:MLflow",
    "wandb": "nexa_core.trackers.wandb:Wandb",
}
SWITCHES = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_API_KEY"}
"""The variable that asks for each of those that are elsewhere."""
TITLES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "Weights & Biases"}

# Their clients report on their users unless told not to, and wait for minutes where a run's end waits for seconds:
# trying again is what `follow` does.
CLIENT_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
CLIENT_DEFAULTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
LONGEST_MESSAGE = 300


class Unreachable(Exception):
    """The tracker cannot be reached or is busy: it may take the same a little later."""


class Refused(Exception):
    """The tracker says no, and would say so again."""


class Destination(Protocol):
    """A tracker that is sent a run's record. What it has already it is not sent again: it is asked, not remembered.

    Each method raises `Unreachable` or `Refused`.
    """

    name: str
    num_sent: int
    """Values of curves."""

    @property
    def address(self) -> str:
        """Where a person finds the run, once it has begun."""
        ...

    def begin(self, story: Story) -> None:
        """Find the tracker's own run of this run, or open it, and say what the run is."""

    def send(self, lines: list[dict[str, Any]]) -> None:
        """Lines of the record, in its order."""

    def pace(self, lines: list[dict[str, Any]]) -> None:
        """Lines of the pace record."""

    def finish(self, ending: str) -> None:
        """What there is at the end: scores, files, the model. `ending` is finished, failed or killed."""


@dataclass(frozen=True)
class Wanted:
    """A destination that was asked for."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """What its client reads beside the environment that is there."""

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def is_remote(self) -> bool:
        return self.name in SWITCHES


def destinations_of(
    environment: Mapping[str, str], *, mlflow_uri: str | None = None, tensorboard: bool = False
) -> list[Wanted]:
    """What the environment asks for, and the settings; the environment goes before them."""
    found = []
    if tensorboard:
        found.append(Wanted("tensorboard"))
    if uri := environment.get(SWITCHES["mlflow"]) or mlflow_uri:
        found.append(Wanted("mlflow", {SWITCHES["mlflow"]: uri}))
    if environment.get(SWITCHES["wandb"]) and environment.get("WANDB_MODE") != "disabled":
        found.append(Wanted("wandb"))
    return found


def in_one_line(message: str) -> str:
    """What a client says, without secrets, as a part of a sentence."""
    line = " ".join(message.split()).rstrip(".")
    return redact(without_credentials(line))[:LONGEST_MESSAGE]


def prepare_clients(environment: MutableMapping[str, str] = os.environ) -> None:
    """Before a client is imported: no reports of their own, and no waiting for minutes unless the user says so."""
    environment.update(CLIENT_ENVIRONMENT)
    for name, value in CLIENT_DEFAULTS.items():
        environment.setdefault(name, value)
