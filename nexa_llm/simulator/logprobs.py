"""Log-probabilities of an answer's tokens, drawn from its digest, in the form of OpenAI's."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from xxhash import xxh3_64_intdigest

LEAST_RATIO, RATIO_RANGE = 0.05, 0.55
LAST_RANK = 24


def token_logprobs(
    pieces: Sequence[bytes], digest: bytes, *, num_top: int, vocabulary: Sequence[bytes], is_sampled: bool
) -> list[dict[str, Any]]:
    """One entry a token: its own log-probability, and the `num_top` most likely tokens, most likely first.

    At each place the token of rank r has the probability (1 - q) q^r, with a q from 0.05 to 0.6 of the place's own: what is
    left below rank k is q^k. A greedy answer is made of tokens of rank 0; of a sampled one's a quarter has a lower rank, and
    may be missing among the most likely.
    """
    return [
        _entry(piece, xxh3_64_intdigest(digest + place.to_bytes(4)), num_top, vocabulary, is_sampled)
        for place, piece in enumerate(pieces)
    ]


def _entry(piece: bytes, draw: int, num_top: int, vocabulary: Sequence[bytes], is_sampled: bool) -> dict[str, Any]:
    ratio = LEAST_RATIO + RATIO_RANGE * (draw & 0xFFFF) / 0xFFFF
    first, step = math.log1p(-ratio), math.log(ratio)
    own_rank = _rank(draw >> 16) if is_sampled else 0
    others = _others(piece, (draw >> 32) % len(vocabulary), vocabulary)
    top = []
    for rank in range(num_top):
        token = piece if rank == own_rank else next(others, None)
        if token is None:
            break
        top.append(_named(token) | {"logprob": first + rank * step})
    return _named(piece) | {"logprob": first + own_rank * step, "top_logprobs": top}


def _rank(bits: int) -> int:
    """0 for three draws of four, 1 for three of the four that are left, and so on."""
    rank = 0
    while bits & 3 == 0 and rank < LAST_RANK:
        bits >>= 2
        rank += 1
    return rank


def _others(piece: bytes, begin: int, vocabulary: Sequence[bytes]) -> Iterator[bytes]:
    for offset in range(len(vocabulary)):
        if (token := vocabulary[(begin + offset) % len(vocabulary)]) != piece:
            yield token


@functools.lru_cache(maxsize=2**16)
def _named(token: bytes) -> dict[str, Any]:
    """The token's text and bytes; bytes that are no whole characters are written as OpenAI does, like ``\\xf0\\x9f``."""
    return {"token": token.decode(errors="backslashreplace"), "bytes": list(token)}
