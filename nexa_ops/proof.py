"""A package's proof: rows that travel with the model, and what it said of them when it was packed."""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from nexa_core.config import Settings
from nexa_core.errors import GateError, UserError
from nexa_core.metrics import Metric
from nexa_data.rows import SCHEMAS, plain_messages
from nexa_models.chat import encode_conversations
from nexa_models.lora import BOUND, BOUND_QUANTIZED
from nexa_models.predict import CLASSIFICATION_SCHEMA, LANGUAGE_MODEL_SCHEMA, Asked, predicted_numbers, score
from nexa_models.scores import CLASSIFIER_SCORES, LANGUAGE_MODEL_SCORES, main_score
from nexa_models.spec import ModelSpec
from nexa_ops.contents import PROOF, PROOF_PREDICTIONS, PROOF_ROWS, read_settings

MAX_ROWS = 100_000
# Another processor or library sums in another order; differences of this size come from there, larger ones do not.
TOLERANCE = 1e-4

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class Merged(Settings):
    """How near the packed model's logits on the proof's rows came to those of the model with its adapters apart."""

    max_difference: NonNegative
    max_logit: NonNegative
    was_quantized: bool = False
    """Whether the adapters lay beside weights of 4 bits."""

    @property
    def bound(self) -> float:
        return BOUND_QUANTIZED if self.was_quantized else BOUND

    @property
    def share(self) -> float:
        """The difference as a share of the largest logit."""
        return self.max_difference / self.max_logit if self.max_logit else self.max_difference

    @property
    def is_near(self) -> bool:
        return self.share <= self.bound

    def as_text(self) -> str:
        share, bound = f"{self.share:.3g}", f"{self.bound:g}"
        return f"merged logits differ from the adapters' by at most {share} of the largest (allowed: {bound})"


class Proof(Settings):
    """`proof.json`."""

    num_rows: Annotated[int, Field(gt=0, le=MAX_ROWS)]
    split_rows: Size
    """Rows of the whole split that the proof's rows were taken from."""
    metric: str
    value: float
    """The main score on the proof's rows."""
    batch_size: Size
    generate_rows: Count
    max_new_tokens: Count
    merged: Merged | None = None
    """Of a model that was trained with adapters."""

    @property
    def asked(self) -> Asked:
        return Asked(self.batch_size, self.generate_rows, self.max_new_tokens)

    @property
    def is_whole(self) -> bool:
        """Whether its rows are the whole split."""
        return self.num_rows == self.split_rows


def main_score_of(spec: ModelSpec) -> str:
    name = main_score(LANGUAGE_MODEL_SCORES if spec.is_language_model else CLASSIFIER_SCORES)
    assert name is not None
    return name


def score_of(predictions: pa.Table, spec: ModelSpec) -> Metric:
    """The main score of some predictions.

    Raises:
        GateError: the rows have no target to score, or the model has diverged.
    """
    metrics = score(predictions, spec).metrics
    if main_score_of(spec) not in metrics:
        raise GateError(
            f"The proof's {predictions.num_rows} rows have nothing in them that {main_score_of(spec)} is of."
        )
    return metrics[main_score_of(spec)]


def proof_columns(spec: ModelSpec) -> list[str]:
    """The columns of a dataset that travel: what the model reads and the target; not what else the source had."""
    return [field.name for field in SCHEMAS[spec.kind] if field.name != "extra_json"]


def read_proof(folder: Path, spec: ModelSpec) -> tuple[Proof, pa.Table, pa.Table]:
    """The proof, its rows and the predictions made of them when packed.

    Raises:
        GateError: a file of it is malformed, or does not fit the model or the other files.
    """
    proof: Proof = read_settings(folder / PROOF, Proof)
    if proof.metric != main_score_of(spec):
        raise GateError(f"{PROOF}: metric is '{proof.metric}' and has to be '{main_score_of(spec)}'")
    wanted = pa.schema([field for field in SCHEMAS[spec.kind] if field.name != "extra_json"])
    rows = _read_table(folder / PROOF_ROWS, wanted, proof.num_rows, may_be_null={"prompt"})
    schema = LANGUAGE_MODEL_SCHEMA if spec.is_language_model else CLASSIFICATION_SCHEMA
    may_be_null = {"prediction"} if spec.is_language_model else set()
    predictions = _read_table(folder / PROOF_PREDICTIONS, schema, proof.num_rows, may_be_null=may_be_null)
    if not rows["row_id"].equals(predictions["row_id"]):
        raise GateError(f"{PROOF_PREDICTIONS} is of other rows than {PROOF_ROWS}")
    _check_values(rows, predictions, spec)
    return proof, rows, predictions


def difference(ours: pa.Table, recorded: pa.Table, spec: ModelSpec) -> tuple[float, int]:
    """Between two predictions of the same rows: the largest distance of a number, and how many choices differ."""
    distance = float(np.abs(predicted_numbers(ours, spec) - predicted_numbers(recorded, spec)).max(initial=0.0))
    choices = zip(ours["prediction"].to_pylist(), recorded["prediction"].to_pylist(), strict=True)
    return distance, sum(one != other for one, other in choices)


def _read_table(path: Path, schema: pa.Schema, num_rows: int, *, may_be_null: set[str]) -> pa.Table:
    """A Parquet file with exactly these columns and this many rows, which is known before they are read."""
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            if (found.names, found.types) != (schema.names, schema.types):
                raise GateError(f"{path.name} has the columns {found.names}; expected: {schema.names}")
            if file.metadata.num_rows != num_rows:
                raise GateError(f"{path.name} has {file.metadata.num_rows} rows; {PROOF} says {num_rows}")
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise GateError(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from None
    for name in schema.names:
        if table[name].null_count and name not in may_be_null:
            raise GateError(f"{path.name} has rows without '{name}'")
    return table


def _check_values(rows: pa.Table, predictions: pa.Table, spec: ModelSpec) -> None:
    """Hold the lists and labels in the proof against the model, which takes them as they are."""
    if spec.kind == "chat":
        try:
            encode_conversations([plain_messages(messages) for messages in rows["messages"].to_pylist()], spec)
        except (UserError, ValueError, TypeError, AttributeError) as error:
            raise GateError(f"{PROOF_ROWS}: {error}") from None
    if spec.is_language_model:
        return
    unknown = set(rows["label"].to_pylist()) - set(spec.labels)
    if unknown:
        raise GateError(f"{PROOF_ROWS} has labels that the model does not know: {sorted(unknown)[:5]}")
    _check_lists(predictions["probabilities"], len(spec.labels), f"{PROOF_PREDICTIONS}: probabilities")
    if spec.kind == "features":
        _check_lists(rows["features"], math.prod(spec.feature_shape or ()), f"{PROOF_ROWS}: features")


def _check_lists(column: pa.ChunkedArray, length: int, where: str) -> None:
    lists = column.combine_chunks()
    if set(lists.value_lengths().to_pylist()) != {length} or lists.flatten().null_count:
        raise GateError(f"{where} have to be lists of {length} numbers")
