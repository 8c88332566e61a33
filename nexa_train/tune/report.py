"""What came out of a search: a table, what mattered, and the best trial as a `train` command."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core.errors import GateError
from nexa_core.paths import Layout
from nexa_models.scores import main_score, score_text
from nexa_train.tune.importance import MOST_TRIALS, importance_of, trials_needed
from nexa_train.tune.records import Ending, Study, Trial, best_of, ranked
from nexa_train.tune.search import Search, values_text
from nexa_train.tune.space import Space

NUM_SHOWN = 10


@dataclass(frozen=True)
class Report:
    study: Study
    trials: tuple[Trial, ...]
    """Best first."""
    best: Trial
    importance: dict[str, float] | None
    """None where there are too few trials to tell."""
    trials_needed: int
    """Complete ones, to tell it."""
    command: str
    place: str
    """Of the study's record."""
    note: str
    space: Space
    page: Path
    """Where the page of plots is, or is to be."""
    caution: str
    """That the best value flatters, and what the best trial has on rows that did not choose it."""

    @classmethod
    def of(cls, search: Search) -> "Report":
        """Raises GateError where no trial came to its end."""
        study, trials = search.study, search.trials()
        best = best_of(study, trials)
        if best is None:
            reasons = {trial.ending.reason for trial in trials if trial.ending is not None and trial.ending.reason}
            raise GateError("\n".join([f"None of {len(trials)} trials came to its end.", *sorted(reasons)]))
        return cls(
            study=study,
            trials=tuple(ranked(study, trials)),
            best=best,
            importance=importance_of(study, search.space, trials),
            trials_needed=trials_needed(search.space),
            command=search.train_command(best),
            place=search.storage.place,
            note=_note(search, trials),
            space=search.space,
            page=search.folder / "report.html",
            caution=_caution(search, trials, best),
        )

    @property
    def counts(self) -> Counter[str]:
        return Counter("unfinished" if trial.ending is None else trial.ending.state for trial in self.trials)

    def as_json(self) -> dict[str, Any]:
        assert self.best.ending is not None
        return {
            "study": self.study.as_json(),
            "trials": [_as_json(trial) for trial in sorted(self.trials, key=lambda trial: trial.number)],
            "best": {
                "number": self.best.number,
                **{key: getattr(self.best.ending, key) for key in ("value", "low", "high")},
                "values": self.best.values,
            },
            "caution": self.caution,
            "importance": self.importance,
            "command": self.command,
            "record": self.place,
            "page": str(self.page),
        }

    def as_text(self) -> str:
        better = "more" if self.study.is_maximized else "less"
        counts = self.counts
        states = ", ".join(
            f"{counts[state]} {state}" for state in ("complete", "pruned", "failed", "unfinished") if counts[state]
        )
        lines = [
            f"study {self.study.name}: {len(self.trials)} trials ({states}), {self.study.strategy}, seed {self.study.seed}; "
            f"{self.study.metric}, {better} is better",
            *_table(self.study, self.trials[:NUM_SHOWN]),
        ]
        if len(self.trials) > NUM_SHOWN:
            lines.append(f"... and {len(self.trials) - NUM_SHOWN} more")
        lines += [self._importance_text()]
        lines += [self.note] if self.note else []
        assert self.best.ending is not None
        best = f"best: trial {self.best.number}, {self.study.metric} {self.best.ending.value_text}"
        lines += [f"{best}; train it as a run of its own:", f"  {self.command}"]
        lines += [self.caution] if self.caution else []
        return "\n".join([*lines, f"record {self.place}", f"page {self.page}"])

    @property
    def measured_text(self) -> str:
        """Which trials importance is told from."""
        complete = self.counts["complete"]
        if complete <= MOST_TRIALS:
            return f"of {complete} complete trials"
        return f"of {MOST_TRIALS} drawn from {complete:,} complete trials"

    def _importance_text(self) -> str:
        if self.importance is None:
            return (
                f"importance: {self.counts['complete']} complete trials are too few to tell; "
                f"from {self.trials_needed} on, and where they differ, it is said here"
            )
        shares = ", ".join(f"{key} {share:.0%}" for key, share in self.importance.items())
        return f"importance (fANOVA, {self.measured_text}): {shares}"


def _as_json(trial: Trial) -> dict[str, Any]:
    ending = {"state": "unfinished"} if trial.ending is None else trial.ending.as_json()
    return {"number": trial.number, "values": trial.values, **ending}


def _table(study: Study, trials: tuple[Trial, ...]) -> list[str]:
    """Columns of texts, right-aligned under their names."""
    keys = list(study.space)
    rows = [
        [
            "trial",
            "state",
            f"{study.metric} (95% interval)",
            *(key.rpartition(".")[2] for key in keys),
            "epochs",
            "seconds",
            "run",
        ]
    ]
    for trial in trials:
        ending = trial.ending
        values = [_short(trial.values[key]) for key in keys]
        if ending is None:
            rows.append([str(trial.number), "unfinished", "", *values, "", "", ""])
            continue
        outcome = ending.run_dir or ending.reason
        rows.append(
            [
                str(trial.number),
                ending.state,
                ending.value_text,
                *values,
                str(len(ending.reports)),
                f"{ending.seconds:.1f}",
                outcome,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(text.rjust(width) for text, width in zip(row[:-1], widths, strict=True)), row[-1]]) for row in rows
    ]


def _caution(search: Search, trials: list[Trial], best: Trial) -> str:
    """Nothing where there was no choice."""
    ending = best.ending
    assert ending is not None
    compared = sum(trial.ending is not None and trial.ending.value is not None for trial in trials)
    if compared < 2:
        return ""
    said = (
        f"note: trial {best.number} was chosen by its {search.study.metric} among {compared} trials, so that flatters it, and "
        "its interval does not know of the choice"
    )
    if (tested := _tested(search.layout, ending)) is not None:
        return f"{said}. On the test split, which chose nothing: {tested}"
    return (
        f"{said}. What it has on rows that chose nothing: nexa evaluate --checkpoint "
        f"{_checkpoint(search.layout, ending)} --override evaluation.split=test"
    )


def _tested(layout: Layout, ending: Ending) -> str | None:
    """The run's main score on the test split; None where it was scored on another, or lies on another node."""
    described = _read(layout.absolute(ending.run_dir) / "metrics.json")
    name = main_score(described.get("metrics", {}))
    if described.get("split") != "test" or name is None:
        return None
    scored = described["metrics"][name]
    return score_text(name, scored["value"], scored["low"], scored["high"])


def _checkpoint(layout: Layout, ending: Ending) -> str:
    manifest = _read(layout.run_manifests / f"{ending.run_id}.json")
    return str(manifest.get("checkpoint", f"{ending.run_dir}/checkpoints/best.pt"))


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else values_text({"": value})[1:]


def _note(search: Search, trials: list[Trial]) -> str:
    versions = {trial.ending.code for trial in trials if trial.ending is not None}
    notes = []
    if len(versions) > 1:
        notes.append(f"note: trials ran with {len(versions)} versions of the code; their scores may not be comparable")
    if search.num_points is not None and len(trials) >= search.num_points:
        notes.append(f"the grid has {search.num_points} points; all of them are trials")
    return "\n".join(notes)
