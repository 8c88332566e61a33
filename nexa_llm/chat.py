"""What is asked of a language model, and what it answered."""

from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]
"""`role` and `content`, as in OpenAI's protocol."""
Status = Literal["answered", "truncated", "refused", "failed"]
"""answered: whole. truncated: cut off at the limit of tokens. refused: the model, or its server, would not. failed: no answer."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn; see `nexa_core.config.ask.SamplingConfig`."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class ChatRequest:
    """One answer that is wanted: with all that determines it, but for the model."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    sample_index: int = 0
    """Which of several answers to the same messages."""
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def seed(self) -> int | None:
        """The seed of this sample."""
        return None if self.sampling.seed is None else self.sampling.seed + self.sample_index


@dataclass(frozen=True)
class Logprobs:
    """The most likely tokens at each place of an answer."""

    token_ids: list[int]
    """The answer's own."""
    top_ids: list[list[int]]
    """The most likely first."""
    top_logprobs: list[list[float]]
    """In nats."""
    tail_mass: list[float]
    """The probability of all other tokens."""
    tokenizer_sha256: str
    """Of what decides its ids (`nexa_data.encoder.encoding_digest`), however its file is laid out."""


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    status: Status
    request_sha256: str
    """Of everything that determines the answer; what the store knows it by."""
    text: str | None = None
    error: str | None = None
    """Why there is none."""
    finish_reason: str | None = None
    model: str | None = None
    """As the server names it."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_picousd: int | None = None
    """In millionths of a millionth of a US dollar; None where no price is known."""
    latency_seconds: float | None = None
    logprobs: Logprobs | None = None
    is_new: bool = False
    """Whether it was bought now, and not found in the store."""
