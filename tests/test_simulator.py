"""The teacher simulator: what it answers, what goes wrong, what it bills; asked by plain HTTP and by the openai client."""

import asyncio
import contextlib
import email.utils
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from xxhash import xxh3_128_digest

from nexa_core.errors import UserError
from nexa_llm.logprobs import TokenIds
from nexa_llm.parse import parse_answer
from nexa_llm.simulator.answers import DrawnWords
from nexa_llm.simulator.bill import parse_price
from nexa_llm.simulator.faults import ENDINGS, FAULTS, parse_faults
from nexa_llm.simulator.limits import Bucket, Limits
from nexa_llm.simulator.request import BadRequest, read_request
from nexa_llm.simulator.tokens import FileTokens, count_prompt_tokens
from tests.simulators import ROOT, Simulator, simulator

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def teacher() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


def client_of(running: Simulator, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.base_url, api_key="sk-nothing", **{"max_retries": 0, "timeout": 5} | settings)


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


# What it answers


def test_equal_requests_get_equal_bytes_from_another_process_too(teacher: Simulator) -> None:
    with simulator() as other, simulator("--seed", "1") as otherwise:
        assert teacher.ask() == teacher.ask() == other.ask() != otherwise.ask()


def test_the_sampling_seed_counts_above_temperature_0_only(teacher: Simulator) -> None:
    assert text_of(teacher.ask(seed=1)) == text_of(teacher.ask(seed=2))
    sampled = [text_of(teacher.ask(seed=seed, temperature=1)) for seed in (1, 2, 1)]
    assert sampled[0] == sampled[2] != sampled[1]


def test_an_answer_longer_than_max_tokens_is_cut_and_says_so(teacher: Simulator) -> None:
    whole, cut = teacher.ask(), teacher.ask(max_tokens=3)
    assert (whole["choices"][0]["finish_reason"], cut["choices"][0]["finish_reason"]) == ("stop", "length")
    assert text_of(cut) == text_of(whole)[:12]
    assert whole["usage"]["completion_tokens"] == math.ceil(len(text_of(whole)) / 4)
    assert cut["usage"] == {"prompt_tokens": 2 + 4, "completion_tokens": 3, "total_tokens": 9}


def test_an_answer_ends_before_a_stop(teacher: Simulator) -> None:
    whole = text_of(teacher.ask())
    word = whole.split()[3]
    stopped = teacher.ask(stop=[word])
    assert text_of(stopped) == whole.partition(word)[0]
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_prompt_tokens_are_never_more_than_bytes_and_8_a_message() -> None:
    for text in ("", "a", "ab", "abcde", "ж" * 7, "🙂" * 100):
        assert count_prompt_tokens([("user", text)] * 3, b"") <= 3 * (len(text.encode()) + 8)


def test_answers_of_a_file_are_found_by_the_last_user_message(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1?", "completion": "2"},
        {"prompt": "sky?", "answer": "blue"},
        {"prompt": "sky?", "answer": "grey"},
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    with simulator("--answers", str(tmp_path / "answers.jsonl")) as running:
        assert text_of(running.ask("1+1?")) == "2"
        assert text_of(running.ask("sky?")) == "blue"
        assert {text_of(running.ask("sky?", temperature=1, seed=seed)) for seed in range(12)} == {"blue", "grey"}
        with pytest.raises(urllib.error.HTTPError) as refused:
            running.ask("sea?")
        error = json.load(refused.value)["error"]
    assert refused.value.code == 400
    assert error["code"] == "no_answer"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["a", ""]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"model": None}, "model"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temprature": 0}, "temprature"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_request(json.dumps({"model": "m", "messages": HELLO} | body).encode())
    assert refused.value.param == param
    assert param.partition("[")[0] in str(refused.value)


def test_settings_that_change_nothing_are_taken() -> None:
    neutral = {"stream": False, "n": 1, "presence_penalty": 0.0, "user": "me", "seed": None, "tools": []}
    asked = read_request(json.dumps({"model": "m", "messages": HELLO} | neutral).encode())
    assert asked == read_request(json.dumps({"model": "m", "messages": HELLO}).encode())


# Logprobs


