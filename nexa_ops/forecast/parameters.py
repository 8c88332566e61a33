"""A model's parameters by the part that they belong to."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from nexa_models.lora import MARK


@dataclass(frozen=True)
class Parameters:
    """Counts; one that two layers share is counted once, as the embedding's."""

    total: int
    trained: int
    embedding: int
    layers: int
    head: int
    """The output layer; 0 where it is the embedding's transpose."""
    adapters: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        parts = {"embedding": self.embedding, "layers": self.layers, "head": self.head, "adapters": self.adapters}
        shown = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count)
        trained = "all trained" if self.trained == self.total else f"{self.trained:,} trained"
        return f"{self.total:,} parameters, {trained}: {shown}"


def count_parameters(model: nn.Module) -> Parameters:
    """The counts; parameters may be without storage."""
    embedded = [
        weight for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()
    ]
    part_of: dict[int, str] = {id(weight): "embedding" for weight in embedded}
    head = _head(model)
    for weight in [] if head is None else head.parameters():
        part_of.setdefault(id(weight), "head")
    counts = dict.fromkeys(("embedding", "layers", "head", "adapters"), 0)
    trained = 0
    for name, weight in model.named_parameters():
        part = "adapters" if MARK in name else part_of.get(id(weight), "layers")
        counts[part] += weight.numel()
        trained += weight.numel() if weight.requires_grad else 0
    return Parameters(total=sum(counts.values()), trained=trained, **counts)


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested dicts, lists and tuples."""
    match value:
        case Tensor():
            return [value]
        case dict():
            return [tensor for item in value.values() for tensor in tensors_in(item)]
        case list() | tuple():
            return [tensor for item in value for tensor in tensors_in(item)]
        case _:
            return []


def _head(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits, where the model says which one that is."""
    transformer = getattr(model, "transformer", None)
    if transformer is None:
        return getattr(model, "head", None)
    own = getattr(transformer, "score", None) or getattr(transformer, "classifier", None)
    return transformer.get_output_embeddings() or own
