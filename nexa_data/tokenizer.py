"""The byte-level BPE tokenizer that is trained on a dataset's training rows and stored with it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>")
"""In the order of their ids, from 0. The tokenizer adds none by itself: whoever encodes puts them where they belong."""
_, BEGIN, END = SPECIAL_TOKENS
TEXT_COLUMNS = ("text", "prompt", "completion", "messages.list.element.role", "messages.list.element.content")
"""As Parquet names its leaves: of a conversation the roles and contents of its messages."""
BATCH_ROWS = 1024


def train_tokenizer(paths: Iterable[Path], vocab_size: int) -> Tokenizer:
    """A tokenizer of the texts in some splits' files.

    It has at most `vocab_size` tokens, fewer where the text has no more pairs that occur twice.

    Every text can be encoded and comes back unchanged, because all 256 bytes are tokens.
    Source: Sennrich et al. 2016, arXiv:1508.07909; the byte level and its splitting into words are GPT-2's.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for path in paths for text in _texts(path)), trainer)
    return tokenizer


def _texts(path: Path) -> Iterator[str]:
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        leaves = [file.schema.column(index).path for index in range(len(file.schema.names))]
        columns = [name for name in TEXT_COLUMNS if name in leaves]
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            for column in batch.columns:
                yield from _texts_in(column.to_pylist())


def _texts_in(values: Iterable[Any]) -> Iterator[str]:
    """Every text in the values of a column, whatever lists and objects it lies in."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _texts_in(value.values())
        elif value is not None:
            yield from _texts_in(value)
