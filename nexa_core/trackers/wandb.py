"""A run at Weights & Biases: settings, curves, scores, files and the model."""

import os
import re
from collections import deque
from pathlib import Path
from typing import Any

import wandb as client
from wandb.errors import AuthenticationError, CommError, Error

from nexa_core.trackers.destinations import Refused, Unreachable
from nexa_core.trackers.story import Story, Times
from nexa_core.trackers.wandb_files import last_step

EXIT_CODE = {"finished": 0, "failed": 1, "killed": 255}
INIT_SECONDS = 30.0
NO = re.compile(r"\b40[0134]\b")
"""In what the client says of a server that answered."""
QUIET: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "init_timeout": INIT_SECONDS,
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""What is sent is what the run wrote down: nothing of the machine, the checkout or the terminal."""


class Wandb:
    """One W&B run for each run, under its own id: a resumed run goes on after the last step that is there."""

    name = "wandb"

    def __init__(self) -> None:
        self.num_sent = 0

    @property
    def address(self) -> str:
        return str(self._run.url or Path(self._run.dir).parent)

    def begin(self, story: Story) -> None:
        self._story, self._times = story, Times(story)
        try:
            self._run = client.init(
                project=os.environ.get("WANDB_PROJECT") or story.experiment,
                id=story.run_id,
                name=story.run_id,
                config=story.parameters,
                resume="allow",
                dir=str(story.layout.logs),
                settings=client.Settings(**QUIET),
            )
        except AuthenticationError as error:
            raise Refused(str(error)) from error
        except CommError as error:
            client.teardown()  # the next try gets a client of its own: this one says that the run is in use
            raise (Refused if NO.search(str(error)) else Unreachable)(str(error)) from error
        except Error as error:
            raise Refused(str(error)) from error
        self._next_step = self._first_step()
        self._rates: deque[dict[str, Any]] = deque()
        if fingerprint := story.lineage.get("fingerprint"):
            self._run.summary["fingerprint"] = fingerprint
        if story.commit:
            self._run.summary["commit"] = story.commit
        if story.dataset:
            self._run.summary["dataset"] = story.lineage["inputs"]["dataset"]

    def send(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            step = line["step"]
            if step >= self._next_step:
                values = {name: value for name, value in line.items() if name != "step"}
                self.num_sent += len(values)
                self._run.log({**values, **self._rates_until(step), "_timestamp": self._times.of(step)}, step=step)

    def pace(self, lines: list[dict[str, Any]]) -> None:
        self._times.learn(lines)
        self._rates.extend(lines)

    def finish(self, ending: str) -> None:
        if ending == "finished":
            step, scores = self._story.scores()
            self._run.summary.update({**scores, "scored_step": step})
            self._log_files("run", self._story.files())
            if model := self._story.model():
                self._log_files("model", [model])
        self._run.finish(exit_code=EXIT_CODE[ending])

    def _first_step(self) -> int:
        """The first step that is not there yet: the server says so, or without one the files that are to be sent to it."""
        if not self._run.offline:
            return int(self._run.starting_step)
        own = Path(self._run.dir).parent
        earlier = own.parent.glob(f"offline-run-*-{self._story.run_id}/run-*.wandb")
        return 1 + max((last_step(path) for path in earlier if path.parent != own), default=0)

    def _rates_until(self, step: int) -> dict[str, float]:
        """The newest rates that no step has shown yet: its steps only go up, so they go with one of the record."""
        newest: dict[str, Any] = {}
        while self._rates and self._rates[0]["step"] <= step:
            newest = self._rates.popleft()
        return {f"rates/{name}": value for name, value in newest.items() if name not in ("step", "time")}

    def _log_files(self, kind: str, paths: list[Path]) -> None:
        artifact = client.Artifact(f"{self._story.run_id}-{kind}", type=kind)
        for path in paths:
            artifact.add_file(str(path), policy="immutable")
        self._run.log_artifact(artifact)
