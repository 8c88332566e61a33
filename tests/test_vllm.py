"""`engine: vllm`: the program is started when an answer is missing, asked over HTTP, and ends with the run.

vLLM itself needs a GPU; in its place stands a program with its command line that serves the shipped teacher.
"""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from nexa_core.config import DistillConfig
from nexa_core.config.ask import AskConfig, SamplingConfig
from nexa_core.config.distill import CollectConfig
from nexa_core.config.distill_filter import RegenerateConfig
from nexa_core.errors import NexaError, UserError
from nexa_core.paths import Layout
from nexa_data.sources.word_problems import read_word_problems
from nexa_distill.collect_teacher import Collected, collect
from nexa_distill.filter_pairs import filter_pairs
from nexa_distill.regenerate import regenerate
from nexa_llm.ask import open_teacher
from tests.conftest import FinishedLab
from tests.teacher_answers import row, settings, write_outputs

ROOT = Path(__file__).parent.parent
TEACHER = ROOT / "nexa_distill" / "teacher"
NUM_PROMPTS = 6
IN_ITS_PLACE = f"""#!{sys.executable}
import argparse, pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from aiohttp import web
from nexa_core.config.ask import AskConfig
from nexa_core.paths import Layout
from nexa_llm.chat import ChatRequest, Sampling
from nexa_models.local_teacher import open_local

parser = argparse.ArgumentParser()
parser.add_argument("verb", choices=["serve"])
parser.add_argument("folder")
for name in ("host", "port", "served-model-name"):
    parser.add_argument(f"--{{name}}", required=True)
given = parser.parse_args()
pathlib.Path("begun").open("a").write("once\\n")
teacher = open_local(AskConfig(teacher=f"local:{{given.folder}}"), Layout(pathlib.Path()))

async def answer(request):
    body = await request.json()
    assert body["model"] == given.served_model_name
    asked = ChatRequest(tuple(body["messages"]), Sampling(max_tokens=body["max_tokens"]))
    return web.Response(body=teacher.answer_batch([asked])[0], content_type="application/json")

app = web.Application()
app.router.add_get("/health", lambda request: web.Response())
app.router.add_post("/v1/chat/completions", answer)
print("serving", flush=True)
web.run_app(app, host=given.host, port=int(given.port), print=None)
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laboratory with prompts, where the program `vllm` is in PATH."""
    problems = [row["question"] for row, _ in zip(read_word_problems(parts=["test"]), range(NUM_PROMPTS), strict=False)]
    rows = {"row_id": [str(n) for n in range(NUM_PROMPTS)], "prompt": problems}
    parquet.write_table(pyarrow.table(rows), tmp_path / "inputs.parquet")
    install(tmp_path, IN_ITS_PLACE)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def install(desk: Path, code: str) -> None:
    program = desk / "bin" / "vllm"
    program.parent.mkdir(exist_ok=True)
    program.write_text(code)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def collected(desk: Path, name: str, engine: str) -> Collected:
    settings = CollectConfig(
        name=name, teacher=f"local:{TEACHER}", engine=engine, sampling=SamplingConfig(max_tokens=40)
    )  # type: ignore[arg-type]
    return collect(DistillConfig(inputs=str(desk / "inputs.parquet"), collect=settings), Layout(desk))


def processes(word: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", word], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_answers_are_the_models_and_the_server_begins_once_and_ends(desk: Path) -> None:
    served, here = collected(desk, "served", "vllm"), collected(desk, "here", "transformers")
    answers = [parquet.read_table(each.place.path).to_pylist() for each in (served, here)]
    assert [row["completion"] for row in answers[0]] == [row["completion"] for row in answers[1]]
    assert {row["status"] for row in answers[0]} == {"answered"}
    assert served.manifest["cost_usd"] == 0
    assert served.asked.num_bought == NUM_PROMPTS
    assert not processes(str(desk / "bin" / "vllm"))
    again = collected(desk, "again", "vllm")
    assert (again.asked.num_bought, again.asked.num_reused) == (0, NUM_PROMPTS)
    assert (desk / "begun").read_text() == "once\n"


def test_asking_again_in_several_batches_begins_one_server(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = parquet.read_table(desk / "inputs.parquet")["prompt"].to_pylist()
    failed = [row(str(number), None, prompt=prompt, status="failed") for number, prompt in enumerate(prompts[:4])]
    write_outputs(desk, [row("good", "A good answer."), *failed])
    filtering = settings(desk, [{"name": "length", "min_words": 1}])
    filter_pairs(filtering, Layout(desk))
    teacher = CollectConfig(teacher=f"local:{TEACHER}", engine="vllm", sampling=SamplingConfig(max_tokens=40))
    config = filtering.model_copy(update={"collect": teacher, "regenerate": RegenerateConfig(max_tries=1)})
    monkeypatch.setattr("nexa_distill.regenerate.PROMPTS_AT_ONCE", 2)
    made = regenerate(config, Layout(desk))
    assert made.manifest["statuses"]["answered"] == 4
    assert (desk / "begun").read_text() == "once\n"
    assert not processes(str(desk / "bin" / "vllm"))


def test_the_server_ends_with_a_run_that_is_killed(desk: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from tests.test_vllm import collected; "
    install(desk, IN_ITS_PLACE.replace("body = await", "import time; time.sleep(60); body = await"))
    run = subprocess.Popen([sys.executable, "-c", f"{code}collected(Path({str(desk)!r}), 'served', 'vllm')"])
    until = time.monotonic() + 60
    while not (desk / "logs" / "vllm.log").exists() or "serving" not in (desk / "logs" / "vllm.log").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    until = time.monotonic() + 30
    while processes(str(desk / "bin" / "vllm")):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_told_to_end_a_run_waits_for_no_model_that_loads(desk: Path) -> None:
    install(desk, "#!/bin/sh\necho loading\nexec sleep 60\n")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from tests.test_vllm import collected; "
    run = subprocess.Popen(
        [sys.executable, "-c", f"{code}collected(Path({str(desk)!r}), 'served', 'vllm')"],
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (desk / "logs" / "vllm.log").exists() or "loading" not in (desk / "logs" / "vllm.log").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=20)
    assert "Interrupted: stopped as told; every answer so far is kept" in said
    assert not processes("sleep 60")


def test_a_server_that_does_not_start_says_why(desk: Path) -> None:
    install(desk, "#!/bin/sh\necho 'no such architecture' >&2\nexit 7\n")
    with pytest.raises(NexaError, match=r"vllm ended with exit code 7 before it served(.|\n)*no such architecture"):
        collected(desk, "served", "vllm")


def test_what_vllm_cannot_do_is_refused(desk: Path, finished_lab: FinishedLab, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = finished_lab.checkpoint("causal_lm")
    with pytest.raises(UserError, match="nexa export --checkpoint"):
        open_teacher(AskConfig(teacher=f"local:{checkpoint}", engine="vllm"), finished_lab.layout)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="needs the program `vllm`, which is not installed here"):
        open_teacher(AskConfig(teacher=f"local:{TEACHER}", engine="vllm"), finished_lab.layout)
