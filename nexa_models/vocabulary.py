"""From text to token ids: words and n-grams hashed into buckets, or a tokenizer's, the dataset's or the model's own."""

import functools
import json
import re
import zlib
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from nexa_core.config.model import HashedVocabulary, TextClassifierParameters
from nexa_core.errors import UserError
from nexa_data.encoder import load_tokenizer
from nexa_data.tokenizer import SPECIAL_TOKENS
from nexa_models.marks import SpecialIds
from nexa_models.spec import ModelSpec

WORD = re.compile(r"\w+|[^\w\s]")
CHUNK = 1024  # texts encoded at once; what the tokenizer says of each is many times its ids
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Odd 64-bit multiplier that spreads neighbouring values. Source: Knuth, TAOCP vol. 3, 6.4 (golden ratio hashing).
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def vocabulary_size(spec: ModelSpec) -> int:
    """How many ids a model of this spec has to embed, padding included."""
    if spec.pretrained is not None:
        architecture = spec.pretrained.architecture
        return int(architecture.get("text_config", architecture)["vocab_size"])
    if spec.tokenizer is not None:
        return load_tokenizer(spec.tokenizer).get_vocab_size()
    return hashed_vocabulary(spec).num_buckets + 1


def hashed_vocabulary(spec: ModelSpec) -> HashedVocabulary:
    vocabulary = TextClassifierParameters.model_validate_json(spec.parameters_json).vocabulary
    assert isinstance(vocabulary, HashedVocabulary)
    return vocabulary


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """The ids of the tokens that mark a sequence's ends, of a tokenizer that was trained here.

    Raises:
        UserError: the tokenizer lacks one of them.
    """
    ids = [index for token in SPECIAL_TOKENS if (index := tokenizer.token_to_id(token)) is not None]
    if len(ids) < len(SPECIAL_TOKENS):
        raise UserError(f"The tokenizer has to know the tokens {', '.join(SPECIAL_TOKENS)}.")
    return SpecialIds(*ids)


def special_ids_of(spec: ModelSpec) -> SpecialIds:
    """The ids that mark a sequence's ends for the spec's model. Raises UserError where its tokenizer lacks one."""
    if spec.pretrained is not None:
        return SpecialIds(spec.pretrained.padding_id, spec.pretrained.begin_id, spec.pretrained.end_id)
    if spec.marks is not None:
        return spec.marks
    assert spec.tokenizer is not None
    return special_ids(load_tokenizer(spec.tokenizer))


def encode_plain(texts: Sequence[str], spec: ModelSpec) -> list[list[int]]:
    """The token ids of each text and nothing around them."""
    assert spec.tokenizer is not None
    tokenizer = load_tokenizer(spec.tokenizer)
    chunks = (list(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK))
    return [ids.ids for chunk in chunks for ids in tokenizer.encode_batch_fast(chunk, add_special_tokens=False)]


def encode_texts(texts: Sequence[str], spec: ModelSpec) -> tuple[list[np.ndarray], int]:
    """The ids of each text as a classifier reads them, at most `max_tokens`, and how many texts had more.

    An encoder's texts have what its tokenizer puts around them ([CLS] and [SEP]), or a dataset's own `<|bos|>` and
    `<|eos|>`; that stays when the text between them is cut.
    """
    if spec.tokenizer is None:
        whole = encode_hashed(texts, hashed_vocabulary(spec))
    elif spec.model["name"] == "encoder_classifier":
        return _encode_marked(texts, spec)
    else:
        whole = [np.array(ids, dtype=np.int64) for ids in encode_plain(texts, spec)]
    most = spec.max_tokens
    return [ids[:most] for ids in whole], sum(len(ids) > most for ids in whole)


def token_bytes(spec: ModelSpec) -> np.ndarray:
    """For each id the bytes of text that it stands for; special tokens, and ids that no token has, stand for none.

    A byte-level tokenizer writes one character a byte. Others write text, with `\u2581` for a space, `##` inside a word,
    and `<0x0A>` for a byte that has no token.
    """
    assert spec.tokenizer is not None
    tokenizer = load_tokenizer(spec.tokenizer)
    special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    added = {index for index in tokenizer.get_added_tokens_decoder() if index not in special}
    is_byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["decoder"])
    lengths = np.zeros(max(vocabulary_size(spec), tokenizer.get_vocab_size()), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            lengths[index] = len(token) if is_byte_level and index not in added else _written_bytes(token)
    return lengths


def _encode_marked(texts: Sequence[str], spec: ModelSpec) -> tuple[list[np.ndarray], int]:
    """Each text with the tokens that mark its ends around it."""
    assert spec.tokenizer is not None
    begin, end = _around(spec)
    room = spec.max_tokens - len(begin) - len(end)
    whole = encode_plain(texts, spec)
    marked = [np.array([*begin, *ids[:room], *end], dtype=np.int64) for ids in whole]
    return marked, sum(len(ids) > room for ids in whole)


def _around(spec: ModelSpec) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's post-processor puts in front of a text and behind it."""
    assert spec.tokenizer is not None
    if spec.pretrained is None:
        special = special_ids_of(spec)
        return [special.begin] if special.begin is not None else [], [special.end]
    encoding = load_tokenizer(spec.tokenizer).encode("a")
    own = [place for place, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
    return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]


def _written_bytes(token: str) -> int:
    if BYTE_TOKEN.fullmatch(token):
        return 1
    return len(token.removeprefix("##").replace("\u2581", " ").encode("utf-8"))


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
