"""The table of a teacher's answers: a row for each prompt and sample, in the order of the prompts."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow

from nexa_core import durable
from nexa_data.tables import Table
from nexa_distill.inputs import Prompt
from nexa_llm.chat import Answer, Status
from nexa_llm.prices import as_usd

FOLDER = "teacher_outputs"
ROWS_A_BATCH, BYTES_A_BATCH = 512, 4 << 20
"""What is held as Python's objects, which take five times as many bytes: by it no byte of the file is decided."""
BYTES_OF_A_ROW, BYTES_OF_A_LOGPROB = 400, 8


def _list(of: pyarrow.DataType) -> pyarrow.DataType:
    return pyarrow.list_(pyarrow.field("element", of))  # as Parquet names it


FIELDS: tuple[tuple[str, pyarrow.DataType], ...] = (
    ("row_id", pyarrow.string()),
    ("sample_index", pyarrow.int32()),
    ("prompt", pyarrow.string()),
    ("completion", pyarrow.string()),
    ("status", pyarrow.string()),
    ("error", pyarrow.string()),
    ("finish_reason", pyarrow.string()),
    ("teacher", pyarrow.string()),
    ("model", pyarrow.string()),
    ("parameters_json", pyarrow.string()),
    ("prompt_sha256", pyarrow.string()),
    ("request_sha256", pyarrow.string()),
    ("prompt_tokens", pyarrow.int64()),
    ("completion_tokens", pyarrow.int64()),
    ("cost_usd", pyarrow.float64()),
    ("latency_seconds", pyarrow.float64()),
    ("token_ids", _list(pyarrow.int32())),
    ("top_ids", _list(_list(pyarrow.int32()))),
    ("top_logprobs", _list(_list(pyarrow.float32()))),
    ("tail_mass", _list(pyarrow.float32())),
    ("tokenizer_sha256", pyarrow.string()),
    ("extra_json", pyarrow.string()),
)
SCHEMA = pyarrow.schema(FIELDS)
LOGPROBS = ("token_ids", "top_ids", "top_logprobs", "tail_mass", "tokenizer_sha256")


STATUSES = get_args(Status)


class Tally:
    """What answers there are, and what they cost."""

    def __init__(self) -> None:
        self.statuses = dict.fromkeys(STATUSES, 0)
        self.prompt_tokens = self.completion_tokens = self.cost_picousd = 0

    @property
    def num_rows(self) -> int:
        return sum(self.statuses.values())

    def saw(self, answer: Answer) -> None:
        self.statuses[answer.status] += 1
        self.prompt_tokens += answer.prompt_tokens or 0
        self.completion_tokens += answer.completion_tokens or 0
        self.cost_picousd += answer.cost_picousd or 0


class OutputTable:
    """The Parquet file in the making; it gets its name when `stack` is closed without an error."""

    def __init__(self, stack: ExitStack, path: Path):
        self._table = Table(stack.enter_context(durable.create(path)), SCHEMA)
        stack.callback(self._table.abandon)
        self._rows: list[dict[str, Any]] = []
        self._sizes: list[int] = []
        self._num_bytes = 0

    def add(
        self,
        prompt: Prompt,
        sample_index: int,
        answer: Answer,
        *,
        teacher: str,
        parameters_json: str,
        prompt_sha256: str,
    ) -> None:
        logprobs = answer.logprobs
        self._rows.append(
            {
                "row_id": prompt.row_id,
                "sample_index": sample_index,
                "prompt": prompt.prompt,
                "completion": answer.text,
                "status": answer.status,
                "error": answer.error,
                "finish_reason": answer.finish_reason,
                "teacher": teacher,
                "model": answer.model,
                "parameters_json": parameters_json,
                "prompt_sha256": prompt_sha256,
                "request_sha256": answer.request_sha256,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "cost_usd": None if answer.cost_picousd is None else as_usd(answer.cost_picousd),
                "latency_seconds": answer.latency_seconds,
                **{name: None if logprobs is None else getattr(logprobs, name) for name in LOGPROBS},
                "extra_json": prompt.extra_json,
            }
        )
        self._sizes.append(size_of(self._rows[-1]))
        self._num_bytes += self._sizes[-1]
        if len(self._rows) == ROWS_A_BATCH or self._num_bytes >= BYTES_A_BATCH:
            self._write()

    def close(self) -> None:
        """Write what is buffered; the file is complete, and still without its name."""
        self._write()
        self._table.close()

    def _write(self) -> None:
        if self._rows:
            self._table.add(pyarrow.Table.from_pylist(self._rows, schema=SCHEMA), np.array(self._sizes))
            self._rows, self._sizes, self._num_bytes = [], [], 0


def size_of(row: dict[str, Any]) -> int:
    """About how many bytes a row takes, of answers or of pairs made of them; the same for the same row."""
    texts = len(row["prompt"]) + len(row["completion"] or "") + len(row["extra_json"] or "")
    return BYTES_OF_A_ROW + texts + BYTES_OF_A_LOGPROB * sum(map(len, row.get("top_ids") or ()))
