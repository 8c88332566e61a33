"""The trackers of a training run: its record, what is kept beside it, and the processes that send both on."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from nexa_core.runs import RunFolder
from nexa_core.trackers import Followers, PaceRecord, PrometheusFile, Record, Tracker, Trackers, destinations_of
from nexa_core.trackers.story import Story
from nexa_train.job import Job


@contextmanager
def open_trackers(job: Job, folder: RunFolder, *, resume_step: int) -> Iterator[Tracker]:
    """Takes the run's numbers from `resume_step` on; at its end, waits a little for those that are sent them."""
    story, settings = Story(job.layout, folder, resume_step), job.config.tracking
    trackers: list[Tracker] = [Record(folder.step_metrics, resume_step=resume_step), PaceRecord(story.pace_path)]
    if settings.prometheus:
        labels = {"run_id": folder.run_id, "experiment": job.config.experiment}
        trackers.append(PrometheusFile(story.prometheus_path, labels=labels))
    wanted = destinations_of(os.environ, mlflow_uri=settings.mlflow_uri, tensorboard=settings.tensorboard)
    if job.layout.apart is not None:  # a run that is to show nowhere
        wanted = []
    with Followers(story, wanted, wait_seconds=settings.wait_seconds), closing(Trackers(trackers)) as tracker:
        yield tracker
