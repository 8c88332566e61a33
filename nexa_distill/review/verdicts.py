"""Finding what a filter made of a dataset of outputs."""

import logging
from dataclasses import dataclass
from pathlib import Path

from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_core.paths import Layout
from nexa_data.manifests import Manifest, list_manifests
from nexa_distill.places import Place

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filtered:
    """The pairs that a filter kept and rejected."""

    key: str
    kept_path: Path | None
    """None where it kept none."""
    rejected_path: Path


def find_filtered(layout: Layout, outputs: Place, given: str | None) -> Filtered | None:
    """The results `given`, else the newest that were made of these outputs; None where there are none.

    Raises:
        UserError: there are no results `given`.
    """
    made = [path for path, manifest in list_manifests(layout, "distillation") if _is_of(manifest, outputs)]
    found = [path for path in made if _files(layout, path.stem).rejected_path.is_file()]
    if given is not None:
        files = _files(layout, given)
        if not files.rejected_path.is_file():
            there = [path.stem for path in found]
            raise UserError(
                f"There is no {layout.relative(files.rejected_path)}.{did_you_mean(given, there)} Of {outputs.key} there are: "
                f"{', '.join(there) or 'none'}. They are made by: nexa filter-pairs"
            )
        return files
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
    kept_path = folder / "filtered" / f"{key}.parquet"
    return Filtered(key, kept_path if kept_path.is_file() else None, folder / "rejected" / f"{key}.parquet")
