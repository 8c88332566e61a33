"""What a model is and what it eats: enough to rebuild it and to feed it, without its config or its dataset."""

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from nexa_core import digests
from nexa_core.config.model import Lora, ModelConfig, PretrainedEncoderModel, PretrainedLmModel
from nexa_core.errors import UserError
from nexa_data.datasets import Dataset
from nexa_models.marks import SpecialIds, find_marks

KINDS_OF_MODEL = {"text_classifier": ("text",), "encoder_classifier": ("text",), "causal_lm": ("pairs", "chat")}
"""The rows that each model reads; all others read features."""

_MODEL: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)


@dataclass(frozen=True)
class Pretrained:
    """What a folder of transformers says of its model, so that of the folder only the weights are needed again."""

    architecture: dict[str, Any]
    """Its config.json, every default filled in."""
    padding_id: int
    begin_id: int | None
    """What its tokenizer puts in front of a text; None where it puts nothing there."""
    end_id: int
    special_tokens: dict[str, str]
    """What the chat template calls the special tokens: `bos_token`, `eos_token`, ..."""
    chat_template: str | None
    files: dict[str, str]
    """The sha256 of each file that was read, the weights among them."""


@dataclass(frozen=True)
class ModelSpec:
    """Plain values only: it travels inside checkpoints and packages as JSON."""

    model: dict[str, Any]
    """The resolved model section of the config: `name`, `parameters`, and what else the model has."""
    kind: str
    """What rows it reads: features, text, pairs or chat."""
    labels: tuple[str, ...]
    """Class names in index order; empty for language models."""
    feature_shape: tuple[int, ...] | None
    """Shape of one row of features."""
    tokenizer: str | None
    """The tokenizer's JSON, where the model reads token ids of one."""
    pretrained: Pretrained | None = None
    """Of a model whose weights were there already."""
    marks: SpecialIds | None = None
    """What marks the ends of a text, where the tokenizer was loaded and has other special tokens than one trained here."""

    @property
    def is_language_model(self) -> bool:
        return self.model["name"] == "causal_lm"

    @property
    def parameters_json(self) -> bytes:
        """The model's parameters for a settings class to read back."""
        return digests.canonical_json(self.model["parameters"])

    @property
    def settings(self) -> Any:
        """The model section as it was read from the config."""
        return _MODEL.validate_json(digests.canonical_json(self.model))

    @property
    def lora(self) -> Lora | None:
        """What is trained beside the model's own weights, where they stay as they are."""
        return None if self.model.get("lora") is None else self.settings.lora

    @property
    def max_tokens(self) -> int:
        """The most tokens of a row that the model reads. Only for models of text."""
        return self.settings.parameters.max_tokens

    def as_json(self) -> dict[str, Any]:
        value = asdict(self)
        if self.marks is None:
            del value["marks"]
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelSpec":
        shape, pretrained, marks = value["feature_shape"], value.get("pretrained"), value.get("marks")
        return cls(
            model=value["model"],
            kind=value["kind"],
            labels=tuple(value["labels"]),
            feature_shape=None if shape is None else tuple(shape),
            tokenizer=value["tokenizer"],
            pretrained=None if pretrained is None else Pretrained(**pretrained),
            marks=None if marks is None else SpecialIds(**marks),
        )


def describe_model(model: ModelConfig, dataset: Dataset) -> ModelSpec:
    """The spec of a new model for a dataset.

    Raises:
        UserError: the model cannot read this dataset's rows, needs a tokenizer that was not prepared, or its `path`
            does not lead to a model.
    """
    wanted = KINDS_OF_MODEL.get(model.name, ("features",))
    if dataset.kind not in wanted:
        raise UserError(
            f"Model '{model.name}' reads rows of {' or '.join(wanted)}; dataset {dataset.key} holds {dataset.kind}."
        )
    settings = model.resolved()
    if isinstance(model, PretrainedLmModel | PretrainedEncoderModel):
        from nexa_models.pretrained import read_pretrained  # imports transformers

        pretrained, own = read_pretrained(model)
        return ModelSpec(settings, dataset.kind, dataset.labels, dataset.feature_shape, own, pretrained)
    needs_tokenizer = needs_token_ids(settings)
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
    marks = None if tokenizer is None else find_marks(dataset, tokenizer)
    if model.name == "text_classifier" and marks is not None and marks.padding != 0:
        raise UserError(
            f"Model 'text_classifier' takes the id 0 for padding, and in the tokenizer of {dataset.key} it is something else. "
            "Use `vocabulary: {name: hashed}`, or a tokenizer that is trained on the dataset (`tokenizer: {vocab_size: 4096}`)."
        )
    return ModelSpec(settings, dataset.kind, dataset.labels, dataset.feature_shape, tokenizer, marks=marks)


def needs_token_ids(model: dict[str, Any]) -> bool:
    """Whether a resolved model section is of a model that reads the ids of a tokenizer."""
    return model["name"] in ("causal_lm", "encoder_classifier") or (
        model["name"] == "text_classifier" and model["parameters"]["vocabulary"] == {"name": "bpe"}
    )
