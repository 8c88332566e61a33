"""Where the datasets of distillation lie: by key below `data/processed/distillation`, or in files that a user names."""

import re
from dataclasses import dataclass
from pathlib import Path

from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_core.paths import Layout
from nexa_data.manifests import list_manifests

KEY = re.compile(r"(?P<name>[A-Za-z0-9_.-]*[A-Za-z0-9.-])_(?P<version>[A-Za-z0-9.-]+)")
SUFFIX = ".parquet"


@dataclass(frozen=True)
class Place:
    """A Parquet file and its manifest."""

    path: Path
    manifest_path: Path
    name: str
    version: str
    purpose: str
    """What the ledger knows its calls by: its key, of a file elsewhere its path, for several may be called alike."""

    @property
    def key(self) -> str:
        return f"{self.name}_{self.version}"


def place_of(layout: Layout, given: str, folder: str) -> Place:
    """What a dataset's key, or a file's path, means.

    Args:
        folder: below `data/processed/distillation`; what the datasets in it are is called like it.

    Raises:
        UserError: it is neither.
    """
    if given.endswith(SUFFIX):
        path = Path(given)
        path = path if path.is_absolute() or path.exists() else layout.absolute(given)
        found = KEY.fullmatch(path.stem)
        name, version = (found["name"], found["version"]) if found else (path.stem, "v1")
        standard = layout.processed / "distillation" / folder
        if path.resolve().parent == standard.resolve() and found:
            return Place(path, layout.dataset_manifests("distillation") / f"{path.stem}.json", name, version, path.stem)
        return Place(path, path.with_suffix(".manifest.json"), name, version, layout.relative(path.resolve()))
    if (found := KEY.fullmatch(given)) is None:
        raise UserError(f"'{given}' is neither a dataset's key, like {folder}_v1, nor the path of a {SUFFIX} file.")
    path = layout.processed / "distillation" / folder / f"{given}{SUFFIX}"
    return Place(
        path, layout.dataset_manifests("distillation") / f"{given}.json", found["name"], found["version"], given
    )


def require_file(layout: Layout, place: Place, folder: str, *, make: str) -> None:
    """Raise a `UserError` where there is no such file, with those that there are and how to make it."""
    if place.path.is_file():
        return
    there = [f"{manifest['name']}_{manifest['version']}" for _, manifest in list_manifests(layout, "distillation")
             if folder in manifest["splits"]]  # fmt: skip
    raise UserError(
        f"There is no {layout.relative(place.path)}.{did_you_mean(place.key, there)} There: {', '.join(there) or 'none'}. "
        f"It is made by: {make}"
    )
