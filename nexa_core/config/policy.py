"""What `nexa clean` may delete, and when; POLICY.md says the same in a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from nexa_core.config.base import Settings
from nexa_core.config.documents import Document
from nexa_core.config.load import load_config, parse_config

Days = Annotated[float, Field(ge=0)]


class CheckpointRule(Settings):
    """Checkpoints of runs that do not run; the result, the best, and what is packaged, pinned or a parent always stay."""

    keep_newest: Annotated[int, Field(ge=2)] = 2
    """How many stay of each run: the newest ones whose digest holds."""
    after_days: Days | None = 7.0
    """Since the run's last write; null keeps all."""


class FolderRule(Settings):
    """Folders of runs that failed or were killed before their first checkpoint, so that there is nothing to go on with."""

    after_days: Days | None = 30.0
    """Since the last write; null keeps all."""


class LogRule(Settings):
    """Text logs and TensorBoard events of runs that do not run and are not pinned."""

    after_days: Days | None = 90.0
    """Since the last line; null keeps all."""


class ReproductionRule(Settings):
    """What `nexa reproduce` left in `artifacts/reproductions/`."""

    after_days: Days | None = 30.0
    """Since the last write; null keeps all."""


class CacheRule(Settings):
    """What `nexa prepare` keeps of the pieces of large sources."""

    after_days: Days | None = 30.0
    """Since the last write; null keeps all."""


class TemporaryRule(Settings):
    """Files and folders that a killed process has not finished."""

    after_days: Days | None = 1.0
    """Since the last write; null keeps all."""


class PolicyConfig(Settings):
    """The retention that `nexa clean` plans by."""

    checkpoints: CheckpointRule = CheckpointRule()
    folders: FolderRule = FolderRule()
    logs: LogRule = LogRule()
    reproductions: ReproductionRule = ReproductionRule()
    cache: CacheRule = CacheRule()
    temporary: TemporaryRule = TemporaryRule()


def load_policy(path: Path | None, *, overrides: Sequence[str]) -> PolicyConfig:
    """The policy in the YAML file `path`, or the one that POLICY.md describes.

    Raises:
        UserError: as `load_config`.
    """
    if path is not None:
        return load_config(path, PolicyConfig, overrides=overrides)
    document = Document({}, {}, "the policy")
    for override in overrides:
        document.override(override)
    return parse_config(document, PolicyConfig)
