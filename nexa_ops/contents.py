"""What a package holds: the names of its files, and the model and proof read back from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from nexa_core.errors import GateError, UserError
from nexa_models.predict import Asked
from nexa_models.spec import ModelSpec
from nexa_models.table import MODELS, build_model
from nexa_models.weights import load_weights

WEIGHTS = "model.safetensors"
MODEL = "model.json"
TOKENIZER = "tokenizer.json"
CONFIG = "config.yaml"
METRICS = "metrics.json"
MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
CARD = "README.md"
PROOF = "proof.json"
PROOF_ROWS = "proof_rows.parquet"
PROOF_PREDICTIONS = "proof_predictions.parquet"


@dataclass(frozen=True)
class Proof:
    """Rows that travel with the model, and what it said of them when it was packed."""

    num_rows: int
    split_rows: int
    """Rows of the whole split that the proof's rows were taken from."""
    metric: str
    value: float
    """The main metric on the proof's rows."""
    asked: Asked


def read_spec(folder: Path) -> ModelSpec:
    """The model's spec, its tokenizer among it."""
    described = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    tokenizer = folder / TOKENIZER
    described["tokenizer"] = tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None
    return ModelSpec.from_json(described)


def read_model(folder: Path, spec: ModelSpec, *, trusted: str | None) -> nn.Module:
    """The packed model, in evaluation mode.

    Raises:
        UserError: the package names code of its maker's own, and the user has not said to trust it.
        GateError: the weights are not this model's.
    """
    name = spec.model["name"]
    if name not in MODELS and name != trusted:
        raise UserError(f"This package's model is code of its maker's, '{name}'. To import and run it: --trust {name}")
    model = build_model(spec)
    load_weights(model, folder / WEIGHTS)
    return model.eval()


def read_proof(folder: Path) -> tuple[Proof, pa.Table, pa.Table]:
    """The proof, its rows and the predictions made of them when packed."""
    try:
        value: dict[str, Any] = json.loads((folder / PROOF).read_text(encoding="utf-8"))
        asked = Asked(**value.pop("asked"))
        rows, predictions = pq.read_table(folder / PROOF_ROWS), pq.read_table(folder / PROOF_PREDICTIONS)
        return Proof(asked=asked, **value), rows, predictions
    except (FileNotFoundError, KeyError, TypeError, json.JSONDecodeError, pa.ArrowInvalid) as error:
        raise GateError(f"The package's proof cannot be read: {error}") from None
