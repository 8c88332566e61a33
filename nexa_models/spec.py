"""What a model is and what it eats: enough to rebuild it and to feed it, without its config or its dataset."""

from dataclasses import asdict, dataclass
from typing import Any

from nexa_core import digests
from nexa_core.config.model import ModelConfig
from nexa_core.errors import UserError
from nexa_data.datasets import Dataset


@dataclass(frozen=True)
class ModelSpec:
    """Plain values only: it travels inside checkpoints and packages as JSON."""

    model: dict[str, Any]
    """The resolved model section of the config: `name` and `parameters`."""
    kind: str
    """What rows it reads: features, text or pairs."""
    labels: tuple[str, ...]
    """Class names in index order; empty for language models."""
    feature_shape: tuple[int, ...] | None
    """Shape of one row of features."""
    tokenizer: str | None
    """The tokenizer's JSON, where the model reads token ids of one."""

    @property
    def is_language_model(self) -> bool:
        return self.model["name"] == "causal_lm"

    @property
    def parameters_json(self) -> bytes:
        """The model's parameters for a settings class to read back."""
        return digests.canonical_json(self.model["parameters"])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelSpec":
        shape = value["feature_shape"]
        return cls(
            model=value["model"],
            kind=value["kind"],
            labels=tuple(value["labels"]),
            feature_shape=None if shape is None else tuple(shape),
            tokenizer=value["tokenizer"],
        )


def describe_model(model: ModelConfig, dataset: Dataset) -> ModelSpec:
    """The spec of a new model for a dataset.

    Raises:
        UserError: the model cannot read this dataset's rows, or needs a tokenizer that was not prepared.
    """
    wanted = {"text_classifier": "text", "causal_lm": "pairs"}.get(model.name, "features")
    if dataset.kind != wanted:
        raise UserError(f"Model '{model.name}' reads rows of {wanted}; dataset {dataset.key} holds {dataset.kind}.")
    settings = model.resolved()
    needs_tokenizer = model.name == "causal_lm" or settings["parameters"].get("vocabulary") == {"name": "bpe"}
    tokenizer = dataset.tokenizer_json() if needs_tokenizer else None
    if needs_tokenizer and tokenizer is None:
        raise UserError(
            f"Model '{model.name}' needs a tokenizer and dataset {dataset.key} was prepared without one; "
            "add `tokenizer: {vocab_size: 4096}` to the dataset's config and prepare it as a new version."
        )
    if model.name == "cnn" and len(dataset.feature_shape or ()) != 3:
        raise UserError(
            f"Model 'cnn' reads images of shape [channels, height, width]; rows of {dataset.key} have shape "
            f"{list(dataset.feature_shape or ())}. Set `rows.shape` in the dataset's config."
        )
    return ModelSpec(settings, dataset.kind, dataset.labels, dataset.feature_shape, tokenizer)
