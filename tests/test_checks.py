"""The checks of answers: which are rejected, and why; what hangs or dies stops nothing."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_core.config.distill_filter import ExactCheck, FilterConfig, MathCheck
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_distill.answers import as_number, canonical, final_answer, same_number
from nexa_distill.checks import Pair, Rejection, Verdict, open_check
from nexa_distill.checks.judge import read_score
from nexa_distill.checks.verifier import Verifier
from tests.simulators import simulator
from tests.teacher_answers import row

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
        ("#### Conclusion\nSo it is \\boxed{72}.", "72"),
        ("#### Step 2\nHalf of 144 is 72", "72"),
        ("#### 3\nNo: \\boxed{4}", "4"),
        ("\\boxed{4}, or rather\n#### 3", "3"),
        ("#### **72**", "72"),
        ("#### 72\nShall I explain 5 more?", "72"),
        ("#### Tuesday\n", "Tuesday"),
    ],
)
def test_final_answers_are_found(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other"), [("1,000", "1000.0"), ("$18", "18"), ("1/2", "0.5"), ("50%", "0.5"), ("-3.", "-3")]
)
def test_spellings_of_a_number_are_the_same_answer(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("text", "answer"), [("The answer is \N{MINUS SIGN}5", "\N{MINUS SIGN}5"), ("so 1e5 of them", "1e5")]
)
def test_numbers_in_a_text_are_read_whole(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@given(st.text(max_size=60))
def test_no_text_breaks_finding_an_answer(text: str) -> None:
    final_answer(text)
    as_number(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("50%", "50", True), (r"50\%", "0.5", True), ("50%", "5", False), ("0.5", "50", False), ("1,000", "1000.0", True),
     ("$18.50", "18.5", True), ("twelve", "12", None), ("1/0", "1", None), ("1,2", "12", None), ("3,4", "34", None),
     ("-$5", "-5", True), ("\N{MINUS SIGN}5", "-5", True), ("1e5", "100000", True), ("1,234,567.5", "1234567.5", True)],
)  # fmt: skip
def test_numbers_are_compared_as_numbers(one: str, other: str, same: bool | None) -> None:
    assert same_number(one, other) is same
    assert same_number(other, one) is same


def verdicts(steps: Mapping[str, Any], rows: list[dict[str, Any]], lab: Path) -> list[Verdict]:
    (step,) = FilterConfig.model_validate_json(json.dumps({"steps": [steps]})).steps
    return open_check(step, Layout(lab))([Pair(each) for each in rows])


def check(steps: Mapping[str, Any], rows: list[dict[str, Any]], lab: Path) -> list[Rejection | None]:
    return [verdict.rejection for verdict in verdicts(steps, rows, lab)]


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


def test_a_rounded_fraction_is_the_fraction_and_other_numbers_are_not(tmp_path: Path) -> None:
    reference = json.dumps({"answer": r"\boxed{1/3}"})
    found = check(
        {"name": "math", "reference": "answer"},
        [row("a", rf"\boxed{{{text}}}", extra_json=reference) for text in ("0.333333", "0.34", "3,1")],
        tmp_path,
    )
    assert [each is None for each in found] == [True, False, False]


def test_expressions_are_compared_by_their_meaning(tmp_path: Path) -> None:
    pairs = [(r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}"), (r"\boxed{x^2 - 1}", "(x-1)(x+1)"), (r"\boxed{x^2}", "x^3")]
    rows = [row("a", text, extra_json=json.dumps({"answer": wanted})) for text, wanted in pairs]
    found = check({"name": "math", "reference": "answer"}, rows, tmp_path)
    assert [each is None for each in found] == [True, True, False]


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
    step = {"name": "check:tests.test_checks:no_vowels", "parameters": {"vowels": "aeiou"}}
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


def reasons_of(found: list[Rejection | None]) -> list[str | None]:
    return [None if each is None else each.reason for each in found]


def test_without_a_reference_an_answer_has_to_be_readable(tmp_path: Path) -> None:
    rows = [
        row("a", text) for text in ("#### 12", r"\boxed{\frac{x}{2}}", "I do not know", r"\boxed{}", r"\boxed{\frac}")
    ]
    assert reasons_of(check({"name": "math"}, rows, tmp_path)) == [
        None, None, "no final answer", "no final answer", "the final answer is no expression",
    ]  # fmt: skip


def test_a_comparison_that_hangs_is_given_up_and_the_next_one_works() -> None:
    verifier, tower = Verifier(2.0), "9^{9^{9^9}}"
    for _ in range(2):  # a process that has just begun is given up as well as one that has compared something
        began = time.monotonic()
        assert verifier.difference("1", tower, told="wrong") == "not compared in time"
        assert time.monotonic() - began < 30
        assert verifier.difference(r"\sqrt{9}", "3", told="wrong") is None
    assert verifier.difference(r"\sqrt{9}", "4", told="wrong") == "wrong"


def test_a_comparison_whose_process_dies_is_a_reason_and_no_end() -> None:
    verifier, before = Verifier(30.0), {each.pid for each in multiprocessing.active_children()}
    assert verifier.difference("x", "x", told="wrong") is None
    (process,) = [each for each in multiprocessing.active_children() if each.pid not in before]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert verifier.difference("x", "x", told="wrong") == "could not be compared"
    assert verifier.difference("x", "x", told="wrong") is None
    del verifier
    assert {each.pid for each in multiprocessing.active_children()} == before


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ({"matches": r"\d+ apples"}, " 12 apples\n", ("12 apples, I think", "another form")),
        ({"starts_with": "Answer:"}, "Answer: 3", ("3", "another beginning")),
        ({"ends_with": "END"}, "3 END\n", ("3 END.", "another end")),
        ({"json_keys": ["name", "age"]}, '{"age": 3, "name": "x", "more": 1}', ('{"name": "x"}', "keys are missing")),
        ({"json_keys": ["name"]}, '{"name": null}', ('["name"]', "no JSON object")),
        ({"json_keys": ["name"]}, '{"name": {}}', ('```{"name": 1}```', "no JSON")),
    ],
)
def test_an_answer_has_the_form_that_is_asked_for(
    form: dict[str, Any], good: str, bad: tuple[str, str], tmp_path: Path
) -> None:
    assert reasons_of(check({"name": "exact", **form}, [row("a", good), row("b", bad[0])], tmp_path)) == [None, bad[1]]


def test_private_data_is_seen_in_the_columns_that_are_carried_along(tmp_path: Path) -> None:
    rows = [row("a", "Yes.", extra_json='{"from": "ann.smith@example.org"}'), row("b", "Yes.")]
    assert reasons_of(check({"name": "private"}, rows, tmp_path)) == ["num_email above 0", None]


def test_a_judge_has_a_budget(tmp_path: Path) -> None:
    rows = [row(str(number), "An answer. " * 20) for number in range(40)]
    with simulator() as server:
        ask = {
            "teacher": "openai:judge",
            "base_url": server.base_url,
            "prices": {"judge": {"prompt_usd_per_million": 0.15, "completion_usd_per_million": 0.6}},
        }
        with pytest.raises(GateError, match=r"0\.001"):
            check({"name": "judge", "ask": ask, "max_cost_usd": 0.001}, rows, tmp_path)
        assert 0 < float(server.bill()["usd"]) <= 0.001


def test_what_was_measured_is_told(tmp_path: Path) -> None:
    (length,) = verdicts({"name": "length", "min_words": 1}, [row("a", "Two words")], tmp_path)
    assert length.scores["num_words"] == 4  # with the prompt's
    samples = [row("a", text, sample_index=index) for index, text in enumerate(["#### 1", "#### 1", "#### 2"])]
    agreed = verdicts({"name": "agreement"}, samples, tmp_path)
    assert [round(each.scores["share"], 3) for each in agreed] == [0.667] * 3


def test_settings_that_check_nothing_are_refused() -> None:
    config = FilterConfig.model_validate_json('{"steps": [{"name": "private", "action": "mask"}]}')
    assert [path for path, _ in config.conflicts()] == [("steps", 0, "action")]
    assert MathCheck(name="math", reference="answer").timeout_seconds > 0
    assert list(ExactCheck(name="exact").conflicts())
    assert list(ExactCheck(name="exact", matches="(").conflicts())


def test_a_judge_that_does_not_answer_rejects_no_pairs(tmp_path: Path) -> None:
    with simulator("--faults", "server_error=0.5") as server:
        ask = {"teacher": "openai:m", "base_url": server.base_url, "pace": {"max_tries": 1}}
        with pytest.raises(GateError, match=r"requests to the judge failed, more than max_failed_share: 0\.01"):
            verdicts({"name": "judge", "ask": ask}, [row(f"{number}", "1") for number in range(40)], tmp_path)
