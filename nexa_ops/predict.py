"""Predicting a file of rows with a packed model, in blocks, so that memory does not grow with the file."""

import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import orjson
import pyarrow as pa
import torch

from nexa_core import durable
from nexa_core.errors import GateError, UserError
from nexa_data.makers import RowError
from nexa_data.sources.json_files import read_json_lines
from nexa_data.sources.raw import BadRow, Row
from nexa_data.sources.streams import UnreadableError
from nexa_models.numerics import make_deterministic
from nexa_models.predict import Asked, complete, predict
from nexa_models.spec import ModelSpec
from nexa_ops.archive import unpack
from nexa_ops.contents import read_model, read_packed
from nexa_ops.inputs import InputReader

BLOCK_ROWS = 1024
BATCH_SIZE = 256

Answer = dict[str, Any]


def predict_file(
    tarball: Path,
    input_path: Path,
    *,
    output_path: Path | None,
    stdout: TextIO,
    max_new_tokens: int = 32,
    trusted: str | None = None,
) -> None:
    """Write one JSON line for each line of `input_path`, in its order: a prediction, or the reason why there is none.

    Raises:
        UserError: the input or the package is missing, or the input is no text.
        GateError: some lines could not be predicted; their answers carry an `error`.
    """
    if not input_path.is_file():
        raise UserError(f"No input file {input_path}. It has to hold one JSON object a line.")
    make_deterministic()
    with tempfile.TemporaryDirectory(prefix="nexa-predict-") as scratch:
        folder = unpack(tarball, Path(scratch))
        spec, rows = read_packed(folder)
        predictor = Predictor(read_model(folder, spec, trusted=trusted), spec, InputReader(spec, rows), max_new_tokens)
        num_rows = num_failed = 0
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(durable.create(output_path)) if output_path else None
            for block in _blocks(input_path):
                for answer in predictor.answer(block):
                    num_rows, num_failed = num_rows + 1, num_failed + ("error" in answer)
                    line = orjson.dumps(answer) + b"\n"
                    out.write(line) if out else stdout.write(line.decode())
    if num_failed:
        raise GateError(f"{num_failed} of {num_rows} rows could not be predicted; their lines say why.")


@dataclass(frozen=True)
class Predictor:
    """A packed model and what it needs to answer lines."""

    model: torch.nn.Module
    spec: ModelSpec
    reader: InputReader
    max_new_tokens: int

    def answer(self, block: list[Row]) -> list[Answer]:
        """An answer for each line; a bad one does not touch the others."""
        inputs: dict[int, Any] = {}
        said: dict[int, Answer] = {}
        for index, row in enumerate(block):
            try:
                inputs[index] = self._input(row)
            except RowError as error:
                said[index] = {"error": f"{error.reason}: {error.detail}" if error.detail else error.reason}
        if inputs:
            say = self._complete if self.spec.is_language_model else self._classify
            said |= dict(zip(inputs, say(list(inputs.values())), strict=True))
        return [{"line": row.line, **said[index]} for index, row in enumerate(block)]

    def _input(self, row: Row) -> Any:
        if isinstance(row, BadRow):
            raise RowError(row.reason, row.detail)
        return self.reader.read(row.values)

    def _complete(self, prompts: list[Any]) -> Iterator[Answer]:
        for text in complete(
            self.model,
            self.spec,
            prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=BATCH_SIZE,
            device=torch.device("cpu"),
        ):
            full = (
                f"the prompt fills the {self.spec.max_tokens} tokens that the model reads; there is no room behind it"
            )
            yield {"error": full} if text is None else {"prediction": text}

    def _classify(self, values: list[Any]) -> Iterator[Answer]:
        kind = pa.list_(pa.float32()) if self.spec.kind == "features" else pa.string()
        row_ids = pa.array([str(index) for index in range(len(values))])
        table = pa.table({"row_id": row_ids, self.reader.own_column: pa.array(values, type=kind)})
        predictions = predict(self.model, self.spec, table, Asked(BATCH_SIZE), device=torch.device("cpu"))
        for row in predictions.to_pylist():
            if not all(map(math.isfinite, row["probabilities"])):
                yield {"error": "the model's output is not a number: the row's numbers are too large for it"}
            else:
                probabilities = dict(zip(self.spec.labels, row["probabilities"], strict=True))
                yield {"prediction": row["prediction"], "probabilities": probabilities}


def _blocks(path: Path) -> Iterator[list[Row]]:
    rows = read_json_lines(path, path.name)
    try:
        while block := list(itertools.islice(rows, BLOCK_ROWS)):
            yield block
    except UnreadableError as error:
        raise UserError(f"{path}: {error}") from None
