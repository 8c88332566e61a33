"""What a call that brought no answer cost: by the server's bill, or at most."""

import asyncio
import logging
from typing import Any

from nexa_llm.openai import OpenAi
from nexa_llm.parse import Unusable
from nexa_llm.reading import Reader
from nexa_llm.store import Call, Store

logger = logging.getLogger(__name__)

BILLS_ASKED_AT_ONCE = 16


async def outcome_of(call: Call, teacher: OpenAi, session: Any, reader: Reader) -> tuple[int | None, str]:
    """What a lost call cost, in picodollars, and its state in the ledger."""
    if reader.prices is None:
        return None, "unknown"
    billed = await teacher.billed(session, call.id) if call.reserved_picousd else 0
    return (call.reserved_picousd, "unknown") if billed is None else (billed, "failed")


async def settle_cut_off(store: Store, teacher: OpenAi, session: Any, reader: Reader) -> None:
    """Find out what became of the calls that a killed process had under way."""
    cut_off = store.cut_off((teacher.address, teacher.name))
    turn = asyncio.Semaphore(BILLS_ASKED_AT_ONCE)

    async def settle(call: Call) -> None:
        async with turn:
            paid, state = await outcome_of(call, teacher, session, reader)
        unusable = _has_left_unusable(call, store, reader)
        store.fail(call, "cut off: the process was killed", picousd=paid, state=state, unusable=unusable)

    await asyncio.gather(*map(settle, cut_off))
    if cut_off:
        await store.flush()
        logger.info("%d calls were under way when the process was killed before; the ledger lists them", len(cut_off))


def _has_left_unusable(call: Call, store: Store, reader: Reader) -> bool:
    """Whether a call's response was kept and the process killed before it was found to be no answer."""
    kept = store.get([call.key]).get(call.key)
    if kept is None or kept.call != call.id:
        return False
    try:
        reader.parse(call.key, kept)
    except Unusable:
        return True
    return False
