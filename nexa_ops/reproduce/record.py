"""What is left of a run that is to be run again: its settings, what it was made from, and what came out."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core import digests
from nexa_core.config import RunConfig, load_config
from nexa_core.environment import dependency_versions
from nexa_core.errors import UserError
from nexa_core.lineage import Lineage, outputs_by_name
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_ops.contents import LINEAGE
from nexa_ops.runs.states import find_run

EXPORTED_RUN = "run"
"""Where `nexa export` puts a run's records beside its weights."""
EXPORTED_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Record:
    """A finished run, in its folder or as much of that as travelled with its exported weights."""

    folder: RunFolder
    lineage: Lineage
    exported_weights: Path | None = None

    @property
    def run_id(self) -> str:
        return self.lineage["run_id"]

    @property
    def inputs(self) -> dict[str, Any]:
        return self.lineage["inputs"]

    @property
    def outputs(self) -> dict[str, str]:
        """SHA-256 of each file that the run left, by its name in the run's folder."""
        return outputs_by_name(self.lineage)

    @property
    def scores(self) -> dict[str, float]:
        """The run's scores; of one without a bound, infinity."""
        return {name: score["value"] for name, score in self.scored().items()}

    def scored(self) -> dict[str, dict[str, Any]]:
        """Value, low and high of each score."""
        found: dict[str, dict[str, Any]] = json.loads(self.folder.metrics.read_bytes())["metrics"]
        return found

    def config(self) -> RunConfig:
        return load_config(self.folder.config, RunConfig)

    def source(self, layout: Layout) -> Path | None:
        """The checkpoint of another run that it began at.

        Raises:
            UserError: it is not there any more.
        """
        if "begun_at" not in self.inputs:
            return None
        path = layout.absolute(self.lineage["parents"][-1])
        if not path.exists():
            raise UserError(f"Run {self.run_id} began at {layout.relative(path)}, which is not there any more.")
        return path

    def differing_inputs(self, inputs: dict[str, Any]) -> Iterator[str]:
        """What `inputs` have otherwise than the run's own: each a few words."""
        for name in sorted({*self.inputs, *inputs}):
            ours, theirs = self.inputs.get(name), inputs.get(name)
            if ours == theirs:
                continue
            if isinstance(ours, dict) and isinstance(theirs, dict):
                prefix = f"{name} " if name == "dataset" else ""
                yield from (f"{prefix}{key} {_told(a)} -> {_told(b)}" for key, a, b in _changes(ours, theirs))
            else:
                yield {"config": "settings (or their defaults)"}.get(name, name)

    def differing_here(self, dataset_fingerprint: str) -> list[str]:
        """Of what is cheap to look at before training: the dataset, the code, the packages."""
        dataset = {**self.inputs["dataset"], "fingerprint": dataset_fingerprint}
        here = {**self.inputs, "dataset": dataset, "code": digests.of_code(), "packages": dependency_versions()}
        return list(self.differing_inputs(here))


def read_record(layout: Layout, what: str) -> Record:
    """The finished run of this id, or the one whose records lie in this folder.

    Raises:
        UserError: there is none, or it is not finished, or no run of training.
    """
    given = Path(what)
    exported = (given / EXPORTED_RUN / LINEAGE).is_file()
    if exported:
        folder = RunFolder(given / EXPORTED_RUN)
    elif (given / LINEAGE).is_file():
        folder = RunFolder(given)
    else:
        folder = find_run(layout, what).run
    try:
        lineage: Lineage = json.loads(folder.lineage.read_bytes())
        kind, outputs = lineage["kind"], lineage["outputs"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder.lineage} cannot be read ({type(error).__name__}): nothing says what {what} was made from."
        ) from None
    if kind != "training":
        raise UserError(f"{what} is no run of training but of {kind}; reproduce the run whose checkpoint it is of.")
    if not outputs:
        raise UserError(
            f"Run {lineage['run_id']} has not finished, so there is nothing to hold a second run against. "
            f"Go on with it first: nexa runs resume {lineage['run_id']}"
        )
    weights = given / EXPORTED_WEIGHTS
    return Record(folder, lineage, weights if exported and weights.is_file() else None)


def _changes(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    yield from (
        (key, ours.get(key), theirs.get(key)) for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)
    )


def _told(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
