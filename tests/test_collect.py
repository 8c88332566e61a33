"""Collecting a teacher's answers: each paid once, in order, within the budget, whatever happens."""

import asyncio
import base64
import contextlib
import gc
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import yaml
from aiohttp import web
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nexa_core.config import DistillConfig, load_config
from nexa_core.config.ask import AskConfig
from nexa_core.errors import GateError, NexaError, UserError
from nexa_core.paths import Layout
from nexa_data.data_analysis.query_data import DataQuery
from nexa_data.datasets import find_dataset
from nexa_data.validation import validate
from nexa_distill import collect_teacher
from nexa_distill.collect_teacher import Collected, collect, estimate_collection
from nexa_distill.inputs import open_inputs
from nexa_llm import reading
from nexa_llm.ask import ask, contents_of, open_teacher, sampling_of
from nexa_llm.asking import HELD_WITH_LOGPROBS
from nexa_llm.chat import ChatRequest, Logprobs, Sampling
from nexa_llm.store import Call, Store, store_path
from tests.ranks import free_port
from tests.simulators import ROOT, simulator

FAULTS = (
    "rate_limit=0.03,server_error=0.02,reset=0.01,reset_body=0.01,malformed=0.01,truncated_json=0.01,empty_choices=0.01"
)
FAST_RETRY = ("--retry-after-seconds", "0.05")
NUM_PROMPTS = 300


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    write_inputs(tmp_path, NUM_PROMPTS)
    return tmp_path


def write_inputs(lab: Path, number: int) -> None:
    rows = {"row_id": [f"row-{n}" for n in range(number)], "prompt": [f"What is {n} squared?" for n in range(number)]}
    parquet.write_table(pyarrow.table(rows), lab / "inputs.parquet")


def settings(lab: Path, base_url: str, **collect_settings: Any) -> Path:
    """A config file for these inputs and this server."""
    teacher = {"teacher": "openai:m", "base_url": base_url, "pace": {"concurrency": 32}, "sampling": {"max_tokens": 64}}
    prices = {"m": {"prompt_usd_per_million": 0.15, "completion_usd_per_million": 0.6}}
    config = {"inputs": str(lab / "inputs.parquet"), "collect": {**teacher, "prices": prices, **collect_settings}}
    path = lab / "distill.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def collected(lab: Path, base_url: str, *overrides: str, **more: Any) -> Collected:
    config = load_config(settings(lab, base_url, **more.pop("given", {})), DistillConfig, overrides=overrides)
    return collect(config, Layout(lab), **more)


def rows_of(done: Collected) -> list[dict[str, Any]]:
    return parquet.read_table(done.place.path).to_pylist()


def command(lab: Path, config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "nexa_distill.collect_teacher", "--config", str(config), *arguments]


