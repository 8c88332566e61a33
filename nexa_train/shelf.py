"""Rows that were encoded for one run and serve the next: trials of a search read the same ones."""

import dataclasses
from typing import Any

from nexa_core import digests
from nexa_data.datasets import Dataset
from nexa_models.encoding import Encoded, encode
from nexa_models.spec import ModelSpec

NOT_READ_BY_ENCODING = {
    "dropout",
    "token_dropout",
    "hidden_size",
    "hidden_sizes",
    "channels",
    "num_layers",
    "num_heads",
} | {
    "intermediate_size",
    "embedding_size",
}
"""Parameters of the models here that change nothing of their inputs; any other makes other rows."""
NUM_KEPT = 4


class Shelf:
    """The splits that were encoded last, by what they were encoded from; an encoded split is never changed."""

    def __init__(self) -> None:
        self._kept: dict[str, Encoded] = {}

    def encoded(self, dataset: Dataset, split: str, spec: ModelSpec) -> Encoded:
        """A split as `spec`'s model reads it."""
        key = _key(dataset, split, spec)
        found = self._kept.pop(key, None)
        if found is None:
            found = encode(dataset.read_split(split), spec)
        self._kept[key] = found  # newest last
        while len(self._kept) > NUM_KEPT:
            del self._kept[next(iter(self._kept))]
        return found


def _key(dataset: Dataset, split: str, spec: ModelSpec) -> str:
    read: dict[str, Any] = dataclasses.asdict(spec)
    parameters = {name: value for name, value in spec.model["parameters"].items() if name not in NOT_READ_BY_ENCODING}
    read["model"] = {**spec.model, "parameters": parameters, "lora": None}
    return digests.of_value([dict(dataset.manifest), split, read])
