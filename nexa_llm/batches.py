"""Answers of a model that runs in this process: made in batches, and stored like those that are bought."""

import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

import orjson

from nexa_core import digests
from nexa_llm.chat import Answer, ChatRequest, Logprobs
from nexa_llm.parse import parse_answer
from nexa_llm.store import Call, Store, Stored

LOOKED_UP_AT_ONCE = 512


class BatchTeacher(Protocol):
    """A model that answers many requests at once."""

    name: str
    digest: str
    """Of everything about the model that decides its answers."""
    tokenizer_sha256: str
    """As `Logprobs` has it."""
    batch_size: int

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[bytes]:
        """A body of OpenAI's protocol for each request; `logprobs.by_id` in its choice holds the rest of `Logprobs`."""


def answers_in_batches(
    teacher: BatchTeacher, store: Store, requests: Iterable[ChatRequest], *, purpose: str
) -> Generator[Answer, None, None]:
    """The answer to each request, in order; those that are not stored yet are made, each batch on the disk before the next."""
    requests = iter(requests)
    while some := list(islice(requests, LOOKED_UP_AT_ONCE)):
        keys = [key_of(teacher, request) for request in some]
        stored = store.get(keys)
        missing = {key: request for key, request in zip(keys, some, strict=True) if key not in stored}
        for batch in _batches(list(missing.items()), teacher.batch_size):
            began = time.monotonic()
            bodies = teacher.answer_batch([request for _, request in batch])
            seconds = (time.monotonic() - began) / len(batch)
            calls = [Call(uuid.uuid4().hex, key, purpose, 0, "answered", 0) for key, _ in batch]
            store.put_batch(
                [(call, body, seconds) for call, body in zip(calls, bodies, strict=True)],
                teacher=teacher.name,
                at=time.time(),
            )
            stored.update((call.key, Stored(body, seconds, call.id)) for call, body in zip(calls, bodies, strict=True))
        for key in keys:
            yield _read(teacher, key, stored[key], is_new=key in missing)


def _batches(items: list[tuple[str, ChatRequest]], size: int) -> Iterator[list[tuple[str, ChatRequest]]]:
    yield from (items[start : start + size] for start in range(0, len(items), size))


def key_of(teacher: BatchTeacher, request: ChatRequest) -> str:
    """The digest of everything that determines the answer."""
    sampling = request.sampling
    about = {
        "model": teacher.digest,
        "messages": request.messages,
        "tools": request.tools,
        "sampling": [
            sampling.temperature,
            sampling.top_p,
            sampling.max_tokens,
            request.seed,
            sampling.stop,
            sampling.logprobs,
        ],
        "sample": request.sample_index,
    }
    return digests.of_bytes(orjson.dumps(about, option=orjson.OPT_SORT_KEYS))


def _read(teacher: BatchTeacher, key: str, stored: Stored, *, is_new: bool) -> Answer:
    answer = parse_answer(stored.raw, key)
    by_id = (orjson.loads(stored.raw)["choices"][0].get("logprobs") or {}).get("by_id")
    return replace(
        answer,
        cost_picousd=0,
        latency_seconds=stored.latency_seconds,
        logprobs=None if by_id is None else Logprobs(**{**by_id, "tokenizer_sha256": teacher.tokenizer_sha256}),
        is_new=is_new,
    )
