"""Near duplicates: shingles, signatures, exact similarity, clusters that do not depend on the order of rows."""

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_core.config.overlaps import NearDuplicates
from nexa_data import near_duplicates
from nexa_data.minhash import NO_KEY, NUM_PERMUTATIONS, band_keys, signatures
from nexa_data.near_duplicates import Removed, find_near_duplicates, jaccard_of
from nexa_data.runs import Indices
from nexa_data.shingles import Shingles, shingle
from nexa_data.words import BLOCK_CHARACTERS

WORDS = [first + second for first, second in itertools.product("bdfgklmnprst", ["ano", "eri", "ilu", "oka", "usem"])]


def document(draw: random.Random, num_words: int) -> list[str]:
    return [draw.choice(WORDS) for _ in range(num_words)]


def sets_of(texts: Sequence[str]) -> list[set[int]]:
    made = shingle(texts)
    return [set(made.hashes[begin:end].tolist()) for begin, end in itertools.pairwise(made.bounds)]


def jaccard(first: str, second: str) -> float:
    left, right = sets_of([first, second])
    return len(left & right) / len(left | right) if left | right else 0.0


def find(texts: Sequence[str], row_ids: Sequence[str] | None = None, threshold: float = 0.8) -> Removed:
    row_ids = [f"{number:08d}" for number in range(len(texts))] if row_ids is None else row_ids
    keys = band_keys(signatures(texts))
    return find_near_duplicates(
        keys, row_ids, lambda rows: [texts[row] for row in rows], NearDuplicates(threshold=threshold)
    )


def removed_texts(texts: Sequence[str], row_ids: Sequence[str]) -> set[tuple[str, str, float]]:
    """(removed, kept, similarity) by id, which the order of rows must not change."""
    found = find(texts, row_ids)
    return {
        (row_ids[row], row_ids[kept], similarity)
        for row, kept, similarity in zip(found.rows, found.kept, found.jaccard, strict=True)
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The cat sat on the mat.", "the  CAT sat,\non the mat"),
        ("Le caf\u00e9 est ferm\u00e9 ce soir", "Le cafe\u0301 est ferme\u0301 ce soir"),
        ("the soft hyphen is not seen", "the so\u00adft hy\u00adphen is not seen"),
        ("\uff21\uff22\uff23 is full width and so on", "abc is full width and so on"),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002", "\u4eca\u5929\u5929\u6c14\u5f88\u597d"),
        ("yes", "YES"),
        ("so  it\n\t goes ", "\nSo it goes"),
    ],
)
def test_texts_that_read_alike_have_the_same_shingles(first: str, second: str) -> None:
    left, right = sets_of([first, second])
    assert left == right != set()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("what is 3 + 4 in words", "what is 3 - 4 in words"),
        ("what is 3 * 4 in words", "what is 3 / 4 in words"),
        ("see page 1012", "see page 1013"),
        ("the answer is 123456789012345678901", "the answer is 123456789012345678902"),
        ("yes", "yes!"),
        ("a", "b"),
        ("", ""),
        ("...", "..."),
        ("", "!"),
        ("dog bites man in the park", "man bites dog in the park"),
    ],
)
def test_short_texts_are_not_near_by_accident(first: str, second: str) -> None:
    assert jaccard(first, second) < 0.5
    assert len(find([first, second]).rows) == 0


def test_shingles_are_word_5_grams_and_of_short_texts_character_5_grams() -> None:
    made = shingle(["one two three four five six seven", "one two three four", "abcde fgh", "abc", " \n "])
    assert numpy.diff(made.bounds).tolist() == [3, 19 - 4, 10 - 4, 1, 0]


def test_text_without_spaces_is_compared_by_its_characters() -> None:
    sentence = (
        "\u6211\u4eec\u660e\u5929\u65e9\u4e0a\u516b\u70b9\u5728\u5b66\u6821\u95e8\u53e3\u89c1\u9762"
        "\u7136\u540e\u4e00\u8d77\u53bb\u56fe\u4e66\u9986\u770b\u4e66\u5427"
    )
    made = shingle([sentence])
    assert len(made.hashes) == len(sentence) - 4
    assert find([sentence, sentence + "\u597d"]).rows.tolist() == [1]
    assert len(find([sentence, sentence[::-1]]).rows) == 0


