"""Every setting there is, defined in one place: read from YAML, checked strictly, frozen."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nexa_core.config.base import Settings
    from nexa_core.config.data import DataConfig, DatasetConfig
    from nexa_core.config.distill import DistillConfig
    from nexa_core.config.load import load_config
    from nexa_core.config.run import RunConfig

__all__ = ["DataConfig", "DatasetConfig", "DistillConfig", "RunConfig", "Settings", "load_config"]

_HOMES = {
    "DataConfig": "data",
    "DatasetConfig": "data",
    "DistillConfig": "distill",
    "RunConfig": "run",
    "Settings": "base",
    "load_config": "load",
}


def __getattr__(name: str) -> Any:
    """What is asked for: no command uses all of them, and the classes take a while to make."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
