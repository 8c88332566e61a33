"""A run's numbers: its own record, and who else gets them: TensorBoard, MLflow, W&B, Prometheus."""

from nexa_core.trackers.destinations import destinations_of
from nexa_core.trackers.followers import Followers
from nexa_core.trackers.prometheus import PrometheusFile
from nexa_core.trackers.record import PaceRecord, Record, Tracker, Trackers, read_json_lines

__all__ = [
    "Followers",
    "PaceRecord",
    "PrometheusFile",
    "Record",
    "Tracker",
    "Trackers",
    "destinations_of",
    "read_json_lines",
]
