"""Marks of a tokenizer that is loaded: a model made from sizes uses its own, and asks where it can't know them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nexa_core.config.data import DatasetConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset, open_dataset
from nexa_data.prepare import prepare_dataset
from nexa_models.chat import encode_prompts
from nexa_models.checkpoint import load_checkpoint
from nexa_models.encoding import Sequences, encode
from nexa_models.marks import SpecialIds
from nexa_models.spec import ModelSpec, describe_model
from nexa_models.vocabulary import special_ids_of
from nexa_ops.package import package
from nexa_ops.verify import verify
from nexa_train.train import run
from tests.labs import WORDS, make_config
from tests.test_token_shards import config_of, make, write_documents


def write_tokenizer(root: Path, special: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.save(str(root / "own.json"))


def dataset_with(root: Path, special: list[str], *, width: int | None = None, **marks: str | None) -> Dataset:
    write_documents(root)
    write_tokenizer(root, special)
    return make(root, width=width, tokenizer={"path": "own.json", **marks})


@pytest.mark.parametrize(
    ("special", "stated", "expected"),
    [
        (["<|endoftext|>"], {}, SpecialIds(0, None, 0)),
        (["<unk>", "<s>", "</s>"], {}, SpecialIds(2, 1, 2)),
        (["<pad>", "</s>", "<s>"], {}, SpecialIds(0, 2, 1)),
        (["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], {}, SpecialIds(1, 0, 1)),
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], {"end": "<|im_end|>"}, SpecialIds(2, None, 2)),
        (["<s>", "</s>"], {"begin": None}, SpecialIds(1, None, 1)),
        (["<x>", "<y>"], {"begin": "<x>", "end": "<y>"}, SpecialIds(1, 0, 1)),
        (["<|eos|>", "<|pad|>", "<|bos|>"], {}, SpecialIds(1, 2, 0)),
    ],
)
def test_a_model_from_sizes_uses_the_marks_of_the_tokenizer(
    tmp_path: Path, special: list[str], stated: dict[str, str | None], expected: SpecialIds
) -> None:
    dataset = dataset_with(tmp_path, special, **stated)
    spec = describe_model(config_of().model, dataset)
    assert special_ids_of(spec) == expected
    assert ModelSpec.from_json(json.loads(json.dumps(spec.as_json()))) == spec
    encoded = encode(dataset.read_split("test"), spec)
    assert isinstance(encoded, Sequences)
    ids = encoded.tokens.flat.tolist()
    assert expected.end in ids
    assert expected.begin is None or ids[0] == expected.begin


def test_a_run_with_marks_of_their_own_is_packed_and_verified(tmp_path: Path) -> None:
    dataset_with(tmp_path, ["<pad>", "<s>", "</s>"])
    result = run(config_of(training={"max_steps": 3}), layout=Layout(tmp_path))
    assert special_ids_of(load_checkpoint(result.checkpoint).spec) == SpecialIds(0, 1, 2)
    report = verify(package(layout=Layout(tmp_path), checkpoint_path=result.checkpoint).path)
    assert report.passed, report.as_text()


def test_a_run_on_token_sequences_uses_their_marks(tmp_path: Path) -> None:
    dataset_with(tmp_path, ["<|begin|>", "<|end|>"], width=16, begin="<|begin|>", end="<|end|>")
    result = run(config_of(training={"max_steps": 3}), layout=Layout(tmp_path))
    assert special_ids_of(load_checkpoint(result.checkpoint).spec) == SpecialIds(1, 0, 1)


def test_a_conversation_is_written_with_the_tokenizers_own_marks(tmp_path: Path) -> None:
    spec = describe_model(config_of().model, dataset_with(tmp_path, ["<s>", "</s>"]))
    (ids,) = encode_prompts([[{"role": "user", "content": "a"}]], spec)
    assert (ids.count(0), ids.count(1)) == (2, 1)


@pytest.mark.parametrize(
    ("special", "says"),
    [
        (
            ["<x>", "<y>"],
            r"no token under a usual name \(.*\) for what stands behind a text.*special tokens: <x>, <y>\..*`tokenizer.end`",
        ),
        (
            ["</s>", "<|endoftext|>"],
            r"several tokens for what stands behind a text: <\|endoftext\|>, </s>.*`tokenizer.end`",
        ),
        (
            ["<s>", "[CLS]", "</s>"],
            r"several tokens for what stands in front of a text: <s>, \[CLS\].*`tokenizer.begin`",
        ),
        ([], r"special tokens: none\..*`tokenizer.end`"),
    ],
)
def test_marks_that_cannot_be_known_are_asked_for(tmp_path: Path, special: list[str], says: str) -> None:
    dataset = dataset_with(tmp_path, special)
    with pytest.raises(UserError, match=says):
        describe_model(config_of().model, dataset)


def test_a_tokenizer_whose_ids_have_gaps_is_refused(tmp_path: Path) -> None:
    write_documents(tmp_path)
    write_tokenizer(tmp_path, ["</s>"])
    value = json.loads((tmp_path / "own.json").read_text())
    last = max(value["model"]["vocab"], key=lambda token: value["model"]["vocab"][token])
    value["model"]["vocab"][last] += 10
    (tmp_path / "own.json").write_text(json.dumps(value))
    dataset = make(tmp_path, width=None, tokenizer={"path": "own.json"})
    with pytest.raises(UserError, match=r"tokens and ids up to \d+.*without gaps"):
        describe_model(config_of().model, dataset)


def test_a_mark_that_the_tokenizer_lacks_is_refused_when_it_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer.end: the tokenizer has no token '<z>'.*<x>"):
        dataset_with(tmp_path, ["<x>"], end="<z>")


def test_a_classifier_that_takes_the_first_id_for_padding_is_refused_where_it_is_a_word(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ["</s>", "<pad>"])
    path = tmp_path / "data" / "raw" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"text": f"row {n}", "label": str(n % 2)}) + "\n" for n in range(40)))
    value: dict[str, Any] = {
        "name": "rows",
        "source": {"name": "files", "path": "data/raw/rows.jsonl"},
        "rows": {"name": "text", "text": "text", "label": "label"},
        "output": {"name": "training", "val": 0.2, "test": 0.2},
        "tokenizer": {"path": "own.json"},
    }
    prepare_dataset(DatasetConfig.model_validate_json(json.dumps(value)), Layout(tmp_path))
    dataset = open_dataset(Layout(tmp_path), "rows", "v1")
    with pytest.raises(UserError, match=r"id 0 for padding.*vocabulary: \{name: hashed\}"):
        describe_model(make_config("text_classifier_bpe", data={"dataset": "rows"}).model, dataset)
