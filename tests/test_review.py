"""The review page: its server over HTTP, and the page itself in a real browser."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from aiohttp import web

from nexa_core import durable
from nexa_core.config import DistillConfig, load_config
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_distill.filter_pairs import filter_pairs
from nexa_distill.inputs import Prompt
from nexa_distill.outputs import SCHEMA, OutputTable
from nexa_distill.review.pairs import PairFile
from nexa_distill.review.review import Conflict, Review
from nexa_distill.review.server import make_app
from nexa_distill.review.session import next_command
from nexa_distill.review.views import View
from nexa_llm.chat import Answer
from tests.browser import Browser, Page

KEY = "teacher_outputs_v1"
HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> &amp; \u202e\x07"

Sample = dict[str, Any]


def sample(text: str | None, **about: Any) -> Sample:
    return {"text": text, "status": "answered", **about}


def write_outputs(layout: Layout, answers: list[list[Sample]]) -> Path:
    """A dataset of outputs: for each prompt its samples."""
    path = layout.processed / "distillation" / "teacher_outputs" / f"{KEY}.parquet"
    with ExitStack() as stack:
        table = OutputTable(stack, path)
        for number, samples in enumerate(answers):
            prompt = Prompt(
                f"row{number}", f"Question {number}?", json.dumps({"reference": f"R{number}", "more": [number]})
            )
            for index, about in enumerate(samples):
                answer = Answer(**{"request_sha256": f"request {number} {index}", "cost_picousd": 1_500_000, **about})
                table.add(prompt, index, answer, teacher="recorded:x", parameters_json="{}", prompt_sha256="p")
        table.close()
    return path


def write_filtered(layout: Layout, why: dict[int, tuple[str, str, str]], name: str = "distilled") -> None:
    """What a filter made of the outputs: the rows of `why` are rejected, the others kept."""
    folder = layout.processed / "distillation"
    rows = parquet.read_table(folder / "teacher_outputs" / f"{KEY}.parquet").to_pylist()
    kept = [row for number, row in enumerate(rows) if number not in why]
    rejected = [
        {**rows[number], **dict(zip(("step", "reason", "detail"), each, strict=True))} for number, each in why.items()
    ]
    more = pyarrow.schema([*SCHEMA, *((name, pyarrow.string()) for name in ("step", "reason", "detail"))])
    for split, those, schema in (("filtered", kept, SCHEMA), ("rejected", rejected, more)):
        (folder / split).mkdir(exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(those, schema=schema), folder / split / f"{name}_v1.parquet")
    manifest = {"format": "nexa.dataset/1", "name": name, "version": "v1", "splits": {"filtered": {}}}
    parents = [{"dataset": KEY}]
    durable.write_json(folder / "manifests" / f"{name}_v1.json", {**manifest, "parents": parents})


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture
def outputs(layout: Layout) -> Layout:
    """Five prompts with an answer each; the last could not be had."""
    answers = [[sample(f"Answer {number}.")] for number in range(4)]
    write_outputs(layout, [*answers, [sample(None, status="failed", error="HTTP 500")]])
    return layout


def decided(layout: Layout) -> list[dict[str, Any]]:
    path = layout.processed / "distillation" / "reviews" / f"{KEY}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def reviewing(layout: Layout, **options: Any) -> Iterator[str]:
    """The URL of a review that is served by this process."""
    review = Review(layout, KEY, **options)
    started, ended = threading.Event(), asyncio.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        runner = web.AppRunner(make_app(review, "nexa filter-pairs"), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.update(port=runner.addresses[0][1], loop=asyncio.get_running_loop())
        started.set()
        await ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(10)
        yield f"http://127.0.0.1:{found['port']}"
    finally:
        found["loop"].call_soon_threadsafe(ended.set)
        thread.join()
        review.close()


def ask(url: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and answer of a request; with a body it is a POST."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def token_of(url: str) -> dict[str, str]:
    with urllib.request.urlopen(url) as answer:
        (token,) = re.findall(r'name="token" content="([^"]+)"', answer.read().decode())
    return {"X-Review-Token": token}


# The review itself.


def test_decisions_are_lines_of_the_journal_and_the_last_counts_when_it_is_opened_again(outputs: Layout) -> None:
    review = Review(outputs, KEY)
    review.decide([{"row": 0, "decision": "accept", "version": 0}])
    review.decide([{"row": 1, "decision": "edit", "completion": "Better.", "version": 0}])
    review.decide([{"row": 0, "decision": "reject", "version": 1}])
    review.decide([{"row": 2, "decision": "accept", "version": 0}])
    review.undo()
    review.close()
    lines = decided(outputs)
    assert [(line["row_id"], line["decision"]) for line in lines] == [
        ("row0", "accept"),
        ("row1", "edit"),
        ("row0", "reject"),
        ("row2", "accept"),
        ("row2", "none"),
    ]
    assert set(lines[0]) == {"row_id", "sample_index", "decision", "request_sha256", "at"}
    assert (lines[1]["completion"], lines[1]["request_sha256"]) == ("Better.", "request 1 0")
    again = Review(outputs, KEY)
    assert again.progress.as_json() == {"total": 5, "accepted": 0, "rejected": 1, "edited": 1, "left": 3}
    assert again.show(View(), 1, "stay")["samples"][0]["edited"] == "Better."
    assert again.show(View(), None, "stay")["row"] == 2, "it goes on at the first that nobody has decided on"
    again.close()


def test_undo_brings_an_earlier_decision_back_with_its_text(outputs: Layout) -> None:
    review = Review(outputs, KEY)
    review.decide([{"row": 1, "decision": "edit", "completion": "Better.", "version": 0}])
    review.decide([{"row": 1, "decision": "reject", "version": 1}])
    assert review.undo()["row"] == 1
    assert (decided(outputs)[-1]["decision"], decided(outputs)[-1]["completion"]) == ("edit", "Better.")
    review.undo()
    assert review.progress.left == 5
    with pytest.raises(Conflict, match="nothing to undo"):
        review.undo()
    review.close()


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"row": 9, "decision": "accept", "version": 0}, "no row 9"),
        ({"row": 0, "decision": "acept", "version": 0}, "Did you mean 'accept'"),
        ({"row": 0, "decision": "edit", "version": 0}, "comes with a completion"),
        ({"row": 0, "decision": "edit", "completion": " \n", "version": 0}, "teaches nothing"),
        ({"row": 0, "decision": "edit", "completion": "\ud800", "version": 0}, "lone surrogate"),
        ({"row": 4, "decision": "accept", "version": 0}, "no answer to accept"),
    ],
)
def test_what_is_no_decision_is_refused_and_nothing_is_written(outputs: Layout, wish: Any, message: str) -> None:
    review = Review(outputs, KEY)
    with pytest.raises(UserError, match=message):
        review.decide([{"row": 1, "decision": "accept", "version": 0}, wish])
    assert decided(outputs) == []
    review.close()


def test_a_decision_on_what_has_changed_since_it_was_shown_is_refused(outputs: Layout) -> None:
    review = Review(outputs, KEY)
    review.decide([{"row": 0, "decision": "accept", "version": 0}])
    with pytest.raises(Conflict, match="another window"):
        review.decide([{"row": 0, "decision": "reject", "version": 0}])
    assert [line["decision"] for line in decided(outputs)] == ["accept"]
    review.close()


def test_a_torn_line_is_mended_and_a_wrong_one_is_named(outputs: Layout, caplog: pytest.LogCaptureFixture) -> None:
    review = Review(outputs, KEY)
    review.decide([{"row": 0, "decision": "accept", "version": 0}])
    review.close()
    with review.path.open("ab") as file:
        file.write(b'{"row_id": "row1", "sample_ind')
    Review(outputs, KEY).close()
    assert "cut off by a kill" in caplog.text
    assert len(decided(outputs)) == 1
    with review.path.open("ab") as file:
        file.write(b'{"row_id": "row1", "decision": "maybe"}\n')
    with pytest.raises(UserError, match=r"teacher_outputs_v1.jsonl:2 is no decision"):
        Review(outputs, KEY)


def test_a_decision_on_another_answer_to_the_same_prompt_does_not_count(
    outputs: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    review = Review(outputs, KEY)
    review.decide([{"row": 0, "decision": "accept", "version": 0}])
    review.close()
    write_outputs(outputs, [[sample("Another answer.", request_sha256="asked in another way")]])
    again = Review(outputs, KEY)
    assert again.progress.left == 1
    assert "1 lines are about answers that this dataset does not have" in caplog.text
    again.close()


def test_views_select_by_verdict_status_decision_and_text(outputs: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexa_distill.review.pairs.ROWS_A_BATCH", 2)
    write_filtered(
        outputs, {1: ("math", "wrong answer", "is 1"), 2: ("length", "too long", ""), 4: ("status", "failed", "")}
    )
    review = Review(outputs, KEY)
    review.decide([{"row": 3, "decision": "edit", "completion": "Something OTHER.", "version": 0}])

    def rows(**view: str) -> list[int]:
        found, row = [], review.show(View(**view), None, "stay")["row"]
        while row is not None and review.show(View(**view), row, "previous")["row"] is not None:
            row = review.show(View(**view), row, "previous")["row"]
        while row is not None:
            found.append(row)
            row = review.show(View(**view), row, "next")["row"]
        return found

    choices = {choice["name"]: choice for choice in review.choices()}
    assert rows() == [0, 1, 2, 3, 4]
    assert rows(show="kept") == [0, 3]
    assert rows(show="rejected") == [1, 2, 4]
    assert rows(show=choices["math: wrong answer"]["value"]) == [1]
    assert rows(show="status:failed") == [4]
    assert rows(state="edited") == [3]
    assert rows(show="kept", state="unreviewed") == [0]
    assert rows(text="ANSWER 2") == [2]
    assert rows(text="other") == [3], "an edit is searched as well"
    assert rows(text="row1") == [1]
    assert {name: choice["count"] for name, choice in choices.items() if choice["group"] == "rejected by"} == {
        "math: wrong answer": 1,
        "length: too long": 1,
        "status: failed": 1,
    }
    verdicts = [review.show(View(), row, "stay")["samples"][0]["verdict"] for row in (0, 1, 4)]
    assert verdicts == [
        {"kept": True},
        {"kept": False, "step": "math", "reason": "wrong answer", "detail": "is 1"},
        {"kept": False, "step": "status", "reason": "failed", "detail": ""},
    ]
    with pytest.raises(UserError, match="Unknown view 'keptt'"):
        review.show(View(show="keptt"), None, "stay")
    review.close()


def test_what_a_filter_made_of_other_answers_is_not_shown(outputs: Layout, caplog: pytest.LogCaptureFixture) -> None:
    write_filtered(outputs, {})
    write_outputs(outputs, [[sample("Another.", request_sha256="other")]])
    review = Review(outputs, KEY)
    assert not review.is_filtered
    assert "distilled_v1 was made of other answers" in caplog.text
    review.close()
    with pytest.raises(UserError, match="made of other answers"):
        Review(outputs, KEY, filtered="distilled_v1")


def test_of_several_filters_the_newest_is_shown_or_the_one_asked_for(outputs: Layout) -> None:
    write_filtered(outputs, {0: ("math", "wrong", "")})
    os.utime(outputs.dataset_manifests("distillation") / "distilled_v1.json", (0, 0))
    write_filtered(outputs, {1: ("length", "too long", "")}, name="short")
    for filtered, rejected in ((None, 1), ("distilled_v1", 0)):
        review = Review(outputs, KEY, filtered=filtered)
        assert review.show(View(show="rejected"), None, "stay")["row"] == rejected
        review.close()
    with pytest.raises(UserError, match=r"no .*rejected/distilled_v2.* Did you mean 'distilled_v1'"):
        Review(outputs, KEY, filtered="distilled_v2")


def test_samples_of_a_prompt_come_together_and_moves_can_skip_them(layout: Layout) -> None:
    write_outputs(layout, [[sample(f"{number}.{index}") for index in range(3)] for number in range(3)])
    review = Review(layout, KEY)
    shown = review.show(View(), 4, "stay")
    assert [each["row"] for each in shown["samples"]] == [3, 4, 5]
    assert (shown["row"], shown["num_samples"], shown["extra"]) == (4, 3, {"reference": "R1", "more": "[1]"})
    assert review.show(View(), 4, "next-prompt")["row"] == 6
    assert review.show(View(), 4, "previous-prompt")["row"] == 0
    assert review.show(View(), 7, "next-prompt")["row"] is None
    review.close()


def test_rows_are_read_right_across_blocks_and_groups(tmp_path: Path) -> None:
    table = pyarrow.table({"row_id": [str(number) for number in range(1000)], "sample_index": [0] * 1000})
    parquet.write_table(table, tmp_path / "file.parquet", row_group_size=150)
    file = PairFile(tmp_path / "file.parquet", ("row_id",), required=("row_id",))
    for begin in (0, 63, 149, 290, 995, 5):
        assert [row["row_id"] for row in file.read(begin, begin + 5)] == [str(row) for row in range(begin, begin + 5)]


def test_rows_that_are_the_same_answer_are_refused(layout: Layout) -> None:
    write_outputs(layout, [[sample("x", request_sha256="r")], [sample("y")]])
    path = layout.processed / "distillation" / "teacher_outputs" / f"{KEY}.parquet"
    table = parquet.read_table(path)
    parquet.write_table(pyarrow.concat_tables([table, table.slice(0, 1)]), path)
    with pytest.raises(UserError, match="rows 0 and 2 have the same row_id"):
        Review(layout, KEY)


def test_an_unknown_dataset_is_told_with_how_to_make_it(layout: Layout) -> None:
    with pytest.raises(UserError, match="It is made by: nexa collect-teacher"):
        Review(layout, KEY)


def test_what_is_no_parquet_file_or_lacks_a_column_is_told(layout: Layout) -> None:
    durable.write_text(layout.root / "text.parquet", "text")
    with pytest.raises(UserError, match=r"text.parquet cannot be read as Parquet"):
        Review(layout, str(layout.root / "text.parquet"))
    parquet.write_table(pyarrow.table({"row_id": ["a"], "prompt": ["b"]}), layout.root / "pairs.parquet")
    with pytest.raises(
        UserError, match=r"has no column sample_index and no request_sha256 and no completion. It has row_id, prompt"
    ):
        Review(layout, str(layout.root / "pairs.parquet"))


def test_filter_pairs_obeys_what_was_decided_and_its_verdicts_are_shown(outputs: Layout) -> None:
    config = {"collect": {"teacher": "recorded:none.jsonl"}, "filter": {"steps": [], "val": 0.2}}
    durable.write_json(outputs.root / "distill.yaml", config)
    settings = load_config(outputs.root / "distill.yaml", DistillConfig)
    review = Review(outputs, KEY)
    review.decide([{"row": 0, "decision": "reject", "version": 0}])
    review.decide([{"row": 1, "decision": "edit", "completion": "Better.", "version": 0}])
    review.decide([{"row": 4, "decision": "edit", "completion": "Written by hand.", "version": 0}])
    review.close()
    filter_pairs(settings, outputs)
    folder = outputs.processed / "distillation" / "sft_datasets"
    pairs = [row for path in folder.glob("*.parquet") for row in parquet.read_table(path).to_pylist()]
    edited = {row["completion"]: json.loads(row["extra_json"]).get("answer_edited", False) for row in pairs}
    assert edited == {"Better.": True, "Answer 2.": False, "Answer 3.": False, "Written by hand.": True}
    again = Review(outputs, KEY)
    verdicts = [again.show(View(), row, "stay")["samples"][0]["verdict"] for row in range(5)]
    assert [verdict["kept"] for verdict in verdicts] == [False, True, True, True, True]
    assert (verdicts[0]["step"], verdicts[0]["reason"]) == ("review", "rejected by a person")
    again.close()


# Its server.


def test_the_page_is_for_its_own_host_and_its_own_token(outputs: Layout) -> None:
    with reviewing(outputs) as url:
        token = token_of(url)
        wish = [{"row": 0, "decision": "accept", "version": 0}]
        assert ask(f"{url}/pair", Host="127.0.0.1.evil.example:80")[0] == 403
        assert ask(f"{url}/pair", Host=f"localhost:{url.rpartition(':')[2]}")[0] == 200
        assert ask(f"{url}/decide", wish)[0] == 403
        assert ask(f"{url}/decide", wish, **{"X-Review-Token": "guessed"})[0] == 403
        assert ask(f"{url}/undo", {}, Host="evil.example", **token)[0] == 403
        assert decided(outputs) == []
        assert ask(f"{url}/decide", wish, **token)[0] == 200
    assert [line["decision"] for line in decided(outputs)] == ["accept"]


def test_every_answer_forbids_foreign_scripts_and_frames(outputs: Layout) -> None:
    with reviewing(outputs) as url:
        for path in ("/", "/page.js", "/page.css", "/pair"):
            with urllib.request.urlopen(url + path) as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'none'; script-src 'self';" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy


def test_mistakes_are_answered_with_a_sentence(outputs: Layout) -> None:
    with reviewing(outputs) as url:
        token = token_of(url)
        assert ask(f"{url}/pair?row=7") == (400, {"error": "There is no row 7; there are 5, from 0 on."})
        assert ask(f"{url}/pair?row=x")[0] == 400
        assert ask(f"{url}/decide", {"row": 0}, **token) == (400, {"error": "A list of decisions is expected."})
        assert ask(f"{url}/undo", {}, **token)[0] == 409
        assert ask(f"{url}/nothing")[0] == 404
        durable.write_text(outputs.processed / "distillation" / "reviews" / f"{KEY}.jsonl", "")
        status, answer = ask(f"{url}/decide", [{"row": 0, "decision": "accept", "version": 0}], **token)
        assert status == 507
        assert "another program has changed it" in answer["error"]


# The command.


@contextmanager
def command(layout: Layout, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command and its URL."""
    run = [sys.executable, "-m", "scripts.cli", "review", "--no-open", "--port", "0", *arguments]
    environment = {**os.environ, "NEXA_ROOT": str(layout.root)}
    with subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert found, process.stderr and process.stderr.read()
            yield process, found[0]
        finally:
            process.kill()


