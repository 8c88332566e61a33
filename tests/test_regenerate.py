"""Asking again: the teacher is told why, so many times and no more, and nothing is paid twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import yaml

from nexa_core.config import DistillConfig, load_config
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_distill.collect_teacher import Collected, collect
from nexa_distill.filter_pairs import filter_pairs
from nexa_distill.regenerate import filter_again, regenerate
from tests.simulators import ROOT, Simulator, simulator
from tests.teacher_answers import row, settings, write_outputs

TOO_SHORT = [{"name": "length", "of": "completion", "min_words": 500}]
SHORT = [{"name": "length", "of": "completion", "min_words": 6}]
GOOD = "A fine answer of six words."
TOLD = (
    "Your answer was not accepted. The reason: {}.\n\nAnswer the first question once more, whole and from the beginning, so that "
    "this is mended. Do not mention this note or your earlier answer.\n"
)


def configured(lab: Path, server: Simulator, steps: list[dict[str, Any]], **collect: Any) -> DistillConfig:
    config = {
        "collect": {"teacher": "openai:m", "base_url": server.base_url, "sampling": {"max_tokens": 32}, **collect},
        "filter": {"steps": steps, "val": 0.2},
    }
    (lab / "distill.yaml").write_text(yaml.safe_dump(config))
    return load_config(lab / "distill.yaml", DistillConfig)


def answers_file(lab: Path, said: dict[str, str]) -> str:
    path = lab / "said.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": text}) + "\n" for prompt, text in said.items()))
    return str(path)


def rows_of(made: Collected) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(made.place.path).to_pylist()
    return found


def test_the_teacher_is_told_why_and_only_so_often(tmp_path: Path) -> None:
    few = {"short": "No.", "twice": "Na na na.", "never": "Na na na na na."}
    write_outputs(tmp_path, [row("good", GOOD), *(row(name, text) for name, text in few.items())])
    why = {words: TOLD.format(f"length: num_words below 6 ({words})") for words in range(1, 6)}
    said = {why[1]: "Now it is a long answer.", why[3]: "Na na.", why[2]: "And this one is long too."}
    said |= {why[5]: "Na na na na.", why[4]: "Na na na na na!"}
    with simulator("--answers", answers_file(tmp_path, said)) as server:
        config, layout = configured(tmp_path, server, SHORT), Layout(tmp_path)
        filter_pairs(config, layout)
        made = regenerate(config, layout)
        assert server.bill()["answers"] == 5  # one for `short`, two for each of the others
        assert not regenerate(config, layout).is_new
        assert server.bill()["answers"] == 5
        found = rows_of(made)
        assert {each["row_id"]: json.loads(each["parameters_json"])["try"] for each in found} == {
            "short": 1, "twice": 2, "never": 2,
        }  # fmt: skip
        assert [each["completion"] for each in found] == [said[why[1]], said[why[2]], said[why[4]]]
        assert {each["prompt"] for each in found} == {f"Question {name}?" for name in few}
        both = filter_again(config, layout, made.place)
        assert (both.manifest["version"], both.manifest["filtered"]["rows"]) == ("v2", 3)
        assert [each["dataset"] for each in both.manifest["parents"]] == ["teacher_outputs_v1", "regenerated_v1"]
        with pytest.raises(UserError, match="was made with other system_prompt"):
            regenerate(configured(tmp_path, server, SHORT, system_prompt="Be long."), layout)
        with pytest.raises(UserError, match="holds the answers that were rejected"):
            regenerate(config, layout, destination="teacher_outputs_v1", replace=True)


def test_a_teacher_without_conversations_is_told_in_one_message(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row("good", GOOD), row("short", "No {reason}.")])
    told = "This question was answered before: {}\nThat answer was not accepted. The reason: length: num_words below 6 ({}).\n\n"
    said = {
        told.format("No {reason}.", 2) + "Question short?\n": "Na.",
        told.format("Na.", 1) + "Question short?\n": GOOD,
    }
    with simulator("--answers", answers_file(tmp_path, said)) as server:
        config, layout = configured(tmp_path, server, SHORT), Layout(tmp_path)
        config = config.model_copy(update={"regenerate": config.regenerate.model_copy(update={"one_message": True})})
        filter_pairs(config, layout)
        (found,) = rows_of(regenerate(config, layout))
        assert (found["completion"], json.loads(found["parameters_json"])["try"]) == (GOOD, 2)
        assert found["prompt"] == "Question short?"


def test_the_default_settings_ask_the_shipped_teacher_again(tmp_path: Path) -> None:
    inputs = {"row_id": ["a"], "prompt": ["I have 3 apples. Why?"]}  # it knows arithmetic only
    parquet.write_table(pyarrow.table(inputs), tmp_path / "inputs.parquet")
    layout = Layout(tmp_path)
    config = load_config(layout.find("configs/distill.yaml"), DistillConfig)
    config = config.model_copy(update={"inputs": str(tmp_path / "inputs.parquet")})
    collect(config, layout)
    with pytest.raises(GateError, match="no pair is kept"):
        filter_pairs(config, layout)
    made = regenerate(config, layout)
    assert [json.loads(each["parameters_json"])["try"] for each in rows_of(made)] in ([1], [2])
    assert made.asked.num_bought <= 2


def test_where_no_pair_was_kept_all_prompts_are_asked_again(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row(str(number), "No.") for number in range(5)])
    with simulator("--answers", answers_file(tmp_path, {TOLD.format("length: num_words below 6 (1)"): GOOD})) as server:
        config, layout = configured(tmp_path, server, SHORT), Layout(tmp_path)
        with pytest.raises(GateError):
            filter_pairs(config, layout)
        made = regenerate(config, layout)
        assert [each["row_id"] for each in rows_of(made)] == ["0", "1", "2", "3", "4"]
        assert filter_again(config, layout, made.place).manifest["filtered"]["rows"] == 5


def test_calls_that_failed_are_held_against_their_limit_and_made_again_when_told(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row(str(number), "No.") for number in range(40)])
    with simulator("--faults", "server_error=0.5", "--retry-after-seconds", "0.05") as server:
        config, layout = configured(tmp_path, server, SHORT, pace={"max_tries": 1}), Layout(tmp_path)
        config = config.model_copy(update={"regenerate": config.regenerate.model_copy(update={"max_tries": 1})})
        with pytest.raises(GateError):
            filter_pairs(config, layout)
        with pytest.raises(GateError, match=r"of 40 answers failed, more than max_failed_share: 0.01; e.g. \d+: "):
            regenerate(config, layout)
        config = config.model_copy(update={"collect": config.collect.model_copy(update={"max_failed_share": 1.0})})
        first = regenerate(config, layout)
        failed = first.manifest["statuses"]["failed"]
        assert failed > 0
        assert not regenerate(config, layout).is_new
        again = regenerate(config, layout, replace=True)
    assert (again.is_new, again.asked.num_reused) == (True, 40 - failed)
    assert again.manifest["statuses"]["failed"] < failed


def test_samples_that_disagreed_are_asked_for_in_the_same_number(tmp_path: Path) -> None:
    steps = [{"name": "agreement", "min_share": 0.6}]
    samples = [row("a", f"#### {index}", sample_index=index) for index in range(3)]
    write_outputs(tmp_path, [*samples, *(row("b", "#### 7", sample_index=index) for index in range(3))])
    told = TOLD.format("agreement: too few samples agree")
    with simulator("--answers", answers_file(tmp_path, {told: "#### 5"})) as server:
        sampling = {"max_tokens": 32, "temperature": 1.0}
        config, layout = configured(tmp_path, server, steps, samples=3, sampling=sampling), Layout(tmp_path)
        filter_pairs(config, layout)
        made = regenerate(config, layout)
        assert [(each["row_id"], each["sample_index"]) for each in rows_of(made)] == [("a", 0), ("a", 1), ("a", 2)]
        assert server.bill()["answers"] == 3
        assert filter_again(config, layout, made.place).manifest["filtered"]["rows"] == 2


def test_what_is_equal_to_a_kept_pair_is_not_asked_again_and_refusals_without_words_are(tmp_path: Path) -> None:
    equal = [row(name, GOOD, prompt="The same?") for name in ("a", "b")]
    write_outputs(
        tmp_path, [*equal, row("c", None, status="refused"), row("d", None, status="failed", error="HTTP 500")]
    )
    said = {
        "Question c?\n\n" + TOLD.format("status: refused"): "Here it is, and quite long.",
        "Question d?": "And here it is as well.",
    }
    with simulator("--answers", answers_file(tmp_path, said)) as server:
        config, layout = configured(tmp_path, server, SHORT), Layout(tmp_path)
        filter_pairs(config, layout)
        found = rows_of(regenerate(config, layout))
        assert {each["row_id"]: each["completion"] for each in found} == {
            "c": "Here it is, and quite long.",
            "d": "And here it is as well.",
        }


def test_nothing_to_ask_again_is_told(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row("a", GOOD)])
    with simulator() as server:
        config, layout = configured(tmp_path, server, SHORT), Layout(tmp_path)
        with pytest.raises(UserError, match="filter_pairs"):
            regenerate(config, layout)
        filter_pairs(config, layout)
        with pytest.raises(UserError, match="nothing to ask again"):
            regenerate(config, layout)
        assert not list(tmp_path.rglob("regenerated*"))


def test_recorded_answers_cannot_be_asked_again(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row("a", "No.")])
    with pytest.raises(UserError, match="recorded"):
        regenerate(settings(tmp_path, []), Layout(tmp_path))


def test_killed_and_started_again_it_pays_nothing_twice(tmp_path: Path) -> None:
    made, answers = [], []
    for name, kills in (("killed", [10, 30, 50]), ("whole", [])):
        lab = tmp_path / name
        lab.mkdir()
        write_outputs(lab, [row(str(number), "No.") for number in range(30)])
        with simulator(latency_seconds=0.1) as server:
            config = configured(lab, server, TOO_SHORT, pace={"concurrency": 4})
            with pytest.raises(GateError):
                filter_pairs(config, Layout(lab))
            for bought in kills:
                process = begin(lab)
                while server.bill()["answers"] < bought:
                    assert process.poll() is None
                    time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                process.communicate()
                assert not list(lab.rglob("regenerated_v1.json"))
            process = begin(lab)
            _, said = process.communicate()
            assert process.returncode == 3, said  # asked again, and still no pair is kept
            answers.append(server.bill()["answers"])
        made.append(parquet.read_table(lab / "data/processed/distillation/teacher_outputs/regenerated_v1.parquet"))
    others = ["latency_seconds", "request_sha256"]  # which has the server's port in it
    assert made[0].drop_columns(others).equals(made[1].drop_columns(others))
    assert answers[1] == 60
    assert 60 <= answers[0] <= 60 + 3 * 4  # what was under way at the kills


def begin(lab: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "nexa_distill.regenerate", "--config", str(lab / "distill.yaml")]
    environment = {**os.environ, "NEXA_ROOT": str(lab), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
