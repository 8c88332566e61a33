"""What is searched: keys of the config, where their values come from, and the config with values put in."""

import copy
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import TypeAdapter

from nexa_core.config import RunConfig
from nexa_core.config.documents import Document
from nexa_core.config.load import parse_config
from nexa_core.config.tune import Choice, Distribution, Integer, LogUniform, Uniform
from nexa_core.errors import UserError
from nexa_train.tune.records import Values

Space = dict[str, Distribution]
Around = Callable[[Mapping[str, Any], str], Distribution | None]
"""Of the resolved config and a key in it: where the key's values come from; None where the config has no such key."""

_SPACE: TypeAdapter[Space] = TypeAdapter(dict[str, Distribution])


def default_space(config: RunConfig, table: Mapping[str, Around]) -> Space:
    """What is searched where the config does not say.

    Raises:
        UserError: the config has none of it.
    """
    resolved = config.resolved()
    found = {key: around(resolved, key) for key, around in table.items()}
    space = {key: distribution for key, distribution in found.items() if distribution is not None}
    if not space:
        raise UserError(f"This config has none of {', '.join(table)}; say in `tune.space` what is to be searched.")
    return space


def given(resolved: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    node: Any = resolved
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def a_decade_each_way(resolved: Mapping[str, Any], key: str) -> Distribution | None:
    """From a tenth of the given value to ten times of it, each decade alike."""
    value = given(resolved, key)
    return None if not value else LogUniform(name="log_uniform", low=value / 10, high=value * 10)


def up_to_half(resolved: Mapping[str, Any], key: str) -> Distribution | None:
    """From 0 to 0.5."""
    return None if given(resolved, key) is None else Uniform(name="uniform", low=0.0, high=0.5)


def as_json(space: Space) -> dict[str, dict[str, Any]]:
    return json.loads(_SPACE.dump_json(space))


def read_space(value: dict[str, dict[str, Any]]) -> Space:
    """What `as_json` wrote."""
    return _SPACE.validate_json(json.dumps(value))


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """As Optuna takes them; a choice is one of the texts of its values."""
    return {key: _distribution(each) for key, each in space.items()}


def _distribution(each: Distribution) -> BaseDistribution:
    match each:
        case Uniform():
            return FloatDistribution(each.low, each.high)
        case LogUniform():
            return FloatDistribution(each.low, each.high, log=True)
        case Integer():
            return IntDistribution(each.low, each.high, step=each.step)
        case Choice():
            return CategoricalDistribution([json.dumps(value, sort_keys=True) for value in each.values])


def as_values(space: Space, parameters: Mapping[str, Any]) -> Values:
    """Optuna's parameters as the config's values."""
    return {key: json.loads(parameters[key]) if isinstance(space[key], Choice) else parameters[key] for key in space}


def as_parameters(space: Space, values: Values) -> dict[str, Any]:
    """The config's values as Optuna's parameters."""
    return {
        key: json.dumps(values[key], sort_keys=True) if isinstance(space[key], Choice) else values[key] for key in space
    }


def grid(space: Space) -> list[Values]:
    """Every combination, the last key's values changing fastest."""
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*map(_points, space.values()))]


def _points(each: Distribution) -> list[Any]:
    match each:
        case Uniform():
            return np.linspace(each.low, each.high, each.points or 2).tolist()
        case LogUniform():
            points = np.geomspace(each.low, each.high, each.points or 2).tolist()
            return [each.low, *points[1:-1], each.high]  # geomspace may miss the ends by a bit
        case Integer():
            return list(range(each.low, each.high + 1, each.step))
        case Choice():
            return list(each.values)


def as_overrides(values: Values) -> list[str]:
    """As `--override` takes them; the very values, to the last bit."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def config_with(document: Document, values: Values, *, place: str = "") -> RunConfig:
    """The config of a document with values put in.

    Args:
        place: where a mistake is, instead of the override that a value amounts to.
    """
    changed = Document(copy.deepcopy(document.value), dict(document.places), document.name)
    for override in as_overrides(values):
        changed.override(override)
    if place:
        changed.places = {
            key: place if where.startswith("--override") and where not in document.places.values() else where
            for key, where in changed.places.items()
        }
    return parse_config(changed, RunConfig)


def check_space(document: Document, space: Space) -> None:
    """Hold each end and each choice of the space against the settings, before anything is trained.

    Raises:
        UserError: a key is none of the config's, or a value none that it takes.
    """
    for key, distribution in space.items():
        if key.split(".")[0] in ("name", "experiment", "tune"):
            raise UserError(f"tune.space: '{key}' is nothing that a trial can have of its own.")
        for value in _extremes(distribution):
            config_with(document, {key: value}, place=document.where(("tune", "space", key)))


def _extremes(each: Distribution) -> Iterator[Any]:
    if isinstance(each, Choice):
        yield from each.values
    else:
        yield from (each.low, each.high)
