"""Settings of distillation: which prompts a teacher is asked, and what is done with its answers."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from nexa_core.config.ask import AskConfig, PositiveInt, Share
from nexa_core.config.base import NAME_PATTERN, Settings
from nexa_core.config.distill_filter import FilterConfig, RegenerateConfig


class CollectConfig(AskConfig):
    """The teacher, and the dataset of its answers."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "teacher_outputs"
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")] = "v1"
    samples: PositiveInt = 1
    """Answers to each prompt."""
    max_samples: PositiveInt | None = None
    """Prompts that are asked, the first of the inputs; all without it."""
    max_cost_usd: Annotated[float, Field(gt=0)] | None = None
    """What this dataset may cost, earlier tries and lost calls among it. A request is only sent where it can't be exceeded."""
    max_truncated_share: Share = 0.2
    """Of the answers, those cut off at `max_tokens` (of at least 50) before the run stops (exit 3)."""
    max_failed_share: Share = 0.01
    """Of the answers, those that were given up, before the run stops (of at least 50, ten of them failed) or ends (exit 3)."""

    @property
    def key(self) -> str:
        """`<name>_<version>`, as files and manifests are called."""
        return f"{self.name}_{self.version}"

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from super().conflicts()
        if self.samples > 1 and self.sampling.temperature == 0:
            yield ("samples",), "at temperature 0 all of them are the same; set sampling.temperature"


class DistillConfig(Settings):
    """What `collect-teacher` and `filter-pairs` read."""

    inputs: str = "teacher_inputs_v1"
    """The prompts: a dataset of data/processed/distillation/teacher_inputs, or a Parquet file with `row_id` and `prompt`."""
    prepare: str | None = None
    """The data config that makes the prompts when they have not been prepared yet."""
    collect: CollectConfig
    filter: FilterConfig = FilterConfig()
    regenerate: RegenerateConfig = RegenerateConfig()
