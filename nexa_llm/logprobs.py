"""The log probabilities that a server states for tokens, by the ids that these have in the teacher's tokenizer."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_core.errors import UserError
from nexa_llm.chat import Logprobs
from nexa_llm.token_bytes import id_by_bytes

SAID_BY_ID = "token_id:"
"""How vLLM names a token with `return_tokens_as_token_ids`."""
LARGEST_ID = 2**31 - 1


class TokenIds:
    """Finds a token's id by its bytes."""

    def __init__(self, tokenizer_path: Path):
        from tokenizers import Tokenizer

        from nexa_data.encoder import encoding_digest

        try:
            tokenizer = Tokenizer.from_buffer(tokenizer_path.read_bytes())
        except Exception as error:  # noqa: BLE001 -- the library raises nothing narrower
            raise UserError(
                f"tokenizer {tokenizer_path} cannot be read: {error}. It has to be the teacher's own tokenizer.json."
            ) from None
        self.sha256, self._path = encoding_digest(tokenizer.to_str()), tokenizer_path
        self._ids = id_by_bytes(tokenizer)

    def read(self, places: Sequence[Mapping[str, Any]]) -> Logprobs:
        """The places of an answer as OpenAI's protocol lists them.

        A likely token that is none of the tokenizer's counts to the tail.

        Raises:
            UserError: the answer itself has a token that the tokenizer does not know: it is another model's.
        """
        own, top_ids, top_logprobs, tails = [], [], [], []
        for place in places:
            token_id = self._find(place)
            if token_id is None:
                raise UserError(
                    f"The teacher wrote {place['token']!r}, which is no token of {self._path}. Is that its own tokenizer?"
                )
            known = [
                (found, float(each["logprob"]))
                for each in place["top_logprobs"]
                if (found := self._find(each)) is not None
            ]
            known = sorted(dict(reversed(known)).items(), key=lambda pair: (-pair[1], pair[0]))
            own.append(token_id)
            top_ids.append([found for found, _ in known])
            top_logprobs.append([logprob for _, logprob in known])
            tails.append(max(0.0, 1.0 - math.fsum(math.exp(logprob) for _, logprob in known)))
        return Logprobs(own, top_ids, top_logprobs, tails, self.sha256)

    def _find(self, place: Mapping[str, Any]) -> int | None:
        token = place["token"]
        if token.startswith(SAID_BY_ID):
            return _id(token.removeprefix(SAID_BY_ID))
        data = place.get("bytes")
        return self._ids.get(bytes(data) if data else token.encode())


def _id(text: str) -> int:
    if not 0 <= (found := int(text)) <= LARGEST_ID:
        raise ValueError(f"{text} is no token's id")
    return found
