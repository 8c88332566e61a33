"""A limit on money that no number of requests at once can exceed."""

from nexa_llm.chat import ChatRequest
from nexa_llm.prices import PICOUSD

BYTES_OF_A_MESSAGE = 16
"""More than the tokens by which a chat template sets a message apart."""


class Budget:
    """Sets aside what a request may cost at most before it is sent, and takes the true price when it is known."""

    def __init__(self, limit_usd: float | None, *, spent_picousd: int = 0):
        self.limit_picousd = None if limit_usd is None else round(limit_usd * PICOUSD)
        self.spent_picousd = spent_picousd
        self._reserved = 0

    @property
    def remaining_picousd(self) -> int | None:
        """What is neither spent nor set aside; None without a limit."""
        return None if self.limit_picousd is None else self.limit_picousd - self.spent_picousd - self._reserved

    @property
    def reserved_picousd(self) -> int:
        return self._reserved

    def reserve(self, picousd: int) -> bool:
        """Whether so much was still there, and is set aside now."""
        remaining = self.remaining_picousd
        if remaining is not None and picousd > remaining:
            return False
        self._reserved += picousd
        return True

    def settle(self, reserved_picousd: int, paid_picousd: int) -> None:
        self._reserved -= reserved_picousd
        self.spent_picousd += paid_picousd


def most_prompt_tokens(request: ChatRequest, payload: bytes) -> int:
    """What a request may take at most: no tokenizer makes more tokens of a text than it has bytes.

    Args:
        payload: all of it as it is sent, because servers put more than the messages into a prompt: tools, the schema that an
            answer has to have.
    """
    return len(payload) + BYTES_OF_A_MESSAGE * (len(request.messages) + 1)
