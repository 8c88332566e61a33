"""Quality steps: what each leaves out and why, limits tried on kept scores, private data that nobody sees."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexa_core.config.data import DatasetConfig
from nexa_core.config.documents import Document
from nexa_core.config.load import parse_config
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data import parts
from nexa_data.datasets import open_dataset
from nexa_data.funnel import show_funnel
from nexa_data.prepare import Prepared, prepare_dataset
from nexa_data.quality import looked_at, open_step
from nexa_data.quality.private import masker
from nexa_data.sources import pieces

ROOT = Path(__file__).parent.parent
GOOD = (
    "The committee published a long report on the history of the canal, and people in the town read it with interest."
)


def config(*steps: dict[str, Any], **changes: Any) -> DatasetConfig:
    given = {
        "name": "news",
        "source": {"name": "files", "path": "data/raw/rows.jsonl"},
        "rows": {"name": "text", "text": "text", "label": "label"},
        "output": {"name": "training", "val": 0, "test": 0},
        "quality": list(steps),
        **changes,
    }
    return parse_config(Document(json.loads(json.dumps(given)), {}, "test"), DatasetConfig)


def make(root: Path, texts: list[str], *steps: dict[str, Any], **changes: Any) -> Prepared:
    path = root / "data" / "raw" / "rows.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "label": "a"}) + "\n" for text in texts))
    return prepare_dataset(config(*steps, **changes), Layout(root), replace=True)


def rejects(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "data/processed/training/rejects/news_v1.jsonl").open()]


def reason(text: str, **step: Any) -> str:
    """Why the step leaves the text out; empty where it does not."""
    (settings,) = config(step).quality
    opened = open_step(settings)
    scores = opened.measure(text)
    assert len(scores) == len(opened.names)
    return str(opened.reasons({name: np.array([score]) for name, score in zip(opened.names, scores, strict=True)})[0])


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ({"name": "length", "min_words": 3}, "two words", "num_words below 3"),
        ({"name": "length", "max_chars": 8}, "two words", "num_chars above 8"),
        ({"name": "symbols"}, "# # # word word word", "symbol_share above 0.1"),
        ({"name": "symbols"}, "12 34 56 78 90 word and other", "alphabetic_share below 0.8"),
        ({"name": "symbols"}, "- one more\n- two more\n* three more", "alphabetic_share below 0.8"),
        (
            {"name": "symbols", "min_alphabetic_share": 0},
            "- one more\n- two more\n* three",
            "bullet_line_share above 0.9",
        ),
        (
            {"name": "symbols", "max_symbol_share": 9},
            "and so on...\nthe end of it all",
            "ellipsis_line_share above 0.3",
        ),
        ({"name": "symbols"}, "a b c d e f g", "mean_word_chars below 3"),
        ({"name": "repetition"}, "same line\nsame line\nsame line\nother one", "duplicate_line_share above 0.3"),
        ({"name": "repetition"}, "buy it now " * 9, "top_2_gram_char_share above 0.2"),
        ({"name": "refusals"}, "I\u2019m sorry, but I can\u2019t help with that.", "num_refusals above 0"),
        ({"name": "refusals"}, "As an AI language model, I like maths.", "num_refusals above 0"),
        ({"name": "citations"}, "It is so [1], [2, 3] (Smith et al., 2019).", "per_100_words above 5"),
        ({"name": "format", "matches": r"\d+"}, "12 apples", "matches below 1"),
        ({"name": "format", "is_json": True}, "{'a': 1}", "is_json below 1"),
        ({"name": "private"}, "write to jane.doe@example.org", "num_email above 0"),
        ({"name": "private", "kinds": ["card"]}, "4111 1111 1111 1111", "num_card above 0"),
        ({"name": "private", "kinds": ["iban"]}, "GB82 WEST 1234 5698 7654 32", "num_iban above 0"),
        ({"name": "private", "kinds": ["phone"]}, "call +49 30 1234 5678", "num_phone above 0"),
        ({"name": "private", "kinds": ["ip_address"]}, "at 192.168.10.1", "num_ip_address above 0"),
        ({"name": "private", "kinds": ["secret"]}, "AKIA" + "A1B2" * 4, "num_secret above 0"),
        (
            {"name": "language", "languages": ["en"]},
            "Der Ausschuss hat einen langen Bericht vorgelegt.",
            "probability below 0.5",
        ),
    ],
)
def test_each_step_says_why_it_leaves_a_text_out(step: dict[str, Any], text: str, expected: str) -> None:
    assert reason(text, **step) == expected


@pytest.mark.parametrize(
    "step",
    [
        *({"name": name} for name in ("symbols", "repetition", "refusals", "citations", "private")),
        {"name": "length", "min_words": 5, "max_words": 50, "min_chars": 5, "max_chars": 500},
        {"name": "format", "matches": "The .*"},
        {"name": "language", "languages": ["en", "fr"]},
    ],
)
def test_each_step_keeps_an_ordinary_text(step: dict[str, Any]) -> None:
    assert reason(GOOD, **step) == ""


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "word", "\u4e2d\u6587", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]
)
def test_every_text_has_finite_scores(text: str) -> None:
    names = ("symbols", "repetition", "refusals", "citations", "private")
    steps = [
        *({"name": name} for name in names),
        {"name": "length", "min_words": 1},
        {"name": "language", "languages": ["en"]},
    ]
    for settings in config(*steps).quality:
        assert np.isfinite(open_step(settings).measure(text)).all()


@pytest.mark.parametrize(
    "text", ["4111 1111 1111 1112", "GB82 WEST 1234 5698 7654 33", "1.2.3.4.5", "version 300.1.1.1", "2 + 2 = 4"]
)
def test_numbers_without_their_check_digit_are_nobodys(text: str) -> None:
    assert reason(text, name="private") == ""


def test_the_sides_of_pairs_and_chats_are_looked_at_one_by_one() -> None:
    pair = {"prompt": "why", "completion": "so"}
    assert [looked_at("pairs", of)(pair) for of in ("all", "prompt", "completion")] == ["why\nso", "why", "so"]
    messages = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant")]
    sides = [looked_at("chat", of)({"messages": messages}) for of in ("all", "prompt", "completion")]
    assert sides == ["SYSTEM\nUSER\nASSISTANT", "SYSTEM\nUSER", "ASSISTANT"]


TEXTS = [GOOD, "too short", "mail me: a.b@example.org, please do it soon", GOOD + " Again.", "one two three", GOOD]
STEPS = ({"name": "length", "min_words": 4}, {"name": "private"}, {"name": "length", "max_words": 24})


def test_rows_go_through_the_steps_in_order_and_each_is_counted(tmp_path: Path) -> None:
    prepared = make(tmp_path, TEXTS, *STEPS, max_bad_fraction=0)
    assert prepared.num_rows["train"] == 2
    steps = {step["name"]: (step["rows_in"], step["rows_out"], step["reasons"]) for step in prepared.manifest["steps"]}
    assert steps["length 1"] == (6, 4, {"num_words below 4": 2})
    assert steps["private"] == (4, 3, {"num_email above 0": 1})
    assert steps["length 2"] == (3, 3, {})
    assert steps["deduplicate"] == (3, 2, {"duplicate": 1})
    assert [(row["line"], row["reason"]) for row in rejects(tmp_path)][:3] == [
        (2, "num_words below 4: 2"),
        (3, "num_email above 0: 1"),
        (5, "num_words below 4: 3"),
    ]


def test_limits_are_tried_on_the_scores_that_are_kept(tmp_path: Path) -> None:
    make(tmp_path, TEXTS, *STEPS)
    dataset = open_dataset(Layout(tmp_path), "news", "v1")
    as_made = show_funnel(dataset)
    assert [(stage.name, stage.rows_in, stage.rows_out) for stage in as_made.stages] == [
        (step["name"], step["rows_in"], step["rows_out"])
        for step in dataset.manifest["steps"]
        if step["name"] != "split"
    ]
    assert as_made.stages[2].examples[0].text == '{"text": "too short", "label": "a"}'
    (tmp_path / "data" / "raw" / "rows.jsonl").unlink()  # nothing is read again
    dataset.layout.absolute(dataset.manifest["rejects"]["path"]).rename(tmp_path / "rejects")
    assert show_funnel(dataset, num_examples=0).stages[2].rows_out == 4
    with pytest.raises(UserError, match="rejects"):
        show_funnel(dataset)
    (tmp_path / "rejects").rename(dataset.layout.absolute(dataset.manifest["rejects"]["path"]))
    overrides = ["quality.0.min_words=2", "quality.2.max_words=20"]
    tried = {stage.name: stage.rows_out for stage in show_funnel(dataset, overrides=overrides).stages}
    assert tried == {"read": 6, "normalise": 6, "length 1": 6, "private": 5, "length 2": 2, "deduplicate": 2}
    remade = make(
        tmp_path / "again",
        TEXTS,
        {"name": "length", "min_words": 2},
        {"name": "private"},
        {"name": "length", "max_words": 20},
    )
    assert remade.num_rows["train"] == 2
    text = show_funnel(dataset, overrides=overrides).as_text()
    assert "if it were made with quality.0.min_words=2" in text
    assert GOOD[:40] in text  # kept on disk, and shown as what the new limit would leave out


@pytest.mark.parametrize(
    "override", ["quality.0.of=all", "quality.1.kinds=['email']", "output.val=0.5", "quality.0.name=language"]
)
def test_only_limits_can_be_tried(tmp_path: Path, override: str) -> None:
    make(tmp_path, TEXTS, *STEPS)
    dataset = open_dataset(Layout(tmp_path), "news", "v1")
    if override == "quality.0.of=all":  # as it is
        assert show_funnel(dataset, overrides=[override]).changed == (override,)
        return
    with pytest.raises(UserError):
        show_funnel(dataset, overrides=[override])


@pytest.mark.parametrize("parallel", [False, True])
def test_masked_data_is_seen_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: bool) -> None:
    if parallel:
        monkeypatch.setattr(pieces, "PIECE_BYTES", 300)
        monkeypatch.setattr(parts, "PARALLEL_FROM_BYTES", 0)
    secret = "a.b@example.org"
    path = tmp_path / "data" / "raw" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    rows: list[Any] = [
        {"text": f"Row {number} of {secret} or 4111-1111-1111-1111", "label": "a", "more": [secret]}
        for number in range(9)
    ]
    lines = [*map(json.dumps, [*rows, rows[0], {"text": "", "label": secret}]), f"not JSON {secret}"]
    path.write_text("\n".join(lines))
    prepare_dataset(config({"name": "private", "action": "mask"}, max_bad_fraction=0.3), Layout(tmp_path))
    kept = open_dataset(Layout(tmp_path), "news", "v1").read_split("train").to_pylist()
    assert kept[0]["text"] == "Row 0 of [EMAIL] or [CARD]"
    assert json.loads(kept[0]["extra_json"]) == {"more": ["[EMAIL]"]}
    assert len(rejects(tmp_path)) == 3
    everything = b"".join(path.read_bytes() for path in (tmp_path / "data" / "processed").rglob("*.jsonl"))
    assert b"[EMAIL]" in everything
    assert secret.encode() not in everything


@pytest.mark.parametrize(
    "more", [{"by": "a.b@example.org"}, {"by": [{"a.b@example.org": 1}]}, {"card": "no. 4111111111111111"}]
)
def test_private_data_in_other_columns_leaves_a_row_out(tmp_path: Path, more: dict[str, Any]) -> None:
    path = tmp_path / "data" / "raw" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    rows = [
        {"text": GOOD, "label": "a", "score": 0.4111111111111111, "id": 4111111111111111},
        {"text": GOOD, "label": "b", **more},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare_dataset(config({"name": "private"}), Layout(tmp_path))
    assert (prepared.num_rows["train"], prepared.num_rejected) == (1, 1)


def test_what_masking_cannot_blank_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "data" / "raw" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    rows = [{"text": f"{GOOD} {number}", "label": "a", "id": -4111111111111111} for number in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepare_dataset(config({"name": "private", "action": "mask"}), Layout(tmp_path)).num_rejected == 0


def test_masking_leaves_everything_else_as_it_is() -> None:
    mask = masker(["email", "phone", "secret"])
    assert mask({"a": [1, None, 2.5, GOOD], "b@c.de": True}) == {"a": [1, None, 2.5, GOOD], "[EMAIL]": True}


@pytest.mark.parametrize(
    ("given", "masked"),
    [
        ("order 5 4111 1111 1111 1111", "order 5 [CARD]"),
        ("2 x 4111-1111-1111-1111 12", "2 x [CARD] 12"),
        ("4111.1111.1111.1111, 4111 1111 1111 1112", "[CARD], 4111 1111 1111 1112"),
        ("BE68 5390 0754 7034 BANK, be68539007547034", "[IBAN] BANK, [IBAN]"),
        ("müller@example.org, x@münchen.de, a@b", "[EMAIL], [EMAIL], a@b"),
        (4111111111111111, "[CARD]"),
        (4111111111111112, 4111111111111112),
        ({"a@b.com": 1, "c@d.com": 2}, {"[EMAIL]": 1, "[EMAIL] 2": 2}),
    ],
)
def test_private_data_is_found_beside_other_words_and_digits(given: Any, masked: Any) -> None:
    assert masker(["email", "card", "iban"])(given) == masked


@pytest.mark.parametrize("unit", ["%20", "eyJ-", "a.b-", "1 ", "ab12 ", "+1-", "a@b"])
def test_private_data_is_looked_for_in_linear_time(unit: str) -> None:
    mask = masker(["email", "phone", "card", "iban", "ip_address", "secret"])
    began = time.process_time()
    mask(unit * 100_000)  # took hours where each place was a beginning
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    "text", ["She works as an AI researcher.", "I can't help but smile.", "He said: I won't write again."]
)
def test_ordinary_sentences_are_no_refusals(text: str) -> None:
    assert reason(text, name="refusals") == ""


def test_a_users_own_function_is_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_steps.py").write_text(
        "def vowels(text, weight):\n    return weight * sum(map(text.count, 'aeiou'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    step = {"name": "my_steps:vowels", "parameters": {"weight": 2}, "min_score": 10}
    assert make(tmp_path, ["aeiou", "aeio", "xyz"], step).num_rows["train"] == 1
    assert rejects(tmp_path)[0]["reason"] == "score below 10: 8"


@pytest.mark.parametrize("near", [{}, {"near_duplicates": {}}])
def test_a_users_function_that_has_changed_is_never_served_stale(tmp_path: Path, near: dict[str, Any]) -> None:
    rows = "".join(json.dumps({"text": f"text {number} {number * 7}", "label": "a"}) + "\n" for number in range(100))
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "rows.jsonl").write_text(rows)
    step = {"name": "my_steps:score", "min_score": 1}
    settings = config(step, source={"name": "files", "path": "data/raw/rows.jsonl"}, **near).resolved()

    def run(version: str, *options: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "data.yaml").write_text(json.dumps({"datasets": [{**settings, "version": version}]}))
        command = [sys.executable, "-m", "scripts.cli", "prepare", "--config", "data.yaml", *options]
        paths = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "NEXA_ROOT": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True, check=False)

    (tmp_path / "my_steps.py").write_text("def score(text):\n    return 1\n")
    assert " 0 rejected" in run("v1").stdout
    (tmp_path / "my_steps.py").write_text("def score(text):\n    return len(text) % 2\n")
    assert "my_steps:score has other content" in run("v1").stderr
    anew = run("v2").stdout
    assert " 0 rejected" not in anew
    assert run("v1", "--replace").stdout.replace("v1", "v2") == anew


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", r"byte 0: quality step 'bad_steps:f' fails: ZeroDivisionError: .* begins 'aeiou'"),
        ("return None", "quality step 'bad_steps:f' fails: TypeError"),
        ("return float('nan')", "quality step 'bad_steps:f' gave nan; a score is a finite number"),
    ],
)
def test_a_users_function_that_fails_is_told_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    (tmp_path / "bad_steps.py").write_text(f"def f(text):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bad_steps", raising=False)
    with pytest.raises(UserError, match=said):
        make(tmp_path, ["aeiou", "x"], {"name": "bad_steps:f", "min_score": 0})
    with pytest.raises(UserError, match="its parameters do not fit"):
        make(tmp_path, ["aeiou"], {"name": "bad_steps:f", "min_score": 0, "parameters": {"colour": 1}})


@pytest.mark.parametrize(
    ("steps", "changes", "words"),
    [
        ([{"name": "lenght"}], {}, ["quality.0"]),
        ([{"name": "length", "min_word": 3}], {}, ["min_word", "min_words"]),
        ([{"name": "format"}], {}, ["it checks nothing"]),
        ([{"name": "format", "matches": "("}], {}, ["not a regular expression"]),
        ([{"name": "length", "of": "prompt", "min_words": 1}], {}, ["only pairs and chats have sides"]),
        (
            [{"name": "private", "action": "mask", "of": "completion"}],
            {"rows": {"name": "pairs", "prompt": "text", "completion": "label"}},
            ["masking blanks every column"],
        ),
        ([{"name": "a:b"}], {}, ["it leaves no row out"]),
        (
            [{"name": "length"}],
            {"rows": {"name": "features", "features": "text", "label": "label"}},
            ["rows of features have none"],
        ),
    ],
)
def test_steps_that_cannot_be_are_refused(
    steps: list[dict[str, Any]], changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        config(*steps, **changes)
    assert [word for word in words if word not in str(error.value)] == []


def test_an_unknown_language_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown language 'english'"):
        make(tmp_path, TEXTS, {"name": "language", "languages": ["english"]})