def test_the_command_says_where_the_page_is_and_ends_with_what_was_decided(outputs: Layout) -> None:
    with command(outputs) as (process, url):
        for row, decision in ((0, "accept"), (1, "reject")):
            ask(f"{url}/decide", [{"row": row, "decision": decision, "version": 0}], **token_of(url))
        with pytest.raises(UserError, match=r"Another `nexa review` has .* open"):
            Review(outputs, KEY)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"{KEY}: 5 pairs: 1 accepted, 1 rejected, 0 edited, 3 left" in said
    assert said.rstrip().endswith(f"reviews/{KEY}.jsonl; next: nexa filter-pairs --src {KEY}")


def test_a_killed_review_has_every_decision_that_it_said_was_saved(outputs: Layout) -> None:
    with command(outputs) as (process, url):
        token = token_of(url)
        for row in range(4):
            assert ask(f"{url}/decide", [{"row": row, "decision": "accept", "version": 0}], **token)[0] == 200
        process.kill()
    assert [line["row_id"] for line in decided(outputs)] == ["row0", "row1", "row2", "row3"]
    Review(outputs, KEY).close()


def test_a_taken_port_is_told_with_what_to_do(outputs: Layout) -> None:
    with reviewing(outputs) as url:
        port = url.rpartition(":")[2]
        path = outputs.processed / "distillation" / "teacher_outputs" / f"{KEY}.parquet"
        durable.copy(path, path.with_name("others_v1.parquet"))
        run = [sys.executable, "-m", "scripts.cli", "review", "others_v1", "--no-open", "--port", port]
        done = subprocess.run(
            run, env={**os.environ, "NEXA_ROOT": str(outputs.root)}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert f"Port {port} is taken. Choose another with --port" in done.stderr


def test_pairs_that_were_filtered_before_are_filtered_anew() -> None:
    assert next_command("mine_v2", is_filtered=True) == "nexa filter-pairs --src mine_v2 --replace"


# The page, in a browser.


def where(page: Page) -> str:
    return page.text("#where")


def is_at(page: Page, place: str) -> None:
    """Wait until the page shows a pair and everything asked of the server is answered."""
    page.wait(f"document.getElementById('where').textContent === {json.dumps(place)}")
    page.wait("document.getElementById('main').ariaBusy === 'false'")


@pytest.mark.browser
def test_keys_accept_reject_edit_and_undo(outputs: Layout, browser: Browser) -> None:
    with reviewing(outputs) as url:
        page = browser.open(url)
        assert where(page) == "pair 1 of 5"
        page.press("a")
        is_at(page, "pair 2 of 5")
        assert page.text("#said") == "Accepted, saved."
        page.press("r")
        is_at(page, "pair 3 of 5")
        page.press("e")
        page.type(" And more: a r u j.")
        page.press("Ctrl+Enter")
        is_at(page, "pair 4 of 5")
        assert page.text("#progress-text") == "3 of 5 reviewed"
        assert [line["decision"] for line in decided(outputs)] == ["accept", "reject", "edit"]
        assert decided(outputs)[-1]["completion"] == "Answer 2. And more: a r u j."
        page.press("u")
        is_at(page, "pair 3 of 5")
        assert page.text(".answer") == "Answer 2."
        page.press("k", "k")
        is_at(page, "pair 1 of 5")
        assert page.text(".decision") == "✓ accepted"
        page.press("c")
        page.wait("document.querySelector('.decision').textContent === ''")
        assert [line["decision"] for line in decided(outputs)][3:] == ["none", "none"]


@pytest.mark.browser
def test_keys_move_as_often_as_they_are_pressed_and_decide_once_when_held(outputs: Layout, browser: Browser) -> None:
    with reviewing(outputs) as url:
        page = browser.open(url)
        page.press("j", "ArrowRight", "ArrowDown")
        is_at(page, "pair 4 of 5")
        page.press("k", "ArrowLeft", "ArrowUp")
        is_at(page, "pair 1 of 5")
        held = {"key": "a", "text": "a", "windowsVirtualKeyCode": 65}
        for repeat in (False, True, True):
            page.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=repeat, **held)
            is_at(page, "pair 2 of 5")
        assert len(decided(outputs)) == 1
        at_once = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'r', bubbles: true}));"
        page.read(at_once * 3)
        is_at(page, "pair 3 of 5")
        assert len(decided(outputs)) == 2, "what was pressed before the next pair was there is not about it"
        assert page.text("#trouble") == ""
        page.press("Ctrl+a", "Alt+a", "x")
        assert len(decided(outputs)) == 2, "keys with Ctrl or Alt belong to the browser"


