"""Hyperparameter search: not in this version; the command says so."""

from pathlib import Path

from nexa_core.errors import not_built_yet


def search(config: Path, *, max_trials: int) -> None:
    """Refuse: exit code 2."""
    instead = f"Try values by hand, {max_trials} runs of: nexa train --config {config} --override training.optimizer.lr=0.0005"
    raise not_built_yet("Hyperparameter search (tune)", instead)
