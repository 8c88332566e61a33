"""No setting is ignored: each field of each config is read by some run, or refused."""

import json
import math
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from pydantic import BaseModel

from nexa_core.config import DataConfig, DistillConfig, RunConfig
from nexa_core.config.base import Settings
from nexa_core.config.documents import Document
from nexa_core.config.load import load_config, parse_config
from nexa_core.config.policy import PolicyConfig
from nexa_core.config.rubric import Rubric
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data.prepare import prepare
from nexa_distill.checks import Pair, open_check
from nexa_distill.collect_teacher import collect as collect_answers
from nexa_distill.filter_pairs import filter_pairs
from nexa_distill.regenerate import filter_again, regenerate
from nexa_eval.judge import judge
from nexa_models.chat import BUILT_IN
from nexa_ops.retention.plan import make_plan
from nexa_train.train import run
from tests.folders import bert, llama
from tests.labs import DATASETS, MODELS, make_config, make_lab
from tests.simulators import simulator
from tests.studies import search_of, write_study

# `name` tells groups apart and is read by pydantic; `parameters` go as a whole into the model's spec, and what is
# inside them is read from there.
TAGS = {"name", "parameters"}


@pytest.fixture
def reads() -> Iterator[set[tuple[str, str]]]:
    """(class, field) of every setting that is read while the test runs."""
    seen: set[tuple[str, str]] = set()
    original = Settings.__getattribute__

    def record(self: Settings, name: str) -> Any:
        # Being checked against other settings is not yet having an effect.
        if not name.startswith("_") and sys._getframe(1).f_code.co_name != "conflicts":
            seen.add((type(self).__name__, name))
        return original(self, name)

    Settings.__getattribute__ = record  # type: ignore[method-assign, assignment]
    yield seen
    Settings.__getattribute__ = original  # type: ignore[method-assign]


def settings_classes() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [Settings]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += below
        waiting += below
    return [each for each in found if each.__module__.startswith("nexa_core.config") and not each.__subclasses__()]


OPTIMIZERS = [
    {"name": "adam", "lr": 0.01},
    {"name": "adamw", "lr": 0.01},
    {"name": "sgd", "lr": 0.01, "momentum": 0.5, "nesterov": True},
]
SCHEDULES = [
    {"name": "constant", "warmup_steps": 1},
    {"name": "linear"},
    {"name": "cosine"},
    {"name": "step", "every_steps": 2},
]


