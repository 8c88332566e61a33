"""From text to token ids: words and n-grams hashed into buckets, or the dataset's own BPE tokenizer."""

import functools
import re
import zlib
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from nexa_core.config.model import HashedVocabulary
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
    return HashedVocabulary.model_validate(spec.model["parameters"]["vocabulary"])


@functools.lru_cache(maxsize=4)
def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json)


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
