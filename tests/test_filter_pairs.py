"""Filtering a teacher's answers: what is kept, why the rest is not, and nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import yaml

from nexa_core.config import DistillConfig, load_config
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data.datasets import find_dataset, open_dataset
from nexa_data.quality.own import code_of
from nexa_data.validation import validate
from nexa_distill.collect_teacher import collect as collect_answers
from nexa_distill.filter_pairs import filter_pairs
from nexa_distill.reviews import reviews_path
from tests.simulators import ROOT, simulator
from tests.teacher_answers import filtered, read, reasons, row, settings, write_outputs


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
    assert [each["reason"] for each in read(tmp_path, done, "rejected")] == ["equal pair", "equal pair"]


def test_a_column_that_is_missing_is_told(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"row_id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="holds no teacher's answers: it lacks sample_index"):
        filtered(tmp_path, [], outputs=[str(tmp_path / "x.parquet")])
    (tmp_path / "x.parquet").write_bytes(b"half")
    with pytest.raises(UserError, match="is no Parquet file"):
        filtered(tmp_path, [], outputs=[str(tmp_path / "x.parquet")])
    with pytest.raises(UserError, match="collect_teacher"):
        filtered(tmp_path, [])


def test_scores_and_probabilities_are_carried_along(tmp_path: Path) -> None:
    def probabilities(first: int) -> dict[str, object]:
        return {
            "token_ids": [first, 2], "top_ids": [[first, 2], [3]], "top_logprobs": [[-0.5, -1.0], [-0.25]],
            "tail_mass": [0.5, 0.25], "tokenizer_sha256": "abc",
        }  # fmt: skip

    names = [str(number) for number in range(1200)]  # more than one batch
    rows = [row(name, f"Answer {name} it is.", **(probabilities(int(name)) if int(name) % 3 else {})) for name in names]
    rows[5]["completion"] = "No."
    write_outputs(tmp_path, rows)
    path = reviews_path(Layout(tmp_path), "teacher_outputs_v1")
    path.parent.mkdir(parents=True)
    edit = {
        "row_id": "7",
        "sample_index": 0,
        "request_sha256": "digest of 7",
        "decision": "edit",
        "completion": "Mine.",
    }
    path.write_text(json.dumps(edit) + "\n")
    done = filtered(tmp_path, [{"name": "length", "of": "completion", "min_words": 3}])
    kept = {each["row_id"]: each for each in read(tmp_path, done, "filtered")}
    (no,) = read(tmp_path, done, "rejected")
    assert len(kept) == 1199
    for each in (*kept.values(), no):
        name = each["row_id"]
        wanted = rows[int(name)] if name != "7" else row("7", "Mine.")  # of a person's words nobody knows them
        assert {column: each[column] for column in probabilities(0)} == {
            column: wanted[column] for column in probabilities(0)
        }
    assert json.loads(no["scores_json"])["length.num_words"] == 1
    assert kept["7"]["completion"] == "Mine."


def test_another_kind_of_dataset_is_never_replaced(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row(str(n), f"Answer {n}.") for n in range(20)])
    with pytest.raises(UserError, match="is the name of the answers"):
        filter_pairs(settings(tmp_path, []), Layout(tmp_path), destination="teacher_outputs_v1", replace=True)
    config = settings(tmp_path, [], name="teacher_inputs")
    manifest = tmp_path / "data/processed/distillation/manifests/teacher_inputs_v1.json"
    manifest.parent.mkdir(parents=True)
    standing = {"format": "nexa.dataset/1", "name": "teacher_inputs", "version": "v1", "kind": "teacher_inputs"}
    manifest.write_text(json.dumps(standing))
    with pytest.raises(UserError, match=r"set another filter\.name"):
        filter_pairs(config, Layout(tmp_path), replace=True)
    assert json.loads(manifest.read_text()) == standing


def test_another_function_of_the_users_own_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a_users_check.py"
    source.write_text("def keep(prompt, completion, extra):\n    return None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    write_outputs(tmp_path, [row(str(n), f"Answer {n}.") for n in range(20)])
    steps = [{"name": "check:a_users_check:keep"}]
    filtered(tmp_path, steps)
    source.write_text("def keep(prompt, completion, extra):\n    return 'no'\n")
    code_of.cache_clear()
    with pytest.raises(UserError, match="functions of yours"):
        filtered(tmp_path, steps)


def test_a_judge_of_other_content_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_outputs(tmp_path, [row(str(n), f"Answer {n}.") for n in range(3)])
    template = tmp_path / "template.txt"
    template.write_text("{prompt}{completion}")
    said = tmp_path / "scores.jsonl"
    lines = [json.dumps({"prompt": f"Question {n}?Answer {n}.", "completion": "Score: 9"}) for n in range(3)]
    said.write_text("\n".join(lines))
    steps = [{"name": "judge", "ask": {"teacher": f"recorded:{said}"}, "template": str(template)}]
    assert filtered(tmp_path, steps).manifest["filtered"]["rows"] == 3
    assert not filtered(tmp_path, steps).is_new
    said.write_text("\n".join([*lines[1:], lines[0].replace("9", "1")]))
    with pytest.raises(UserError, match="was made with other content of its judge's teacher"):
        filtered(tmp_path, steps)
    assert filtered(tmp_path, steps, replace=True).manifest["filtered"]["rows"] == 2


# The price.


def test_the_price_of_a_pair_is_everything_that_was_paid(tmp_path: Path) -> None:
    prices = {"m": {"prompt_usd_per_million": 0.15, "completion_usd_per_million": 0.6}}
    asked = {"teacher": "openai:m", "prices": prices, "pace": {"timeout_seconds": 0.5, "max_tries": 2}}
    collect = {**asked, "max_failed_share": 1.0, "sampling": {"max_tokens": 64}}
    prompts = [f"What is {n} squared?" for n in range(40)]
    inputs = {"row_id": [str(n) for n in range(50)], "prompt": [*prompts, *prompts[:10]]}  # some are equal
    parquet.write_table(pyarrow.table(inputs), tmp_path / "inputs.parquet")
    (tmp_path / "template.txt").write_text("{prompt}{completion}")
    with simulator("--latency-spread", "0.5", latency_seconds=0.4) as server:  # what comes too late is billed as well
        judge = {"name": "judge", "template": str(tmp_path / "template.txt"), "max_failed_share": 1.0}
        judge["ask"] = {**asked, "base_url": server.base_url, "sampling": {"max_tokens": 32}}
        config = {
            "inputs": str(tmp_path / "inputs.parquet"),
            "collect": {**collect, "base_url": server.base_url},
            "filter": {"steps": [{**judge, "min_score": -1e9}], "keep_truncated": True},
        }
        path = reviews_path(Layout(tmp_path), "teacher_outputs_v1")
        (tmp_path / "distill.yaml").write_text(yaml.safe_dump(config))
        loaded = load_config(tmp_path / "distill.yaml", DistillConfig)
        done = collect_answers(loaded, Layout(tmp_path))
        assert done.manifest["statuses"]["failed"] > 3
        good = next(each for each in parquet.read_table(done.place.path).to_pylist() if each["completion"])
        decision = {name: good[name] for name in ("row_id", "sample_index", "request_sha256")} | {"decision": "accept"}
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(decision) + "\n")  # whatever the judge says
        made = filter_pairs(loaded, Layout(tmp_path))
        bill = server.bill()
    manifest = made.manifest
    assert round(manifest["paid"]["usd"] * 1e12) == bill["picousd"]
    assert manifest["paid"]["lost_usd"] > 0
    assert manifest["cost_usd"] + manifest["judge_cost_usd"] != pytest.approx(manifest["paid"]["usd"])
    kept = manifest["filtered"]["rows"]
    assert manifest["price_per_kept_pair_usd"] == pytest.approx(bill["picousd"] / 1e12 / kept, rel=1e-12)
    assert "of it for calls that brought no answer" in made.as_text(Layout(tmp_path))


def test_without_a_price_none_is_told(tmp_path: Path) -> None:
    write_outputs(tmp_path, [row(str(n), f"Answer {n}.", cost_usd=None) for n in range(20)])
    assert filtered(tmp_path, []).manifest["price_per_kept_pair_usd"] is None


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
