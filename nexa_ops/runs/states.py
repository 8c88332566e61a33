"""Which runs there are and the state of each, told from as few files as can be."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast, get_args

from nexa_core.errors import UserError
from nexa_core.holder import Ending, Holder, is_held, read_ending, read_holder
from nexa_core.lookup import did_you_mean, unknown
from nexa_core.manifest import LATEST
from nexa_core.paths import Layout
from nexa_core.runs import RUN_ID, RunFolder, is_evaluation

State = Literal["running", "finished", "interrupted", "failed", "pruned", "partial"]
STATES: tuple[State, ...] = get_args(State)
"""Interrupted: told to end or killed, and resumable. Failed: ended by an error.
Pruned: given up by its search. Partial: killed before it had begun."""


@dataclass(frozen=True)
class Found:
    """A run by its folder's name and place; nothing in it has been read."""

    run: RunFolder
    begun_at: datetime
    attempt: int
    """Of several runs begun in the same second."""
    is_finished: bool

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def experiment(self) -> str:
        return self.run.path.parent.name


@dataclass(frozen=True)
class Standing:
    """How a run stands, and what the process that wrote to it last said of itself."""

    state: State
    holder: Holder | None = None
    ending: Ending | None = None


def find_runs(layout: Layout) -> list[Found]:
    """Every folder with the name of a run, the newest first; evaluations, which nothing but their content tells apart, too."""
    finished = {path.stem for path in _listed(layout.run_manifests) if path.name != LATEST}
    found = [
        Found(
            RunFolder(path),
            datetime.strptime(match["time"], "%Y%m%d_%H%M%S").replace(tzinfo=UTC),
            int(match["attempt"] or 1),
            path.name in finished,
        )
        for experiment in _listed(layout.runs)
        if experiment.is_dir()
        for path in _listed(experiment)
        if (match := RUN_ID.match(path.name))
    ]
    return sorted(found, key=lambda each: (each.begun_at, each.attempt, each.run_id), reverse=True)


def standing_of(found: Found) -> Standing | None:
    """How it stands; None where it is no training run but an evaluation, or no folder."""
    if found.is_finished:
        return Standing("finished")
    if not found.run.path.is_dir() or is_evaluation(found.run):
        return None
    holder = read_holder(found.run)
    if is_held(found.run, holder):
        return Standing("running", holder)
    if not found.run.lineage.exists():
        return Standing("partial", holder)
    ending = read_ending(found.run)
    state = cast(State, ending.state) if ending else "interrupted"
    return Standing(state, holder, ending)


def find_run(layout: Layout, given: str) -> Found:
    """The one run whose id begins with `given`; of a whole id, that run.

    Raises:
        UserError: there is none, or several.
    """
    name = given.rstrip("/").rpartition("/")[2]
    runs = find_runs(layout)
    begin_so = [each for each in runs if each.run_id.startswith(name)]
    matching = [each for each in begin_so if each.run_id == name] or [
        each for each in begin_so if each.is_finished or standing_of(each)
    ]
    if len(matching) == 1 and name:
        return matching[0]
    if not runs:
        raise UserError(f"No run {given}: this laboratory has none yet. Train one: nexa train")
    if not matching:
        raise UserError(f"No run {given}.{did_you_mean(name, [each.run_id for each in runs])} nexa runs lists them.")
    some = ", ".join(each.run_id for each in matching[:3])
    raise UserError(
        f"{len(matching)} runs begin with '{given}': {some}{', ...' if len(matching) > 3 else ''}. Add to it."
    )


def refuse_unknown_state(state: str) -> None:
    """Raises UserError for what is none of `STATES`."""
    if state not in STATES:
        raise UserError(unknown("state", state, STATES))


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except (FileNotFoundError, NotADirectoryError):
        return