def test_the_similarity_is_the_exact_one() -> None:
    draw = random.Random(1)
    base = document(draw, 60)
    texts = [" ".join(base[: 60 - 7 * cut] + document(draw, 3 * cut)) for cut in range(8)]
    pairs = numpy.array(list(itertools.product(range(len(texts)), repeat=2)))
    measured = jaccard_of(shingle(texts), pairs[:, 0], pairs[:, 1])
    assert measured.tolist() == [jaccard(texts[left], texts[right]) for left, right in pairs]
    repeated = "again and again and again and again and again and again and again"
    assert jaccard_of(shingle([repeated, repeated + " and again"]), numpy.array([0]), numpy.array([1])) == [1.0]


def test_a_signature_agrees_as_often_as_texts_are_similar() -> None:
    draw = random.Random(2)
    differences, squares = [], []
    for _ in range(300):
        base = document(draw, 50)
        other = [*base[:45], *document(draw, 5)]
        left, right = signatures([" ".join(base), " ".join(other)])
        similarity = jaccard(" ".join(base), " ".join(other))
        differences.append(float((left == right).mean()) - similarity)
        squares.append(differences[-1] ** 2 / (similarity * (1 - similarity) / NUM_PERMUTATIONS))
    assert abs(numpy.mean(differences)) < 0.01
    assert 0.75 < numpy.mean(squares) < 1.3  # as 112 independent permutations


