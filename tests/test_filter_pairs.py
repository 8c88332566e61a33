"""Filtering a teacher's answers: what is kept, why the rest is not, and nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nexa_core.config import DistillConfig, load_config
from nexa_core.config.distill_filter import FilterConfig, MathCheck
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data.datasets import find_dataset, open_dataset
from nexa_data.validation import validate
from nexa_distill.answers import as_number, canonical, final_answer
from nexa_distill.checks import Pair, Rejection, open_check
from nexa_distill.checks.judge import read_score
from nexa_distill.checks.math import Verifier
from nexa_distill.filter_pairs import Filtered, filter_pairs
from nexa_distill.outputs import SCHEMA
from nexa_distill.regenerate import regenerate
from nexa_distill.reviews import reviews_path
from tests.simulators import ROOT, simulator


def row(row_id: str, completion: str | None, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    base = {
        "row_id": row_id,
        "sample_index": 0,
        "prompt": f"Question {row_id}?",
        "completion": completion,
        "status": "answered",
    }
    costs = {"cost_usd": 0.5, "request_sha256": f"digest of {row_id}", "extra_json": "{}", "teacher": "t:m"}
    return {**made, **base, **costs, **more}


def write_outputs(lab: Path, rows: list[dict[str, Any]], key: str = "teacher_outputs_v1") -> None:
    path = lab / "data/processed/distillation/teacher_outputs" / f"{key}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), path)


def settings(lab: Path, steps: list[dict[str, Any]], **more: Any) -> DistillConfig:
    config = {"collect": {"teacher": "recorded:none.jsonl"}, "filter": {"steps": steps, "val": 0.2, **more}}
    (lab / "distill.yaml").write_text(yaml.safe_dump(config))
    return load_config(lab / "distill.yaml", DistillConfig)


def filtered(lab: Path, steps: list[dict[str, Any]], *, replace: bool = False, **more: Any) -> Filtered:
    return filter_pairs(settings(lab, steps, **more), Layout(lab), replace=replace)


def read(lab: Path, done: Filtered, what: str) -> list[dict[str, Any]]:
    return parquet.read_table(lab / done.manifest[what]["path"]).to_pylist()


def reasons(lab: Path, done: Filtered) -> dict[str, tuple[str, str]]:
    return {each["row_id"]: (each["step"], each["reason"]) for each in read(lab, done, "rejected")}


def test_every_answer_is_kept_or_has_its_reason(tmp_path: Path) -> None:
    rows = [
        row("good", "A fine answer of some words."),
        row("failed", None, status="failed", error="HTTP 500"),
        row("refused", None, status="refused"),
        row("cut", "A fine answ", status="truncated"),
        row("empty", "  "),
        row("short", "Yes."),
        row("sorry", "I'm sorry, but I can't help with that one today."),
    ]
    write_outputs(tmp_path, rows)
    done = filtered(
        tmp_path, [{"name": "length", "of": "completion", "min_words": 3}, {"name": "refusals", "of": "completion"}]
    )
    assert [each["row_id"] for each in read(tmp_path, done, "filtered")] == ["good"]
    assert reasons(tmp_path, done) == {
        "failed": ("status", "failed"),
        "refused": ("status", "refused"),
        "cut": ("status", "truncated"),
        "empty": ("status", "empty answer"),
        "short": ("length", "num_words below 3"),
        "sorry": ("refusals", "num_refusals above 0"),
    }
    steps = {step["name"]: (step["rows_in"], step["rows_out"]) for step in done.manifest["steps"]}
    assert steps == {"status": (7, 3), "length": (3, 2), "refusals": (2, 1), "review": (1, 1), "duplicates": (1, 1)}
    assert done.manifest["price_per_kept_pair_usd"] == pytest.approx(3.5)


def test_the_pairs_are_a_dataset_to_train_on(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row(str(n), f"Answer {n}.", extra_json='{"level": 1}') for n in range(60)])
    done = filtered(tmp_path, [], tokenizer={"vocab_size": 300})
    dataset = open_dataset(Layout(tmp_path), "distilled", "v1", category="distillation")
    train, val = (dataset.read_split(split).to_pylist() for split in ("train", "val"))
    assert len(train) + len(val) == 60
    assert len(val) > 3
    assert validate(find_dataset(Layout(tmp_path), "distilled_v1")).holds
    assert dataset.tokenizer_json()
    about = json.loads(train[0]["extra_json"])
    assert about["request_sha256"] == f"digest of {about['teacher_row']}"
    assert about["level"] == 1
    assert done.manifest["parents"][0]["dataset"] == "teacher_outputs_v1"


def test_the_same_settings_are_a_no_op_and_others_need_a_version(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row(str(n), f"Answer {n}.") for n in range(20)])
    first = filtered(tmp_path, [])
    path = tmp_path / first.manifest["splits"]["train"]["path"]
    before = path.read_bytes()
    assert not filtered(tmp_path, []).is_new
    with pytest.raises(UserError, match="steps"):
        filtered(tmp_path, [{"name": "length", "max_words": 5}])
    path.write_bytes(b"damaged")
    assert filtered(tmp_path, []).is_new
    assert path.read_bytes() == before
    write_outputs(tmp_path, [row(str(n), f"Answer {n}!") for n in range(20)])
    with pytest.raises(UserError, match="other answers"):
        filtered(tmp_path, [])
    assert filtered(tmp_path, [], replace=True).is_new


def test_where_nothing_is_kept_the_reasons_are(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row(str(n), "Yes.") for n in range(3)])
    with pytest.raises(GateError, match="no pair is kept of 3 answers"):
        filtered(tmp_path, [{"name": "length", "min_words": 30}])
    rejected = tmp_path / "data/processed/distillation/rejected/distilled_v1.parquet"
    assert parquet.read_table(rejected)["reason"].to_pylist() == ["num_words below 30"] * 3
    assert not list(tmp_path.rglob("sft_datasets/*"))
    assert not list(tmp_path.rglob("filtered/*"))


def test_equal_pairs_are_kept_once(tmp_path: Path) -> None:
    rows = [
        row("a", "x", prompt="p"),
        row("b", "x", prompt="p"),
        row("c", "y", prompt="p"),
        row("a", "x", prompt="p", sample_index=1),
    ]
    write_outputs(tmp_path, rows)
    done = filtered(tmp_path, [])
    assert [each["completion"] for each in read(tmp_path, done, "filtered")] == ["x", "y"]
    assert [each["detail"] for each in read(tmp_path, done, "rejected")] == ["as a", "as a"]


def test_a_column_that_is_missing_is_told(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"row_id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="holds no teacher's answers: it lacks sample_index"):
        filtered(tmp_path, [], outputs=[str(tmp_path / "x.parquet")])
    with pytest.raises(UserError, match="collect_teacher"):
        filtered(tmp_path, [])


# Final answers.


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4\n#### 4", "4"),
        ("First #### 3, no:\n#### 1,234", "1,234"),
        (r"So it is \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{{2}}", "{2}"),
        ("She pays $3.50 for 7 of them.", "7"),
        ("About 12 of 15 are left: 80%", "80%"),
        ("No numbers here", None),
        (r"\boxed{never closed", None),
        ("version v2.x", None),
    ],
)
def test_final_answers_are_found(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other"), [("1,000", "1000.0"), ("$18", "18"), ("1/2", "0.5"), ("50%", "0.5"), ("-3.", "-3")]
)
def test_spellings_of_a_number_are_the_same_answer(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@given(st.text(max_size=60))
def test_no_text_breaks_finding_an_answer(text: str) -> None:
    final_answer(text)
    as_number(text)


def check(steps: Mapping[str, Any], rows: list[dict[str, Any]], lab: Path) -> list[Rejection | None]:
    (step,) = FilterConfig.model_validate_json(json.dumps({"steps": [steps]})).steps
    return open_check(step, Layout(lab))([Pair(each) for each in rows])


def test_right_solutions_pass_and_wrong_ones_do_not(tmp_path: Path) -> None:
    reference = json.dumps({"answer": "She has 5 + 7 = 12.\n#### 12"})
    texts = ["#### 12", r"\boxed{12.0}", "so 12 apples", "#### 13", "I do not know", "#### twelve"]
    found = check(
        {"name": "math", "reference": "answer"}, [row("a", text, extra_json=reference) for text in texts], tmp_path
    )
    assert [None if each is None else each.reason for each in found] == [
        None, None, None, "wrong final answer", "no final answer", "wrong final answer",
    ]  # fmt: skip
    with pytest.raises(UserError, match="Did you mean 'answer'"):
        check({"name": "math", "reference": "anwser"}, [row("a", "1", extra_json=reference)], tmp_path)


def test_expressions_are_compared_by_their_meaning(tmp_path: Path) -> None:
    pairs = [(r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}"), (r"\boxed{x^2 - 1}", "(x-1)(x+1)"), (r"\boxed{x^2}", "x^3")]
    rows = [row("a", text, extra_json=json.dumps({"answer": wanted})) for text, wanted in pairs]
    found = check({"name": "math", "reference": "answer"}, rows, tmp_path)
    assert [each is None for each in found] == [True, True, False]


def test_a_comparison_that_hangs_is_given_up_and_the_next_one_works() -> None:
    tower = "2^{3^{4^{5^{6}}}}"
    with Verifier(3.0) as verifier:
        assert verifier.are_equal(r"\sqrt{4}", "2") is True
        began = time.monotonic()
        hung = verifier.are_equal(f"{tower} + 1", f"1 + {tower} + 0")
        assert hung in (None, True, False)
        assert time.monotonic() - began < 10
        assert verifier.are_equal(r"\sqrt{9}", "3") is True


def test_samples_that_agree_leave_one(tmp_path: Path) -> None:
    def sample(group: str, index: int, text: str) -> dict[str, Any]:
        return row(group, text, sample_index=index)

    rows = [
        *(sample("a", index, text) for index, text in enumerate(["#### 3", "#### 4", "#### 4.0", "nothing"])),
        *(sample("b", index, text) for index, text in enumerate(["#### 1", "#### 2", "#### 3"])),
        sample("c", 0, "#### 1"),
    ]
    found = check({"name": "agreement", "min_share": 0.5}, rows, tmp_path)
    assert [None if each is None else each.reason for each in found] == [
        "another answer than most samples", None, "another sample stands for it", "no final answer",
        *["too few samples agree"] * 3, "too few samples to agree",
    ]  # fmt: skip


def no_vowels(prompt: str, completion: str, extra: Mapping[str, Any], *, vowels: str) -> str | None:
    return "it has vowels" if set(completion) & set(vowels) else None


def test_a_check_of_the_users_own(tmp_path: Path) -> None:
    step = {"name": "check:tests.test_filter_pairs:no_vowels", "parameters": {"vowels": "aeiou"}}
    found = check(step, [row("a", "brr"), row("b", "moo")], tmp_path)
    assert found == [None, Rejection("it has vowels")]
    with pytest.raises(UserError, match="importable"):
        check({"name": "check:tests.nowhere:f"}, [], tmp_path)


def test_a_judge_gives_scores_and_is_asked_once(tmp_path: Path) -> None:
    (tmp_path / "template.txt").write_text("Q: {prompt}\nA: {completion}\nScore: <number>")
    rows = [row("a", "fine {braces}"), row("b", "bad"), row("c", "odd")]
    said = {"a": "Good. Score: 9", "b": "Wrong.\n**Score:** 2", "c": "I cannot say"}
    with (tmp_path / "scores.jsonl").open("w") as file:
        for each in rows:
            prompt = f"Q: {each['prompt']}\nA: {each['completion']}\nScore: <number>"
            file.write(json.dumps({"prompt": prompt, "completion": said[each["row_id"]]}) + "\n")
    with simulator("--answers", str(tmp_path / "scores.jsonl")) as server:
        ask = {"teacher": "openai:judge", "base_url": server.base_url}
        step = {"name": "judge", "ask": ask, "template": "template.txt", "min_score": 5}
        for _ in range(2):
            found = check(step, rows, tmp_path)
            assert [None if each is None else (each.reason, each.detail) for each in found] == [
                None, ("score below 5", "2"), ("no score from the judge", "I cannot say"),
            ]  # fmt: skip
        assert server.bill()["answers"] == 3


def test_scores_are_read_however_they_are_set() -> None:
    assert [
        read_score(text) for text in ("Score: 7", "score = 7.5", "**Score:** 8", "Score: 3\nno, Score: 4", "none")
    ] == [7, 7.5, 8, 4, None]


# Reviews.


def test_what_people_decide_wins(tmp_path: Path) -> None:
    write_outputs(
        tmp_path, [row(name, text) for name, text in [("a", "Yes."), ("b", "A long enough answer."), ("c", "No.")]]
    )
    decisions = [
        ("a", "reject", None),
        ("a", "accept", None),
        ("b", "reject", None),
        ("c", "edit", "No, and here is why."),
    ]
    path = reviews_path(Layout(tmp_path), "teacher_outputs_v1")
    path.parent.mkdir(parents=True)
    stale = {"row_id": "b", "sample_index": 0, "decision": "accept", "request_sha256": "asked in another way"}
    lines = [
        json.dumps({"row_id": r, "sample_index": 0, "decision": d, "completion": c, "request_sha256": f"digest of {r}"})
        for r, d, c in decisions
    ] + [json.dumps(stale)]
    path.write_text("\n".join(lines) + '\n{"row_id": "a", "sample_ind')  # torn by a kill
    done = filtered(tmp_path, [{"name": "length", "of": "completion", "min_words": 3}])
    assert {each["row_id"]: each["completion"] for each in read(tmp_path, done, "filtered")} == {
        "a": "Yes.", "c": "No, and here is why.",
    }  # fmt: skip
    assert reasons(tmp_path, done) == {"b": ("review", "rejected by a person")}
    assert done.manifest["accepted_by_people"] == 2
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"v1\.jsonl:6 is no decision"):
        filtered(tmp_path, [], replace=True)


# Asking again.


def test_the_teacher_is_told_why_and_only_so_often(tmp_path: Path) -> None:
    rows = [row("good", "A fine long answer."), row("short", "No."), row("never", "Na.")]
    write_outputs(tmp_path, rows)
    filtered(tmp_path, [{"name": "length", "of": "completion", "min_words": 3}])
    with simulator() as server:
        config = {
            "collect": {"teacher": "openai:m", "base_url": server.base_url, "sampling": {"max_tokens": 32}},
            "filter": {"steps": [{"name": "length", "of": "completion", "min_words": 3}], "val": 0.2},
            "regenerate": {"max_tries": 2},
        }
        (tmp_path / "distill.yaml").write_text(yaml.safe_dump(config))
        made = regenerate(load_config(tmp_path / "distill.yaml", DistillConfig), Layout(tmp_path))
        answers = server.bill()["answers"]
        assert 2 <= answers <= 4
        again = regenerate(load_config(tmp_path / "distill.yaml", DistillConfig), Layout(tmp_path))
        assert (made.is_new, again.is_new) == (True, False)
        assert server.bill()["answers"] == answers
    found = parquet.read_table(made.place.path).to_pylist()
    assert [each["row_id"] for each in found] == ["short", "never"]
    assert [each["prompt"] for each in found] == ["Question short?", "Question never?"]
    assert all(1 <= json.loads(each["parameters_json"])["try"] <= 2 for each in found)
    both = filter_pairs(
        settings(
            tmp_path,
            [{"name": "length", "of": "completion", "min_words": 3}],
            outputs=["teacher_outputs_v1", "regenerated_v1"],
        ),
        Layout(tmp_path),
        destination="distilled_v2",
    )
    assert both.manifest["filtered"]["rows"] > 1


def test_recorded_answers_cannot_be_asked_again(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row("a", "No.")])
    with pytest.raises(UserError, match="recorded"):
        regenerate(settings(tmp_path, []), Layout(tmp_path))


# Kills, and the command.


def test_killed_and_started_again_it_makes_the_same_files(tmp_path: Path) -> None:
    labs = [tmp_path / "killed", tmp_path / "whole"]
    made = []
    for lab, delays in zip(labs, ([0.3, 0.5, 0.7, 0.9], []), strict=True):
        lab.mkdir()
        write_outputs(lab, [row(str(n), f"Answer {n} of many words. " * 20) for n in range(6000)])
        settings(lab, [{"name": "repetition", "of": "completion", "max_duplicate_line_share": 1.0}])
        command = [
            sys.executable,
            "-m",
            "nexa_distill.filter_pairs",
            "--config",
            str(lab / "distill.yaml"),
            "--replace",
        ]
        environment = {**os.environ, "NEXA_ROOT": str(lab), "PYTHONPATH": str(ROOT)}
        for delay in delays:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
            manifest = lab / "data/processed/distillation/manifests/distilled_v1.json"
            if manifest.exists():
                assert validate(find_dataset(Layout(lab), "distilled_v1")).holds
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), done.stderr
        made.append({p.relative_to(lab): p.read_bytes() for p in lab.rglob("*.parquet") if not p.name.startswith(".")})
    assert made[0] == made[1]
    assert len(made[0]) >= 2


def test_the_command_prints_the_funnel_and_where_things_lie(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row(str(n), f"Answer {n}.") for n in range(9)] + [row("failed", None, status="failed")])
    settings(tmp_path, [])
    command = [sys.executable, "-m", "nexa_distill.filter_pairs", "--config", str(tmp_path / "distill.yaml")]
    environment = {**os.environ, "NEXA_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "9 pairs kept" in done.stdout
    assert "price per kept pair: $0.55555556" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(
        "to train on data/processed/distillation/sft_datasets/distilled_v1.parquet"
    )


def test_settings_that_check_nothing_are_refused() -> None:
    config = FilterConfig.model_validate_json('{"steps": [{"name": "private", "action": "mask"}]}')
    assert [path for path, _ in config.conflicts()] == [("steps", 0, "action")]
    assert MathCheck(name="math", reference="answer").timeout_seconds > 0
