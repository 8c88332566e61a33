"""Settings of the models that can be trained."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from nexa_core.config.base import Settings
from nexa_core.config.data import by_name

Size = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class MlpParameters(Settings):
    """A multi-layer perceptron over a row's numbers."""

    hidden_sizes: tuple[Size, ...] = (128,)
    """Width of each hidden layer."""
    dropout: Probability = 0.1


class CnnParameters(Settings):
    """A small convolutional network over images; rows need a shape of [channels, height, width]."""

    channels: Annotated[tuple[Size, ...], Field(min_length=1)] = (16, 32)
    """Output channels of each 3x3 convolution; the image is halved after each one."""
    hidden_size: Size = 64
    dropout: Probability = 0.1


class HashedVocabulary(Settings):
    """Words and their n-grams hashed into a fixed number of buckets; needs no training."""

    name: Literal["hashed"]
    num_buckets: Size = 65536
    max_ngram: Annotated[int, Field(ge=1, le=4)] = 2
    """Longest run of words that has an embedding of its own."""
    character_ngrams: tuple[Size, Size] | None = None
    """Shortest and longest run of characters inside a word that has an embedding, e.g. [3, 5]: what tells something about
    words that training never saw. Source: Bojanowski et al. 2017, arXiv:1607.04606."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.character_ngrams is not None and self.character_ngrams[0] > self.character_ngrams[1]:
            yield ("character_ngrams",), "the shortest run comes first, then the longest"


class BpeVocabulary(Settings):
    """The tokenizer that was prepared with the dataset."""

    name: Literal["bpe"]


class TextClassifierParameters(Settings):
    """The mean of a text's token embeddings, through a linear layer. Source: Joulin et al. 2016, arXiv:1607.01759."""

    vocabulary: Annotated[HashedVocabulary | BpeVocabulary, Field(discriminator="name")] = HashedVocabulary(
        name="hashed"
    )
    embedding_size: Size = 64
    max_tokens: Size = 512
    """Tokens (with n-grams) of a text that are read; the rest is cut off, and how often is reported."""
    token_dropout: Probability = 0.0
    """Share of a text's tokens that each training step leaves out, so that no single word is relied upon."""
    dropout: Probability = 0.3


class CausalLmParameters(Settings):
    """A decoder-only transformer built from sizes, with random weights."""

    architecture: Literal["llama", "gpt2"] = "llama"
    hidden_size: Size = 128
    num_layers: Size = 2
    num_heads: Size = 4
    intermediate_size: Size | None = None
    """Width of the feed-forward layers; four times the hidden size without it."""
    max_tokens: Size = 128
    """Longest sequence in tokens; longer rows are cut, and how many is reported."""
    dropout: Probability = 0.0


class MlpModel(Settings):
    name: Literal["mlp"]
    parameters: MlpParameters = MlpParameters()


class CnnModel(Settings):
    name: Literal["cnn"]
    parameters: CnnParameters = CnnParameters()


class TextClassifierModel(Settings):
    name: Literal["text_classifier"]
    parameters: TextClassifierParameters = TextClassifierParameters()


class CausalLmModel(Settings):
    name: Literal["causal_lm"]
    parameters: CausalLmParameters = CausalLmParameters()


class CustomModel(Settings):
    """A user's own ``package.module:name(spec, **parameters)`` that returns a `torch.nn.Module` for rows of numbers."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


ModelConfig = Annotated[
    Annotated[MlpModel, Tag("mlp")]
    | Annotated[CnnModel, Tag("cnn")]
    | Annotated[TextClassifierModel, Tag("text_classifier")]
    | Annotated[CausalLmModel, Tag("causal_lm")]
    | Annotated[CustomModel, Tag("custom")],
    Discriminator(by_name),
]
