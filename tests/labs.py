"""Small laboratories for tests: a root folder with prepared datasets, and runs in it."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from nexa_core.config import DataConfig, RunConfig
from nexa_core.config.data import PretrainOutput, TrainingOutput
from nexa_core.config.documents import Document
from nexa_core.config.load import parse_config
from nexa_core.paths import Layout
from nexa_data.prepare import prepare
from nexa_data.split import SPLITS, positions_of, splits_of

WORDS = [
    *("the", "a", "cat", "dog", "bird", "sees", "hears", "follows", "big", "small"),
    *("red", "old", "new", "house", "tree", "river", "one", "two", "three"),
]

DATASETS: list[dict[str, Any]] = [
    {
        "name": "images",
        "source": {"name": "digits"},
        "rows": {"name": "features", "features": "pixels", "label": "digit", "shape": [1, 8, 8]},
        "output": {"name": "training"},
    },
    {
        "name": "topics",
        "source": {"name": "files", "path": "data/raw/topics.jsonl"},
        "rows": {"name": "text", "text": "text", "label": "label"},
        "output": {"name": "training"},
        "tokenizer": {"vocab_size": 300},
    },
    {
        "name": "pairs",
        "source": {"name": "files", "path": "data/raw/pairs.jsonl"},
        "rows": {"name": "pairs", "prompt": "prompt", "completion": "completion"},
        "output": {"name": "training"},
        "tokenizer": {"vocab_size": 300},
    },
    {
        "name": "chats",
        "source": {"name": "files", "path": "data/raw/chats.jsonl"},
        "rows": {"name": "chat", "messages": "messages"},
        "output": {"name": "training"},
        "tokenizer": {"vocab_size": 300},
    },
    {
        "name": "documents",
        "source": {"name": "files", "path": "data/raw/documents.jsonl"},
        "rows": {"name": "pairs", "completion": "text"},
        "output": {"name": "pretrain", "rows_per_shard": 20, "val": 0.2, "test": 0.2},
        "tokenizer": {"vocab_size": 300},
    },
]

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "parameters": {"hidden_sizes": [16]}},
    "cnn": {"name": "cnn", "parameters": {"channels": [4, 8], "hidden_size": 16}},
    "text_classifier": {
        "name": "text_classifier",
        "parameters": {"vocabulary": {"name": "hashed", "num_buckets": 500}, "embedding_size": 8},
    },
    "text_classifier_bpe": {
        "name": "text_classifier",
        "parameters": {"vocabulary": {"name": "bpe"}, "embedding_size": 8, "max_tokens": 12},
    },
    "causal_lm": {
        "name": "causal_lm",
        "parameters": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 32, "dropout": 0.1},
    },
    "gpt2": {
        "name": "causal_lm",
        "parameters": {"architecture": "gpt2", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 32},
    },
}

DATASET_OF = {"mlp": "images", "cnn": "images", "text_classifier": "topics", "text_classifier_bpe": "topics"}


def make_lab(root: Path) -> Layout:
    """A laboratory with a small dataset of each kind, the same each time."""
    layout = Layout(root)
    (root / "data" / "raw").mkdir(parents=True)
    draw = random.Random(0)
    with (layout.raw / "topics.jsonl").open("w") as topics, (layout.raw / "pairs.jsonl").open("w") as pairs:
        for index in range(300):
            words = draw.choices(WORDS, k=draw.randint(3, 20))
            label = "animals" if {"cat", "dog", "bird"} & set(words) else "things"
            print(json.dumps({"text": f"{' '.join(words)} {index}", "label": label}), file=topics)
            count = draw.randint(1, 9)
            completion = " ".join(draw.choices(WORDS[:6], k=count))
            print(json.dumps({"prompt": f"write {count} words {index}:", "completion": completion}), file=pairs)
    with (layout.raw / "chats.jsonl").open("w") as chats, (layout.raw / "documents.jsonl").open("w") as documents:
        for index in range(120):
            turns = [" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(2 * draw.randint(1, 2))]
            roles = ["user", "assistant"] * (len(turns) // 2)
            messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
            print(json.dumps({"messages": messages}), file=chats)
            print(
                json.dumps({"text": f"{index}: {' '.join(draw.choices(WORDS, k=draw.randint(3, 60)))}"}), file=documents
            )
    prepare(DataConfig.model_validate_json(json.dumps({"datasets": DATASETS})), layout)
    return layout


def make_config(model: str, /, **sections: dict[str, Any]) -> RunConfig:
    """A run of a few steps; keyword arguments are merged into the config's sections."""
    value: dict[str, Any] = {
        "name": model,
        "experiment": "test",
        "data": {"dataset": DATASET_OF.get(model, "pairs")},
        "model": MODELS[model],
        "training": {
            "epochs": 2,
            "batch_size": 64,
            "num_threads": 1,
            "optimizer": {"name": "adamw", "lr": 0.01},
            "max_gradient_norm": 1.0,
        },
        "evaluation": {},
        "tracking": {"tensorboard": False},
    }
    for section, changes in sections.items():
        value[section] = {**value.get(section, {}), **changes}
    return parse_config(Document(json.loads(json.dumps(value)), {}, "test"), RunConfig)


def write_config(path: Path, config: RunConfig) -> Path:
    path.write_text(yaml.safe_dump(config.resolved(), sort_keys=False))
    return path


def split_of(shown: bytes, output: TrainingOutput | PretrainOutput) -> str:
    """The split of an input."""
    position = positions_of([shown], output.salt)
    return SPLITS[splits_of(position, output)[0]]
