"""Finding what a filter made of a dataset of outputs."""

import logging
from dataclasses import dataclass
from pathlib import Path

from nexa_core.paths import Layout
from nexa_data.manifests import Manifest, list_manifests
from nexa_distill.places import Place, place_of, require_file

logger = logging.getLogger(__name__)

KEPT, REJECTED = "filtered", "rejected"
MAKE = "nexa filter-pairs"


@dataclass(frozen=True)
class Filtered:
    """The pairs that a filter kept and rejected."""

    key: str
    kept_path: Path
    rejected_path: Path


def find_filtered(layout: Layout, outputs: Place, given: str | None) -> Filtered | None:
    """The results of the dataset `given`, else of the newest that was made of these outputs; None where there is none.

    Raises:
        UserError: there is no dataset `given`.
    """
    if given is not None:
        place = place_of(layout, given, KEPT)
        require_file(layout, place, KEPT, make=MAKE)
        return _files(layout, place.key)
    manifests = [path for path, manifest in list_manifests(layout, "distillation") if _is_of(manifest, outputs)]
    found = [path for path in manifests if _files(layout, path.stem).rejected_path.is_file()]
    if not found:
        return None
    newest = max(found, key=lambda path: path.stat().st_mtime_ns).stem
    if len(found) > 1:
        logger.info("showing what the filter %s made of them, the newest of %d; --filtered chooses", newest, len(found))
    return _files(layout, newest)


def _is_of(manifest: Manifest, outputs: Place) -> bool:
    return any(parent.get("dataset") == outputs.key for parent in manifest.get("parents") or [])


def _files(layout: Layout, key: str) -> Filtered:
    folder = layout.processed / "distillation"
    return Filtered(key, folder / KEPT / f"{key}.parquet", folder / REJECTED / f"{key}.parquet")
