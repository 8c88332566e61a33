"""Datasets that are being replaced stay whole until the new one is: after an error, and after a kill, they are there again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexa_core import durable
from nexa_data import manifests
from nexa_data.places import Places, croissant_path, overview_path

LIST = "kept.json"
"""Names what is kept and where it belongs; written last, so that half of it is never taken for the whole."""


@contextmanager
def kept_until_replaced(places: Places, standing: list[manifests.Stood]) -> Iterator[None]:
    """A block in which these datasets give way to the new one; an error in it brings them back."""
    if not standing:
        yield
        return
    _keep(places, standing)
    try:
        yield
    except BaseException:
        restore(places)
        raise
    _forget(places)


def kept_files(places: Places) -> dict[str, Path]:
    """What is kept, by the name that it belongs to below the laboratory's root; nothing where nothing is being replaced."""
    listed = places.replaced / LIST
    names = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else []
    return {name: places.replaced / str(number) for number, name in enumerate(names)}


def restore(places: Places) -> None:
    """Put back what an attempt to replace it left aside, unless the new dataset stands."""
    if not places.replaced.exists():
        return
    if not places.manifest.exists():
        for name, kept in kept_files(places).items():
            if kept.exists():  # the manifests come last
                durable.keep(kept, places.layout.absolute(name))
    _forget(places)


def _keep(places: Places, standing: list[manifests.Stood]) -> None:
    layout = places.layout
    files = [layout.absolute(record["path"]) for _, manifest in standing for record in manifests.files_of(manifest)]
    told = [path(layout, manifest) for _, manifest in standing for path in (croissant_path, overview_path)]
    wanted = [path for path in (*files, *told, *(path for path, _ in standing)) if path.exists()]
    for number, path in enumerate(wanted):
        durable.keep(path, places.replaced / str(number))
    durable.write_json(places.replaced / LIST, [layout.relative(path) for path in wanted])


def _forget(places: Places) -> None:
    durable.remove(places.replaced / LIST)
    for path in places.replaced.iterdir():
        durable.remove(path)
    durable.remove_empty_folders(places.replaced, below=places.folder)
