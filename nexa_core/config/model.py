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


class EncoderParameters(Settings):
    """A bidirectional transformer (BERT's architecture) built from sizes, with random weights."""

    hidden_size: Size = 128
    num_layers: Size = 2
    num_heads: Size = 4
    intermediate_size: Size | None = None
    """Width of the feed-forward layers; four times the hidden size without it."""
    max_tokens: Annotated[int, Field(ge=8)] = 128
    """Longest text in tokens, those that mark its ends among them; longer ones are cut, and how many is reported."""
    dropout: Probability = 0.1


class PretrainedLmParameters(Settings):
    """How weights that are there already are used."""

    max_tokens: Size = 1024
    """Longest sequence in tokens; longer rows are cut, and how many is reported."""
    dropout: Probability | None = None
    """Dropout wherever the architecture has one; what its own config.json says without it."""


class PretrainedEncoderParameters(Settings):
    """How weights that are there already are used."""

    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Longest text in tokens, those that mark its ends among them; longer ones are cut, and how many is reported."""
    dropout: Probability | None = None
    """Dropout wherever the architecture has one; what its own config.json says without it."""


class Lora(Settings):
    """Only small low-rank matrices beside the model's own are trained. Source: Hu et al. 2021, arXiv:2106.09685."""

    rank: Size = 16
    """Inner width of each pair of matrices."""
    alpha: Size = 32
    """What they add is multiplied with alpha / rank."""
    dropout: Probability = 0.0
    """Dropout in front of them."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the layers that get one, e.g. [q_proj, v_proj]; every linear layer but the output's without it."""
    quantization: Literal["nf4"] | None = None
    """nf4: the model's own weights are held in 4 bits (QLoRA); needs a GPU and the package bitsandbytes.
    Source: Dettmers et al. 2023, arXiv:2305.14314."""


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
    """A language model built from sizes."""

    name: Literal["causal_lm"]
    parameters: CausalLmParameters = CausalLmParameters()


class PretrainedLmModel(Settings):
    """A language model whose weights are there already."""

    name: Literal["causal_lm"]
    path: str
    """A folder as transformers writes it (config.json, *.safetensors, tokenizer.json), or a name on the Hugging Face hub.
    Its tokenizer replaces the dataset's."""
    parameters: PretrainedLmParameters = PretrainedLmParameters()
    chat_template: str | None = None
    """A Jinja file that writes conversations out, in place of the tokenizer's own template."""
    lora: Lora | None = None


class EncoderClassifierModel(Settings):
    """A text classifier on a bidirectional transformer built from sizes; reads the dataset's tokenizer."""

    name: Literal["encoder_classifier"]
    parameters: EncoderParameters = EncoderParameters()


class PretrainedEncoderModel(Settings):
    """A text classifier on a transformer whose weights are there already, but for the classes'."""

    name: Literal["encoder_classifier"]
    path: str
    """A folder as transformers writes it (config.json, *.safetensors, tokenizer.json), or a name on the Hugging Face hub.
    Its tokenizer replaces the dataset's."""
    parameters: PretrainedEncoderParameters = PretrainedEncoderParameters()


class CustomModel(Settings):
    """A user's own ``package.module:name(spec, **parameters)`` that returns a `torch.nn.Module` for rows of numbers."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


def by_origin(value: Any) -> str:
    """The tag of a transformer: what is asked of weights that are there already is another thing than sizes."""
    keys = value if isinstance(value, dict) else type(value).model_fields
    return "pretrained" if {"path", "lora", "chat_template"} & set(keys) else "sized"


ModelConfig = Annotated[
    Annotated[MlpModel, Tag("mlp")]
    | Annotated[CnnModel, Tag("cnn")]
    | Annotated[TextClassifierModel, Tag("text_classifier")]
    | Annotated[
        Annotated[
            Annotated[CausalLmModel, Tag("sized")] | Annotated[PretrainedLmModel, Tag("pretrained")],
            Discriminator(by_origin),
        ],
        Tag("causal_lm"),
    ]
    | Annotated[
        Annotated[
            Annotated[EncoderClassifierModel, Tag("sized")] | Annotated[PretrainedEncoderModel, Tag("pretrained")],
            Discriminator(by_origin),
        ],
        Tag("encoder_classifier"),
    ]
    | Annotated[CustomModel, Tag("custom")],
    Discriminator(by_name),
]
