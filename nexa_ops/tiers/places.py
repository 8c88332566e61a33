"""The storage tiers: which there are, by the variables that name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_core.paths import Layout

LAB = "lab"
VARIABLES = {"scratch": "NEXA_SCRATCH", "durable": "NEXA_DURABLE", "shared": "NEXA_SHARED"}
"""Scratch is fast and may be lost at any time; durable outlives the machine; shared is what other machines read."""
FOLDERS_ONLY = ("scratch",)


@dataclass(frozen=True)
class Tier:
    """A folder or s3:// place whose files lie as in the laboratory."""

    name: str
    where: str

    @property
    def is_folder(self) -> bool:
        return "://" not in self.where

    @property
    def is_there(self) -> bool:
        """Whether its folder is; of other storage nobody knows before it is asked."""
        return not self.is_folder or Path(self.where).is_dir()

    def place_of(self, key: str) -> str:
        """Where what lies at `key` in the laboratory lies in this tier."""
        return f"{self.where.rstrip('/')}/{key}"


def read_tiers(layout: Layout, environment: Mapping[str, str]) -> list[Tier]:
    """The laboratory and the tiers that are set.

    Raises:
        UserError: one is set to what it cannot be.
    """
    tiers = [Tier(LAB, str(layout.root.resolve()))]
    for name, variable in VARIABLES.items():
        where = environment.get(variable)
        if not where:
            continue
        if name in FOLDERS_ONLY and "://" in where:
            raise UserError(f"{variable}={where}: expected a folder on a fast disk of this machine.")
        tier = Tier(name, where)
        if tier.is_folder and _same(tier, tiers[0]):
            raise UserError(f"{variable}={where} is the laboratory itself; name a folder beside it, or unset it.")
        tiers.append(tier)
    return tiers


def find_tier(layout: Layout, environment: Mapping[str, str], name: str) -> Tier:
    """The tier of this name.

    Raises:
        UserError: there is none, it is not set, or its folder is not there.
    """
    if name not in (LAB, *VARIABLES):
        raise UserError(unknown("tier", name, (LAB, *VARIABLES)))
    for tier in read_tiers(layout, environment):
        if tier.name == name:
            if not tier.is_there:
                raise UserError(
                    f"{VARIABLES[name]}={tier.where} is not there: is that storage mounted? Make the folder once, inside of what "
                    f"is mounted, so that it is missed when that is not: mkdir {tier.where}"
                )
            return tier
    raise UserError(
        f"{VARIABLES[name]} is not set: it names the {name} storage, a folder or s3:// place (see POLICY.md)."
    )


def _same(tier: Tier, lab: Tier) -> bool:
    return Path(tier.where).resolve() == Path(lab.where)
