"""Answers made of what is stored, each with what it cost."""

from dataclasses import replace

from nexa_core.config.ask import Price
from nexa_llm.chat import Answer
from nexa_llm.logprobs import TokenIds
from nexa_llm.parse import Unusable, parse_answer
from nexa_llm.store import Stored


class Reader:
    """Reads one teacher's answers.

    Args:
        price: of its tokens; without it no answer says what it cost.
        token_ids: by which log probabilities are read, where they were asked for.
    """

    def __init__(self, price: Price | None, token_ids: TokenIds | None):
        self.prices = None if price is None else price.picousd_per_token()
        self._token_ids = token_ids

    def read(self, key: str, stored: Stored, *, is_new: bool = False) -> Answer:
        """A stored answer, which was usable when it came; a stricter parser or another tokenizer may find it is not."""
        try:
            return self.parse(key, stored, is_new=is_new)
        except Unusable as error:
            return Answer(status="failed", request_sha256=key, error=f"the stored answer: {error}", is_new=is_new)

    def parse(self, key: str, stored: Stored, *, is_new: bool) -> Answer:
        """What a server sent as an answer.

        Raises:
            Unusable: it is none.
        """
        answer = parse_answer(stored.raw, key, token_ids=self._token_ids)
        is_counted = answer.prompt_tokens is not None and answer.completion_tokens is not None
        cost = self.cost(answer.prompt_tokens or 0, answer.completion_tokens or 0) if is_counted else None
        return replace(answer, cost_picousd=cost, latency_seconds=stored.latency_seconds, is_new=is_new)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int | None:
        """In picodollars; None where the price is not known."""
        if self.prices is None:
            return None
        return prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]
