"""The doctor for several processes or machines: what training checks before it joins them, without training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nexa_core.config import RunConfig, load_config
from nexa_core.config.run import Data
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.datasets import open_dataset
from nexa_models.numerics import make_deterministic
from nexa_train.distributed.collectives import check_collectives
from nexa_train.distributed.facts import describe_node
from nexa_train.distributed.group import join
from nexa_train.distributed.health import Health, require_rendezvous, share_health
from nexa_train.distributed.node_checks import check_node
from nexa_train.distributed.store import open_store, read_endpoint
from nexa_train.distributed.world import World, read_world

TIMEOUT_SECONDS = 60.0
"""Without a config that says otherwise."""


def examine_together(
    layout: Layout, *, config_path: Path | None, overrides: Sequence[str], environment: Mapping[str, str]
) -> Health:
    """The health of all processes that a launcher started with this command, or of this one alone.

    Raises:
        NodeError: the other processes cannot be reached, so that there is no health to tell of.
    """
    config = load_config(config_path, RunConfig, overrides=overrides) if config_path is not None else None
    world = read_world(environment)
    timeout_seconds = config.training.distributed.timeout_seconds if config is not None else TIMEOUT_SECONDS
    device = _choose_device(config, world)
    make_deterministic(config.training.num_threads if config is not None else None)
    checks = check_node(
        world,
        folder=layout.runs if config is None else layout.runs / config.experiment,
        need_bytes=0,
        device=device,
        endpoint=None if world.is_alone else read_endpoint(environment),
        endpoint_seconds=timeout_seconds,
    )
    require_rendezvous(world, checks)
    store = open_store(world, environment, timeout_seconds=timeout_seconds)
    facts = describe_node(
        device=device,
        config=None if config is None else config.resolved(),
        dataset_fingerprint=None if config is None else _fingerprint(layout, config.data),
    )
    health = share_health(store, world, facts, checks, timeout_seconds=timeout_seconds)
    if not health.is_fit:
        return health  # a node that is unfit may hang the others where they all meet
    with join(world, store=store, device=device, timeout_seconds=timeout_seconds):
        return health.with_checks(check_collectives(store, world, device, timeout_seconds=timeout_seconds))


def _choose_device(config: RunConfig | None, world: World) -> torch.device:
    """The one that training would take; a GPU that was asked for and is not there is for the checks to find."""
    asked = config.training.device if config is not None else "auto"
    if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", world.local_rank)
    return torch.device("cpu")


def _fingerprint(layout: Layout, data: Data) -> str:
    try:
        return open_dataset(layout, data.dataset, data.version, category=data.category).fingerprint
    except UserError:
        return "not prepared"
