"""The parts of asking a model: what determines an answer, money, pace, what servers send."""

import asyncio
import base64
import contextlib
import email.utils
import sqlite3
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nexa_core import digests, durable
from nexa_core.config.ask import AskConfig, Pace, Price, SamplingConfig
from nexa_core.errors import NexaError, UserError
from nexa_core.paths import Layout
from nexa_llm import pace
from nexa_llm.ask import Teachers, ask, opened
from nexa_llm.budget import Budget, most_prompt_tokens
from nexa_llm.chat import ChatRequest, Sampling
from nexa_llm.logprobs import TokenIds
from nexa_llm.openai import OpenAi, read_retry_after
from nexa_llm.pace import Breaker, Gate, RateLimit
from nexa_llm.parse import Unusable, is_flagged, parse_answer, read_usage
from nexa_llm.prices import find_price, require_price
from nexa_llm.recorded import Recorded
from nexa_llm.store import Call, Store, store_path
from nexa_llm.token_bytes import id_by_bytes


def config(**settings: Any) -> AskConfig:
    return AskConfig(**{"teacher": "openai:m", "base_url": "http://127.0.0.1:1/v1", **settings})


def request(text: str = "Why?", **more: Any) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), **more)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# What determines an answer.


def test_everything_that_determines_an_answer_changes_its_key() -> None:
    teacher = OpenAi(config(), {})
    seeded = Sampling(temperature=1.0, seed=1)
    keys = [
        teacher.key(request()),
        teacher.key(request("Why not?")),
        teacher.key(request(sample_index=1)),
        teacher.key(request(sampling=Sampling(temperature=0.5))),
        teacher.key(request(sampling=Sampling(max_tokens=7))),
        teacher.key(request(sampling=Sampling(stop=("\n",)))),
        teacher.key(request(sampling=Sampling(logprobs=2))),
        teacher.key(request(sampling=seeded)),
        teacher.key(request(sampling=seeded, sample_index=1)),
        teacher.key(request(tools=({"type": "function"},))),
        teacher.key(ChatRequest(({"role": "system", "content": "Be brief."}, *request().messages))),
        OpenAi(config(teacher="openai:n"), {}).key(request()),
        OpenAi(config(base_url="http://127.0.0.1:2/v1"), {}).key(request()),
        OpenAi(config(extra_body={"min_p": 0.1}), {}).key(request()),
    ]
    assert len(set(keys)) == len(keys)
    assert teacher.key(request()) == OpenAi(config(pace=Pace(concurrency=2)), {"OPENAI_API_KEY": "k" * 20}).key(
        request()
    )


def test_each_sample_has_its_own_seed() -> None:
    sampling = Sampling(temperature=1.0, seed=40)
    assert [OpenAi(config(), {}).body(request(sampling=sampling, sample_index=index))["seed"] for index in (0, 2)] == [
        40,
        42,
    ]
    assert "seed" not in OpenAi(config(), {}).body(request())


def test_what_is_secret_in_a_url_is_shown_nowhere() -> None:
    teacher = OpenAi(config(base_url="https://user:hunter22@host/v1?token=abcdefgh12345"), {})
    assert teacher.public_url == "https://host/v1?token=..."
    assert teacher.without_secrets("hunter22 abcdefgh12345") == "[password] [token]"


def test_what_a_url_asks_for_changes_the_key_and_what_is_secret_in_it_does_not() -> None:
    def key(query: str, userinfo: str = "") -> str:
        return OpenAi(config(base_url=f"https://{userinfo}host/v1{query}"), {}).key(request())

    assert key("?api-version=2024-06-01") != key("?api-version=2024-10-21")
    assert key("?deployment=one") != key("?deployment=two")
    for name in ("api_key", "subscription-key", "access_token", "sig", "code", "X-Amz-Signature", "x-auth"):
        assert key(f"?{name}=one") == key(f"?{name}=two") != key("")
    assert key("", "user:one@") == key("", "user:two@") == key("")


