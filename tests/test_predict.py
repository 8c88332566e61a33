"""Predicting: an answer for each line in its order, by the rules that the training rows were made by."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nexa_core.config import DataConfig
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data.prepare import prepare
from nexa_ops.package import package
from nexa_ops.predict import BLOCK_ROWS, predict_file
from nexa_ops.verify import verify
from nexa_train.train import run
from tests.conftest import FinishedLab, read_package
from tests.labs import make_config, make_lab

ZEROS = [0.0] * 64

Line = str | bytes | dict[str, Any]


def answers(tarball: Path, tmp_path: Path, lines: list[Line], **arguments: Any) -> tuple[list[dict[str, Any]], str]:
    """What `predict` says of each line, and the error that it ends with."""
    path = tmp_path / "rows.jsonl"
    texts = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"\n".join(text.encode() if isinstance(text, str) else text for text in texts))
    stdout, said = io.StringIO(), ""
    try:
        predict_file(tarball, path, output_path=None, stdout=stdout, **arguments)
    except GateError as error:
        said = str(error)
    return [json.loads(line) for line in stdout.getvalue().splitlines()], said


@pytest.mark.parametrize(("model", "column"), [("mlp", "features"), ("text_classifier", "text")])
def test_predictions_are_those_of_the_run(pristine_lab: FinishedLab, tmp_path: Path, model: str, column: str) -> None:
    rows = pq.read_table(io.BytesIO(read_package(pristine_lab.package(model))["proof_rows.parquet"])).to_pylist()
    recorded = {row["row_id"]: row for row in pq.read_table(pristine_lab.run(model).predictions).to_pylist()}
    found, error = answers(pristine_lab.package(model), tmp_path, [{column: row[column]} for row in rows])
    assert error == ""
    for row, answer in zip(rows, found, strict=True):
        expected = recorded[row["row_id"]]
        assert answer["prediction"] == expected["prediction"]
        assert list(answer["probabilities"].values()) == pytest.approx(expected["probabilities"], abs=1e-6)


BAD_LINES: dict[str, Line] = {
    "not JSON": "{",
    "empty row": "",
    "not a JSON object": "[1]",
    "not UTF-8": b'{"features": "\xff"}',
    "missing column: expected 'pixels' or 'features'": {"text": "a"},
    "wrong number of features: 3 instead of 64": {"features": [1, 2, 3]},
    "no numbers": {"features": []},
    "not a list of numbers": {"features": ["1"] * 64},
    "not a list of numbers: ": {"features": [True] * 64},
    "not a list of numbers:": {"features": [[0.0] * 8] * 8},
    "missing value": {"features": None},
    "number too large for float32": {"features": [10**400, *ZEROS[1:]]},
    "number too large": {"features": [1e39, *ZEROS[1:]]},
    "not JSON: NaN is not a JSON number": '{"features": [NaN]}',
    "not JSON: ": '{"features": [1' + "0" * 5000 + "]}",
    "nested too deeply": "[" * 100_000,
    "the model's output is not a number": {"features": [3e38] * 64},
}


def test_a_bad_line_is_answered_with_its_reason_and_touches_no_other(pristine_lab: FinishedLab, tmp_path: Path) -> None:
    good: Line = {"features": ZEROS}
    lines = [line for bad in BAD_LINES.values() for line in (good, bad)] + [good]
    found, error = answers(pristine_lab.package("mlp"), tmp_path, lines)
    assert [answer["line"] for answer in found] == list(range(1, len(lines) + 1))
    for reason, answer in zip(BAD_LINES, found[1::2], strict=True):
        assert reason in answer["error"]
        assert set(answer) == {"line", "error"}
    assert [set(answer) for answer in found[::2]] == [{"line", "prediction", "probabilities"}] * (len(BAD_LINES) + 1)
    assert len({json.dumps(answer["probabilities"]) for answer in found[::2]}) == 1
    assert error == f"{len(BAD_LINES)} of {len(lines)} rows could not be predicted; their lines say why."


def test_an_empty_file_has_no_answers_and_blank_lines_at_the_end_are_no_rows(
    pristine_lab: FinishedLab, tmp_path: Path
) -> None:
    assert answers(pristine_lab.package("mlp"), tmp_path, []) == ([], "")
    found, error = answers(pristine_lab.package("mlp"), tmp_path, [{"features": ZEROS}, "", " ", ""])
    assert (len(found), error) == (1, "")


def test_a_byte_order_mark_is_no_part_of_the_first_row(pristine_lab: FinishedLab, tmp_path: Path) -> None:
    line = b"\xef\xbb\xbf" + json.dumps({"features": ZEROS}).encode()
    found, error = answers(pristine_lab.package("mlp"), tmp_path, [line])
    assert (len(found), error) == (1, "")


def test_more_rows_than_a_block_come_back_in_order(pristine_lab: FinishedLab, tmp_path: Path) -> None:
    lines: list[Line] = [{"text": f"the cat {index}"} if index % 7 else "?" for index in range(2 * BLOCK_ROWS + 5)]
    found, _ = answers(pristine_lab.package("text_classifier"), tmp_path, lines)
    assert [answer["line"] for answer in found] == list(range(1, len(lines) + 1))
    assert ["error" in answer for answer in found] == [line == "?" for line in lines]


@pytest.mark.parametrize("row", [{"text": ""}, {"text": " \n"}, {"text": 5}, {"text": None}, {"txt": "a"}, {}])
def test_a_row_without_text_is_an_error(pristine_lab: FinishedLab, tmp_path: Path, row: dict[str, Any]) -> None:
    found, error = answers(pristine_lab.package("text_classifier"), tmp_path, [row])
    assert "error" in found[0]
    assert error


def test_a_language_model_completes_prompts_and_says_where_there_is_no_room(
    pristine_lab: FinishedLab, tmp_path: Path
) -> None:
    lines: list[Line] = [{"prompt": "write 3 words:"}, {"prompt": "word " * 40}, {"prompt": ""}, {"completion": "a"}]
    found, error = answers(pristine_lab.package("causal_lm"), tmp_path, lines, max_new_tokens=4)
    assert isinstance(found[0]["prediction"], str)
    assert found[1]["error"].startswith("the prompt fills the 32 tokens")
    assert found[2]["error"] == "empty prompt"
    assert found[3]["error"] == "missing column: expected 'prompt'"
    assert error.startswith("3 of 4 rows")
    longer, _ = answers(pristine_lab.package("causal_lm"), tmp_path, lines[:1], max_new_tokens=1000)
    assert longer[0]["prediction"].startswith(found[0]["prediction"])


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of a classifier whose texts were joined from two columns of a file without a header."""
    layout = make_lab(tmp_path_factory.mktemp("news") / "lab")
    lines = [f"{label},{word} title {index},{word} text" for index, (label, word) in enumerate(TOPICS * 100)]
    (layout.raw / "news.csv").write_text("\n".join(lines))
    dataset = {
        "name": "news",
        "source": {
            "name": "files",
            "path": "data/raw/news.csv",
            "csv": {"header": False, "columns": ["label", "title", "text"]},
        },
        "rows": {"name": "text", "text": ["title", "text"], "label": "label"},
        "output": {"name": "training"},
    }
    prepare(DataConfig.model_validate_json(json.dumps({"datasets": [dataset]})), layout)
    config = make_config("text_classifier", data={"dataset": "news"}, training={"epochs": 8})
    return package(layout=layout, checkpoint_path=run(config, layout=layout).checkpoint).path


