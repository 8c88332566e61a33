"""Answers put through the steps, a few thousand at a time, all samples of a prompt together."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from nexa_core.config.distill_filter import FilterConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.quality import numbered
from nexa_distill.checks import Check, Pair, Rejection, open_check
from nexa_distill.funnel import Stage
from nexa_distill.outputs import SCHEMA
from nexa_distill.reviews import Answered, Review

ROWS_AT_ONCE = 4096
BATCH_ROWS = 512
STATUS, REVIEW, DUPLICATES = "status", "review", "duplicates"


@dataclass(frozen=True)
class Sifted:
    """What came of a pair: `step` says which one rejected it; None where it is kept."""

    pair: Pair
    step: str | None = None
    rejection: Rejection | None = None


class Sieve:
    """Applies the settings' steps and counts what each of them did. A context for one pass over the answers."""

    def __init__(self, config: FilterConfig, layout: Layout):
        self._config = config
        names = numbered([step.name for step in config.steps])
        self._steps: list[tuple[str, Check]] = [
            (name, open_check(step, layout)) for name, step in zip(names, config.steps, strict=True)
        ]
        self.stages = {name: Stage(name) for name in (STATUS, *names, REVIEW, DUPLICATES)}
        self._seen: dict[bytes, str] = {}
        self.num_rescued = 0
        """Pairs that a step had rejected and a person accepted."""

    def sift(self, pairs: Sequence[Pair], reviews: dict[Answered, Review]) -> list[Sifted]:
        """Each pair with the first step that it fails, in order; people's decisions come after all steps and win."""
        outcome = [Sifted(pair) for pair in pairs]
        self._apply(STATUS, outcome, [self._status(pair) for pair in pairs])
        for name, check in self._steps:
            left = [sifted.pair for sifted in outcome if sifted.step is None]
            verdicts = iter(check(left))
            self._apply(name, outcome, [next(verdicts) if each.step is None else None for each in outcome])
        outcome = [self._reviewed(sifted, reviews) for sifted in outcome]
        self._apply(DUPLICATES, outcome, [self._repeats(sifted) for sifted in outcome])
        return outcome

    def _apply(self, name: str, outcome: list[Sifted], verdicts: Sequence[Rejection | None]) -> None:
        self.stages[name].saw(
            (each.pair, verdict) for each, verdict in zip(outcome, verdicts, strict=True) if each.step is None
        )
        for index, verdict in enumerate(verdicts):
            if verdict is not None and outcome[index].step is None:
                outcome[index] = replace(outcome[index], step=name, rejection=verdict)

    def _status(self, pair: Pair) -> Rejection | None:
        status = pair.row["status"]
        if status == "answered" or (status == "truncated" and self._config.keep_truncated):
            return None if pair.completion.strip() else Rejection("empty answer")
        return Rejection(status, pair.row["error"] or pair.row["finish_reason"] or "")

    def _reviewed(self, sifted: Sifted, reviews: dict[Answered, Review]) -> Sifted:
        row = sifted.pair.row
        review = reviews.get((row["row_id"], row["sample_index"], row["request_sha256"]))
        stage = self.stages[REVIEW]
        if review is None:
            stage.rows_in += sifted.step is None
            return sifted
        if review.decision == "reject":
            if sifted.step is None:
                stage.saw([(sifted.pair, Rejection("rejected by a person"))])
                return replace(sifted, step=REVIEW, rejection=Rejection("rejected by a person"))
            return sifted
        pair = sifted.pair if review.completion is None else sifted.pair.with_completion(review.completion)
        if not pair.completion.strip():
            raise UserError(f"Row {row['row_id']} was accepted in the review and has no answer; edit it, or reject it.")
        if sifted.step is not None:
            self.num_rescued += 1
        stage.rows_in += 1
        return Sifted(pair)

    def _repeats(self, sifted: Sifted) -> Rejection | None:
        if sifted.step is not None:
            return None
        pair = sifted.pair
        key = hashlib.sha256(pair.prompt.encode() + b"\0" + pair.completion.encode()).digest()[:16]
        if (first := self._seen.get(key)) is not None:
            return Rejection("equal pair", f"as {first}")
        self._seen[key] = pair.group
        return None


def read_pairs(paths: Sequence[Path], *, max_rows: int | None) -> Iterator[list[Pair]]:
    """The answers in order, some thousand at a time; those to one prompt that follow each other are never parted.

    Raises:
        UserError: a file is not one of a teacher's answers.
    """
    waiting: list[Pair] = []
    rows = chain.from_iterable(map(_rows, paths))
    for _, group in groupby(_first(rows, max_rows), key=lambda row: row["row_id"]):
        waiting += map(Pair, group)
        if len(waiting) >= ROWS_AT_ONCE:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _first(rows: Iterator[dict[str, Any]], number: int | None) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(rows):
        if index == number:
            return
        yield row


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        if missing := [name for name in SCHEMA.names if name not in file.schema_arrow.names]:
            raise UserError(f"{path} holds no teacher's answers: it lacks {', '.join(missing)}.")
        for batch in file.iter_batches(BATCH_ROWS, columns=SCHEMA.names):
            yield from batch.to_pylist()
