"""The shipped teacher over HTTP, served by transformers, says what it says in this process."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from nexa_core.config.ask import Pace, SamplingConfig
from nexa_core.config.distill import CollectConfig, DistillConfig
from nexa_core.paths import Layout
from nexa_data.sources.word_problems import read_word_problems
from nexa_distill.collect_teacher import collect
from tests.ranks import free_port

ROOT = Path(__file__).parent.parent
TEACHER = ROOT / "nexa_distill" / "teacher"
NUM_PROMPTS = 6


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `transformers serve`."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log.txt"
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(TEACHER), "--host", "127.0.0.1"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"],
            env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise AssertionError(f"no answer within 120 s: {log.read_text()}")


def test_the_served_teacher_says_what_it_says_here(served: str, tmp_path: Path) -> None:
    problems = [row["question"] for row, _ in zip(read_word_problems(parts=["test"]), range(NUM_PROMPTS), strict=False)]
    rows = {"row_id": [str(n) for n in range(NUM_PROMPTS)], "prompt": problems}
    parquet.write_table(pyarrow.table(rows), tmp_path / "inputs.parquet")
    sampling = SamplingConfig(max_tokens=40)
    over_http = CollectConfig(
        name="served", teacher=f"openai:{TEACHER}", base_url=served, sampling=sampling, pace=Pace(concurrency=2)
    )
    here = CollectConfig(name="here", teacher=f"local:{TEACHER}", sampling=sampling)
    answers = []
    for settings in (over_http, here):
        done = collect(DistillConfig(inputs=str(tmp_path / "inputs.parquet"), collect=settings), Layout(tmp_path))
        answers.append(parquet.read_table(done.place.path).to_pylist())
    assert [row["completion"] for row in answers[0]] == [row["completion"] for row in answers[1]]
    assert {row["status"] for row in answers[0]} == {"answered"}
    assert [row["completion_tokens"] for row in answers[0]] == [row["completion_tokens"] for row in answers[1]]
    assert all("####" in row["completion"] for row in answers[0])