def test_a_password_is_decoded_and_repeated_in_no_form() -> None:
    password, as_given = 'p@ss "wörd"/1', "p%40ss%20%22w%C3%B6rd%22%2F1"
    teacher = OpenAi(config(base_url=f"https://us%20er:{as_given}@host/v1?token=ab%2Fcd%2Fefgh"), {})
    basic = base64.b64encode(f"us er:{password}".encode()).decode()

    async def sent() -> str:
        async with teacher.session(1) as session:
            return str(session.headers["Authorization"])

    assert asyncio.run(sent()) == f"Basic {basic}"
    forms = (
        password,
        as_given,
        basic,
        basic.rstrip("="),
        orjson.dumps(password).decode()[1:-1],
        "ab/cd/efgh",
        "ab%2Fcd%2Fefgh",
    )
    for form in forms:
        assert teacher.without_secrets(f"<{form}>") in ("<[password]>", "<[password]=>", "<[token]>")


@pytest.mark.parametrize("url", ["host/v1", "ftp://host/v1", "http:///v1"])
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="base_url"):
        OpenAi(config(base_url=url), {})


def test_openai_itself_needs_a_key() -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        OpenAi(AskConfig(teacher="openai:gpt-4o"), {})


# Money.


def test_a_price_is_the_settings_own_or_the_tables_and_must_be_known_for_a_budget() -> None:
    own = {"mine": Price(prompt_usd_per_million=0.15, completion_usd_per_million=1e-6)}
    assert require_price("mine", own).picousd_per_token() == (150_000, 1)
    assert require_price("gpt-4o", {}).picousd_per_token() == (2_500_000, 10_000_000)
    assert find_price("gtp-4o", {}) is None
    with pytest.raises(UserError, match="Did you mean 'gpt-4o'"):
        require_price("gtp-4o", {})


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))), st.integers(1, 200))
def test_no_order_of_reservations_exceeds_the_budget(calls: list[tuple[int, int]], limit: int) -> None:
    budget = Budget(limit / 1e12)
    under_way: list[tuple[int, int]] = []
    for most, paid in calls:
        if budget.reserve(most):
            under_way.append((most, min(paid, most)))
        elif under_way:
            budget.settle(*under_way.pop(0))
        assert budget.spent_picousd + budget.reserved_picousd <= limit
    for each in under_way:
        budget.settle(*each)
    assert budget.reserved_picousd == 0
    assert budget.spent_picousd <= limit


@given(st.text(max_size=300))
def test_a_prompt_has_no_more_tokens_than_are_set_aside_for_it(text: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert len(tokenizer.encode(text.encode("utf-8", "replace").decode()).ids) <= most_prompt_tokens(
        request(text), OpenAi(config(), {}).payload(request(text))
    )


# Pace.


def test_the_rate_limit_spreads_what_it_lets_through() -> None:
    clock = Clock()
    limit, waits = RateLimit(600, clock), []  # ten a second

    async def take() -> None:
        for _ in range(15):
            began = clock.now
            await limit.take(1)
            waits.append(clock.now - began)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "_sleep", lambda seconds, unless: _pass(clock, seconds))
        asyncio.run(take())
    assert waits[1:] == pytest.approx([0.1] * 14)
    limit.correct(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "_sleep", lambda seconds, unless: _pass(clock, seconds))
        asyncio.run(limit.take(1))
    assert clock.now == pytest.approx(102.5)


async def _pass(clock: Clock, seconds: float) -> None:
    clock.now += seconds


def outcome(gate: Gate, *, overloaded: bool) -> None:
    asyncio.run(gate.enter())
    gate.leave(overloaded=overloaded)


def test_fewer_go_out_while_the_server_is_overloaded_and_more_again_after() -> None:
    gate = Gate(64, Clock())
    for number in range(64):
        outcome(gate, overloaded=number % 2 == 0)
    assert gate.limit == 32
    for _ in range(32):
        outcome(gate, overloaded=False)
    assert gate.limit == 36
    for number in range(36):
        outcome(gate, overloaded=number == 0)  # what a shared server does now and then
    assert gate.limit == 40
    for number in range(40):
        outcome(gate, overloaded=number < 3)
    assert gate.limit == 40


