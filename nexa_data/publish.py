"""What tells others of a dataset: its manifest, written last, its Croissant file and overview, its name in evaluation sets."""

from typing import Any

from nexa_core import durable
from nexa_core.paths import CATEGORIES
from nexa_data import manifests
from nexa_data.croissant import write_croissant
from nexa_data.datasets import Dataset
from nexa_data.evaluation_sets import EvaluationSet
from nexa_data.places import Places, croissant_path, overview_path


def publish(places: Places, manifest: manifests.Manifest) -> manifests.Manifest:
    """Have all that describes a dataset say what the settings tell about it; the manifest is written last."""
    from nexa_data.overview.page import write_overview

    told = {**manifest, "about": places.config.about.resolved()}
    is_current = manifests.read_manifest(places.manifest) == told
    write_croissant(places.layout, told)
    if not is_current or not overview_path(places.layout, told).exists():
        write_overview(Dataset(places.layout, places.manifest, told), is_sample=True)
    if not is_current:
        durable.write_json(places.manifest, told)
    return told


def withdraw(places: Places, standing: list[manifests.Stood]) -> None:
    """Remove what tells of datasets that are about to be replaced, the manifests first."""
    for path, _ in standing:
        durable.remove(path)
    for _, manifest in standing:
        durable.remove(croissant_path(places.layout, manifest))
        durable.remove(overview_path(places.layout, manifest))


def name_in_evaluation_sets(evaluation: EvaluationSet | None, places: Places, manifest: manifests.Manifest) -> None:
    """The manifests of the evaluation sets name the dataset, as its own names them, and no other manifest does."""
    key, entry = places.config.key, {"category": places.category, "fingerprint": manifest["fingerprint"]}
    named = set() if evaluation is None else {member.manifest_path for member in evaluation.members}
    for category in CATEGORIES:
        for path, standing in manifests.list_manifests(places.layout, category):
            before: dict[str, Any] = standing.get("held_against", {})
            others = {name: each for name, each in before.items() if name != key}
            after = dict(sorted({**others, key: entry}.items())) if path in named else others
            if after != before:
                durable.write_json(path, {**standing, "held_against": after})
