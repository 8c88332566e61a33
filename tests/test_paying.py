"""What calls cost that went wrong, and what is made of what came: nothing paid is lost, nothing is booked that was not paid."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nexa_core.config.ask import AskConfig, Price, SamplingConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_llm.ask import ask
from nexa_llm.chat import Answer, ChatRequest, Sampling
from nexa_llm.openai import OpenAi
from nexa_llm.store import Call, Store, store_path
from tests.raw_server import RawServer, answer, raw_server

PRICES = {"m": Price(prompt_usd_per_million=1, completion_usd_per_million=1)}
PAID = 15 * 10**6
"""For `answer`, in picodollars."""


def config(server: RawServer, **settings: Any) -> AskConfig:
    return AskConfig(**{"teacher": "openai:m", "base_url": server.base_url, "prices": PRICES, **settings})


def request(text: str = "Why?", **sampling: Any) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), Sampling(**{"max_tokens": 20, **sampling}))


def asked(settings: AskConfig, layout: Layout, *texts: str, **more: Any) -> list[Answer]:
    sampling = {} if settings.sampling.logprobs is None else {"logprobs": settings.sampling.logprobs}
    return list(ask((request(text, **sampling) for text in texts), settings, layout, **{"purpose": "test", **more}))


def ledger(layout: Layout) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(store_path(layout))) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("select * from calls order by sent_at")]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """One whose tokens are the bytes."""
    made = Tokenizer(
        models.BPE(vocab={char: n for n, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def place(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -0.1, "top_logprobs": [{"token": token, "logprob": -0.1}]}


# Killed in between.


def keep_and_die(server: RawServer, layout: Layout, raw: bytes, text: str = "Why?") -> None:
    """What a process leaves that is killed after a response was kept, and before anything was made of it."""
    teacher = OpenAi(config(server), {})
    call = Call("killed", teacher.key(request(text)), "test", 99, "sent", None)

    async def keep(store: Store) -> None:
        await store.begin(call, teacher=teacher.address, sent_at=0.0)
        await store.keep(call, raw, 0.1)

    with Store(store_path(layout)) as store:
        asyncio.run(keep(store))


def test_an_answer_that_was_kept_before_a_kill_is_booked_by_its_tokens(layout: Layout) -> None:
    with raw_server(lambda text, times: answer()) as server:
        keep_and_die(server, layout, answer("kept")[1])
        assert [each.text for each in asked(config(server), layout, "Why?")] == ["kept"]
        assert server.asked == []
    (call,) = ledger(layout)
    assert (call["state"], call["picousd"], call["completion_tokens"]) == ("answered", PAID, 5)


def test_a_run_that_asks_for_more_takes_no_kept_answer_out(layout: Layout, tokenizer: str) -> None:
    logprobs = {"content": [place("y")]}
    with raw_server(lambda text, times: answer("y", logprobs=logprobs)) as server:
        keep_and_die(server, layout, answer("kept")[1])
        other = config(server, tokenizer=tokenizer, sampling=SamplingConfig(logprobs=1, max_tokens=20))
        assert [each.status for each in asked(other, layout, "And then?", purpose="other")] == ["answered"]
        assert [each.text for each in asked(config(server), layout, "Why?")] == ["kept"]
        assert server.asked == ["And then?"]
    assert [call["picousd"] for call in ledger(layout)] == [PAID] * 2


def test_a_wrong_tokenizer_leaves_the_ledger_of_a_killed_run_whole(layout: Layout, tokenizer: str) -> None:
    foreign = answer("no", logprobs={"content": [place("no such token")]})
    with raw_server(lambda text, times: foreign) as server:
        keep_and_die(server, layout, foreign[1])
        other = config(server, tokenizer=tokenizer, sampling=SamplingConfig(logprobs=1, max_tokens=20))
        with pytest.raises(UserError, match="Is that its own tokenizer"):
            asked(other, layout, "And then?")
    assert ledger(layout)[0]["state"] == "answered"


def test_a_response_that_was_no_answer_before_a_kill_is_taken_out(layout: Layout) -> None:
    with raw_server(lambda text, times: answer("new")) as server:
        keep_and_die(server, layout, b'{"choices": [')
        assert [each.text for each in asked(config(server), layout, "Why?")] == ["new"]
    assert [(call["state"], call["picousd"]) for call in ledger(layout)] == [("unknown", 99), ("answered", PAID)]