@pytest.mark.browser
def test_leaving_the_edit_box_saves_nothing_and_keeps_the_draft(outputs: Layout, browser: Browser) -> None:
    with reviewing(outputs) as url:
        page = browser.open(url)
        page.press("e")
        page.type(" A")
        page.press("Escape")
        assert page.text("#said").startswith("Not saved.")
        page.press("e")
        page.type(" draft")
        page.click("#next")
        is_at(page, "pair 2 of 5")
        page.press("k")
        is_at(page, "pair 1 of 5")
        assert "draft" in page.text(".decision")
        page.press("e")
        assert page.read("document.querySelector('textarea').value") == "Answer 0. A draft"
        page.click(".sample .save")
        is_at(page, "pair 2 of 5")
        assert decided(outputs)[0]["completion"] == "Answer 0. A draft"
        page.press("k")
        is_at(page, "pair 1 of 5")
        page.press("a")
        is_at(page, "pair 2 of 5")
        assert len(decided(outputs)) == 1, "accepting what one has edited does not throw the edit away"


@pytest.mark.browser
def test_ends_of_lines_survive_the_edit_box(layout: Layout, browser: Browser) -> None:
    write_outputs(layout, [[sample("one\r\ntwo")], [sample("last")]])
    with reviewing(layout) as url:
        page = browser.open(url)
        page.press("e", "Ctrl+Enter")
        assert page.text("#said") == "Nothing changed."
        page.press("e")
        page.type("!")
        page.press("Ctrl+Enter")
        is_at(page, "pair 2 of 2")
    assert decided(layout)[0]["completion"] == "one\r\ntwo!"


