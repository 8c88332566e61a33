"""What a call that brought no answer cost: by the server's bill, or at most."""

import asyncio
import logging
from typing import Any

from nexa_llm.chat import Answer
from nexa_llm.openai import OpenAi
from nexa_llm.parse import Unusable, is_flagged, parse_answer, read_usage
from nexa_llm.reading import Reader
from nexa_llm.store import Call, Store

logger = logging.getLogger(__name__)

BILLS_ASKED_AT_ONCE = 16


async def outcome_of(
    call: Call, teacher: OpenAi, session: Any, reader: Reader, *, raw: bytes = b""
) -> tuple[int | None, str]:
    """What a lost call cost, in picodollars, and its state in the ledger.

    Args:
        raw: what came of it, which is no answer, and may count its tokens all the same.
    """
    if reader.prices is None:
        return None, "unknown"
    billed = await teacher.billed(session, call.id) if call.reserved_picousd else 0
    if billed is None and (usage := read_usage(raw)) is not None:
        billed = reader.cost(*usage)
    return (call.reserved_picousd, "unknown") if billed is None else (billed, "failed")


async def settle_cut_off(store: Store, teacher: OpenAi, session: Any, reader: Reader) -> None:
    """Find out what became of the calls that a killed process had under way."""
    cut_off = store.cut_off((teacher.address, teacher.name))
    turn = asyncio.Semaphore(BILLS_ASKED_AT_ONCE)

    async def settle(call: Call) -> None:
        found = store.get([call.key]).get(call.key)
        kept = found.raw if found is not None and found.call == call.id else None
        if kept is not None and (answer := _answer_in(kept, call.key)) is not None:
            settle_answered(call, answer, store, reader)
            return
        if kept is not None and not is_flagged(kept):
            store.set_aside(call)
        raw = kept or store.get_unusable(call) or b""
        async with turn:
            paid, state = await outcome_of(call, teacher, session, reader, raw=raw)
        store.fail(call, "cut off: the process was killed", picousd=paid, state=state)

    await asyncio.gather(*map(settle, cut_off))
    if cut_off:
        await store.flush()
        logger.info("%d calls were under way when the process was killed before; the ledger lists them", len(cut_off))


def settle_answered(call: Call, answer: Answer, store: Store, reader: Reader) -> int:
    """Book what an answer cost by its own count of tokens, or at most where it has none; in picodollars."""
    cost = None
    if answer.prompt_tokens is not None and answer.completion_tokens is not None:
        cost = reader.cost(answer.prompt_tokens, answer.completion_tokens)
    paid = call.reserved_picousd if cost is None else cost
    store.settle(call, None if reader.prices is None else paid, answer.prompt_tokens, answer.completion_tokens)
    return paid


def _answer_in(raw: bytes, key: str) -> Answer | None:
    """The answer that was kept before the process was killed, whatever this run asks for; None where it is none.

    What a filter stopped is none: nobody knows what that cost.
    """
    try:
        return None if is_flagged(raw) else parse_answer(raw, key)
    except Unusable:
        return None
