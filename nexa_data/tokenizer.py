"""The byte-level BPE tokenizer that is trained on a dataset's training split and stored with it."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>")
"""In the order of their ids, from 0. The tokenizer adds none by itself: whoever encodes puts them where they belong."""
TEXT_COLUMNS = ("text", "prompt", "completion")
BATCH_ROWS = 1024


def train_tokenizer(train_split: Path, vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, fewer where the text has no more pairs that occur twice.

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
    tokenizer.train_from_iterator(_texts(train_split), trainer)
    return tokenizer


def _texts(path: Path) -> Iterator[str]:
    with parquet.ParquetFile(path) as file:
        columns = [name for name in TEXT_COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            for column in batch.columns:
                yield from (text for text in column.to_pylist() if text is not None)
