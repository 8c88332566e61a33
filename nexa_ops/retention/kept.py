"""What is never deleted, and why: results, links' targets, parents, what was packaged, what is pinned."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from nexa_core.lineage import Lineage
from nexa_core.paths import CATEGORIES, Layout
from nexa_core.runs import RunFolder
from nexa_ops.contents import LINEAGE
from nexa_ops.runs.table import read_or_empty

Reasons = dict[Path, str]
"""Why a file or folder, by its real path, is kept."""


def find_kept(layout: Layout, lineages: dict[str, Lineage]) -> Reasons:
    """Every file that something else in the laboratory names.

    Args:
        lineages: of all runs and evaluations, by id.
    """
    kept: Reasons = {}
    for path in _parents(layout, lineages):
        kept[path] = "something was made from it"
    for path in layout.checkpoints.glob("*"):
        kept[path.resolve()] = "shown in artifacts/checkpoints"
    for path in _packaged(layout, lineages):
        kept[path] = "packaged"
    for path in layout.run_manifests.glob("*.json"):
        if checkpoint := read_or_empty(path).get("checkpoint"):
            kept[layout.absolute(checkpoint).resolve()] = "the run's result"
    return kept


def linked(run: RunFolder) -> Reasons:
    """The checkpoints that the run's own `best` and `last` show."""
    links = [path for path in run.checkpoints.glob("*") if path.is_symlink()]
    return {path.resolve(): f"the {path.stem} one" for path in sorted(links, reverse=True)}


def _parents(layout: Layout, lineages: dict[str, Lineage]) -> Iterator[Path]:
    named = [parent for lineage in lineages.values() for parent in lineage.get("parents", [])]
    for category in CATEGORIES:
        for path in layout.dataset_manifests(category).glob("*.json"):
            parents = read_or_empty(path).get("parents", [])
            named += [each if isinstance(each, str) else each.get("path", "") for each in parents]
    yield from (layout.absolute(each).resolve() for each in named if each)


def _packaged(layout: Layout, lineages: dict[str, Lineage]) -> Iterator[Path]:
    """The checkpoints whose bytes a package says it was made from."""
    for tarball in layout.packages.glob("*.tar.gz"):
        lineage = _lineage_in(tarball)
        digest = lineage.get("packed_checkpoint")
        outputs = lineages.get(lineage.get("run_id", ""), lineage).get("outputs", {})
        yield from (layout.absolute(path).resolve() for path, has in outputs.items() if digest in (None, has))


def _lineage_in(tarball: Path) -> Lineage:
    """A package's lineage, which lies ahead of its weights; empty where it cannot be read."""
    try:
        with tarfile.open(tarball, mode="r|gz") as tar:
            for member in tar:
                if Path(member.name).name == LINEAGE and (file := tar.extractfile(member)):
                    return json.load(file)
    except (tarfile.TarError, OSError, ValueError, EOFError):
        pass
    return {}
