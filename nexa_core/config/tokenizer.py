"""Settings of the tokenizer that goes with a dataset."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from nexa_core.config.base import Settings


def by_path(value: Any) -> str:
    """The tag of a tokenizer: one with a `path` is there already."""
    given = value if isinstance(value, dict) else vars(value)
    return "loaded" if given.keys() & {"path", "begin", "end"} else "trained"


class TrainedTokenizer(Settings):
    """A byte-level BPE tokenizer, trained on the training split or shards and stored with the data."""

    vocab_size: Annotated[int, Field(ge=260)] = 4096
    """Number of tokens, the 256 bytes and the special ones among them."""


class LoadedTokenizer(Settings):
    """A tokenizer that is there already, of a model that is brought along or of another dataset; stored with the data."""

    path: str
    """Its tokenizer.json, below the laboratory's root or absolute. Another content of it is another dataset."""
    begin: str | None = "<|bos|>"
    """The token in front of each document of token sequences, and of each text that a model made from sizes reads; null for
    none. Without token sequences and this setting it may have another usual name, such as `<s>` or `<|begin_of_text|>`."""
    end: str = "<|eos|>"
    """The token behind them; likewise `</s>`, `<|endoftext|>` and such."""


TokenizerConfig = Annotated[
    Annotated[TrainedTokenizer, Tag("trained")] | Annotated[LoadedTokenizer, Tag("loaded")],
    Discriminator(by_path),
]