def test_logprobs_are_a_distribution_over_the_greedy_answers_own_tokens(teacher: Simulator) -> None:
    choice = client_of(teacher).chat.completions.create(
        model="m", messages=HELLO, temperature=0, logprobs=True, top_logprobs=5  # type: ignore[arg-type]
    ).choices[0]  # fmt: skip
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert b"".join(bytes(each.bytes or ()) for each in tokens).decode() == choice.message.content
    for each in tokens:
        top = [other.logprob for other in each.top_logprobs]
        assert len(top) == len({other.token for other in each.top_logprobs}) == 5
        assert top == sorted(top, reverse=True)
        assert 0.9 < sum(map(math.exp, top)) < 1
        assert (each.top_logprobs[0].token, each.top_logprobs[0].logprob) == (each.token, each.logprob)


def test_a_sampled_token_may_be_missing_among_the_most_likely(teacher: Simulator) -> None:
    found = teacher.ask(temperature=1, seed=3, logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]["content"]
    is_top = [each["token"] == each["top_logprobs"][0]["token"] for each in found]
    assert 0.5 < sum(is_top) / len(is_top) < 1
    for each, top in zip(found, is_top, strict=True):
        assert top or each["logprob"] < each["top_logprobs"][0]["logprob"]


def test_a_tokenizer_gives_its_own_tokens_with_their_bytes(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "then the sum of 🙂 these is three"
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "hello", "answer": text}))
    options = ["--tokenizer", str(tmp_path / "tokenizer.json"), "--answers", str(tmp_path / "answers.jsonl")]
    ids = tokenizer.encode(text).ids
    with simulator(*options) as running:
        answer = running.ask(logprobs=True, top_logprobs=20)
        cut = running.ask(max_tokens=5)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(ids) == len(entries) == answer["usage"]["completion_tokens"]
    assert [tokenizer.decode([index]) for index in ids[:5]] == [each["token"] for each in entries[:5]]
    assert b"".join(bytes(each["bytes"]) for each in entries).decode() == text
    assert any("\\x" in each["token"] for each in entries), "parts of a character are written as OpenAI does"
    assert not any(other["token"] == "<|eos|>" for each in entries for other in each["top_logprobs"])
    assert text_of(cut) == tokenizer.decode(ids[:5])
    assert cut["choices"][0]["finish_reason"] == "length"


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|eos|>"], initial_alphabet=alphabet)  # type: ignore[call-arg]
    tokenizer.train_from_iterator([" then the sum of these is three"] * 9, trainer)
    return tokenizer


def test_a_refusal_is_read_as_one_although_the_logprobs_are_its_own(tmp_path: Path) -> None:
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with simulator("--faults", "refusal=1", "--tokenizer", str(tmp_path / "tokenizer.json")) as running:
        answer = running.ask(logprobs=True, top_logprobs=2)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["content"] is None
    assert len(logprobs["refusal"]) == answer["usage"]["completion_tokens"]
    read = parse_answer(json.dumps(answer).encode(), "", token_ids=TokenIds(tmp_path / "tokenizer.json"))
    assert (read.status, read.logprobs) == ("refused", None)


def test_tokens_of_sentence_pieces_are_spelled_out(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "<0xF0>": 4, "<0x9F>": 5, "<0x99>": 6, "<0x82>": 7}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    taken = FileTokens(tmp_path / "tokenizer.json").take("a a🙂", None)
    assert taken.pieces == [b"a", b" a", b"\xf0", b"\x9f", b"\x99", b"\x82"]


# What goes wrong


def test_every_fault_comes_when_its_plan_says_so() -> None:
    """Seeded: the plan, computed here, tells beforehand what each attempt of another process meets."""
    text = ",".join(f"{name}={1 / len(FAULTS)}" for name in FAULTS)
    plan = parse_faults(text, seed=7)
    bodies = [json.dumps({"model": "m", "messages": HELLO, "max_tokens": index}).encode() for index in range(1, 41)]
    expected = {(body, attempt): plan.fault(xxh3_128_digest(body), attempt) for body in bodies for attempt in (1, 2)}
    assert set(expected.values()) >= set(FAULTS)
    with simulator("--seed", "7", "--faults", text, "--retry-after-seconds", "0.25") as running:
        seen = asyncio.run(meet_all(running.base_url, bodies))
        bill = running.bill()
    assert {key: fault for key, fault in seen.items() if fault != expected[key]} == {}
    assert bill["requests"] == dict(Counter(expected.values()))
    assert (bill["answers"], bill["picousd"], bill["pending"]) == (0, 0, 0)