def test_the_gate_lets_no_more_out_than_its_limit() -> None:
    gate = Gate(4, Clock())
    most = 0

    async def pass_through() -> None:
        nonlocal most
        await gate.enter()
        most = max(most, gate.num_under_way)
        await asyncio.sleep(0)
        gate.leave(overloaded=False)

    async def all_at_once() -> None:
        await asyncio.gather(*(pass_through() for _ in range(50)))

    asyncio.run(all_at_once())
    assert (most, gate.num_under_way) == (4, 0)


def test_the_gate_lets_out_who_has_waited_longest() -> None:
    gate, order = Gate(2, Clock()), list[int]()

    async def pass_through_again_and_again(number: int) -> None:
        for _ in range(5):
            await gate.enter()
            order.append(number)
            await asyncio.sleep(0)
            gate.leave(overloaded=False)

    async def all_at_once() -> None:
        await asyncio.gather(*(pass_through_again_and_again(number) for number in range(5)))

    asyncio.run(all_at_once())
    assert order == [0, 1, 2, 3, 4] * 5


def test_who_gives_up_waiting_at_the_gate_takes_no_place() -> None:
    gate = Gate(1, Clock())

    async def give_up() -> None:
        await gate.enter()
        waiting = [asyncio.create_task(gate.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        gate.leave(overloaded=False)  # in the same moment
        waiting[1].cancel()
        await asyncio.wait_for(waiting[2], 1)
        assert gate.num_under_way == 1
        gate.leave(overloaded=False)

    asyncio.run(give_up())
    assert gate.num_under_way == 0


def test_a_long_row_of_failures_closes_the_gate_and_an_answer_opens_it() -> None:
    clock = Clock()
    gate = Gate(8, clock)
    breaker = Breaker(gate, 60, clock)
    for _ in range(Breaker.SHORTEST_ROW):
        breaker.failed()
    assert gate.limit == 1
    assert not breaker.is_hopeless
    clock.now += 61
    assert breaker.is_hopeless
    breaker.succeeded()
    assert not breaker.is_hopeless
    assert gate.limit == 2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "2"}, 2.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
        ({"Retry-After": email.utils.formatdate(1_000_010, usegmt=True)}, 10.0),
        ({"Retry-After": email.utils.formatdate(999_999, usegmt=True)}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert read_retry_after(headers, now=1_000_000) == seconds


# What servers send.


def body(**choice: Any) -> bytes:
    message = {"role": "assistant", "content": "Because."}
    made = {"message": message, "finish_reason": "stop", **choice}
    return orjson.dumps({"model": "m-1", "choices": [made], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


def test_an_answer_is_what_the_first_choice_says() -> None:
    answer = parse_answer(body(), "key")
    assert (answer.status, answer.text, answer.model, answer.prompt_tokens, answer.completion_tokens) == (
        "answered", "Because.", "m-1", 3, 2,
    )  # fmt: skip
    assert parse_answer(body(finish_reason="length"), "key").status == "truncated"
    assert parse_answer(body(finish_reason="content_filter"), "key").status == "refused"
    assert parse_answer(body(message=None, finish_reason="content_filter"), "key").status == "refused"
    refused = parse_answer(body(message={"content": None, "refusal": "I won't."}), "key")
    assert (refused.status, refused.text, refused.error) == ("refused", None, "I won't.")


def test_who_has_ended_without_a_word_has_answered_nothing() -> None:
    for reason in ("stop", "tool_calls"):
        for message in ({"content": None, "reasoning_content": "Hm."}, {"tool_calls": []}):
            answer = parse_answer(body(message=message, finish_reason=reason), "key")
            assert (answer.status, answer.text, answer.completion_tokens) == ("answered", "", 2)


@pytest.mark.parametrize("count", [2**63, 2**53, -1, 3.0, "3", True, None])
def test_what_is_no_count_is_none(count: object) -> None:
    odd = {"model": 7, "choices": [{"message": {"content": "4"}, "finish_reason": ["x"]}]}
    answer = parse_answer(orjson.dumps({**odd, "usage": {"prompt_tokens": count, "completion_tokens": 2}}), "key")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.model, answer.text) == (None, 2, None, "4")
    assert read_usage(orjson.dumps({"usage": {"prompt_tokens": count, "completion_tokens": 2}})) is None


AZURE = {
    "message": "The response was filtered.",
    "type": None,
    "param": "prompt",
    "code": "content_filter",
    "status": 400,
}
INNER = {"innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}}}
OPENROUTER = {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"], "flagged_input": "..."}}


@pytest.mark.parametrize("error", [AZURE, AZURE | INNER, AZURE | INNER | {"code": "400"}, OPENROUTER])
def test_what_a_content_filter_stops_is_refused(error: dict[str, Any]) -> None:
    raw = orjson.dumps({"error": error})
    answer = parse_answer(raw, "key")
    assert is_flagged(raw)
    assert (answer.status, answer.text, answer.finish_reason) == ("refused", None, "content_filter")
    assert answer.error == error["message"]
    assert not is_flagged(orjson.dumps({"error": {"code": "context_length_exceeded", "message": "content_filter"}}))


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": [{"message": null}]}',
     body(message={"content": None}, finish_reason=None), body(message={"content": 5}), body()[:-9],
     body(finish_reason="error"), body(finish_reason="abort")],
)  # fmt: skip
def test_what_is_no_answer_is_unusable(raw: bytes) -> None:
    with pytest.raises(Unusable):
        parse_answer(raw, "key")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    with contextlib.suppress(Unusable):
        parse_answer(raw, "key")


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|eos|>"]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["the cat and the dog and the cat"] * 3, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def place(token: str, logprob: float, *others: tuple[str, float]) -> dict[str, Any]:
    top = [{"token": text, "logprob": each, "bytes": list(text.encode())} for text, each in ((token, logprob), *others)]
    return {**top[0], "top_logprobs": top}


def test_likely_tokens_are_found_by_their_bytes(tokenizer_path: Path) -> None:
    tokenizer, ids = Tokenizer.from_file(str(tokenizer_path)), TokenIds(tokenizer_path)
    (cat,) = tokenizer.encode(" cat").ids
    found = ids.read([place(" cat", -0.5, (" and", -1.5), ("unheard of", -2.0), ("<|eos|>", -3.0))])
    assert found.token_ids == [cat]
    assert found.top_ids == [[cat, *tokenizer.encode(" and").ids, tokenizer.token_to_id("<|eos|>")]]
    assert found.top_logprobs == [[-0.5, -1.5, -3.0]]
    assert found.tail_mass[0] == pytest.approx(1 - sum(2.718281828**x for x in (-0.5, -1.5, -3.0)), abs=1e-6)
    assert ids.read([place(f"token_id:{cat}", -0.1)]).token_ids == [cat]
    with pytest.raises(UserError, match="Is that its own tokenizer"):
        ids.read([place("unheard of", -0.1)])
    for odd in (place("token_id:99999999999", -0.1), place("token_id:-1", -0.1), place(" cat", 1e4)):
        with pytest.raises(Unusable, match="malformed logprobs"):
            parse_answer(body(logprobs={"content": [odd]}), "key", token_ids=ids)


def test_every_token_of_a_byte_level_vocabulary_is_its_bytes(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    bytes_by_id = {token_id: data for data, token_id in id_by_bytes(tokenizer).items()}
    ids = tokenizer.encode("the cät and\n").ids
    assert b"".join(bytes_by_id[token_id] for token_id in ids) == "the cät and\n".encode()


# The store.


def call(name: str, key: str = "key") -> Call:
    return Call(name, key, "test", 10, "sent", None)


def test_an_answer_is_on_the_disk_when_keep_returns(tmp_path: Path) -> None:
    script = """
import asyncio, os, signal, sys
from pathlib import Path
from nexa_llm.store import Call, Store, store_path
from nexa_llm.token_bytes import id_by_bytes

async def main(store):
    call = Call("one", "key", "test", 10, "sent", None)
    await store.begin(call, teacher="t", sent_at=1.0)
    await store.keep(call, b"raw", 0.5)
    await store.begin(Call("two", "other", "test", 20, "sent", None), teacher="t", sent_at=2.0)
    os.kill(os.getpid(), signal.SIGKILL)

with Store(Path(sys.argv[1])) as store:
    asyncio.run(main(store))
"""
    path = tmp_path / "answers.sqlite"
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    with Store(path) as store:
        assert store.get(["key", "other"])["key"].raw == b"raw"
        assert [each.id for each in store.cut_off()] == ["one", "two"]


def test_calls_are_counted_by_purpose_and_unusable_answers_are_kept_aside(tmp_path: Path) -> None:
    async def use(store: Store) -> None:
        for name, key in (("a", "1"), ("b", "2"), ("c", "3")):
            await store.begin(call(name, key), teacher="t", sent_at=1.0)
            await store.keep(call(name, key), name.encode(), None)
        store.settle(call("a", "1"), 7, 3, 2)
        store.set_aside(call("b", "2"))
        store.fail(call("b", "2"), "malformed")
        store.fail(call("c", "3"), "cut off", picousd=10, state="unknown")
        await store.flush()

    with Store(tmp_path / "answers.sqlite") as store:
        asyncio.run(use(store))
        total = store.total("test")
        assert (total.picousd, total.unknown_picousd, total.num_calls, total.prompt_tokens) == (17, 10, 3, 3)
        assert store.total("other").num_calls == 0
        assert set(store.get(["1", "2"])) == {"1"}
    with sqlite3.connect(tmp_path / "answers.sqlite") as db:
        assert db.execute("select call, raw from unusable").fetchone()[0] == "b"


def test_a_batch_takes_the_store_no_longer_for_the_calls_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge is asked batch by batch: a sum over all calls in each would be work by the square of the pairs."""
    instructions = 0
    connect = sqlite3.connect

    def count() -> int:
        nonlocal instructions
        instructions += 1
        return 0

    def counted(*arguments: Any, **named: Any) -> sqlite3.Connection:
        found = connect(*arguments, **named)
        found.set_progress_handler(count, 1)
        return found

    priced = config(prices={"m": Price(prompt_usd_per_million=1, completion_usd_per_million=1)})
    layout, taken = Layout(tmp_path), []
    for before in (10, 5_000):
        with Store(store_path(layout)) as store:
            calls = [Call(f"{before} {number}", f"{number}", "judge", 0, "answered", 0) for number in range(before)]
            key = OpenAi(priced, {}).key(request())
            body = orjson.dumps({"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]})
            store.put_batch([(call, b"raw", None) for call in calls], teacher="t", at=1.0)
            store.put_batch([(Call(f"{before}", key, "judge", 0, "answered", 0), body, None)], teacher="t", at=1.0)
        instructions = 0
        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", counted)
            assert [answer.text for answer in ask([request()], priced, layout, purpose="judge")] == ["4"]
        taken.append(instructions)
    assert taken[0] > 0
    assert taken[1] < 1.5 * taken[0]


def test_one_process_at_a_time_adds_to_a_store(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.sqlite"), pytest.raises(UserError, match="another process"):
        Store(tmp_path / "answers.sqlite").__enter__()


def test_a_store_that_is_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(NexaError, match=r"answers\.sqlite"):
        Store(tmp_path / "answers.sqlite").__enter__()


# Recorded answers.


def test_recorded_answers_are_found_by_their_prompt(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "1"}\n\n{"prompt": "b", "completion": "2"}\n{"prompt": "a", "completion": "3"}\n'
    )
    teacher = Recorded(AskConfig(teacher=f"recorded:{path}"), path)
    assert teacher.answer(request("a")).text == "1"
    assert teacher.answer(request("a", sample_index=1)).text == "3"
    missing = teacher.answer(request("c"))
    assert (missing.status, missing.error) == ("failed", "answers.jsonl has no answer to this prompt")


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "not JSON"), ("[]", "not an object"), ('{"promt": "a", "completion": "b"}', "Did you mean 'promt'")],
)
def test_a_file_that_holds_no_answers_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=said):
        Recorded(AskConfig(teacher=f"recorded:{path}"), path)


def test_a_recording_that_is_changed_later_still_has_the_answers_that_its_digest_says(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "a", "completion": "1"}\n{"prompt": "a\\u0000", "completion": "\\u0000 2"}\n')
    with opened(AskConfig(teacher=f"recorded:{path}"), Layout(tmp_path)) as teacher:
        path.write_text('{"prompt": "b", "completion": "3"}\n')
        assert [teacher.answer(request(text)).text for text in ("a", "a\0", "b")] == ["1", "\0 2", None]
        assert digests.of_file(path) != teacher.sha256


def test_a_recording_is_not_held_in_memory(tmp_path: Path) -> None:
    rows = ({"prompt": f"Question {number}?", "completion": f"{number} " * 300} for number in range(50_000))
    durable.write_json_lines(tmp_path / "answers.jsonl", rows)
    size = (tmp_path / "answers.jsonl").stat().st_size / 1024
    code = f"""
import resource
from pathlib import Path
from nexa_core.config.ask import AskConfig
from nexa_llm.chat import ChatRequest
from nexa_llm.recorded import Recorded
path = Path({str(tmp_path / "answers.jsonl")!r})
config = AskConfig(teacher=f"recorded:{{path}}")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
teacher = Recorded(config, path)
for number in range(0, 50_000, 7):
    answer = teacher.answer(ChatRequest(({{"role": "user", "content": f"Question {{number}}?"}},)))
    assert answer.text.startswith(f"{{number}} ")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < size / 4, f"KiB, for a file of {size:,.0f}"


def test_a_disk_without_room_for_the_copy_of_a_recording_is_told(tmp_path: Path) -> None:
    rows = ({"prompt": f"Question {number}?", "completion": "So it is. " * 300} for number in range(5_000))
    durable.write_json_lines(tmp_path / "answers.jsonl", rows)
    code = f"""
import resource
from pathlib import Path
from nexa_core.config.ask import AskConfig
from nexa_core.errors import NexaError
from nexa_llm.recorded import Recorded
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path({str(tmp_path / "answers.jsonl")!r})
try:
    Recorded(AskConfig(teacher=f"recorded:{{path}}"), path)
except NexaError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is copied to the folder for temporary files (TMPDIR)" in done.stdout


def test_teachers_are_opened_once_and_closed_together(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "a", "completion": "1"}\n')
    recorded, server = AskConfig(teacher=f"recorded:{path}"), AskConfig(teacher="openai:m", base_url="http://h/v1")
    with ExitStack() as stack:
        teachers = Teachers(Layout(tmp_path), stack)
        first = teachers.of(recorded)
        assert first is teachers.of(recorded.model_copy())
        assert teachers.of(server) is teachers.of(server)
        assert first.answer(request("a")).text == "1"
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        first.answer(request("a"))


# Settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"teacher": "recorded:x.jsonl", "sampling": SamplingConfig(max_tokens=3)},
        {"teacher": "recorded:x.jsonl", "base_url": "http://h/v1"},
        {"teacher": "local:folder", "pace": Pace(concurrency=3)},
        {"teacher": "openai:m", "prompt_column": "q"},
        {"teacher": "openai:m", "sampling": SamplingConfig(logprobs=3)},
        {"teacher": "openai:m", "tokenizer": "tokenizer.json"},
    ],
)
def test_a_setting_that_the_teacher_does_not_use_is_refused(settings: dict[str, Any]) -> None:
    assert list(AskConfig(**settings).conflicts())
