"""A run at an MLflow server: parameters, metrics, dataset, files and the model."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException

from nexa_core.redact import redact
from nexa_core.trackers.destinations import Refused, Unreachable
from nexa_core.trackers.story import Story, Times, without_credentials

RUN_TAG = "nexa.run_id"
STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
# Source: https://mlflow.org/docs/latest/rest-api.html, limits of log-batch
MAX_METRICS, MAX_PARAMS, MAX_PARAM_CHARACTERS = 1000, 100, 6000
TRY_AGAIN = (408, 429)


class MLflow:
    """One MLflow run for each run, found again by its tag: a resumed run goes on where the server's curves end."""

    name = "mlflow"

    def __init__(self) -> None:
        self.num_sent = 0
        self._uri = os.environ["MLFLOW_TRACKING_URI"]
        self._client = MlflowClient(tracking_uri=self._uri)
        self._latest: dict[str, int] | None = None
        """Each metric's last step at the server; None when that is not known."""

    @property
    def address(self) -> str:
        return f"{without_credentials(self._uri)}/#/experiments/{self._experiment_id}/runs/{self._run_id}"

    def begin(self, story: Story) -> None:
        self._story, self._times = story, Times(story)
        with self._asking():
            self._experiment_id = self._find_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or story.experiment)
            run = self._find_run() or self._open_run()
            self._run_id = run.info.run_id
            if run.info.status != "RUNNING" and not story.ended_at:
                self._client.update_run(self._run_id, status="RUNNING")
            self._log_params(run.data.params)
            self._log_dataset()

    def send(self, lines: list[dict[str, Any]]) -> None:
        self._log_metrics([(line["step"], {k: v for k, v in line.items() if k != "step"}) for line in lines])

    def pace(self, lines: list[dict[str, Any]]) -> None:
        self._times.learn(lines)
        rates = [
            (line["step"], {f"rates/{k}": v for k, v in line.items() if k not in ("step", "time")}) for line in lines
        ]
        self._log_metrics(rates)

    def finish(self, ending: str) -> None:
        if ending == "finished":
            self._log_metrics([self._story.scores()])
        with self._asking():
            kept = {file.path: file.file_size for file in self._client.list_artifacts(self._run_id)}
            for path in self._story.files():
                self._send_file(path, None, kept)
            if model := self._story.model():
                kept = {file.path: file.file_size for file in self._client.list_artifacts(self._run_id, "model")}
                self._send_file(model, "model", kept)
            ended_at = self._story.ended_at
            end_time = int((time.time() if ended_at is None else ended_at.timestamp()) * 1000)
            self._client.set_terminated(self._run_id, status=STATUS[ending], end_time=end_time)

    def _find_experiment(self, name: str) -> str:
        if found := self._client.get_experiment_by_name(name):
            if found.lifecycle_stage == "deleted":
                raise Refused(
                    f"its experiment {name} is deleted; restore it (mlflow experiments restore) or use another"
                )
            return str(found.experiment_id)
        try:
            return self._client.create_experiment(name)
        except MlflowException as error:  # another run was quicker
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = self._client.get_experiment_by_name(name)
            assert found is not None
            return str(found.experiment_id)

    def _find_run(self) -> Run | None:
        wanted = f"tags.`{RUN_TAG}` = '{self._story.run_id}'"
        found = self._client.search_runs([self._experiment_id], filter_string=wanted, max_results=1)
        return found[0] if found else None

    def _open_run(self) -> Run:
        story = self._story
        tags = {RUN_TAG: story.run_id, "mlflow.source.name": "nexa train", "mlflow.source.type": "LOCAL"}
        if fingerprint := story.lineage.get("fingerprint"):
            tags["nexa.fingerprint"] = fingerprint
        if story.commit:
            tags["mlflow.source.git.commit"] = story.commit
        started = int(story.began_at.timestamp() * 1000)
        return self._client.create_run(self._experiment_id, start_time=started, tags=tags, run_name=story.run_id)

    def _log_params(self, known: dict[str, str]) -> None:
        """Those that are not there yet: a parameter is never changed."""
        told = {name: redact(str(value))[:MAX_PARAM_CHARACTERS] for name, value in self._story.parameters.items()}
        params = [Param(name, value) for name, value in told.items() if name not in known]
        for begin in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[begin : begin + MAX_PARAMS])

    def _log_dataset(self) -> None:
        if not (manifest := self._story.dataset):
            return
        key = f"{manifest['name']}_{manifest['version']}"
        digest = self._story.lineage["inputs"]["dataset"]["fingerprint"]
        inputs = [
            DatasetInput(
                Dataset(
                    name=f"{key}/{split}",
                    digest=digest[:36],
                    source_type="local",
                    source=json.dumps({"uri": part["path"]}),
                    profile=json.dumps({"num_rows": part["rows"], "sha256": part["sha256"]}),
                ),
                [InputTag("mlflow.data.context", context)],
            )
            for split, context in (("train", "training"), ("val", "validation"), ("test", "testing"))
            if (part := manifest["splits"].get(split))
        ]
        self._client.log_inputs(self._run_id, inputs)

    def _log_metrics(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """What lies beyond each metric's last step at the server: nothing is there twice."""
        with self._asking():
            latest = self._latest if self._latest is not None else self._ask_latest()
            self._latest = None  # not known, should the answer to what follows be lost
            new = [
                Metric(name, value, int(self._times.of(step) * 1000), step)
                for step, values in rows
                for name, value in values.items()
                if step > latest.get(name, -1)
            ]
            for begin in range(0, len(new), MAX_METRICS):
                self._client.log_batch(self._run_id, metrics=new[begin : begin + MAX_METRICS])
            self.num_sent += len(new)
            self._latest = latest | {metric.key: metric.step for metric in new}

    def _ask_latest(self) -> dict[str, int]:
        data = self._client.get_run(self._run_id).data
        return {metric.key: metric.step for metric in data._metric_objs}  # the public view of them lacks the steps

    def _send_file(self, path: Path, folder: str | None, kept: dict[str, int]) -> None:
        """The model is not sent again where it is there with its size; the others are small."""
        there = f"{folder}/{path.name}" if folder else path.name
        if folder is None or kept.get(there) != path.stat().st_size:
            self._client.log_artifact(self._run_id, str(path), folder)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Tell a server that is away from one that says no."""
        try:
            yield
        except MlflowException as error:
            status, address = error.get_http_status_code(), without_credentials(self._uri)
            if 400 <= status < 500 and status not in TRY_AGAIN:
                raise Refused(f"{address} says no: {error}") from error
            raise Unreachable(f"{address} cannot be reached: {_deepest(error)}") from error
        except OSError as error:  # of requests as well
            raise Unreachable(f"{without_credentials(self._uri)} cannot be reached: {_deepest(error)}") from error


def _deepest(error: BaseException) -> BaseException:
    """What began it: the last of a chain says the same in a page."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
