"""Where everything lies on disk, below one root folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nexa_core.errors import UserError

PACKAGES = Path(__file__).parent.parent
"""The folder that holds `nexa_core` and its neighbours."""
CATEGORIES = ("distillation", "training", "evaluation")


@dataclass(frozen=True)
class Layout:
    """Every folder of a laboratory; nothing is created by asking for its path."""

    root: Path
    scratch: Path | None = None
    """Where what can be made again lies, if not below the root."""
    apart: Path | None = None
    """Where runs and what they leave lie, if not below the root: for a run that is to show nowhere."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Layout":
        """The layout below `NEXA_ROOT`, or the working folder; what can be made again below `NEXA_SCRATCH`, where that is set."""
        scratch = environment.get("NEXA_SCRATCH")
        return cls(Path(environment.get("NEXA_ROOT") or "."), Path(scratch) if scratch else None)

    @property
    def raw(self) -> Path:
        return self.root / "data" / "raw"

    @property
    def processed(self) -> Path:
        return self.root / "data" / "processed"

    @property
    def evaluation(self) -> Path:
        """Copies of scores and predictions, for questions over all runs."""
        return (self.apart or self.root) / "data" / "processed" / "evaluation"

    @property
    def artifacts(self) -> Path:
        return (self.apart or self.root) / "artifacts"

    @property
    def runs(self) -> Path:
        return self.artifacts / "runs"

    @property
    def checkpoints(self) -> Path:
        return self.artifacts / "checkpoints"

    @property
    def packages(self) -> Path:
        return self.artifacts / "package"

    @property
    def run_manifests(self) -> Path:
        return (self.apart or self.root) / "runs" / "manifests"

    @property
    def pins(self) -> Path:
        return self.root / "runs" / "pins"

    @property
    def moved(self) -> Path:
        return self.root / "runs" / "moved"

    @property
    def cache(self) -> Path:
        return (self.scratch or self.root) / ".cache"

    @property
    def logs(self) -> Path:
        return (self.apart or self.root) / "logs"

    def dataset_manifests(self, category: str) -> Path:
        return self.processed / category / "manifests"

    def find(self, given: str) -> Path:
        """What a path in the settings means: below the root, below the working folder, or beside the installed packages,
        where the shipped teacher lies; below the root where it is nowhere."""
        below_root = self.root / given
        tried = (below_root, Path(given), PACKAGES / given)
        return next((path for path in tried if path.exists()), below_root)

    def relative(self, path: Path) -> str:
        """`path` as it is written into manifests: below the root where it can be, with forward slashes."""
        resolved, root = path.resolve(), self.root.resolve()
        return resolved.relative_to(root).as_posix() if resolved.is_relative_to(root) else resolved.as_posix()

    def absolute(self, recorded: str) -> Path:
        """The file that a path written by `relative` means here."""
        return self.root / recorded


def folder_with(file: str, folder: Path) -> Path:
    """The nearest folder that has `file`, from `folder` upwards: a laboratory's root, from a notebook's own folder.

    Raises:
        UserError: there is none.
    """
    here = folder.resolve()
    for each in (here, *here.parents):
        if (each / file).is_file():
            return each
    raise UserError(f"No laboratory around {here}: neither it nor a folder above has {file}. Start it inside of one.")
