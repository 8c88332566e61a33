"""Datasets of distillation that stand: made of the same they are left as they are, of something else never replaced unasked."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexa_core import digests
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data import manifests
from nexa_distill.places import Place

logger = logging.getLogger(__name__)

FREE_KEYS = ("name", "version")
"""Settings that only say what a dataset is called."""


@dataclass(frozen=True)
class Made:
    """A dataset that stands; `is_new` says whether this call made it."""

    place: Place
    manifest: Mapping[str, Any]
    is_new: bool

    def as_json(self) -> dict[str, Any]:
        return dict(self.manifest)


@dataclass(frozen=True)
class Origin:
    """What a dataset is made of, and how that is told."""

    made_of: Mapping[str, Any]
    """Everything that decides the bytes: its digest is the dataset's fingerprint. `config` holds the settings, by name."""
    section: str
    """Of the settings, where the dataset's name and version are."""
    kind: str
    others: str
    """What else but the settings may be another, in words."""
    contents: Mapping[str, str]
    """Digests of what the settings only name: `contents_of` each model that is asked."""
    free: Sequence[str] = FREE_KEYS
    """Settings that decide nothing."""

    @property
    def fingerprint(self) -> str:
        return digests.of_value({**self.made_of, "contents": self.contents} if self.contents else self.made_of)

    def changes_since(self, standing: manifests.Manifest) -> list[str]:
        """In what a dataset that was made of something else differs, as far as its manifest tells."""
        then = {name: value for name, value in standing["config"].items() if name not in (*self.free, "output")}
        changed = [name for name, value in self.made_of["config"].items() if then.get(name) != value]
        before = standing.get("contents") or {}
        names = sorted(before.keys() | self.contents.keys())
        return [f"content of its {name}" for name in names if before.get(name) != self.contents.get(name)] + changed


def still_stands(standing: manifests.Manifest, origin: Origin, layout: Layout, *, replace: bool) -> bool:
    """Whether there is nothing to do; False where it is damaged, or to be replaced: made of something else, or with gaps.

    Raises:
        UserError: it was made of something else, or is a dataset of another kind.
    """
    key = f"{standing['name']}_{standing['version']}"
    if standing["kind"] != origin.kind:
        raise UserError(f"{key} is the name of a dataset of {standing['kind']}; set another {origin.section}.name.")
    if standing["fingerprint"] != origin.fingerprint:
        if replace:
            return False
        changed = " and ".join(origin.changes_since(standing)) or origin.others
        raise UserError(
            f"{key} was made with other {changed}. A version never changes: set a new {origin.section}.version, or pass "
            "--replace. Answers to equal requests are not paid again."
        )
    if replace and standing.get("statuses", {}).get("failed"):
        return False  # failed calls may succeed now
    for record in manifests.files_of(standing):
        if problem := manifests.damage(layout, record):
            logger.warning("%s: %s; making it again", key, problem)
            return False
    logger.info("%s: nothing to do, it stands as asked", key)
    return True