def test_signatures_do_not_depend_on_neighbours_blocks_or_container() -> None:
    draw = random.Random(3)
    texts = [" ".join(document(draw, draw.choice([0, 1, 3, 8, 200]))) for _ in range(1500)]
    texts[700] = " ".join(document(draw, BLOCK_CHARACTERS // 3))
    whole = signatures(texts)
    assert whole.shape == (1500, NUM_PERMUTATIONS)
    assert whole.dtype == numpy.uint32
    assert (numpy.concatenate([signatures(texts[:777]), signatures(texts[777:])]) == whole).all()
    assert (signatures(texts[::-1])[::-1] == whole).all()
    assert (signatures(pyarrow.array(texts)) == whole).all()
    assert (signatures(pyarrow.chunked_array([texts[:5], texts[5:]])) == whole).all()
    assert signatures([]).shape == (0, NUM_PERMUTATIONS)


def test_signatures_are_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from nexa_data.minhash import *\n"
        "texts = ['one two three four five six', 'short', '\\u4eca\\u5929\\u5929\\u6c14', 'Caf\\u00e9 + 1 * 2 \\U0001f600']\n"
        "print(hashlib.sha256(signatures(texts).tobytes() + band_keys(signatures(texts)).tobytes()).hexdigest())"
    )
    digests = set()
    for seed in ("0", "1", "random"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert digests == {"0f219b128c31aef0f33040b1c9a51a2dce9700d9df93fe128da9e470aa1493dd"}


def test_texts_without_shingles_have_no_keys() -> None:
    keys = band_keys(signatures(["", "?!", "a", "a b c d e"]))
    assert (keys == NO_KEY).all(axis=1).tolist() == [True, True, False, False]


def injected(draw: random.Random, num_originals: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Documents, among them copies with a few other words, and the pairs (original, copy) that are at least 0.8 alike."""
    texts: list[str] = []
    pairs = []
    for _ in range(num_originals):
        base = document(draw, draw.randint(40, 160))
        texts.append(" ".join(base))
        original = len(texts) - 1
        for _ in range(draw.choice([0, 0, 1, 2])):
            changed = list(base)
            for _ in range(draw.randint(0, 4)):
                changed[draw.randrange(len(changed))] = draw.choice(WORDS)
            texts.append(" ".join(changed))
            if jaccard(texts[original], texts[-1]) >= 0.8:
                pairs.append((original, len(texts) - 1))
    return texts, pairs


def test_injected_duplicates_are_found_and_nothing_else_is() -> None:
    texts, pairs = injected(random.Random(4), 1200)
    assert len(pairs) > 500
    removed = find(texts)
    kept_of = dict(zip(removed.rows.tolist(), removed.kept.tolist(), strict=True))
    found = sum(kept_of.get(left, left) == kept_of.get(right, right) for left, right in pairs)
    assert found / len(pairs) >= 0.9
    assert all(jaccard(texts[row], texts[kept]) == similarity for row, kept, similarity in _triples(removed))
    assert sum(similarity < 0.8 for similarity in removed.jaccard) < 20  # linked through others
    assert not set(removed.kept.tolist()) & set(removed.rows.tolist())


def _triples(removed: Removed) -> list[tuple[int, int, float]]:
    return list(zip(removed.rows.tolist(), removed.kept.tolist(), removed.jaccard.tolist(), strict=True))


def test_nothing_below_the_threshold_is_removed() -> None:
    words = document(random.Random(5), 54)  # 50 shingles
    other = " ".join([*words[:49], "x1", "x2", "x3", "x4", "x5"])  # 45 of them, of 55
    assert jaccard(" ".join(words), other) == pytest.approx(45 / 55)
    assert find([" ".join(words), other], threshold=0.81).rows.tolist() == [1]
    assert find([" ".join(words), other], threshold=0.82).rows.tolist() == []


def test_rows_that_others_link_are_one_cluster_of_the_smallest_id() -> None:
    words = document(random.Random(6), 300)
    texts = [" ".join(words[begin : begin + 200]) for begin in (0, 14, 28, 42)]
    assert jaccard(texts[0], texts[1]) > 0.8 > jaccard(texts[0], texts[2])
    removed = find(texts, ["c", "d", "a", "b"])
    assert removed.rows.tolist() == [0, 1, 3]
    assert removed.kept.tolist() == [2, 2, 2]
    assert removed.jaccard.tolist() == [jaccard(texts[2], texts[row]) for row in (0, 1, 3)]
    assert removed.jaccard[0] < 0.8 < removed.jaccard[1]


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_the_result_does_not_depend_on_the_order_of_rows(order: random.Random, seed: int) -> None:
    draw = random.Random(seed)
    texts, _ = injected(draw, 12)
    chain = document(draw, 120)
    texts += [" ".join(chain[begin : begin + 80]) for begin in range(0, 40, 5)] + ["short", "Short", "", ""]
    rows = [(f"{draw.getrandbits(64):016x}", text) for text in texts]
    expected = removed_texts([text for _, text in rows], [row_id for row_id, _ in rows])
    order.shuffle(rows)
    assert removed_texts([text for _, text in rows], [row_id for row_id, _ in rows]) == expected
    assert expected


@pytest.fixture
def num_compared(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many pairs have been compared."""
    counts: list[int] = []
    compare = near_duplicates.jaccard_of

    def counted(shingles: Shingles, left: Indices, right: Indices) -> near_duplicates.Similarities:
        counts.append(len(left))
        return compare(shingles, left, right)

    monkeypatch.setattr(near_duplicates, "jaccard_of", counted)
    return lambda: sum(counts)


def test_buckets_of_boilerplate_are_compared_in_linear_time(num_compared: Callable[[], int]) -> None:
    """20,000 pages that share their frame: as pairs they would be 200 million."""
    draw = random.Random(7)
    frame = document(draw, 40)
    alike = [" ".join([*frame, f"id{number}"]) for number in range(10_000)]
    unlike = [" ".join([*frame, *document(draw, 25)]) for _ in range(10_000)]
    began = time.monotonic()
    removed = find(alike + unlike)
    assert time.monotonic() - began < 30
    assert num_compared() < 10 * 20_000
    assert removed.rows.tolist() == list(range(1, 10_000))
    assert set(removed.kept.tolist()) == {0}


def test_every_pair_of_a_small_bucket_is_compared() -> None:
    """Two families whose smallest row is far from the others, in buckets that all of them share."""
    words = document(random.Random(8), 104)
    far = [" ".join([*words[:60], *document(random.Random(seed), 44)]) for seed in range(5)]
    near = [" ".join([*words, f"id{number}"]) for number in range(20)]
    texts = far + near
    keys = numpy.full((len(texts), 14), numpy.uint64(7))
    row_ids = [f"{number:02d}" for number in range(len(texts))]
    removed = find_near_duplicates(keys, row_ids, lambda rows: [texts[row] for row in rows], NearDuplicates())
    assert removed.rows.tolist() == list(range(6, 25))
    assert set(removed.kept.tolist()) == {5}


def test_no_rows_give_no_duplicates_and_empty_ones_are_not_even_compared(num_compared: Callable[[], int]) -> None:
    assert len(find([]).rows) == 0
    assert len(find(["", "?", "", "..."]).rows) == 0
    assert num_compared() == 0
