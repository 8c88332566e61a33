"""Settings of asking a language model: which one, how its answers are drawn, at what pace, at what price."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer

from nexa_core.config.base import Settings
from nexa_core.redact import public_url

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


OURS = {
    *("model", "messages", "n", "best_of", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "seed", "stop", "logprobs", "top_logprobs", "tools"),
}
"""Keys of a request that `extra_body` must not set."""


class SamplingConfig(Settings):
    """How an answer is drawn; each of these is a part of what determines it."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0: the most likely token at each place."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 256
    """Longest answer in tokens. What a request may cost at most, and so what a budget sets aside for it, follows from it."""
    seed: int | None = None
    """Sent to the server; each further sample of a prompt gets the next number. Servers may ignore it."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    logprobs: Annotated[int, Field(ge=1, le=100)] | None = None
    """Ask for the log probabilities of so many tokens at each place, to train on them; needs `tokenizer`."""


class Pace(Settings):
    """How fast requests go out, and what happens when they fail."""

    concurrency: PositiveInt = 64
    """Requests under way at once, at most; fewer while the server says that it is overloaded."""
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    """Of prompts and answers; what a request may take at most is counted when it is sent, and corrected when it is answered."""
    timeout_seconds: PositiveFloat = 120.0
    """For one whole answer."""
    max_tries: PositiveInt = 8
    """Of one request, when it fails in a way that may pass: no connection, timeout, 408, 409, 429, 5xx, malformed answer.

    Where a busy server (429, 503) says how long to wait, that counts as none.
    """
    give_up_after_seconds: PositiveFloat = 300.0
    """The run ends when nothing at all was answered for so long, and a request fails that a busy server put off for so long."""


class Price(Settings):
    """What a model costs."""

    prompt_usd_per_million: Annotated[float, Field(ge=0)]
    """US dollars for a million tokens that it reads."""
    completion_usd_per_million: Annotated[float, Field(ge=0)]
    """US dollars for a million tokens that it writes."""

    def picousd_per_token(self) -> tuple[int, int]:
        """Of a prompt's and an answer's tokens, exact."""
        prices = (self.prompt_usd_per_million, self.completion_usd_per_million)
        prompt, completion = (int(Decimal(str(price)) * 1_000_000) for price in prices)
        return prompt, completion


class AskConfig(Settings):
    """Which model is asked, and how."""

    teacher: Annotated[str, Field(pattern=r"^[^:]+:.+$")]
    """`openai:<model>` of any server that speaks OpenAI's protocol, `local:<checkpoint or folder>`, or `recorded:<file>`."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What a `local:` teacher runs on. vllm: `vllm serve`, where it is installed, serves the folder, which is asked at `pace`."""
    base_url: str | None = None
    """The server's URL up to and including `/v1`; OPENAI_BASE_URL, or OpenAI's own, without it."""
    api_key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; the key itself never stands in a file."""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit of an answer; OpenAI's reasoning models know the second only."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further keys of each request, e.g. {return_tokens_as_token_ids: true} for vLLM."""
    tokenizer: str | None = None
    """The teacher's tokenizer.json, by which the tokens of `sampling.logprobs` get their ids."""
    prompt_column: str = "prompt"
    """Of a recorded file."""
    completion_column: str = "completion"
    """Of a recorded file: the column of the answers."""
    system_prompt: str | None = None
    """Goes in front of each conversation."""
    sampling: SamplingConfig = SamplingConfig()
    pace: Pace = Pace()
    prices: dict[str, Price] = Field(default_factory=dict)
    """By model, in place of the built-in table's (nexa_llm/prices.py)."""

    @field_serializer("base_url")
    def _without_secrets(self, value: str | None) -> str | None:
        return None if value is None else public_url(value)

    @property
    def provider(self) -> str:
        return self.teacher.partition(":")[0]

    @property
    def model(self) -> str:
        return self.teacher.partition(":")[2]

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        needs = {
            "openai": ("base_url", "api_key_variable", "max_tokens_name", "extra_body", "prices"),
            "local": ("engine",),
            "recorded": ("prompt_column", "completion_column"),
        }
        for provider, keys in needs.items():
            for key in keys:
                if (
                    self.provider != provider
                    and self.provider in ("openai", "recorded", "local")
                    and key in self.model_fields_set
                ):
                    yield (key,), f"only a teacher `{provider}:...` uses it, and this one is {self.teacher}"
        if "pace" in self.model_fields_set and (
            self.provider == "recorded" or (self.provider == "local" and self.engine != "vllm")
        ):
            yield ("pace",), f"only a teacher that is a server has one, and this one is {self.teacher}"
        if self.provider == "recorded":
            for key in ("sampling", "system_prompt", "tokenizer"):
                if key in self.model_fields_set:
                    yield (key,), "answers that are recorded already are not drawn anew"
        for key in sorted(OURS & self.extra_body.keys()):
            yield (
                ("extra_body", key),
                "it would change what an answer costs, or how it comes, and settings of their own say that",
            )
        if self.provider == "openai" and self.sampling.logprobs is not None and self.tokenizer is None:
            yield (
                ("sampling", "logprobs"),
                "name the teacher's own tokenizer.json as `tokenizer`, to know which tokens they are of",
            )
        if self.tokenizer is not None and (self.sampling.logprobs is None or self.provider == "local"):
            yield ("tokenizer",), "only `sampling.logprobs` of a server uses it"
