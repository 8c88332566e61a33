"""Contamination: rows that repeat evaluation texts, the text that both have, templates that do not count."""

import itertools
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_core.config.overlaps import Decontamination
from nexa_data.contamination import MAX_OCCURRENCES, Contaminated, find_contaminated, index_evaluation

QUESTION = (
    "A farmer has 17 sheep and buys 4 more at the market, then sells 9 of them to his neighbour; "
    "how many sheep does he have now?"
)
NUM_WORDS = 27
FILLER = "Here are some notes that nobody ever put into an evaluation set of any kind"
ROOT = Path(__file__).parent.parent
WORDS = [first + second for first, second in itertools.product("bdfgklmnprst", ["ano", "eri", "ilu", "oka", "usem"])]


def searching(**changes: Any) -> Decontamination:
    return Decontamination(against=("exam_v1",), **changes)


def find(evaluation: Sequence[str], rows: Sequence[str], **changes: Any) -> list[Contaminated]:
    ids = [f"eval{number}" for number in range(len(evaluation))]
    return list(find_contaminated(index_evaluation(evaluation, ids, searching(**changes)), rows))


def test_a_repeated_question_is_found_with_its_place_and_text() -> None:
    row = f"{FILLER}.\nQ: {QUESTION.upper()} A: 12"
    (found,) = find(["Something else entirely, which has words enough to be looked for here", QUESTION], ["no", row])
    assert (found.row, found.evaluation_ids[0], found.evaluation_share) == (1, "eval1", 1.0)
    assert found.coverage == 1.0
    assert found.row_share == pytest.approx(NUM_WORDS / (NUM_WORDS + 15 + 3))
    (span,) = found.spans
    assert span.text == row[span.begin : span.end] == QUESTION.upper().rstrip("?")


def test_each_overlapping_piece_is_a_span_and_coverage_counts_words() -> None:
    words = QUESTION.split()
    row = f"{' '.join(words[:13])} ... {FILLER} ... {' '.join(words[13:])}"
    (found,) = find([QUESTION], [row])
    assert [span.text for span in found.spans] == [" ".join(words[:13]).rstrip(","), " ".join(words[13:]).rstrip("?")]
    assert found.evaluation_share == 1.0
    (half,) = find([QUESTION], [f"{FILLER} {' '.join(words[:13])} {FILLER}"])
    assert half.evaluation_share == pytest.approx(13 / NUM_WORDS)
    assert half.row_share == pytest.approx(13 / (13 + 30))


def test_twelve_words_in_a_row_are_no_overlap_and_thirteen_are() -> None:
    words = QUESTION.split()
    assert find([QUESTION], [f"{' '.join(words[:12])} goats"]) == []
    assert len(find([QUESTION], [f"{' '.join(words[:13])} goats"])) == 1
    assert len(find([QUESTION], [f"{' '.join(words[:12])} goats"], ngram_words=12)) == 1


def test_symbols_are_no_words() -> None:
    assert find(["He has 24 / 2 = <<24/2=12>>12 goats left"], ["She paid $ 24 / 2 = <<24/2=12>>12 for it"]) == []
    (found,) = find([QUESTION], [QUESTION.replace(" ", " + ")])
    assert found.coverage == 1.0


def test_rows_below_the_threshold_are_left_alone() -> None:
    row = f"{FILLER} {' '.join(QUESTION.split()[:13])} {FILLER}"
    assert len(find([QUESTION], [row], min_coverage=0.48)) == 1
    assert find([QUESTION], [row], min_coverage=0.49) == []


def test_a_paragraph_out_of_a_long_passage_counts_by_its_own_share() -> None:
    draw = random.Random(1)
    passage = [draw.choice(WORDS) for _ in range(2000)]
    (found,) = find([" ".join(passage)], [" ".join(passage[700:760])])
    assert (found.evaluation_share, found.row_share, found.coverage) == (0.03, 1.0, 1.0)


def test_short_evaluation_texts_are_looked_for_as_a_whole_and_shorter_ones_are_named() -> None:
    short, shorter = "which river flows through the city of Cairo", "what is the capital of France"
    index = index_evaluation([short, shorter, "", QUESTION], ["a", "c", "b", "d"], searching())
    assert index.too_short == ("b", "c")
    rows = [f"Well, {short}, I ask", "which river flows through the city of Paris", shorter, "", "yes"]
    assert [(found.row, found.evaluation_ids[0]) for found in find_contaminated(index, rows)] == [(0, "a")]


def test_words_of_templates_do_not_count() -> None:
    template = "Answer the following question step by step and give the final answer after four hash marks"
    evaluation = [f"{template}: {QUESTION}", f"{template}. Short one here"]
    innocent = f"{template}: Mary has two apples and eats one, what is left?"
    assert [found.row for found in find(evaluation, [innocent])] == [0]
    masked: dict[str, Any] = {"templates": (template,)}
    assert find(evaluation, [innocent], **masked) == []
    (found,) = find(evaluation, [f"{template}: {QUESTION}"], **masked)
    assert (found.evaluation_share, found.row_share) == (1.0, 1.0)
    assert [span.text for span in found.spans] == [QUESTION.rstrip("?")]
    index = index_evaluation(evaluation, ["a", "b"], searching(**masked))
    assert index.too_short == ("b",)


def test_a_piece_between_templates_is_looked_for_as_a_whole() -> None:
    pieces = "Read this now: {} Choose A B C or D and say nothing else please, only the letter you chose"
    body = "the quick brown fox jumps over a lazy sleeping dog"
    templates = ("Read this now:", "Choose A B C or D and say nothing else please, only the letter you chose")
    (found,) = find([pieces.format(body)], [f"I saw {body} yesterday."], templates=templates)
    assert [span.text for span in found.spans] == [body]
    assert find([pieces.format(body)], [pieces.format("cats sleep")], templates=templates) == []