def test_every_setting_is_read(reads: set[tuple[str, str]], tmp_path: Path) -> None:
    layout = make_lab(tmp_path)
    (layout.raw / "table.csv").write_text("1;2;a\n" * 3 + "3;4;b\n" * 3)
    (layout.raw / "rows.json").write_text(json.dumps({"rows": [{"text": f"document {index}"} for index in range(30)]}))
    (layout.raw / "lines.txt").write_text("one\ntwo\nthree\n")
    chats = [[{"from": "human", "value": f"{number}?"}, {"from": "gpt", "value": "yes"}] for number in range(30)]
    (layout.raw / "chats.json").write_text(json.dumps([{"chat": chat} for chat in chats]))
    more = [
        {
            "name": "share_gpt",
            "source": {"name": "files", "path": "data/raw/chats.json"},
            "rows": {
                "name": "chat",
                "messages": "chat",
                "role": "from",
                "content": "value",
                "roles": {"human": "user", "gpt": "assistant"},
            },
            "output": {"name": "training"},
        },
        {
            "name": "table",
            "source": {
                "name": "files",
                "path": "data/raw/table.csv",
                "format": "csv",
                "csv": {"header": False, "columns": ["a", "b", "c"], "delimiter": ";"},
            },
            "rows": {"name": "features", "features": ["a", "b"], "label": "c"},
            "output": {"name": "training", "val": 0.0, "test": 0.0, "salt": "x"},
            "drop_duplicates": False,
            "about": {"creator": "Ada Lovelace", "creator_type": "person"},
        },
        {
            "name": "shards",
            "source": {"name": "files", "path": "data/raw/rows.json", "json": {"records": "rows"}},
            "rows": {"name": "pairs", "completion": "text"},
            "output": {"name": "pretrain", "rows_per_shard": 10, "sequence_tokens": 8},
            "tokenizer": {"path": "data/processed/training/tokenizers/pairs_v1.json", "begin": None, "end": "<|eos|>"},
        },
        {
            "name": "teacher_inputs",
            "source": {"name": "files", "path": "data/raw/lines.txt", "text": {"unit": "line"}},
            "rows": {"name": "pairs", "prompt": "text"},
            "output": {"name": "teacher_inputs"},
        },
        {
            "name": "problems",
            "source": {"name": "word_problems", "parts": ["test"]},
            "rows": {"name": "pairs", "prompt": "question", "completion": "answer"},
            "output": {"name": "training"},
        },
        {
            "name": "own",
            "source": {"name": "tests.test_settings:make_rows", "parameters": {"count": 20}},
            "rows": {"name": "text", "text": "text", "label": "label"},
            "output": {"name": "training"},
            "quality": [
                {"name": "length", "max_words": 90},
                {"name": "language", "languages": ["en"], "min_probability": 0},
                *({"name": name} for name in ("repetition", "refusals", "citations", "private")),
                {"name": "symbols", "min_alphabetic_share": 0, "min_mean_word_chars": 0},
                {"name": "format", "matches": ".*"},
                {"name": "tests.test_settings:score", "min_score": 1},
            ],
        },
    ]
    more[-1] |= {"near_duplicates": {"threshold": 0.9}, "decontaminate": {"against": ["pairs_v1"]}}
    settings = {"datasets": more, "memory_limit": "2GiB"}
    prepare(DataConfig.model_validate_json(json.dumps(settings)), layout, replace=True)
    for index, model in enumerate(MODELS):
        schedule = {**SCHEDULES[index % len(SCHEDULES)]}
        stopping = {"early_stopping": {"patience_epochs": 1}} if index == 0 else {}
        training = {
            "max_steps": 40 if stopping else 3,
            "optimizer": OPTIMIZERS[index % len(OPTIMIZERS)],
            "schedule": schedule,
            **stopping,
        }
        generation = (
            {"generation": {"max_rows": 1, "max_new_tokens": 1}} if "dataset" not in model and index > 3 else {}
        )
        result = run(make_config(model, training=training, evaluation=generation), layout=layout)
    llama(tmp_path / "llama")
    bert(tmp_path / "bert")
    (tmp_path / "template.jinja").write_text(BUILT_IN)
    brought = [
        (
            "chats",
            {"name": "causal_lm", "path": str(tmp_path / "llama"), "lora": {"rank": 2, "target_modules": ["q_proj"]}},
        ),
        ("topics", {"name": "encoder_classifier", "path": str(tmp_path / "bert"), "parameters": {"max_tokens": 32}}),
        ("topics", {"name": "encoder_classifier", "parameters": {"hidden_size": 8, "num_layers": 1, "num_heads": 2}}),
    ]
    brought[0][1]["chat_template"] = str(tmp_path / "template.jinja")
    brought[0][1]["parameters"] = {"max_tokens": 128, "dropout": 0.0}
    brought[1][1]["parameters"]["dropout"] = 0.0
    for dataset, model in brought:
        training = {"max_steps": 1, "packing": {"max_tokens": 1024} if dataset == "chats" else None}
        run(make_config("causal_lm", data={"dataset": dataset}, model=model, training=training), layout=layout)
    judge(result.checkpoint, layout=layout)
    _distil(layout, tmp_path)
    _search(layout, tmp_path)
    shutil.rmtree(layout.processed / "training" / "manifests")
    own = make_config(
        "mlp", data={"dataset": "images", "prepare": str(_write_data_config(tmp_path))}, training={"max_steps": 1}
    )
    run(own, layout=layout)
    custom = {"name": "tests.test_settings:make_model", "parameters": {"bias": False}}
    run(make_config("mlp", model=custom, training={"max_steps": 1}), layout=layout)
    make_plan(layout, PolicyConfig(), now=datetime.now(UTC) + timedelta(days=365))

    wanted = {(each.__name__, name) for each in settings_classes() for name in each.model_fields if name not in TAGS}
    unread = sorted(wanted - reads)
    assert not unread, unread
    assert len(wanted) > 70


