"""Settings of `judge`: a versioned rubric of gates."""

from typing import Annotated, Literal

from pydantic import Field

from nexa_core.config.base import Settings


class Gate(Settings):
    """One condition that a score has to meet."""

    metric: str
    """A metric of `metrics.json`."""
    direction: Literal["at_least", "at_most"]
    threshold: float
    min_rows: Annotated[int, Field(gt=0)] = 1
    """Rows that the metric has to be measured on, at the least."""
    counts: Literal["interval", "point"] = "interval"
    """interval: the worse end of the 95% interval has to meet the threshold; point: the score itself."""


class Rubric(Settings):
    """What a model has to reach; change the version when you change a gate."""

    name: str
    version: Annotated[int, Field(gt=0)]
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]
