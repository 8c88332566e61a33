"""From text to token ids: words and n-grams hashed into buckets, or the dataset's own BPE tokenizer."""

import functools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from nexa_core.config.model import HashedVocabulary, TextClassifierParameters
from nexa_core.errors import UserError
from nexa_data.tokenizer import SPECIAL_TOKENS
from nexa_models.spec import ModelSpec

WORD = re.compile(r"\w+|[^\w\s]")
# Odd 64-bit multiplier that spreads neighbouring values. Source: Knuth, TAOCP vol. 3, 6.4 (golden ratio hashing).
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def vocabulary_size(spec: ModelSpec) -> int:
    """How many ids a model of this spec has to embed, padding included."""
    if spec.tokenizer is not None:
        return load_tokenizer(spec.tokenizer).get_vocab_size()
    return hashed_vocabulary(spec).num_buckets + 1


def hashed_vocabulary(spec: ModelSpec) -> HashedVocabulary:
    vocabulary = TextClassifierParameters.model_validate_json(spec.parameters_json).vocabulary
    assert isinstance(vocabulary, HashedVocabulary)
    return vocabulary


@functools.lru_cache(maxsize=4)
def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # a text that spells "<|eos|>" out does not end a sequence
    return tokenizer


@dataclass(frozen=True)
class SpecialIds:
    padding: int
    begin: int
    end: int


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """The ids of the tokens that mark a sequence's ends.

    Raises:
        UserError: the tokenizer lacks one of them.
    """
    ids = [index for token in SPECIAL_TOKENS if (index := tokenizer.token_to_id(token)) is not None]
    if len(ids) < len(SPECIAL_TOKENS):
        raise UserError(f"The tokenizer has to know the tokens {', '.join(SPECIAL_TOKENS)}.")
    return SpecialIds(*ids)


def encode_hashed(texts: Sequence[str], vocabulary: HashedVocabulary) -> list[np.ndarray]:
    """For each text the bucket of every word, then of every run of 2, 3, ... words; ids from 1, 0 is padding."""
    return [_hash_ngrams(text, vocabulary) for text in texts]


def _hash_ngrams(text: str, vocabulary: HashedVocabulary) -> np.ndarray:
    words = np.array([zlib.crc32(word.encode("utf-8")) for word in WORD.findall(text.lower())], dtype=np.uint64)
    buckets = np.uint64(vocabulary.num_buckets)
    ngram, ids = words * GOLDEN, []
    for length in range(1, vocabulary.max_ngram + 1):
        if length > 1:
            ngram = (ngram[:-1] ^ words[length - 1 :]) * GOLDEN
        ids.append((ngram >> np.uint64(20)) % buckets + np.uint64(1))
    return np.concatenate(ids).astype(np.int64)