def _distil(layout: Layout, tmp_path: Path) -> None:
    """Ask, filter, ask again, and train a student by each loss."""
    parquet.write_table(
        pyarrow.table({"row_id": ["a", "b"], "prompt": ["1 + 1?", "2 + 2?"]}), tmp_path / "inputs.parquet"
    )
    (tmp_path / "recorded.jsonl").write_text('{"q": "1 + 1?", "a": "two"}\n{"q": "2 + 2?", "a": "four"}\n')
    tokenizer = layout.processed / "training" / "tokenizers" / "pairs_v1.json"
    with simulator("--tokenizer", str(tokenizer)) as server:
        asked = {"teacher": "openai:m", "base_url": server.base_url}
        pace = {"requests_per_minute": 6000, "tokens_per_minute": 600_000}
        prices = {"m": {"prompt_usd_per_million": 1.0, "completion_usd_per_million": 1.0}}
        steps = [
            {"name": "length", "min_chars": 1},
            {"name": "check:tests.test_settings:never", "parameters": {}},
            {"name": "math", "reference": "sum"},
            {"name": "reference", "reference": "sum"},
            {"name": "arithmetic"},
            {"name": "agreement"},
            {"name": "judge", "ask": {**asked, "prices": prices}, "min_score": 1, "max_cost_usd": 1.0},
            {"name": "arithmetic", "require_sums": True, "ends_with_last": True},
            {"name": "exact", "matches": ".+", "starts_with": "1", "ends_with": "2", "json_keys": ["sum"]},
        ]
        sampling = {"temperature": 1.0, "logprobs": 4, "max_tokens": 16, "stop": ["#"], "seed": 1}
        collect = {**asked, "samples": 2, "pace": pace, "sampling": sampling, "tokenizer": str(tokenizer)}
        limits = {"prices": prices, "max_cost_usd": 1.0, "max_truncated_share": 1.0, "max_samples": 2}
        value: dict[str, Any] = {"inputs": str(tmp_path / "inputs.parquet"), "collect": {**collect, **limits}}
        value["filter"] = {"keep_truncated": True, "tokenizer": {"vocab_size": 300}, "val": 0.5}
        distil = _distil_config(value)
        made = collect_answers(distil, layout)
        filter_pairs(distil, layout)
        value["filter"] |= {"steps": steps, "version": "v2"}
        (row, *_) = parquet.read_table(made.place.path).to_pylist()
        for step in _distil_config(value).filter.steps:
            said = [Pair({**row, "completion": text, "extra_json": '{"sum": "2"}'}) for text in ("1 + 1 = 2", "2")]
            open_check(step, layout)(said)
        with pytest.raises(UserError, match="no reference 'sum'"):
            filter_pairs(_distil_config(value), layout)
        value["filter"]["steps"] = [{"name": "length", "min_words": 9999}]
        with pytest.raises(GateError):
            filter_pairs(_distil_config(value), layout)
        value["regenerate"] = {"max_tries": 1}
        again = regenerate(_distil_config(value), layout)
        with pytest.raises(GateError):
            filter_again(_distil_config(value), layout, again.place)
    columns_of = {"prompt_column": "q", "completion_column": "a"}
    recorded = {"teacher": f"recorded:{tmp_path / 'recorded.jsonl'}", "version": "v3", **columns_of}
    collect_answers(_distil_config({"inputs": str(tmp_path / "inputs.parquet"), "collect": recorded}), layout)
    distilled = {"dataset": "distilled", "category": "distillation"}
    sequence = {"loss": {"name": "sequence"}}
    few = {"max_steps": 1, "keep": "last"}
    result = run(make_config("causal_lm", training=few), layout=layout)
    for loss in ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"):
        section = {
            "loss": {"name": loss},
            "teacher": str(result.checkpoint),
            "on_policy": {"share": 1.0, "max_new_tokens": 2},
        }
        run(make_config("causal_lm", training=few, distillation=section), layout=layout)
    with pytest.raises(UserError, match="no log probabilities"):
        run(
            make_config("causal_lm", distillation={"loss": {"name": "forward_kl"}, "stored": "teacher_outputs_v1"}),
            layout=layout,
        )
    with pytest.raises(UserError, match="has no split 'test'"):
        run(make_config("causal_lm", training=few, distillation=sequence, data=distilled), layout=layout)


