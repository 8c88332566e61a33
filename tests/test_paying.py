"""What calls cost that went wrong, and what is made of what came: nothing paid is lost, nothing is booked that was not paid."""

import asyncio
import contextlib
import itertools
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nexa_core.config.ask import AskConfig, Pace, Price, SamplingConfig
from nexa_core.config.distill import CollectConfig, DistillConfig
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_distill.collect_teacher import collect, estimate_collection
from nexa_llm.ask import ask
from nexa_llm.asking import LOOKED_UP_AT_ONCE
from nexa_llm.budget import BYTES_OF_A_MESSAGE
from nexa_llm.buying import OutOfBudget
from nexa_llm.chat import Answer, ChatRequest, Sampling
from nexa_llm.openai import OpenAi
from nexa_llm.pace import RateLimit
from nexa_llm.store import Call, Store, store_path
from tests.raw_server import NO_BILL, RawServer, Sent, answer, raw_server

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


def inputs(layout: Layout, server: RawServer, number: int, **settings: Any) -> DistillConfig:
    """Settings of a collection of so many prompts."""
    path = layout.root / "inputs.parquet"
    rows = {"row_id": [f"row-{n}" for n in range(number)], "prompt": [f"What is {n}?" for n in range(number)]}
    parquet.write_table(pyarrow.table(rows), path)
    teacher = {"teacher": "openai:m", "base_url": server.base_url, "prices": PRICES}
    return DistillConfig(inputs=str(path), collect=CollectConfig(**{**teacher, **settings}))


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


def test_a_response_that_was_set_aside_before_a_kill_is_booked_by_its_tokens(layout: Layout) -> None:
    half = answer("ha", finish="error")[1]
    with raw_server(lambda text, times: answer("new")) as server:
        keep_and_die(server, layout, half)
        with Store(store_path(layout)) as store:
            store.set_aside(store.cut_off()[0])
            asyncio.run(store.flush())
        assert [each.text for each in asked(config(server), layout, "Why?")] == ["new"]
    assert [(call["state"], call["picousd"]) for call in ledger(layout)] == [("failed", PAID), ("answered", PAID)]


# What is no answer.


def test_an_equal_prompt_takes_no_response_that_is_found_to_be_none(layout: Layout) -> None:
    """It comes up while the server is asked what the first one's response cost."""

    def bill() -> Sent:
        time.sleep(0.5)
        return NO_BILL

    def respond(text: str, times: int) -> Sent:
        if text == "slow":
            time.sleep(0.2)
        return (200, b'{"choices": [', {}) if (text, times) == ("twin", 1) else answer(text)

    texts = [*map(str, range(LOOKED_UP_AT_ONCE - 2)), "slow", "twin", "twin"]
    with raw_server(respond, bill) as server:
        found = asked(config(server, pace=Pace(concurrency=2)), layout, *texts)
        assert server.asked.count("twin") == 2
    assert [(each.status, each.text) for each in found[-2:]] == [("answered", "twin")] * 2


def test_an_answer_that_broke_off_is_asked_for_again_and_booked_by_its_tokens(layout: Layout) -> None:
    with raw_server(lambda text, times: answer("ha", finish="error") if times == 1 else answer("half")) as server:
        assert [each.text for each in asked(config(server), layout, "Why?")] == ["half"]
    assert [(call["state"], call["picousd"]) for call in ledger(layout)] == [("failed", PAID), ("answered", PAID)]


def test_an_answer_without_a_word_is_bought_once(layout: Layout) -> None:
    with raw_server(lambda text, times: answer(None)) as server:
        assert [each.text for each in asked(config(server), layout, "Why?")] == [""]
        assert [each.is_new for each in asked(config(server), layout, "Why?")] == [False]
        assert server.asked == ["Why?"]