async def meet_all(base_url: str, bodies: list[bytes]) -> dict[tuple[bytes, int], str]:
    """What each body meets, asked twice, by what arrives."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.6)) as session:

        async def meet(body: bytes, attempt: int) -> tuple[tuple[bytes, int], str]:
            try:
                headers = {"Authorization": "Bearer sk-very-secret"}
                async with session.post(f"{base_url}/chat/completions", data=body, headers=headers) as response:
                    return (body, attempt), told_by(response.status, response.headers, await response.text())
            except TimeoutError:
                return (body, attempt), "hang"
            except aiohttp.ClientPayloadError:
                return (body, attempt), "reset_body"
            except aiohttp.ClientOSError:
                return (body, attempt), "reset"

        seen = []
        for attempt in (1, 2):
            seen += await asyncio.gather(*(meet(body, attempt) for body in bodies))
        return dict(seen)


def told_by(status: int, headers: Any, text: str) -> str:
    if status == 429:
        after = headers["Retry-After"]
        if after == "0.25":
            return "rate_limit"
        seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        return "rate_limit_date" if -0.5 < seconds < 1.3 else f"told to wait for {seconds} s"
    if status == 200:
        with contextlib.suppress(json.JSONDecodeError):
            return "empty_choices" if json.loads(text)["choices"] == [] else "answered"
        return "malformed" if "oops" in text else "truncated_json"
    by_status = {401: "unauthorized", 500: "server_error", 502: "bad_gateway", 503: "unavailable"}
    return "echo_key" if "Bearer sk-very-secret" in text else by_status[status]


def test_shares_are_kept_over_many_requests() -> None:
    plan = parse_faults("rate_limit=0.02, reset=0.5,truncated=0.1", seed=0)
    met = Counter(plan.fault(b"%d" % index, 1) for index in range(20_000))
    assert met["rate_limit"] / 20_000 == pytest.approx(0.02, abs=0.005)
    assert met["reset"] / 20_000 == pytest.approx(0.5, abs=0.02)
    assert set(met) == {"rate_limit", "reset", None}
    again = [plan.fault(b"1", attempt) for attempt in range(40)]
    assert {"reset", None} <= set(again)


def test_how_an_answer_ends_does_not_depend_on_the_attempt() -> None:
    text = ",".join(f"{name}=0.3" for name in ENDINGS if name != "flagged")
    with simulator("--faults", text) as running:
        first, second = ([running.ask(str(index)) for index in range(40)] for _ in range(2))
        bill = running.bill()
    assert first == second
    assert {choice["finish_reason"] for each in first for choice in each["choices"]} == {
        "stop", "length", "content_filter",
    }  # fmt: skip
    refused = [each for each in first if each["choices"][0]["message"]["refusal"]]
    assert refused
    assert all(each["choices"][0]["message"]["content"] is None for each in refused)
    assert bill["answers"] == 80, "what is generated is billed"
    assert bill["completion_tokens"] == 2 * sum(each["usage"]["completion_tokens"] for each in first)


def test_a_prompt_that_is_flagged_is_billed_and_always_flagged() -> None:
    with simulator("--faults", "flagged=1") as running:
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError) as caught:
                running.ask()
            error = json.load(caught.value)["error"]
            assert (caught.value.code, error["code"]) == (400, "content_filter")
            assert error["innererror"]["code"] == "ResponsibleAIPolicyViolation"
        assert running.bill()["requests"] == {"refused": 2}
        assert running.bill()["picousd"] > 0


def test_the_openai_client_meets_the_errors_that_it_knows(teacher: Simulator) -> None:
    ask = {"model": "m", "messages": HELLO}
    kinds = {
        "rate_limit": openai.RateLimitError,
        "unavailable": openai.InternalServerError,
        "unauthorized": openai.AuthenticationError,
        "reset": openai.APIConnectionError,
    }
    for fault, kind in kinds.items():
        with simulator("--faults", f"{fault}=1", "--model", "m") as running:
            with pytest.raises(kind):
                client_of(running).chat.completions.create(**ask)
            with pytest.raises(openai.NotFoundError):
                client_of(running).chat.completions.create(**ask | {"model": "gpt"})
            assert [model.id for model in client_of(running).models.list()] == ["m"]
    with pytest.raises(openai.BadRequestError, match="stream"):
        client_of(teacher).chat.completions.create(**ask, stream=True)


def test_the_openai_client_gets_through_faults_with_its_retries() -> None:
    with simulator("--faults", "rate_limit=0.3,server_error=0.2", "--retry-after-seconds", "0.01") as running:
        client = client_of(running, max_retries=20)
        answers = [client.chat.completions.create(model="m", messages=HELLO, seed=index) for index in range(6)]
        bill = running.bill()
    assert all(answer.choices[0].message.content for answer in answers)
    assert bill["answers"] == 6
    assert sum(bill["requests"].values()) > 6


# What it bills


def test_the_bill_is_exact_and_is_written_at_the_end(tmp_path: Path) -> None:
    prices = ["--prompt-usd-per-million", "0.000003", "--completion-usd-per-million", "10"]
    for how in (signal.SIGTERM, signal.SIGINT):
        path = tmp_path / how.name / "bill.json"
        with simulator(*prices, "--bill", str(path)) as running:
            used = [running.ask(str(index))["usage"] for index in range(5)]
            told = running.bill()
            exit_code, said = running.end(how)
        assert exit_code == 0
        assert str(path) in said
        assert json.loads(path.read_text()) == told
        assert told["prompt_tokens"] == sum(each["prompt_tokens"] for each in used)
        picousd = sum(3 * each["prompt_tokens"] + 10_000_000 * each["completion_tokens"] for each in used)
        assert told["picousd"] == picousd
        assert told["usd"] == f"{picousd / 1e12:.12f}".rstrip("0")


def test_an_answer_is_billed_when_it_is_done_although_its_client_is_gone() -> None:
    body = json.dumps({"model": "m", "messages": HELLO})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Client-Request-Id: a/b\r\nContent-Length: {len(body)}"
    with simulator(latency_seconds=0.5) as running:
        address = running.base_url.removesuffix("/v1").rpartition("/")[2].split(":")
        with socket.create_connection((address[0], int(address[1]))) as connection:
            connection.sendall(f"{head}\r\n\r\n{body}".encode())
            wait_until(lambda: running.bill()["pending"] == 1)
        assert running.get("/v1/calls/a%2Fb")["state"] == "pending"
        assert running.bill()["picousd"] == 0
        wait_until(lambda: running.bill()["pending"] == 0)
        call, bill = running.get("/v1/calls/a%2Fb"), running.bill()
    assert call["state"] == "billed"
    assert call["picousd"] == bill["picousd"] > 0
    assert bill["requests"] == {"answered": 1}


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_call_can_be_asked_after() -> None:
    with simulator("--faults", "server_error=0.5") as running:
        for index in range(12):
            with contextlib.suppress(urllib.error.HTTPError):
                running.ask(str(index), headers={"X-Client-Request-Id": f"call-{index}"})
        calls = [running.get(f"/v1/calls/call-{index}") for index in range(12)]
        bill = running.bill()
        with pytest.raises(urllib.error.HTTPError) as unknown:
            running.get("/v1/calls/call-12")
    assert unknown.value.code == 404
    states = Counter(call["state"] for call in calls)
    assert states == {"billed": bill["requests"]["answered"], "failed": bill["requests"]["server_error"]}
    assert sum(call["picousd"] for call in calls) == bill["picousd"]
    assert all(call["picousd"] == 0 for call in calls if call["state"] == "failed")


def test_requests_at_once_are_counted_and_latency_is_told() -> None:
    async def ask_many(base_url: str) -> list[str]:
        async with aiohttp.ClientSession() as session:

            async def ask(index: int) -> str:
                body = {"model": "m", "messages": [{"role": "user", "content": str(index)}]}
                async with session.post(f"{base_url}/chat/completions", json=body) as response:
                    return response.headers["openai-processing-ms"]

            return await asyncio.gather(*(ask(index) for index in range(20)))

    with simulator("--latency-spread", "0.5", latency_seconds=0.3) as running:
        told = asyncio.run(ask_many(running.base_url))
        assert running.bill()["largest_in_flight"] == 20
    assert len(set(told)) > 10
    assert all(150 <= int(each) <= 450 for each in told)


# Limits


def test_a_request_above_the_limit_is_told_when_to_come_again() -> None:
    with simulator("--requests-per-minute", "600", "--tokens-per-minute", "1000") as running:
        answer = running.ask(max_tokens=994)
        assert answer["usage"]["prompt_tokens"] == 6
        with pytest.raises(urllib.error.HTTPError) as refused:
            running.ask(max_tokens=44)
        bill = running.bill()
        headers = refused.value.headers
        assert refused.value.code == 429
        assert 2 < float(headers["retry-after"]) <= 3
        assert headers["x-ratelimit-limit-requests"] == "600"
        assert int(headers["x-ratelimit-remaining-tokens"]) < 50
        assert bill["requests"] == {"answered": 1, "over_limit": 1}


def test_a_bucket_refills_evenly_and_keeps_no_more_than_a_minutes_worth() -> None:
    limits = Limits(requests_per_minute=60, tokens_per_minute=None, concurrency=None)

    def wait(now: float) -> float:
        return limits.seconds_to_wait(now, tokens=9, num_in_flight=1, latency_seconds=0)

    assert [wait(0.0) for _ in range(60)] == [0.0] * 60
    assert wait(0.25) == pytest.approx(0.75)
    assert wait(1.0) == 0.0
    assert wait(1.0) == pytest.approx(1.0)
    assert [wait(1000.0) for _ in range(60)] == [0.0] * 60
    assert wait(1000.0) == pytest.approx(1.0)
    assert Bucket(10).seconds_until(99) == 0.0, "what is more than a minute's worth is let through when it is full"


def test_more_requests_at_once_than_allowed_are_refused() -> None:
    limits = Limits(requests_per_minute=None, tokens_per_minute=None, concurrency=2)
    waits = [limits.seconds_to_wait(0, tokens=1, num_in_flight=count, latency_seconds=0.2) for count in (1, 2, 3)]
    assert waits == [0, 0, 0.2]


# Usage


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--faults", "ratelimit=0.1"], "Did you mean 'rate_limit'?"),
        (["--faults", "reset=often"], "give a number from 0 to 1"),
        (["--faults", "reset=0.1,reset=0.2"], "given twice"),
        (["--faults", "reset=0.6,hang=0.6"], "add up to 1.2"),
        (["--prompt-usd-per-million", "0.1234567"], "more than six decimals"),
        (["--prompt-usd-per-million", "cheap"], "is no price"),
        (["--answers", "no-such-file.jsonl"], "Cannot read the answers no-such-file.jsonl"),
        (["--tokenizer", "pyproject.toml"], "Give a tokenizer.json"),
    ],
)
def test_wrong_usage_is_told_and_exits_2(options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "scripts.cli", "simulate-teacher", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_told(teacher: Simulator) -> None:
    port = teacher.base_url.removesuffix("/v1").rpartition(":")[2]
    command = [sys.executable, "-m", "scripts.cli", "simulate-teacher", "--port", port]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert f"Cannot listen at 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "is not JSON"), ('{"prompt": 1}', "no text 'prompt'"), ('{"prompt": "a"}', "either a text 'completion'")],
)
def test_a_wrong_line_of_an_answer_file_is_told_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    from nexa_llm.simulator.answers import AnswerFile

    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line)
    with pytest.raises(UserError, match=message) as told:
        AnswerFile(path)
    assert f"{path}:2" in str(told.value)


def test_a_hanging_request_does_not_keep_it_from_ending() -> None:
    with simulator("--faults", "hang=1") as running:
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(hang(running.base_url), 0.3))
        began = time.monotonic()
        assert running.end()[0] == 0
        assert time.monotonic() - began < 2


async def hang(base_url: str) -> None:
    async with aiohttp.ClientSession() as session:
        await session.post(f"{base_url}/chat/completions", json={"model": "m", "messages": HELLO})


def test_prices_are_whole_picodollars() -> None:
    assert parse_price("0.15", "--x") == 150_000
    assert parse_price("0.000001", "--x") == 1


def test_drawn_answers_differ_between_prompts() -> None:
    asked = read_request(json.dumps({"model": "m", "messages": HELLO}).encode())
    texts = {DrawnWords().answer(asked, xxh3_128_digest(b"%d" % index)) for index in range(1000)}
    assert len(texts) == 1000
