"""The built-in source of word problems: always the same, rightly answered, in parts that share no question."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nexa_data.sources.word_problems import MOST, NUM_PROBLEMS, PARTS, Problem, parts_of, problems, read_word_problems
from nexa_distill.checks.arithmetic import sums_in


@pytest.fixture(scope="module")
def all_problems() -> list[Problem]:
    return problems()


def test_another_process_finds_the_same_problems(all_problems: list[Problem]) -> None:
    code = (
        "import json; from nexa_data.sources.word_problems import problems, parts_of\n"
        "found = problems(200); print(json.dumps([[p.question, p.answer] for p in found]))"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == [[each.question, each.answer] for each in all_problems[:200]]


def test_no_question_is_in_two_parts(all_problems: list[Problem]) -> None:
    questions = {part: {row["question"] for row in read_word_problems([part])} for part in PARTS}
    together = set().union(*questions.values())
    assert sum(map(len, questions.values())) == len(together) == NUM_PROBLEMS == len(all_problems)
    for part, share in PARTS.items():
        assert abs(len(questions[part]) / NUM_PROBLEMS - share) < 0.005, part
    few = [each.question for each in all_problems[:50]]
    assert parts_of(few) == [parts_of([question])[0] for question in few], "a question's part depends on others"


def test_every_answer_is_right(all_problems: list[Problem]) -> None:
    for problem in all_problems:
        sums = list(sums_in(problem.answer))
        assert len(sums) == len(problem.steps) in (2, 3)
        assert all(is_right for _, is_right, _ in sums)
        assert 0 < problem.final == sums[-1][2] <= MOST
        assert problem.answer.endswith(f"\n#### {problem.final}")
        # Each number of the question is one of the sums', so that the question asks what the answer answers.
        numbers = [word.strip(".,") for word in problem.question.split() if word.strip(".,").isdigit()]
        written = " ".join(problem.steps).split()
        assert all(number in written for number in numbers), problem


def test_unlabelled_problems_have_no_answer() -> None:
    rows = list(read_word_problems(["unlabelled", "labelled"]))
    assert {row["part"] for row in rows} == {"unlabelled", "labelled"}
    for row in rows:
        assert (row["answer"] is None) == (row["final"] is None) == (row["part"] == "unlabelled")
