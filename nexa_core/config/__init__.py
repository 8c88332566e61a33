"""Every setting there is, defined in one place: read from YAML, checked strictly, frozen."""

from nexa_core.config.base import Settings
from nexa_core.config.data import DataConfig, DatasetConfig
from nexa_core.config.distill import DistillConfig
from nexa_core.config.load import load_config
from nexa_core.config.run import RunConfig

__all__ = ["DataConfig", "DatasetConfig", "DistillConfig", "RunConfig", "Settings", "load_config"]