TOPICS = [("sport", "football"), ("money", "market")]


def test_a_users_own_rows_are_joined_as_the_training_rows_were(news: Path, tmp_path: Path) -> None:
    rows: list[Line] = [{"title": f"{word} title 7", "text": f"{word} text", "id": 7} for _, word in TOPICS]
    found, error = answers(news, tmp_path, rows)
    assert error == ""
    assert [answer["prediction"] for answer in found] == [label for label, _ in TOPICS]
    swapped, _ = answers(
        news, tmp_path, [{"title": "football", "text": "market"}, {"title": "market", "text": "football"}]
    )
    assert swapped[0]["probabilities"] != swapped[1]["probabilities"], "bigrams see the order"


def test_half_of_a_row_is_refused_and_the_card_says_what_a_whole_one_is(news: Path, tmp_path: Path) -> None:
    found, _ = answers(news, tmp_path, [{"text": "football"}, {"title": "football"}])
    assert [answer["error"] for answer in found] == ["missing column: expected 'title' and 'text'"] * 2
    card = read_package(news)["README.md"].decode()
    assert 'predicts rows like `{"title": "...", "text": "..."}`.' in card
    assert verify(news).passed


def test_numbers_in_columns_of_their_own_are_read_as_they_were_prepared(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "lab")
    layout.raw.mkdir(parents=True)
    lines = ["width,height,kind"] + [
        f"{index},{index % 5}.5,{'big' if index > 100 else 'small'}" for index in range(200)
    ]
    (layout.raw / "sizes.csv").write_text("\n".join(lines))
    dataset = {
        "name": "sizes",
        "source": {"name": "files", "path": "data/raw/sizes.csv"},
        "rows": {"name": "features", "features": ["width", "height"], "label": "kind"},
        "output": {"name": "training"},
    }
    prepare(DataConfig.model_validate_json(json.dumps({"datasets": [dataset]})), layout)
    trained = run(make_config("mlp", data={"dataset": "sizes"}), layout=layout)
    tarball = package(layout=layout, checkpoint_path=trained.checkpoint).path
    found, _ = answers(
        tarball,
        tmp_path,
        [{"width": 3, "height": 1.5}, {"width": "3", "height": "1.5"}, {"features": [3, 1.5]}, {"width": 3}],
    )
    assert found[0]["probabilities"] == found[1]["probabilities"] == found[2]["probabilities"]
    assert found[3]["error"] == "missing column: expected 'width' and 'height' or 'features'"
    assert 'rows like `{"width": 0.0, "height": 0.0}`, 2 numbers each' in read_package(tarball)["README.md"].decode()


def test_a_missing_input_and_one_that_is_no_text_are_refused(pristine_lab: FinishedLab, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No input file"):
        predict_file(pristine_lab.package("mlp"), tmp_path / "none", output_path=None, stdout=io.StringIO())
    (tmp_path / "rows.jsonl").write_text("{}", encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16"):
        predict_file(
            pristine_lab.package("mlp"), tmp_path / "rows.jsonl", output_path=tmp_path / "out", stdout=io.StringIO()
        )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_command_writes_every_answer_and_ends_with_3_for_a_bad_line(
    pristine_lab: FinishedLab, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "the cat"}\n?\n{"text": "é"}\n')
    arguments = [
        pristine_lab.package("text_classifier"),
        "--input",
        tmp_path / "rows.jsonl",
        "--output",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "predict", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr == "error: 1 of 3 rows could not be predicted; their lines say why.\n"
    written = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert ["error" in answer for answer in written] == [False, True, False]