def environment(lab: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI")}
    return {**kept, "NEXA_ROOT": str(lab), "PYTHONPATH": str(ROOT), **more}


def ledger_picousd(lab: Path) -> int:
    with contextlib.closing(sqlite3.connect(store_path(Layout(lab)))) as db:
        return int(db.execute("select coalesce(sum(picousd), 0) from calls").fetchone()[0])


def test_every_prompt_is_answered_in_order_and_paid_once_whatever_the_server_does(lab: Path) -> None:
    with simulator("--faults", FAULTS, *FAST_RETRY) as server:
        done = collected(lab, server.base_url)
        rows, bill = rows_of(done), server.bill()
    assert [row["row_id"] for row in rows] == [f"row-{n}" for n in range(NUM_PROMPTS)]
    assert {row["status"] for row in rows} == {"answered"}
    assert all(row["completion"] and row["finish_reason"] == "stop" and row["teacher"] == "openai:m" for row in rows)
    assert bill["answers"] == NUM_PROMPTS
    assert sum(bill["requests"].values()) > NUM_PROMPTS
    assert ledger_picousd(lab) == bill["picousd"] == done.manifest["ledger"]["picousd"]
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(bill["picousd"] / 1e12, rel=1e-12)


def test_the_answers_are_a_dataset_like_others(lab: Path) -> None:
    with simulator() as server:
        done = collected(lab, server.base_url)
    assert validate(find_dataset(Layout(lab), "teacher_outputs_v1")).holds
    counts = DataQuery(lab).sql("select status, count(*) as n from teacher_outputs_v1 group by status")
    assert counts.to_dict("records") == [{"status": "answered", "n": NUM_PROMPTS}]
    table = parquet.read_table(done.place.path)
    parquet.write_table(table.slice(1), done.place.path)
    assert not validate(find_dataset(Layout(lab), "teacher_outputs_v1")).holds


def test_what_was_asked_before_is_not_asked_again(lab: Path) -> None:
    with simulator() as server:
        first = collected(lab, server.base_url)
        again = collected(lab, server.base_url)
        assert (first.is_new, again.is_new) == (True, False)
        other = collected(lab, server.base_url, destination="teacher_outputs_v2")
        assert (other.asked.num_bought, other.asked.num_reused) == (0, NUM_PROMPTS)
        assert other.place.path.read_bytes() == first.place.path.read_bytes()
        write_inputs(lab, NUM_PROMPTS + 3)
        more = collected(lab, server.base_url, destination="teacher_outputs_v3")
        assert (more.asked.num_bought, more.asked.num_reused) == (3, NUM_PROMPTS)
        assert server.bill()["answers"] == NUM_PROMPTS + 3


def test_equal_prompts_are_asked_once(lab: Path) -> None:
    rows = {"row_id": [str(n) for n in range(40)], "prompt": ["the same"] * 40}
    parquet.write_table(pyarrow.table(rows), lab / "inputs.parquet")
    with simulator(latency_seconds=0.1) as server:
        assert len({row["completion"] for row in rows_of(collected(lab, server.base_url))}) == 1
        assert server.bill()["answers"] == 1


def test_samples_of_a_prompt_are_answers_of_their_own(lab: Path) -> None:
    sampling = {"sampling": {"temperature": 1.0, "max_tokens": 64, "seed": 1}, "samples": 3, "max_samples": 5}
    with simulator() as server:
        rows = rows_of(collected(lab, server.base_url, given=sampling))
    assert [(row["row_id"], row["sample_index"]) for row in rows] == [
        (f"row-{n}", s) for n in range(5) for s in range(3)
    ]
    assert len({row["completion"] for row in rows if row["row_id"] == "row-0"}) == 3


def test_a_version_never_changes_unless_it_is_replaced(lab: Path) -> None:
    with simulator() as server:
        before = collected(lab, server.base_url)
        with pytest.raises(UserError, match="sampling"):
            collected(lab, server.base_url, "collect.sampling.max_tokens=65")
        collected(lab, server.base_url, "collect.pace.concurrency=4")  # decides no answer
        after = collected(lab, server.base_url, "collect.sampling.max_tokens=65", replace=True)
    assert after.manifest["fingerprint"] != before.manifest["fingerprint"]


def test_files_that_are_called_alike_have_a_bill_of_their_own(lab: Path) -> None:
    with simulator() as server:
        first = collected(lab, server.base_url, destination=str(lab / "a" / "said_v1.parquet"))
        at_most = f"collect.max_cost_usd={2 * first.manifest['cost_usd']}"
        file = str(lab / "b" / "said_v1.parquet")
        second = collected(lab, server.base_url, "collect.sampling.max_tokens=65", at_most, destination=file)
    assert [each.manifest["ledger"]["num_calls"] for each in (first, second)] == [NUM_PROMPTS, NUM_PROMPTS]
    assert second.manifest["ledger"]["purpose"] == "b/said_v1.parquet"


def test_no_budget_is_exceeded_and_a_higher_one_goes_on(lab: Path) -> None:
    budget = 0.002
    with simulator("--faults", FAULTS, *FAST_RETRY, latency_seconds=0.02) as server:
        config = settings(lab, server.base_url, pace={"concurrency": 256})
        stopped = subprocess.run(
            command(lab, config, "--max-cost-usd", str(budget)),
            env=environment(lab),
            capture_output=True,
            text=True,
            check=False,
        )
        assert stopped.returncode == 3, stopped.stderr
        assert f"the budget of ${budget:g} is used up" in stopped.stderr
        assert 0 < server.bill()["picousd"] <= budget * 1e12
        assert not [path for path in lab.rglob("*.parquet") if path.name != "inputs.parquet"]
        again = subprocess.run(
            command(lab, config, "--max-cost-usd", str(budget)),
            env=environment(lab),
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 3  # the limit is of the dataset, not of one try
        assert server.bill()["picousd"] <= budget * 1e12
        done = subprocess.run(
            command(lab, config, "--max-cost-usd", "1"),
            env=environment(lab),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert server.bill()["answers"] == NUM_PROMPTS


def test_a_budget_without_a_price_is_refused_before_anything_is_sent(lab: Path) -> None:
    with simulator() as server:
        with pytest.raises(UserError, match="price of 'm' is not known"):
            collected(lab, server.base_url, "collect.prices={}", "collect.max_cost_usd=1")
        assert server.bill()["requests"] == {}


def test_a_dry_run_sends_nothing(lab: Path) -> None:
    with simulator() as server:
        config = settings(lab, server.base_url)
        done = subprocess.run(
            command(lab, config, "--dry-run", "--json"),
            env=environment(lab),
            capture_output=True,
            text=True,
            check=True,
        )
        assert server.bill()["requests"] == {}
        told = json.loads(done.stdout)
        real = collected(lab, server.base_url)
    assert (told["num_requests"], told["num_stored"]) == (NUM_PROMPTS, 0)
    assert real.manifest["cost_usd"] <= told["most_usd"]
    assert not list(lab.glob("runs/*"))


def test_another_server_or_tokenizer_is_noticed(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(lab, 3)
    with simulator() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        own = "collect.base_url=null"
        first = collected(lab, server.base_url, own)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.base_url}/")
        assert not collected(lab, server.base_url, own).is_new
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.base_url}?api-version=2")
        with pytest.raises(UserError, match="was made with other content of its server"):
            collected(lab, server.base_url, own)
        again = collected(lab, server.base_url, own, replace=True)
        assert again.asked.num_bought == 3
        versions = [
            collected(lab, f"{server.base_url}?api-version={n}", destination="by_url_v1", replace=True) for n in (1, 2)
        ]
        assert [each.asked.num_bought for each in versions] == [3, 0]  # the second's are those of the environment's
    assert len({each.manifest["fingerprint"] for each in (first, again, *versions)}) == 4
    config = load_config(settings(lab, "http://127.0.0.1:9/v1"), DistillConfig).collect
    (lab / "tokenizer.json").write_text("{}")
    logprobs = config.model_copy(update={"tokenizer": str(lab / "tokenizer.json")})
    before = contents_of(logprobs, Layout(lab))
    (lab / "tokenizer.json").write_text("{ }")
    assert contents_of(logprobs, Layout(lab)) != before
    assert set(before) == {"tokenizer"}


def test_at_most_is_a_bound_of_all_prompts_and_says_what_it_takes_for_granted(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["Short?"] * 2 + [f"{n}: " + "word " * (4000 if n == 37 else n) for n in range(100)]  # a sample misses it
    rows = {"row_id": [str(n) for n in range(len(prompts))], "prompt": prompts}
    parquet.write_table(pyarrow.table(rows), lab / "inputs.parquet")
    prices = {"m": {"prompt_usd_per_million": 100.0, "completion_usd_per_million": 0.0}}
    with simulator("--prompt-usd-per-million", "100", "--completion-usd-per-million", "0") as server:
        config = load_config(settings(lab, server.base_url, prices=prices), DistillConfig)
        before = estimate_collection(config, Layout(lab))
        monkeypatch.setattr(collect_teacher, "LOOKED_UP", 10)
        sampled = estimate_collection(config, Layout(lab))
        monkeypatch.undo()
        spent = server.bill()
        assert spent["picousd"] == 0
        collected(lab, server.base_url, given={"prices": prices})
        usd = float(server.bill()["usd"])
        after = estimate_collection(config, Layout(lab))
    assert (before.num_requests, before.num_stored, before.is_sampled) == (101, 0, False)  # equal ones are asked once
    assert before.most_usd is not None
    assert sampled.most_usd is not None
    assert usd <= before.most_usd <= sampled.most_usd
    assert sampled.is_sampled
    assert "(by a sample)" in sampled.as_text()
    assert "at most if every call is answered at its first try" in before.as_text()
    assert (after.num_stored, after.most_usd) == (101, 0)
    assert (before.past.num_answers, after.past.num_answers) == (0, 101)


# Kills.


def kill_at_random(lab: Path, config: Path, number: int, seed: int) -> int:
    """Run until it was killed so often and then ended; how many calls were under way at the kills, at most."""
    generator, kills = random.Random(seed), 0
    while kills < number:
        process = subprocess.Popen(
            command(lab, config), env=environment(lab), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(generator.uniform(0.3, 1.2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            break
    done = subprocess.run(command(lab, config), env=environment(lab), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return kills


def check_kills(tmp_path: Path, *, kills: int, num_prompts: int, latency_seconds: float, concurrency: int) -> None:
    labs = [tmp_path / name for name in ("killed", "uninterrupted")]
    outputs, port = [], str(free_port())  # the server's URL is a part of what determines an answer
    for lab, number in zip(labs, (kills, 0), strict=True):
        lab.mkdir()
        write_inputs(lab, num_prompts)
        with simulator("--port", port, "--faults", FAULTS, *FAST_RETRY, latency_seconds=latency_seconds) as server:
            config = settings(lab, server.base_url, pace={"concurrency": concurrency})
            num_killed = kill_at_random(lab, config, number, seed=7)
            bill = server.bill()
            assert num_killed == number
            assert bill["answers"] <= num_prompts + number * concurrency
            assert ledger_picousd(lab) == bill["picousd"]
            with Store(store_path(Layout(lab))) as store:
                assert store.cut_off() == []
        path = lab / "data/processed/distillation/teacher_outputs/teacher_outputs_v1.parquet"
        assert parquet.read_table(path).num_rows == num_prompts
        outputs.append(path.read_bytes())
    assert outputs[0] == outputs[1]


def test_killed_and_started_again_it_ends_with_the_same_answers_and_a_true_ledger(tmp_path: Path) -> None:
    check_kills(tmp_path, kills=4, num_prompts=400, latency_seconds=0.1, concurrency=16)


@pytest.mark.slow
def test_fifty_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    check_kills(tmp_path, kills=50, num_prompts=8000, latency_seconds=0.2, concurrency=64)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path: Path) -> None:
    peaks = []
    with simulator(latency_seconds=0.01) as server:
        for number in (10_000, 100_000):
            lab = tmp_path / str(number)
            lab.mkdir()
            write_inputs(lab, number)
            config = settings(lab, server.base_url, pace={"concurrency": 256}, sampling={"max_tokens": number // 1000})
            process = subprocess.Popen(
                command(lab, config, "--override", "collect.max_truncated_share=1"), env=environment(lab)
            )
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            peaks.append(usage.ru_maxrss / 1024)
    assert peaks[1] < peaks[0] + 60, peaks  # MiB: a row group of the answers is held


def test_told_to_end_it_waits_for_what_is_paid_for(lab: Path) -> None:
    write_inputs(lab, 60)
    with simulator(latency_seconds=0.5) as server:
        config = settings(lab, server.base_url, pace={"concurrency": 16})
        process = subprocess.Popen(command(lab, config), env=environment(lab), stderr=subprocess.PIPE, text=True)
        while server.bill()["pending"] < 16:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "The same command goes on from there" in said
        bill = server.bill()
        assert bill["pending"] == 0
        assert ledger_picousd(lab) == bill["picousd"]
        done = collected(lab, server.base_url)
        assert done.asked.num_reused == bill["answers"]


# What servers do.


def test_too_many_answers_that_are_cut_off_stop_the_run(lab: Path) -> None:
    with simulator("--faults", "truncated=0.5") as server:
        with pytest.raises(GateError, match="were cut off at max_tokens: 64"):
            collected(lab, server.base_url)
        requests = server.bill()["requests"]
        with pytest.raises(GateError):
            collected(lab, server.base_url, "collect.max_truncated_share=0.3")
        some = collected(lab, server.base_url, "collect.max_truncated_share=0.9")
        assert sum(server.bill()["requests"].values()) == NUM_PROMPTS  # none is asked twice
    assert sum(requests.values()) < NUM_PROMPTS
    assert 50 < some.manifest["statuses"]["truncated"] < 250


def test_refusals_are_answers_and_too_many_failures_are_refused(lab: Path) -> None:
    with simulator("--faults", "refusal=0.2,content_filter=0.1") as server:
        statuses = collected(lab, server.base_url).manifest["statuses"]
    assert statuses["refused"] > 50
    assert statuses["failed"] == 0
    with (
        simulator("--faults", "server_error=0.5", *FAST_RETRY) as server,
        pytest.raises(GateError, match="answers failed"),
    ):
        collected(lab, server.base_url, "collect.pace.max_tries=1", destination="other_v1")


def test_a_prompt_that_a_content_filter_stops_is_refused_and_asked_once(lab: Path) -> None:
    with simulator("--faults", "flagged=0.2") as server:
        first = collected(lab, server.base_url)
        again = collected(lab, server.base_url, destination="again_v1")
        bill = server.bill()
    statuses = first.manifest["statuses"]
    assert 20 < statuses["refused"] < NUM_PROMPTS
    assert statuses["refused"] + statuses["answered"] == NUM_PROMPTS
    assert sum(bill["requests"].values()) == NUM_PROMPTS
    assert again.place.path.read_bytes() == first.place.path.read_bytes()
    assert first.manifest["ledger"]["picousd"] == bill["picousd"]  # such a server bills what it stops


def test_where_no_bill_is_kept_a_stopped_prompt_may_have_been_billed(lab: Path) -> None:
    write_inputs(lab, 3)
    stopped = {"error": {"message": "The response was filtered.", "code": "content_filter", "status": 400}}
    with answering([web.json_response(stopped, status=400)]) as (url, asked):
        done = collected(lab, url, "collect.pace.concurrency=1")
    assert len(asked) == 3
    assert [row["status"] for row in rows_of(done)] == ["refused", "answered", "answered"]
    assert rows_of(done)[0]["error"] == "The response was filtered."
    assert done.manifest["ledger"]["unknown_picousd"] > 0


@contextlib.contextmanager
def answering(statuses: list[web.Response | float]) -> Iterator[tuple[str, list[float]]]:
    """A server that gives these responses, then answers; a number is a status. Yields its URL and when it was asked."""
    asked: list[float] = []

    async def chat(request: web.Request) -> web.Response:
        asked.append(time.monotonic())
        if len(asked) <= len(statuses):
            given = statuses[len(asked) - 1]
            return given if isinstance(given, web.Response) else web.Response(status=int(given))
        message = {"role": "assistant", "content": "yes"}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}})

    started, stop = threading.Event(), threading.Event()
    found: dict[str, int] = {}

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found["port"] = runner.addresses[0][1]
        started.set()
        while not stop.is_set():
            await asyncio.sleep(0.01)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{found['port']}/v1", asked
    finally:
        stop.set()
        thread.join()


def test_retry_after_is_obeyed_to_a_tenth_of_a_second(lab: Path) -> None:
    write_inputs(lab, 1)
    with answering([web.Response(status=429, headers={"Retry-After": "0.8"})]) as (url, asked):
        collected(lab, url)
    assert 0.8 <= asked[1] - asked[0] < 0.9


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_an_unknown_model_ends_the_run_at_once(lab: Path, status: int) -> None:
    with answering([status] * 99) as (url, asked), pytest.raises(UserError, match=f"HTTP {status}"):
        collected(lab, url, "collect.pace.concurrency=1")
    assert len(asked) == 1


def test_a_request_that_is_wrong_fails_alone_and_is_not_repeated(lab: Path) -> None:
    write_inputs(lab, 5)
    with answering([400]) as (url, asked):
        done = collected(lab, url, "collect.max_failed_share=1", "collect.pace.concurrency=1")
    assert len(asked) == 5
    assert [row["status"] for row in rows_of(done)] == ["failed", *["answered"] * 4]
    assert "HTTP 400" in rows_of(done)[0]["error"]


def test_one_forbidden_prompt_among_answered_ones_fails_alone(lab: Path) -> None:
    write_inputs(lab, 5)
    ok = {"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}], "usage": {}}
    with answering([web.json_response(ok), 403]) as (url, _):
        done = collected(lab, url, "collect.max_failed_share=1", "collect.pace.concurrency=1")
    assert [row["status"] for row in rows_of(done)] == ["answered", "failed", *["answered"] * 3]


def test_a_usage_of_another_shape_is_no_usage(lab: Path) -> None:
    write_inputs(lab, 1)
    odd = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": "much"}
    with answering([web.json_response(odd)]) as (url, _):
        (row,) = rows_of(collected(lab, url))
    assert (row["completion"], row["prompt_tokens"]) == ("yes", None)


def test_what_nobody_foresaw_stops_all_of_it(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody foresaw it")

    monkeypatch.setattr(reading, "parse_answer", break_down)
    with simulator() as server:
        with pytest.raises(ZeroDivisionError):
            collected(lab, server.base_url)
        assert sum(server.bill()["requests"].values()) <= 2 * 32  # and no more than were under way


def test_stopping_waits_for_no_rate_limit(lab: Path) -> None:
    given = {"pace": {"concurrency": 32, "requests_per_minute": 6}}
    with simulator() as server:
        config = settings(lab, server.base_url, **given)
        process = subprocess.Popen(command(lab, config), env=environment(lab), stderr=subprocess.PIPE, text=True)
        while not sum(server.bill()["requests"].values()):
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - began < 8


def test_a_budget_counts_what_was_bought_before_there_was_a_price(lab: Path) -> None:
    with simulator() as server:
        collected(lab, server.base_url, given={"prices": {}})
        assert ledger_picousd(lab) == 0
        again = collected(
            lab, server.base_url, "collect.max_cost_usd=5", "collect.sampling.max_tokens=65", replace=True
        )
        assert server.bill()["picousd"] == ledger_picousd(lab) == again.asked.total.picousd > 0


def test_killed_before_a_response_was_found_unusable_it_is_asked_again(lab: Path) -> None:
    write_inputs(lab, 1)
    with simulator() as server:
        config = load_config(settings(lab, server.base_url), DistillConfig)
        teacher = open_teacher(config.collect, Layout(lab))
        (prompt,) = open_inputs(config, Layout(lab))
        key = teacher.key(ChatRequest(({"role": "user", "content": prompt.prompt},), sampling_of(config.collect)))

        async def keep_and_die(store: Store) -> None:
            call = Call("a", key, "out_v1", 5, "sent", None)
            await store.begin(call, teacher=teacher.address, sent_at=0.0)
            await store.keep(call, b'{"choices": [{"message": oops', 0.1)

        with Store(store_path(Layout(lab))) as store:
            asyncio.run(keep_and_die(store))
        (row,) = rows_of(collected(lab, server.base_url))
    assert row["status"] == "answered"


def test_calls_that_another_server_had_are_left_to_it(lab: Path) -> None:
    with Store(store_path(Layout(lab))) as store:
        call = Call("a", "k", "out_v1", 5, "sent", None)
        asyncio.run(store.begin(call, teacher="openai:m at http://elsewhere/v1", sent_at=0.0))
    with simulator() as server:
        collected(lab, server.base_url)
    with Store(store_path(Layout(lab))) as store:
        assert [each.id for each in store.cut_off()] == ["a"]


def test_short_keys_and_versions_in_the_url_are_no_secrets(lab: Path) -> None:
    write_inputs(lab, 1)
    text = "EMPTY on 2024-06-01, says user"
    said = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {}}
    with answering([web.json_response(said)]) as (url, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "EMPTY")
        address = url.replace("http://", "http://user:pass@") + "?api-version=2024-06-01"
        assert [row["completion"] for row in rows_of(collected(lab, address))] == [text]


@pytest.mark.parametrize("key", ["n", "stream", "max_completion_tokens", "model"])
def test_further_keys_do_not_change_the_price(lab: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"collect.extra_body.{key}"):
        collected(lab, "http://127.0.0.1:9/v1", given={"extra_body": {key: 8}})


def test_a_server_that_is_not_there_ends_the_run_after_a_while(lab: Path) -> None:
    with pytest.raises(NexaError, match="has answered nothing for 1 s"):
        collected(lab, "http://127.0.0.1:9/v1", "collect.pace.give_up_after_seconds=1")


def test_no_key_reaches_a_file_or_a_log(lab: Path) -> None:
    secret, password = "sk-1234567890abcdefghij", "correct horse/battery"
    quoted = urllib.parse.quote(password, safe="")
    basic = base64.b64encode(f"someone:{password}".encode()).decode()
    hidden = (secret, password, quoted, basic.rstrip("="), "zyxwvutsrq")
    write_inputs(lab, 60)
    with simulator("--faults", "echo_key=0.3", *FAST_RETRY) as server:
        url = server.base_url.replace("http://", f"http://someone:{quoted}@") + "?api_key=zyxwvutsrq"
        secrets_given = environment(lab, OPENAI_API_KEY=secret)
        for address in (url, server.base_url):
            config = settings(lab, address, max_failed_share=1.0)
            done = subprocess.run(
                command(lab, config, "--replace"), env=secrets_given, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            for text in (done.stdout, done.stderr):
                assert all(value not in text for value in hidden)
    written = [path for path in lab.rglob("*") if path.is_file() and path.name != "distill.yaml"]
    assert len(written) >= 3
    for path in written:
        data = path.read_bytes()
        assert all(value.encode() not in data for value in hidden), path
    with contextlib.closing(sqlite3.connect(store_path(Layout(lab)))) as db:
        told = [detail for (detail,) in db.execute("select detail from calls where detail is not null")]
    for header in ("Basic [password]", "Bearer [API_KEY]"):  # the server has repeated both
        assert any(header in each for each in told), header


# Log probabilities.


def with_tokenizer(lab: Path) -> dict[str, Any]:
    """Settings that ask for log probabilities, by a tokenizer of the laboratory's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["some words that an answer may have, and others that it has not"], trainer)
    tokenizer.save(str(lab / "tokenizer.json"))
    return {"sampling": {"max_tokens": 32, "logprobs": 5}, "tokenizer": str(lab / "tokenizer.json")}


def test_log_probabilities_come_with_ids_and_the_mass_of_the_rest(lab: Path) -> None:
    given = {**with_tokenizer(lab), "max_truncated_share": 1.0}
    write_inputs(lab, 10)
    with simulator("--tokenizer", given["tokenizer"]) as server:
        rows = rows_of(collected(lab, server.base_url, given=given))
    tokenizer = Tokenizer.from_file(given["tokenizer"])
    for row in rows:
        assert tokenizer.decode(row["token_ids"]) == row["completion"]
        for ids, logprobs, tail in zip(row["top_ids"], row["top_logprobs"], row["tail_mass"], strict=True):
            assert len(ids) == len(set(ids)) == 5
            assert logprobs == sorted(logprobs, reverse=True)
            assert sum(2.718281828459045**each for each in logprobs) + tail == pytest.approx(1, abs=1e-4)


def test_few_answers_are_held_with_their_log_probabilities(lab: Path) -> None:
    given, layout = with_tokenizer(lab), Layout(lab)
    requests = [
        ChatRequest(({"role": "user", "content": f"question {index}"},), Sampling(max_tokens=32, logprobs=5))
        for index in range(400)
    ]
    with simulator("--tokenizer", given["tokenizer"]) as server:
        config = AskConfig(teacher="openai:m", base_url=server.base_url, **given)
        bought = [answer.text for answer in ask(requests, config, layout, purpose="test")]
        found: list[str | None] = []
        for answer in ask(requests, config, layout, purpose="test"):
            if len(found) % 100 == 0:
                num_held = sum(type(each) is Logprobs for each in gc.get_objects())
                assert num_held <= 2 * HELD_WITH_LOGPROBS + 1  # given out, and waiting
            found.append(answer.text)
    assert found == bought
    assert len(set(found)) > 1


# Recorded answers.


def test_recorded_answers_need_no_server(lab: Path) -> None:
    lines = [json.dumps({"question": f"What is {n} squared?", "answer": str(n * n)}) for n in range(NUM_PROMPTS)]
    (lab / "answers.jsonl").write_text("\n".join(lines))
    config = lab / "distill.yaml"
    columns = {"prompt_column": "question", "completion_column": "answer"}
    given = {"teacher": f"recorded:{lab / 'answers.jsonl'}", **columns}
    config.write_text(yaml.safe_dump({"inputs": str(lab / "inputs.parquet"), "collect": given}))
    done = collect(load_config(config, DistillConfig), Layout(lab))
    assert [row["completion"] for row in rows_of(done)] == [str(n * n) for n in range(NUM_PROMPTS)]
    assert done.manifest["cost_usd"] == 0
    (lab / "answers.jsonl").write_text("\n".join(lines).replace('"answer": "0"', '"answer": "none"'))
    with pytest.raises(UserError, match="was made with other content of its teacher"):
        collect(load_config(config, DistillConfig), Layout(lab))
    again = collect(load_config(config, DistillConfig), Layout(lab), replace=True)
    assert rows_of(again)[0]["completion"] == "none"


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--src", "teacher_inputs_v9"), "There is no"),
        (("--src", "nonsense"), "neither a dataset's key"),
        (("--teacher", "opnai:m"), "Did you mean 'openai'"),
        (("--teacher", "m"), "teacher"),
        (("--override", "collect.smaples=3"), "Did you mean 'collect.samples'"),
        (("--override", "collect.samples=3"), "at temperature 0"),
    ],
)
def test_bad_input_gets_one_clear_error(lab: Path, arguments: tuple[str, ...], said: str) -> None:
    config = settings(lab, "http://127.0.0.1:9/v1")
    done = subprocess.run(
        command(lab, config, *arguments), env=environment(lab), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