def test_the_evaluation_text_that_is_covered_most_is_named() -> None:
    longer = f"{QUESTION} And how many legs do all of the animals have together, with his own?"
    assert [found.evaluation_ids[0] for found in find([longer, QUESTION], [f"{FILLER} {QUESTION} {FILLER}"])] == [
        "eval1"
    ]
    assert [found.evaluation_ids[0] for found in find([QUESTION, QUESTION], [QUESTION])] == ["eval0"]


def test_a_text_that_the_evaluation_set_repeats_often_stays_fast_and_found() -> None:
    evaluation = [f"{QUESTION} Variant {number} of it." for number in range(10 * MAX_OCCURRENCES)]
    (found,) = find(evaluation, [f"{FILLER} {QUESTION}"])
    assert found.evaluation_ids[0] == "eval0"
    index = index_evaluation(evaluation, [str(number) for number in range(len(evaluation))], searching())
    assert index.too_short == ()
    assert len(index.hashes) < len(evaluation) * 5


def test_text_without_spaces_and_other_spellings_are_found() -> None:
    chinese = "\u5c0f\u660e\u6709\u4e94\u4e2a\u82f9\u679c\u5403\u4e86\u4e24\u4e2a\u8fd8\u5269\u51e0\u4e2a\u5462"
    row = f"\u9898\u76ee\uff1a{chinese}\uff1f"
    (found,) = find([chinese], [row])
    assert found.spans[0].text == chinese
    accents = "\u00e9t\u00e9 comme hiver le caf\u00e9 reste ouvert tous les jours de la semaine"
    decomposed = "x \u00ad e\u0301te\u0301 comme hi\u00adver le cafe\u0301 reste ouvert tous les jours de la semaine !"
    (found,) = find([accents], [decomposed])
    assert found.spans[0].text == decomposed[4:-2]


def make_case(draw: random.Random) -> tuple[list[tuple[str, str]], list[str]]:
    evaluation = [" ".join(draw.choices(WORDS, k=draw.randint(0, 40))) for _ in range(30)]
    rows = []
    for _ in range(60):
        words = draw.choice(evaluation).split()
        begin = draw.randint(0, max(len(words) - 1, 0))
        rows.append(" ".join([*draw.choices(WORDS, k=draw.randint(0, 20)), *words[begin:], draw.choice(WORDS)]))
    return [(f"{draw.getrandbits(64):x}", text) for text in evaluation], rows


def by_hand(evaluation: Sequence[tuple[str, str]], rows: Sequence[str]) -> dict[int, dict[str, float]]:
    """The coverage of each evaluation text in each contaminated row, by comparing every n-gram with every other one."""

    def ngrams(words: Sequence[str], size: int) -> dict[tuple[str, ...], set[int]]:
        places: dict[tuple[str, ...], set[int]] = {}
        for begin in range(len(words) - size + 1):
            places.setdefault(tuple(words[begin : begin + size]), set()).update(range(begin, begin + size))
        return places

    found: dict[int, dict[str, float]] = {}
    for (row_id, text), (row, other) in itertools.product(evaluation, enumerate(rows)):
        size = min(len(text.split()), 13)
        if size < 8:
            continue
        left, right = ngrams(text.split(), size), ngrams(other.split(), size)
        shared = left.keys() & right.keys()
        covered = [set[int]().union(*(places[ngram] for ngram in shared)) for places in (left, right)]
        coverage = max(len(covered[0]) / len(text.split()), len(covered[1]) / len(other.split()))
        if coverage >= 0.2:
            found.setdefault(row, {})[row_id] = coverage
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_the_result_is_what_comparing_all_with_all_gives_in_any_order(seed: int) -> None:
    draw = random.Random(seed)
    evaluation, rows = make_case(draw)
    index = index_evaluation([text for _, text in evaluation], [row_id for row_id, _ in evaluation], searching())
    found = list(find_contaminated(index, rows))
    expected = by_hand(evaluation, rows)
    assert {each.row: each.coverage for each in found} == {row: max(texts.values()) for row, texts in expected.items()}
    assert {each.row: set(each.evaluation_ids) for each in found} == {
        row: set(texts) for row, texts in expected.items()
    }
    assert all(expected[each.row][each.evaluation_ids[0]] == each.coverage for each in found)
    draw.shuffle(evaluation)
    other = index_evaluation([text for _, text in evaluation], [row_id for row_id, _ in evaluation], searching())
    other = pickle.loads(pickle.dumps(other))
    assert list(find_contaminated(other, pyarrow.array(rows))) == found
    halves = [*find_contaminated(other, rows[:31]), *find_contaminated(other, rows[31:])]
    assert [each.spans for each in halves] == [each.spans for each in found]


def test_rows_of_many_blocks_keep_their_numbers() -> None:
    rows = [f"{FILLER} {number}" * 40 for number in range(1000)]
    rows[3] = rows[998] = QUESTION
    assert [found.row for found in find([QUESTION], rows)] == [3, 998]


def test_nothing_is_found_in_nothing() -> None:
    assert find([], [QUESTION]) == []
    assert find([QUESTION], []) == []
    assert find(["", "?"], ["", "?"]) == []


def test_the_result_is_the_same_in_every_process() -> None:
    code = (
        "from tests.test_contamination import *\n"
        "evaluation, rows = make_case(random.Random(1))\n"
        "index = index_evaluation([text for _, text in evaluation], [each for each, _ in evaluation], searching())\n"
        "print(list(find_contaminated(index, rows)))"
    )
    printed = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        printed.add(done.stdout)
    assert len(printed) == 1
    assert "Contaminated(row=" in printed.pop()
