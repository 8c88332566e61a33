"""Answers put through the steps, a few thousand at a time, all samples of a prompt together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import xxhash

from nexa_core.config.distill_filter import FilterConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.quality import numbered
from nexa_data.seen import Seen
from nexa_distill.checks import KEPT, Check, Pair, Rejection, Verdict, open_check, rejected
from nexa_distill.checks.judge import COST
from nexa_distill.funnel import Stage
from nexa_distill.outputs import LOGPROBS, SCHEMA
from nexa_distill.reviews import Answered, Review
from nexa_llm.ask import Teachers
from nexa_llm.spent import Spent

PAIRS_AT_ONCE = 4096
LOGPROB_BYTES_AT_ONCE = 32 << 20
BATCH_ROWS = 512
STATUS, REVIEW, DUPLICATES = "status", "review", "duplicates"
BY_A_PERSON = Rejection("rejected by a person")


@dataclass(frozen=True)
class Sifted:
    """What came of a pair: `step` says which one rejected it; None where it is kept."""

    pair: Pair
    step: str | None = None
    rejection: Rejection | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    """What the steps that it came to measured, by `<step>.<score>`."""


class Sieve:
    """Applies the settings' steps and counts what each of them did. For one pass over the answers."""

    def __init__(
        self, config: FilterConfig, layout: Layout, *, purpose: str, teachers: Teachers, spent: Spent | None = None
    ):
        self._config = config
        names = numbered([step.name for step in config.steps])
        self._steps: list[tuple[str, Check]] = [
            (name, open_check(step, layout, purpose=purpose, spent=spent, teachers=teachers))
            for name, step in zip(names, config.steps, strict=True)
        ]
        self.stages = {name: Stage(name) for name in (STATUS, *names, REVIEW, DUPLICATES)}
        self._seen = Seen()
        self.num_rescued = 0
        """Pairs that a step had rejected and a person accepted."""
        self.judge_cost_usd = 0.0

    def sift(self, pairs: Sequence[Pair], reviews: Mapping[Answered, Review]) -> list[Sifted]:
        """Each pair with the first step that it fails, in order; people's decisions come after all steps and win."""
        outcome = [Sifted(pair) for pair in pairs]
        self._apply(STATUS, outcome, list(map(self._status, pairs)))
        for name, check in self._steps:
            self._apply(name, outcome, check([each.pair for each in outcome if each.step is None]))
        outcome = [self._reviewed(each, reviews) for each in outcome]
        self._apply(DUPLICATES, outcome, self._repeats([each.pair for each in outcome if each.step is None]))
        return outcome

    def _apply(self, name: str, outcome: list[Sifted], verdicts: Sequence[Verdict]) -> None:
        """Note what a step says of the pairs that are left."""
        left = [index for index, each in enumerate(outcome) if each.step is None]
        for index, verdict in zip(left, verdicts, strict=True):
            each = outcome[index]
            self.stages[name].saw(each.pair, verdict.rejection)
            self.judge_cost_usd += verdict.scores.get(COST, 0.0)
            scores = {**each.scores, **{f"{name}.{score}": value for score, value in verdict.scores.items()}}
            step = None if verdict.rejection is None else name
            outcome[index] = Sifted(each.pair, step, verdict.rejection, scores)

    def _status(self, pair: Pair) -> Verdict:
        status = pair.row["status"]
        if status == "answered" or (status == "truncated" and self._config.keep_truncated):
            return KEPT if pair.completion.strip() else rejected("empty answer")
        return rejected(status, pair.row["error"] or pair.row["finish_reason"] or "")

    def _reviewed(self, sifted: Sifted, reviews: Mapping[Answered, Review]) -> Sifted:
        row, stage = sifted.pair.row, self.stages[REVIEW]
        review = reviews.get((row["row_id"], row["sample_index"], row["request_sha256"]))
        if review is None:
            stage.rows_in += sifted.step is None
            return sifted
        if review.decision == "reject":
            if sifted.step is not None:
                return sifted
            stage.saw(sifted.pair, BY_A_PERSON)
            return replace(sifted, step=REVIEW, rejection=BY_A_PERSON)
        pair = sifted.pair if review.completion is None else sifted.pair.with_completion(review.completion)
        if not pair.completion.strip():
            raise UserError(f"Row {row['row_id']} was accepted in the review and has no answer; edit it, or reject it.")
        if sifted.step is not None:
            self.num_rescued += 1
        stage.rows_in += 1
        return Sifted(pair, scores=sifted.scores)

    def _repeats(self, pairs: Sequence[Pair]) -> list[Verdict]:
        texts = (f"{pair.prompt}\0{pair.completion}".encode() for pair in pairs)
        ids = np.array([xxhash.xxh3_64_intdigest(text) for text in texts], dtype=np.uint64)
        return [rejected("equal pair") if before else KEPT for before in self._seen.count(ids).tolist()]


def read_pairs(path: Path, *, max_rows: int | None) -> Iterator[list[Pair]]:
    """The answers in order, some thousand at a time; those to one prompt that follow each other are never parted.

    Raises:
        UserError: the file is not one of a teacher's answers.
    """
    waiting: list[Pair] = []
    size_bytes = 0
    for _, group in groupby(islice(_pairs(path), max_rows), key=lambda pair: pair.group):
        for pair in group:
            waiting.append(pair)
            size_bytes += 0 if pair.logprobs is None else pair.logprobs.nbytes // pair.logprobs.num_rows
        if len(waiting) >= PAIRS_AT_ONCE or size_bytes >= LOGPROB_BYTES_AT_ONCE:
            yield waiting
            waiting, size_bytes = [], 0
    if waiting:
        yield waiting


def open_answers(path: Path) -> parquet.ParquetFile:
    """The file of a teacher's answers.

    Raises:
        UserError: it is something else.
    """
    try:
        file = parquet.ParquetFile(path, pre_buffer=False)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is no Parquet file, or not a whole one: {error}") from None
    if missing := [name for name in SCHEMA.names if name not in file.schema_arrow.names]:
        file.close()
        raise UserError(f"{path} holds no teacher's answers: it lacks {', '.join(missing)}.")
    return file


def _pairs(path: Path) -> Iterator[Pair]:
    with open_answers(path) as file:
        looked_at = [name for name in SCHEMA.names if name not in LOGPROBS]
        for batch in file.iter_batches(BATCH_ROWS, columns=SCHEMA.names):
            logprobs = batch.select(list(LOGPROBS))
            for place, row in enumerate(batch.select(looked_at).to_pylist()):
                yield Pair(row, logprobs, place)
