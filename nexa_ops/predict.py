"""Predicting a file of rows with a packed model, in blocks, so that memory does not grow with the file."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import orjson
import pyarrow as pa
import torch

from nexa_core import durable
from nexa_core.errors import GateError, UserError
from nexa_models.numerics import make_deterministic
from nexa_models.predict import Asked, predict
from nexa_models.spec import ModelSpec
from nexa_ops.archive import unpack
from nexa_ops.contents import read_model, read_spec

BLOCK_ROWS = 1024
INPUT_COLUMN = {"features": "features", "text": "text", "pairs": "prompt"}

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
        UserError: the input or the package is missing.
        GateError: some lines could not be predicted; their answers carry an `error`.
    """
    if not input_path.is_file():
        raise UserError(f"No input file {input_path}. It has to hold one JSON object a line.")
    make_deterministic()
    with tempfile.TemporaryDirectory(prefix="nexa-predict-") as scratch:
        folder = unpack(tarball, Path(scratch))
        spec = read_spec(folder)
        model = read_model(folder, spec, trusted=trusted)
        num_rows = num_failed = 0
        with input_path.open("rb") as lines, contextlib.ExitStack() as stack:
            out = stack.enter_context(durable.create(output_path)) if output_path else None
            for block in _blocks(enumerate(lines, start=1)):
                for answer in _answer(model, spec, block, max_new_tokens):
                    num_rows, num_failed = num_rows + 1, num_failed + ("error" in answer)
                    line = orjson.dumps(answer) + b"\n"
                    out.write(line) if out else stdout.write(line.decode())
    if num_failed:
        raise GateError(f"{num_failed} of {num_rows} rows could not be predicted; their lines say why.")


def _blocks(lines: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    while block := list(itertools.islice(lines, BLOCK_ROWS)):
        yield block


def _answer(
    model: torch.nn.Module, spec: ModelSpec, block: list[tuple[int, bytes]], max_new_tokens: int
) -> list[Answer]:
    inputs: dict[int, Any] = {}
    failed: dict[int, Answer] = {}
    for line, raw in block:
        try:
            inputs[line] = _read_input(raw, spec)
        except (ValueError, TypeError) as error:
            failed[line] = {"line": line, "error": str(error)}
    answers = failed
    if inputs:
        asked = Asked(batch_size=256, generate_rows=len(inputs), max_new_tokens=max_new_tokens)
        predictions = predict(model, spec, _table(list(inputs.values()), spec), asked, device=torch.device("cpu"))
        answers |= {line: _describe(line, row, spec) for line, row in zip(inputs, predictions.to_pylist(), strict=True)}
    return [answers[line] for line in sorted(answers)]


def _read_input(raw: bytes, spec: ModelSpec) -> Any:
    """The one value of a line that the model reads."""
    row = orjson.loads(raw)
    column = INPUT_COLUMN[spec.kind]
    if not isinstance(row, dict) or column not in row:
        raise ValueError(f"expected an object with '{column}'")
    if spec.kind != "features":
        if not isinstance(row[column], str) or not row[column].strip():
            raise ValueError(f"'{column}' has to be text that is not empty")
        return row[column]
    size = int(np.prod(spec.feature_shape or ()))
    numbers = np.asarray(row[column], dtype=np.float32).reshape(-1)
    if len(numbers) != size or not np.isfinite(numbers).all():
        raise ValueError(f"'features' has to hold {size} finite numbers")
    return numbers


def _table(values: list[Any], spec: ModelSpec) -> pa.Table:
    row_ids = pa.array([str(index) for index in range(len(values))])
    if spec.kind == "pairs":
        return pa.table({"row_id": row_ids, "prompt": values, "completion": [""] * len(values)})
    kind = pa.list_(pa.float32()) if spec.kind == "features" else pa.string()
    return pa.table({"row_id": row_ids, INPUT_COLUMN[spec.kind]: pa.array(values, type=kind)})


def _describe(line: int, row: dict[str, Any], spec: ModelSpec) -> Answer:
    if spec.is_language_model:
        if row["prediction"] is None:
            return {"line": line, "error": "the prompt is too long for the model to complete it"}
        return {"line": line, "prediction": row["prediction"]}
    probabilities = dict(zip(spec.labels, row["probabilities"], strict=True))
    return {"line": line, "prediction": row["prediction"], "probabilities": probabilities}
