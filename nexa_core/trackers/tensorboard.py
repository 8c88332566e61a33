"""TensorBoard events under `logs/<run_id>/`: `tensorboard --logdir logs/` shows them."""

import json
import time
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from nexa_core.trackers.story import Story, Times

NUM_SAMPLES = 8
STATUS = {"finished": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE, "killed": api_pb2.STATUS_UNKNOWN}


class TensorBoard:
    """Scalars of each step, rates, settings and scores for the hparams table, and some predictions as text."""

    name = "tensorboard"

    def __init__(self) -> None:
        self.num_sent = 0

    @property
    def address(self) -> str:
        return f"logs/{self._story.run_id}"

    def begin(self, story: Story) -> None:
        self._story, self._times = story, Times(story)
        self._writer = EventFileWriter(str(story.layout.logs / story.run_id))
        if story.after:  # what an earlier attempt showed of later steps is no longer so
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=story.after + 1, session_log=log))
        settings = {name: _plain(value) for name, value in story.parameters.items()}
        start = hparams_pb(settings, trial_id=story.run_id, start_time_secs=story.began_at.timestamp())
        self._add(start, step=0, at=story.began_at.timestamp())
        self._writer.flush()

    def send(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["step"] > self._story.after:
                self._add_scalars(line)
        self._writer.flush()

    def pace(self, lines: list[dict[str, Any]]) -> None:
        self._times.learn(lines)
        for line in lines:
            if line["step"] > self._story.after:
                named = {f"rates/{name}": value for name, value in line.items() if name not in ("step", "time")}
                self._add_scalars({"step": line["step"], **named})

    def finish(self, ending: str) -> None:
        if ending == "finished":
            step, scores = self._story.scores()
            self._add_scalars({"step": step, **{f"scores/{name}": value for name, value in scores.items()}})
            if samples := self._story.samples(NUM_SAMPLES):
                self._add(text_pb("samples", _table(samples)), step=step, at=time.time())
        data = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(status=STATUS[ending], end_time_secs=time.time()),
            version=metadata.PLUGIN_DATA_VERSION,
        )
        summary = summary_pb2.Summary()
        summary.value.add(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(data),
            tensor=metadata.NULL_TENSOR,
        )
        self._add(summary, step=0, at=time.time())
        self._writer.close()

    def _add_scalars(self, line: dict[str, Any]) -> None:
        self.num_sent += len(line) - 1
        summary = summary_pb2.Summary()
        for name, value in line.items():
            if name != "step":
                summary.value.add(tag=name, simple_value=value)
        self._add(summary, step=line["step"], at=self._times.of(line["step"]))

    def _add(self, summary: summary_pb2.Summary, *, step: int, at: float) -> None:
        self._writer.add_event(event_pb2.Event(wall_time=at, step=step, summary=summary))


def _plain(value: Any) -> str | float | bool:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of Markdown, which TensorBoard shows as one."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown.replace("|", "\\|").replace("\n", "<br>")
