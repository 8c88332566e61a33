"""The check of written sums: what it finds, what it leaves alone, what it rejects."""

from pathlib import Path

import pytest

from nexa_core.config.distill_filter import ArithmeticCheck
from nexa_core.paths import Layout
from nexa_distill.checks import Pair, open_check
from nexa_distill.checks.arithmetic import NO_SUM, OTHER_RESULT, WRONG_SUM, sums_in


def reason(completion: str, **settings: bool) -> str | None:
    check = open_check(ArithmeticCheck(name="arithmetic", **settings), Layout(Path(".")))
    pair = Pair({"row_id": "a", "prompt": "?", "completion": completion, "extra_json": "{}"})
    (verdict,) = check([pair])
    return None if verdict.rejection is None else verdict.rejection.reason


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("First 7 * 6 = 42.", True),
        ("7 * 6 = 43", False),
        ("She has 2 + 3 * 4 = 14 eggs", True),
        ("2 + 3 * 4 = 20", False),
        ("48/2 = <<48/2=24>>24", True),
        ("$1,200 - $200 = $1,000", True),
        ("10 / 3 = 3.33", True),
        ("10 / 3 = 3.34", False),
        ("10 / 3 = 3", False),
        ("3 - 5 = -2", True),
        ("6 \u00d7 7 = 42 and 42 \u00f7 2 = 21", True),
        ("14*20=140 minutes", False),
    ],
)
def test_sums_are_right_or_wrong(text: str, is_right: bool) -> None:
    found = list(sums_in(text))
    assert found
    assert all(right for _, right, _ in found) is is_right


@pytest.mark.parametrize(
    "text",
    [
        *("no sums here", "(2 + 3) * 4 = 20", "(1 + 2) + 3 + 4 = 10", "5 - 3 * (2 - 1) = 2"),
        *("75 - 25 = 150 - 100", "15 / 60 = 1/4", "17/3 = 5 and 2/3", "3 / 2 = 1 1/2", "158 * 1 1/2 = 237"),
        *("5 / 0 = 0", "8/3 = 24/y", "30 * 3 = 30 + m", "100 - 80 = 20 %"),
    ],
)
def test_nothing_is_said_of_parts_of_sums(text: str) -> None:
    assert [shown for shown, is_right, _ in sums_in(text) if not is_right] == []


def test_a_wrong_sum_is_rejected_and_a_right_one_is_not() -> None:
    assert reason("First 7 * 6 = 42, then 42 - 2 = 40.\n#### 40") is None
    assert reason("First 7 * 6 = 42, then 42 - 2 = 41.\n#### 41") == WRONG_SUM


def test_an_answer_without_sums_is_rejected_where_they_are_asked_for() -> None:
    assert reason("It is 5.") is None
    assert reason("It is 5.", require_sums=True) == NO_SUM


def test_the_final_answer_has_to_be_the_last_result_where_that_is_asked_for() -> None:
    assert reason("2 + 2 = 4\n#### 5") is None
    assert reason("2 + 2 = 4\n#### 5", ends_with_last=True) == OTHER_RESULT
    assert reason("2 + 2 = 4\n#### 4", ends_with_last=True) is None
