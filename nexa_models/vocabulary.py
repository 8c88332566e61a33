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
    """For each text the buckets of its words, of runs of 2, 3, ... words, and of runs of characters inside each word.

    Each bucket comes once, where it appears first: that a word is there says more than how often, and words that are
    everywhere weigh less. Ids begin at 1; 0 is padding.
    """
    return [_hash_text(text, vocabulary) for text in texts]


def _hash_text(text: str, vocabulary: HashedVocabulary) -> np.ndarray:
    words = WORD.findall(text.lower())
    hashes = np.array([zlib.crc32(word.encode("utf-8")) for word in words], dtype=np.uint64)
    ngram = hashes * GOLDEN
    ids = [_buckets(ngram, vocabulary.num_buckets)]
    for length in range(2, vocabulary.max_ngram + 1):
        ngram = (ngram[:-1] ^ hashes[length - 1 :]) * GOLDEN
        ids.append(_buckets(ngram, vocabulary.num_buckets))
    if vocabulary.character_ngrams is not None:
        ids += [_hash_characters(word, vocabulary.character_ngrams, vocabulary.num_buckets) for word in words]
    distinct, first = np.unique(np.concatenate(ids).astype(np.int64), return_index=True)
    return distinct[np.argsort(first)]


@functools.lru_cache(maxsize=1 << 17)
def _hash_characters(word: str, lengths: tuple[int, int], num_buckets: int) -> np.ndarray:
    """The buckets of a word's runs of characters, its beginning and end marked."""
    marked = f"<{word}>"
    runs = [
        zlib.crc32(marked[start : start + length].encode("utf-8"), 1)  # another seed than whole words have
        for length in range(lengths[0], lengths[1] + 1)
        for start in range(len(marked) - length + 1)
    ]
    return _buckets(np.array(runs, dtype=np.uint64) * GOLDEN, num_buckets)


def _buckets(hashes: np.ndarray, num_buckets: int) -> np.ndarray:
    return (hashes >> np.uint64(20)) % np.uint64(num_buckets) + np.uint64(1)