@pytest.mark.browser
def test_what_pairs_say_is_shown_as_text_and_never_obeyed(layout: Layout, browser: Browser) -> None:
    write_outputs(layout, [[sample(HOSTILE, error=HOSTILE, model=HOSTILE)], [sample("x")]])
    write_filtered(layout, {0: (HOSTILE, HOSTILE, HOSTILE)})
    with reviewing(layout) as url:
        page = browser.open(url)
        seen = HOSTILE.replace("\u202e", "\ufffd").replace("\x07", "␇")
        assert page.text(".answer") == seen
        page.press("/")
        page.type("<script")
        page.wait("document.querySelector('.answer mark')?.textContent === '<script'")
        assert page.text(".answer") == seen
        assert page.text("#show").count(seen) == 2
        assert page.read("[document.title, document.querySelectorAll('img, main script').length]") == [
            f"{KEY} · review",
            0,
        ]


@pytest.mark.browser
def test_samples_stand_side_by_side_and_one_can_be_accepted_alone(layout: Layout, browser: Browser) -> None:
    write_outputs(layout, [[sample(f"{number}.{index}") for index in range(3)] for number in range(2)])
    with reviewing(layout) as url:
        page = browser.open(url)
        tops = page.read("[...document.querySelectorAll('.sample')].map((card) => card.getBoundingClientRect().top)")
        assert len(set(tops)) == 1
        page.press("3")
        is_at(page, "pair 3 of 6")
        page.click(".sample:nth-child(2)")
        is_at(page, "pair 2 of 6")
        page.press("A")
        is_at(page, "pair 4 of 6")
        assert {line["sample_index"]: line["decision"] for line in decided(layout)} == {
            0: "reject",
            1: "accept",
            2: "reject",
        }
        page.press("u")
        is_at(page, "pair 2 of 6")
        assert page.text("#progress-text") == "0 of 6 reviewed"
        page.resize(390, 500, is_phone=True)
        page.press("3")
        is_at(page, "pair 3 of 6")
        page.reload()
        box = page.read("document.querySelector('.sample[aria-current]').getBoundingClientRect().toJSON()")
        assert 0 < box["top"] < 500, "what the buttons are about is on the screen"