def test_counts_and_names_that_are_none_crash_nothing(layout: Layout) -> None:
    odd = {"model": 7, "choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}
    odd["usage"] = {"prompt_tokens": 2**53 - 1, "completion_tokens": 2**63}
    with raw_server(lambda text, times: (200, json.dumps(odd).encode(), {})) as server:
        for name in ("first", "again"):
            done = collect(inputs(layout, server, 1, name=name), layout)
            (row,) = parquet.read_table(done.place.path).to_pylist()
            assert (row["completion"], row["model"], row["prompt_tokens"]) == ("4", None, None)


def test_an_answer_is_priced_by_its_own_teachers_price(layout: Layout) -> None:
    with raw_server(lambda text, times: answer()) as server:
        asked(config(server, teacher="openai:unknown"), layout, "Why?")
        asked(config(server), layout, "Why?")
        assert [call["picousd"] for call in ledger(layout)] == [None, PAID]
        asked(config(server, teacher="openai:unknown", prices={"unknown": PRICES["m"]}), layout, "Why?")
    assert [call["picousd"] for call in ledger(layout)] == [PAID, PAID]


@pytest.mark.parametrize(("status", "state"), [(500, "unknown"), (408, "unknown"), (503, "failed"), (429, "failed")])
def test_what_a_server_that_broke_down_may_have_billed_is_booked(layout: Layout, status: int, state: str) -> None:
    with raw_server(lambda text, times: (status, b"{}", {}) if times == 1 else answer()) as server:
        assert [each.status for each in asked(config(server), layout, "Why?")] == ["answered"]
    lost, bought = ledger(layout)
    assert (lost["state"], lost["picousd"]) == (state, lost["reserved_picousd"] if state == "unknown" else 0)
    assert bought["picousd"] == PAID


# Waiting, and giving up.


@pytest.mark.parametrize("headers", [{"Retry-After": "0"}, {"retry-after-ms": "1"}, {"Retry-After": "0.3"}])
def test_a_stated_wait_counts_as_no_try_and_none_is_shorter_than_without(
    layout: Layout, headers: dict[str, str]
) -> None:
    times_asked: list[float] = []

    def respond(text: str, times: int) -> Sent:
        times_asked.append(time.monotonic())
        return (429, b"{}", headers) if times <= 3 else answer()

    with raw_server(respond) as server:
        found = asked(config(server, pace=Pace(max_tries=2)), layout, "Why?")
    assert [each.status for each in found] == ["answered"]
    gaps = [after - before for before, after in itertools.pairwise(times_asked)]
    shortest = [0.3] * 3 if headers == {"Retry-After": "0.3"} else [0.125, 0.25, 0.5]
    assert all(gap >= least for gap, least in zip(gaps, shortest, strict=True))
    assert all(gap < 2 * least + 0.2 for gap, least in zip(gaps, shortest, strict=True))


def test_who_is_told_to_wait_again_and_again_gives_up(layout: Layout) -> None:
    """Others are answered meanwhile, so that the run itself goes on."""

    def respond(text: str, times: int) -> Sent:
        time.sleep(0.01)
        return (429, b"{}", {"Retry-After": "0.3"}) if text == "never" else answer()

    with raw_server(respond) as server:
        pace = Pace(max_tries=2, give_up_after_seconds=1.0, concurrency=4)
        found = asked(config(server, pace=pace), layout, "never", *map(str, range(600)))
        assert 3 <= server.asked.count("never") <= 6
    assert [each.status for each in found] == ["failed", *["answered"] * 600]


def test_a_server_that_calls_all_requests_wrong_ends_the_run(layout: Layout) -> None:
    wrong = b'{"error": {"message": "Unsupported parameter: max_tokens"}}'
    texts = [str(number) for number in range(300)]
    with raw_server(lambda text, times: (400, wrong, {})) as server:
        settings = config(server, pace=Pace(concurrency=8))
        with pytest.raises(UserError, match="called the first 50 requests wrong: HTTP 400: Unsupported parameter"):
            asked(settings, layout, *texts)
        assert len(server.asked) < 50 + 16
        server.respond = lambda text, times: answer()
        asked(settings, layout, "Why?")
        server.respond = lambda text, times: (422, wrong, {})
        found = asked(settings, layout, "Why?", *texts)
    assert [each.status for each in found] == ["answered", *["failed"] * 300]


def test_too_many_failures_stop_the_run_before_its_end(layout: Layout) -> None:
    def respond(text: str, times: int) -> Sent:
        return (400, b"{}", {}) if int(text.removeprefix("What is ").removesuffix("?")) % 10 == 0 else answer()

    with raw_server(respond) as server:
        with pytest.raises(GateError, match=r"10 of 91 answers failed, more than max_failed_share: 0\.05"):
            collect(inputs(layout, server, 3000, max_failed_share=0.05, pace=Pace(concurrency=4)), layout)
        assert len(server.asked) < 2800
        done = collect(inputs(layout, server, 85, max_failed_share=0.2, name="some"), layout)
    assert done.manifest["statuses"]["failed"] == 9


def test_a_key_with_a_line_break_is_named_and_not_shown() -> None:
    with pytest.raises(UserError, match="MY_KEY holds a line break") as told:
        OpenAi(AskConfig(teacher="openai:m", api_key_variable="MY_KEY"), {"MY_KEY": "sk-abcdefgh\n"})
    assert "abcdefgh" not in str(told.value)


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
