"""What came out of a search: a table, what mattered, and the best trial as a `train` command."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core.errors import GateError
from nexa_train.tune.importance import importance_of, trials_needed
from nexa_train.tune.records import Study, Trial, best_of, ranked
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
        )

    @property
    def counts(self) -> Counter[str]:
        return Counter("unfinished" if trial.ending is None else trial.ending.state for trial in self.trials)

    def as_json(self) -> dict[str, Any]:
        assert self.best.ending is not None
        return {
            "study": self.study.as_json(),
            "trials": [_as_json(trial) for trial in sorted(self.trials, key=lambda trial: trial.number)],
            "best": {"number": self.best.number, "value": self.best.ending.value, "values": self.best.values},
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
        lines += [f"best: trial {self.best.number}; train it as a run of its own:", f"  {self.command}"]
        return "\n".join([*lines, f"record {self.place}", f"page {self.page}"])

    def _importance_text(self) -> str:
        if self.importance is None:
            return (
                f"importance: {self.counts['complete']} complete trials are too few to tell; "
                f"from {self.trials_needed} on, and where they differ, it is said here"
            )
        shares = ", ".join(f"{key} {share:.0%}" for key, share in self.importance.items())
        return f"importance (fANOVA, of {self.counts['complete']} complete trials): {shares}"


def _as_json(trial: Trial) -> dict[str, Any]:
    ending = {"state": "unfinished"} if trial.ending is None else trial.ending.as_json()
    return {"number": trial.number, "values": trial.values, **ending}


def _table(study: Study, trials: tuple[Trial, ...]) -> list[str]:
    """Columns of texts, right-aligned under their names."""
    keys = list(study.space)
    rows = [["trial", "state", study.metric, *(key.rpartition(".")[2] for key in keys), "epochs", "seconds", "run"]]
    for trial in trials:
        ending = trial.ending
        values = [_short(trial.values[key]) for key in keys]
        if ending is None:
            rows.append([str(trial.number), "unfinished", "", *values, "", "", ""])
            continue
        value = "" if ending.value is None else f"{ending.value:.6g}"
        outcome = ending.run_dir or ending.reason
        rows.append(
            [
                str(trial.number),
                ending.state,
                value,
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
