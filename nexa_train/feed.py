"""Batches put together ahead of the step that needs them, in threads; what comes out does not depend on how many."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from nexa_models.encoding import Batch, Encoded, PackedRows, Sequences
from nexa_models.token_rows import TokenRows
from nexa_train.order import Plan

STEPS_AHEAD = 2  # for each thread


@dataclass(frozen=True)
class StepData:
    """What one optimizer step learns from."""

    step: int
    batches: dict[int, Batch]
    """By number, the microbatches that are this process's."""
    num_microbatches: int
    """Of all processes."""
    num_rows: int
    """Of the dataset, in all microbatches; one that goes on in further sequences counts with its first."""
    num_targets: int
    """In all microbatches: what the summed loss is divided by."""
    num_tokens: int
    filler: Batch | None
    """A batch of another process, where this one has fewer microbatches than others and has to go through one more."""


@dataclass(frozen=True)
class Feed:
    """The data of a run as one of `num_shares` processes reads it."""

    data: Encoded
    plan: Plan
    share: int
    num_shares: int
    num_workers: int
    device: torch.device

    def steps(self, first: int) -> Generator[StepData, None, None]:
        """From step `first` to the plan's end; closing the iterator ends its threads."""
        if self.num_workers == 0:
            yield from map(self.make, range(first, self.plan.num_steps))
            return
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="feed") as workers:
            ahead: deque[Future[StepData]] = deque()
            try:
                for step in range(first, self.plan.num_steps):
                    ahead.append(workers.submit(self.make, step))
                    if len(ahead) > STEPS_AHEAD * self.num_workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def make(self, step: int) -> StepData:
        microbatches = self.plan.microbatches(step)
        ours = range(self.share, len(microbatches), self.num_shares)
        batches = {index: self._batch(microbatches[index]) for index in ours}
        is_short = len(ours) * self.num_shares < len(microbatches)
        return StepData(
            step=step,
            batches=batches,
            num_microbatches=len(microbatches),
            num_rows=sum(int(self._begun_N[rows].sum()) for rows in microbatches),
            num_targets=sum(int(self.data.target_counts_N[rows].sum()) for rows in microbatches),
            num_tokens=sum(int(self.data.token_counts_N[rows].sum()) for rows in microbatches),
            filler=self._batch(microbatches[0]) if is_short else None,
        )

    @cached_property
    def _begun_N(self) -> np.ndarray:
        return count_begun(self.data)

    def _batch(self, rows: np.ndarray) -> Batch:
        batch = self.data.batch(rows)
        return batch.pinned() if self.device.type == "cuda" else batch


def count_begun(data: Encoded) -> np.ndarray:
    """Rows of the dataset that begin in each of what is learned from: several in a pack, in a document's further parts none."""
    if isinstance(data, PackedRows):
        packs = np.repeat(np.arange(len(data)), data.packs.lengths)
        return np.bincount(packs, weights=count_begun(data.sequences)[data.packs.flat], minlength=len(data))
    if isinstance(data, TokenRows):
        return data.begun_N
    begun_N = np.ones(len(data))
    if isinstance(data, Sequences):
        begun_N[1:] = data.rows_N[1:] != data.rows_N[:-1]
    return begun_N