def _search(layout: Layout, tmp_path: Path) -> None:
    """Each kind of distribution, each way to try values of it, and a storage that is not there."""
    space = {
        "training.optimizer.lr": {"name": "log_uniform", "low": 0.001, "high": 0.1, "points": 2},
        "model.parameters.dropout": {"name": "uniform", "low": 0.0, "high": 0.5, "points": 2},
        "training.batch_size": {"name": "integer", "low": 128, "high": 256, "step": 128},
        "training.max_gradient_norm": {"name": "choice", "values": [1.0]},
    }
    path = tmp_path / "tune.yaml"
    write_study(path, space=space, strategy="grid", pruner={"name": "hyperband"}, training={"epochs": 1})
    search_of(path, layout).work(2)
    write_study(path, storage="postgresql://nobody@127.0.0.1:1/none", lease_seconds=5.0)
    with pytest.raises(UserError, match="No use of tune"):
        search_of(path, layout)


def _distil_config(value: dict[str, Any]) -> DistillConfig:
    return parse_config(Document(json.loads(json.dumps(value)), {}, "test"), DistillConfig)


def never(prompt: str, completion: str, extra: Any) -> None:
    """Rejects nothing."""


def _write_data_config(tmp_path: Path) -> Path:
    path = tmp_path / "data.yaml"
    path.write_text(json.dumps({"datasets": DATASETS[:1]}))
    return path


def score(text: str) -> float:
    return len(text)


def make_rows(count: int) -> Iterator[dict[str, str]]:
    for index in range(count):
        yield {"text": f"row {index}", "label": "even" if index % 2 == 0 else "odd"}


def make_model(spec: Any, bias: bool) -> torch.nn.Module:
    """A linear model whose input may be named `features`, as a user's own model's is."""

    class Linear(torch.nn.Linear):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return super().forward(features.flatten(1))

    return Linear(math.prod(spec.feature_shape), len(spec.labels), bias=bias)


@pytest.mark.parametrize("settings", [RunConfig, DataConfig, Rubric])
def test_no_group_of_settings_takes_unknown_keys(settings: type[BaseModel]) -> None:
    schema = settings.model_json_schema()
    for group in [schema, *schema["$defs"].values()]:
        assert group["type"] == "object"
        assert group["additionalProperties"] is False


def test_the_shipped_rubrics_load() -> None:
    for path in (Path(__file__).parent.parent / "nexa_eval" / "rubrics").glob("*.yaml"):
        assert load_config(path, Rubric).name == path.stem


def test_nothing_is_created_by_asking_where_things_lie(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for name in ("raw", "processed", "runs", "checkpoints", "packages", "run_manifests", "logs"):
        assert str(getattr(layout, name)).startswith(str(tmp_path))
    assert not list(tmp_path.iterdir())
