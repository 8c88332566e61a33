"""What calls cost that went wrong, and what is made of what came: nothing paid is lost, nothing is booked that was not paid."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nexa_core.config.ask import AskConfig, Pace, Price, SamplingConfig
from nexa_core.config.distill import CollectConfig, DistillConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_distill.collect_teacher import estimate_collection
from nexa_llm.ask import ask
from nexa_llm.budget import BYTES_OF_A_MESSAGE
from nexa_llm.buying import OutOfBudget
from nexa_llm.chat import Answer, ChatRequest, Sampling
from nexa_llm.openai import OpenAi
from nexa_llm.pace import RateLimit
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


# What is set aside.

SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"d": "long " * 800}}}}


def test_what_further_keys_put_into_the_prompt_is_set_aside_as_well(layout: Layout) -> None:
    """The server counts a token for every four bytes that it gets."""
    with raw_server(lambda text, times: answer(usage=(len(server.bodies[0]) // 4, 5))) as server:
        texts = [f"{number:02}" for number in range(50)]
        with pytest.raises(OutOfBudget):
            asked(config(server, extra_body=SCHEMA), layout, *texts, max_cost_usd=0.02)
        num_calls, num_bytes = len(server.bodies), len(server.bodies[0])
    calls = ledger(layout)
    assert num_calls > 10
    assert sum(call["picousd"] for call in calls) <= 0.02e12
    assert {call["reserved_picousd"] for call in calls} == {(num_bytes + 2 * BYTES_OF_A_MESSAGE + 20) * 10**6}


def test_tokens_a_minute_are_counted_on_what_is_sent(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []

    async def take(limit: RateLimit, units: float) -> None:
        taken.append(units)

    monkeypatch.setattr(RateLimit, "take", take)
    monkeypatch.setattr(RateLimit, "correct", lambda limit, units: taken.append(units))
    with raw_server(lambda text, times: answer()) as server:
        asked(config(server, extra_body=SCHEMA, pace=Pace(tokens_per_minute=1e6)), layout, "Why?")
        most = len(server.bodies[0]) + 2 * BYTES_OF_A_MESSAGE + 20
    assert taken == [most, 15 - most]


def test_a_dry_run_counts_what_is_sent(layout: Layout) -> None:
    parquet.write_table(pyarrow.table({"row_id": ["a"], "prompt": ["Why?"]}), layout.root / "inputs.parquet")

    def most_usd(**settings: Any) -> float | None:
        collect = CollectConfig(teacher="openai:m", base_url="http://127.0.0.1:9/v1", prices=PRICES, **settings)
        return estimate_collection(
            DistillConfig(inputs=str(layout.root / "inputs.parquet"), collect=collect), layout
        ).most_usd

    plain, with_schema = most_usd(), most_usd(extra_body=SCHEMA)
    assert plain is not None
    assert with_schema is not None
    assert with_schema >= plain + 4000 * 1e-6