@pytest.mark.browser
def test_filters_and_search_lead_from_pair_to_pair_and_survive_a_reload(outputs: Layout, browser: Browser) -> None:
    write_filtered(outputs, {1: ("math", "wrong answer", "is 1"), 3: ("math", "wrong answer", "is 3")})
    with reviewing(outputs) as url:
        page = browser.open(url)
        page.read(
            "(s => { s.value = 'rejected'; s.dispatchEvent(new Event('change')) })(document.getElementById('show'))"
        )
        is_at(page, "pair 1 of 2")
        assert page.text(".verdict") == "✕ Rejected by math: wrong answer — is 1"
        page.press("a")
        is_at(page, "pair 2 of 2")
        page.reload()
        assert (where(page), page.read("document.getElementById('show').value")) == ("pair 2 of 2", "rejected")
        page.press("r")
        page.wait("!document.getElementById('end').hidden")
        assert page.text("#end-title") == "All pairs shown are reviewed"
        page.click("#go-all")
        is_at(page, "pair 1 of 5")
        page.press("/")
        page.type("Question 2")
        is_at(page, "pair 1 of 1")
        assert page.text("#prompt mark") == "Question 2"
        page.press("Enter", "j")
        page.wait("!document.getElementById('end').hidden")


@pytest.mark.browser
def test_a_second_window_cannot_overwrite_what_the_first_decided(outputs: Layout, browser: Browser) -> None:
    with reviewing(outputs) as url:
        first, second = browser.open(url), browser.open(url)
        first.press("a")
        is_at(first, "pair 2 of 5")
        second.press("r")
        second.wait("document.getElementById('trouble').textContent.includes('another window')")
        assert second.text(".decision") == "✓ accepted"
        assert [line["decision"] for line in decided(outputs)] == ["accept"]


