"""The JSON schemas of everything that is written by hand or read by machines."""

from typing import Any

from nexa_core import manifest
from nexa_core.config import DataConfig, DistillConfig, RunConfig, Settings
from nexa_core.config.policy import PolicyConfig
from nexa_core.config.rubric import Rubric
from nexa_core.errors import UserError
from nexa_core.lookup import unknown

CONFIGS: dict[str, type[Settings]] = {
    "run": RunConfig,
    "data": DataConfig,
    "distill": DistillConfig,
    "rubric": Rubric,
    "policy": PolicyConfig,
}


def json_schema(of: str) -> dict[str, Any]:
    """The schema of a kind of config, or of run manifests."""
    if of == "manifest":
        return manifest.SCHEMA
    if of not in CONFIGS:
        raise UserError(unknown("schema", of, [*CONFIGS, "manifest"]))
    return CONFIGS[of].model_json_schema()
