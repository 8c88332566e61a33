"""Settings of a search for better settings: what is searched, how, and when a trial is given up."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from nexa_core.config.base import NAME_PATTERN, Settings

PositiveInt = Annotated[int, Field(gt=0)]
LEASE_SECONDS = 60.0


class Uniform(Settings):
    """A number between two others, all alike."""

    name: Literal["uniform"]
    low: float
    high: float
    points: Annotated[int, Field(ge=2)] | None = None
    """Values that `strategy: grid` tries, evenly spaced, both ends among them."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from _wrong_ends(self.low, self.high)


class LogUniform(Settings):
    """A number between two others, each decade alike."""

    name: Literal["log_uniform"]
    low: Annotated[float, Field(gt=0)]
    high: Annotated[float, Field(gt=0)]
    points: Annotated[int, Field(ge=2)] | None = None
    """Values that `strategy: grid` tries, each the same multiple of the one before, both ends among them."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from _wrong_ends(self.low, self.high)


class Integer(Settings):
    """A whole number between two others, both among them."""

    name: Literal["integer"]
    low: int
    high: int
    step: PositiveInt = 1
    """Distance between two values, from `low` on."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from _wrong_ends(self.low, self.high)
        if (self.high - self.low) % self.step:
            yield ("step",), f"from {self.low} on, steps of {self.step} do not come to {self.high}"


class Choice(Settings):
    """One of some values of any kind, none nearer to one than to another."""

    name: Literal["choice"]
    values: Annotated[tuple[Any, ...], Field(min_length=1)]


Distribution = Annotated[Uniform | LogUniform | Integer | Choice, Field(discriminator="name")]


def _wrong_ends(low: float, high: float) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if low >= high:
        yield ("high",), f"has to lie above low, which is {low:g}"


class Pruner(Settings):
    """Gives up trials that are behind others which were trained as long."""

    name: str
    """asha, hyperband, or a function of your own, `package.module:name`."""
    min_validations: PositiveInt = 1
    """The first validation, one an epoch, after which a trial may be given up."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Of so many trials about one goes on, and so many times as long before it is looked at again."""


class Tune(Settings):
    """A search for better settings, by `nexa tune`; `nexa train` leaves it alone."""

    study: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Names the search and the folder of `artifacts/runs/` that its runs go to; `<experiment>_tune` without it."""
    strategy: str = "random"
    """random, tpe, cmaes, grid, or a function of your own, `package.module:name`."""
    space: dict[str, Distribution] = Field(default_factory=dict)
    """What is searched: any key of the config, e.g. `training.batch_size`, and where its values come from. Without it the
    optimizer's learning rate, a decade each way, and the model's dropout from 0 to 0.5."""
    metric: str = "val_loss"
    """What trials are compared by: val_loss or val_accuracy of the weights that the run keeps, or, with
    `evaluation.split: val`, any of the run's scores."""
    direction: Literal["minimize", "maximize"] | None = None
    """Without it: less is better of losses, more of the scores that are known so."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides each trial's values together with its number and the results that it may see."""
    parallel: PositiveInt = 4
    """Trials that may run at once where a strategy or pruner learns from others: trial k sees the results of those before
    k - parallel + 1, so that any number of workers finds the same. More workers than that wait."""
    pruner: Pruner | None = None
    max_failed_in_a_row: PositiveInt = 5
    """Trials that fail one after another, by their numbers, before the search stops."""
    storage: str | None = None
    """`postgresql://user@host/database`: the search's record is kept there, without it in
    `artifacts/tune/<study>/journal.jsonl`. The password comes from PGPASSWORD or ~/.pgpass."""
    lease_seconds: Annotated[float, Field(ge=1)] = LEASE_SECONDS
    """With `storage`: a worker that does not share the laboratory's folder is given up after so long without a sign of life."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.storage is None and self.lease_seconds != LEASE_SECONDS:
            yield ("lease_seconds",), "belongs to `storage`; a file's trials are held by locks"
        if self.storage is not None:
            yield from _wrong_storage(self.storage)
        for key, each in self.space.items():
            if isinstance(each, Uniform | LogUniform):
                if self.strategy == "grid" and each.points is None:
                    yield ("space", key), "a grid needs `points`: how many values between low and high"
                elif self.strategy in ("random", "tpe", "cmaes") and each.points is not None:
                    yield ("space", key, "points"), "belongs to `strategy: grid`"


def _wrong_storage(url: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
    scheme, found, rest = url.partition("://")
    if not found or scheme not in ("postgresql", "postgres"):
        yield ("storage",), "has to begin with postgresql://"
    elif ":" in rest.rpartition("@")[0]:
        yield ("storage",), "holds a password; give it in PGPASSWORD or ~/.pgpass"