@pytest.mark.browser
def test_a_page_whose_review_has_ended_says_that_nothing_is_saved(outputs: Layout, browser: Browser) -> None:
    with reviewing(outputs) as url:
        page = browser.open(url)
    page.press("a")
    page.wait("document.getElementById('trouble').textContent.includes('nothing more is saved')")
    assert where(page) == "pair 1 of 5"


@pytest.mark.browser
@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_can_be_read_in_light_and_dark_and_on_a_phone(
    layout: Layout, browser: Browser, is_dark: bool, width: int
) -> None:
    """All text stands out from its ground by 4.5 to 1 (WCAG 2.2, 1.4.3), every control has a name, nothing is cut off."""
    write_outputs(layout, [[sample("x" * 500)], *[[sample("y", status="truncated")]] * 4])
    write_filtered(layout, {0: ("math", "wrong answer", "is 1")})
    with reviewing(layout) as url:
        page = browser.open(url)
        page.resize(width, 800, is_phone=width < 600, is_dark=is_dark)
        page.press("r")
        is_at(page, "pair 2 of 5")
        page.press("k")
        is_at(page, "pair 1 of 5")
        assert page.read("document.documentElement.scrollWidth") <= width
        assert page.read(POOR_CONTRASTS) == []
        page.press("?")
        assert page.read("document.activeElement.id") == "close-help"
        page.press("Escape", "e")
        assert page.read("document.activeElement.getAttribute('aria-label')") == "The completion, to edit"
        tree = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [
        node for node in tree if node.get("role", {}).get("value") in ("button", "combobox", "searchbox", "textbox")
    ]
    assert len(controls) > 8
    assert all(node["name"]["value"].strip() for node in controls)


POOR_CONTRASTS = """
(() => {
  const light = (color) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => e === null ? getComputedStyle(document.body).backgroundColor
    : /, 0\\)$/.test(getComputedStyle(e).backgroundColor) ? ground(e.parentElement) : getComputedStyle(e).backgroundColor;
  const poor = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !e.checkVisibility() || e.closest(":disabled")) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${e.id || e.className || e.tagName}: ${ratio.toFixed(2)}`);
  }
  return poor;
})()
"""
