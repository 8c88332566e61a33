"""Packages of models that people brought: whole without the folder, the adapters and the libraries they were made with."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexa_core.config import DataConfig
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data.datasets import open_dataset
from nexa_data.prepare import prepare
from nexa_models.checkpoint import load_checkpoint, model_of
from nexa_ops import archive
from nexa_ops.archive import SUMS
from nexa_ops.package import merge_checked, package
from nexa_ops.predict import predict_file
from nexa_ops.proof import proof_columns
from nexa_ops.verify import verify
from nexa_train.train import TrainingResult, run
from tests import folders
from tests.conftest import read_package
from tests.labs import make_config, make_lab
from tests.test_chat import CHATML

TALKS = {
    "name": "talks",
    "source": {"name": "files", "path": "data/raw/talks.jsonl"},
    "rows": {
        "name": "chat",
        "messages": "conversations",
        "role": "from",
        "content": "value",
        "roles": {"human": "user", "gpt": "assistant"},
    },
    "output": {"name": "training"},
}


@dataclass(frozen=True)
class Brought:
    """Runs that began with models of the user's own, and their packages; the models' folders are gone."""

    layout: Layout
    models: Path
    runs: dict[str, TrainingResult]
    packages: dict[str, Path]


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Brought:
    root = tmp_path_factory.mktemp("brought")
    layout, models = make_lab(root / "lab"), root / "models"
    with (layout.raw / "talks.jsonl").open("w") as out:
        for line in (layout.raw / "pairs.jsonl").read_text().splitlines()[:150]:
            pair = json.loads(line)
            said = [{"from": "human", "value": pair["prompt"]}, {"from": "gpt", "value": pair["completion"]}]
            print(json.dumps({"conversations": said}), file=out)
    prepare(DataConfig.model_validate_json(json.dumps({"datasets": [TALKS]})), layout)
    folders.llama(models / "llama", template=CHATML)
    folders.bert(models / "bert")
    # Paths are told as they are in a config: relative to where the command runs.
    sections: dict[str, dict[str, Any]] = {
        "chat": {
            "data": {"dataset": "talks"},
            "model": {"path": str(models / "llama"), "parameters": {"max_tokens": 64}, "lora": {"rank": 4}},
            "evaluation": {"generation": {"max_rows": 2, "max_new_tokens": 4}},
        },
        "encoder": {
            "data": {"dataset": "topics"},
            "model": {"name": "encoder_classifier", "path": str(models / "bert"), "parameters": {"max_tokens": 32}},
        },
    }
    runs = {
        name: run(make_config("causal_lm", training={"max_steps": 4}, **each), layout=layout)
        for name, each in sections.items()
    }
    packages = {name: package(layout=layout, checkpoint_path=result.checkpoint).path for name, result in runs.items()}
    models.rename(root / "gone")
    return Brought(layout, models, runs, packages)


def test_packages_need_no_more_of_what_was_brought_and_no_peft(brought: Brought) -> None:
    code = (
        "import sys; from pathlib import Path; from nexa_ops.verify import verify\n"
        "print(verify(Path(sys.argv[1])).as_text())\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'peft', 'bitsandbytes'}))"
    )
    assert not brought.models.exists()
    done = subprocess.run(
        [sys.executable, "-c", code, brought.packages["chat"]], capture_output=True, text=True, check=True
    )
    assert "\nVERIFIED" in done.stdout
    assert "agree bit for bit" in done.stdout
    assert done.stdout.endswith("\n[]\n")
    assert verify(brought.packages["encoder"]).passed
    for path in brought.packages.values():
        model = json.loads(read_package(path)["model.json"])
        assert model["model"].get("lora") is None
        assert set(model["pretrained"]["files"]) >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_how_near_merged_adapters_came_is_told_wherever_someone_asks(brought: Brought) -> None:
    files = read_package(brought.packages["chat"])
    merged = json.loads(files["proof.json"])["merged"]
    assert 0 < merged["max_difference"] < 1e-5 * merged["max_logit"]
    share = f"{merged['max_difference'] / merged['max_logit']:.3g} of the largest"
    assert share in files["README.md"].decode()
    assert (
        f"pass  merge: when packed, merged logits differ from the adapters' by at most {share}"
        in verify(brought.packages["chat"]).as_text()
    )
    assert json.loads(read_package(brought.packages["encoder"])["proof.json"])["merged"] is None


def test_adapters_that_cannot_be_merged_are_not_packed(
    brought: Brought, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model in which the merged weights say something else, as when a layer does more than multiply."""
    (brought.models.parent / "gone").rename(brought.models)
    try:
        checkpoint = load_checkpoint(brought.runs["chat"].checkpoint)
        model = model_of(checkpoint)
    finally:
        brought.models.rename(brought.models.parent / "gone")
    dataset = open_dataset(brought.layout, "talks", "v1")
    rows = dataset.read_split("test").select(proof_columns(checkpoint.spec)).slice(0, 4)
    merge_checked(model, checkpoint.spec, rows)
    adapter = next(part for name, part in model.named_modules() if name.endswith("lora_B.default"))
    planted = adapter.register_forward_hook(lambda _, given, out: out + 0.01)
    with pytest.raises(
        GateError, match=r"cannot be merged: .* of the largest \(allowed: 0\.0001\)\. Nothing is packed"
    ) as no:
        merge_checked(model, checkpoint.spec, rows)
    assert no.value.exit_code == 3
    planted.remove()


def test_a_changed_base_is_named_before_its_adapters_are_packed(brought: Brought, tmp_path: Path) -> None:
    gone, checkpoint = brought.models.parent / "gone", brought.runs["chat"].checkpoint
    with pytest.raises(UserError, match=r"there is no folder .*llama"):
        package(layout=brought.layout, checkpoint_path=checkpoint, output=tmp_path)
    shutil.copytree(gone, brought.models)
    try:
        folders.rewrite(brought.models / "llama" / "config.json", rope_theta=7.0)
        with pytest.raises(UserError, match=r"is not what it was: config\.json changed"):
            package(layout=brought.layout, checkpoint_path=checkpoint, output=tmp_path)
    finally:
        shutil.rmtree(brought.models)
    assert not list(tmp_path.iterdir())


def answers(tarball: Path, tmp_path: Path, *rows: Any) -> list[dict[str, Any]]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    with contextlib.suppress(GateError):  # some rows have none
        predict_file(tarball, tmp_path / "rows.jsonl", output_path=out, stdout=sys.stdout, max_new_tokens=4)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_packed_chat_model_answers_conversations_in_either_spelling(brought: Brought, tmp_path: Path) -> None:
    asked = {"from": "human", "value": "write 2 words 7:"}
    said = answers(
        brought.packages["chat"],
        tmp_path,
        {"conversations": [asked]},
        {"messages": [{"role": "user", "content": "write 2 words 7:"}]},
        {"conversations": [asked, {"from": "gpt", "value": "an answer that is there already"}]},
        {"conversations": []},
        {"conversations": [{"from": ["human"], "value": "a"}]},
        {"conversations": "hello"},
        {"text": "hello"},
    )
    assert said[0]["prediction"] == said[1]["prediction"] == said[2]["prediction"]
    assert [("error" in each) for each in said] == [False] * 3 + [True] * 4
    assert "expected 'conversations' or 'messages'" in said[6]["error"]
    card = read_package(brought.packages["chat"])["README.md"].decode()
    assert 'rows like `{"conversations": [{"from": "human", "value": "..."}]}`' in card


def test_a_packed_encoder_answers_texts(brought: Brought, tmp_path: Path) -> None:
    (said,) = answers(brought.packages["encoder"], tmp_path, {"text": "the cat sees one"})
    assert said["prediction"] in ("animals", "things")
    assert abs(sum(said["probabilities"].values()) - 1) < 1e-6


def architecture(**changes: Any) -> Callable[[Any], None]:
    return lambda value: value["pretrained"]["architecture"].update(changes)


HOSTILE: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "more layers than weights": ("chat", architecture(num_hidden_layers=10**9), "asks for more layers"),
    "layers nested away": (
        "chat",
        architecture(text_config={"num_hidden_layers": 10**9}),
        "asks for more layers|vocab_size",
    ),
    "a mixture without end": ("chat", architecture(num_local_experts=10**9), "asks for more layers"),
    "sizes beyond memory": ("chat", architecture(hidden_size=2**40), r"model\.json|not this model's"),
    "an unknown architecture": ("chat", architecture(model_type="own"), "no architecture 'own'"),
    "none at all": ("chat", architecture(model_type=None), "no architecture 'None'"),
    "one that is no language model": (
        "chat",
        architecture(model_type="vit"),
        "none that a causal_lm can be made of|model.json",
    ),
    "nonsense in it": (
        "chat",
        architecture(rope_parameters=7),
        r"model\.json: its architecture cannot be built|model\.json",
    ),
    "no vocabulary": ("chat", lambda value: value["pretrained"]["architecture"].pop("vocab_size"), "no vocab_size"),
    "a smaller vocabulary": ("chat", architecture(vocab_size=5), "token ids above"),
    "an end beyond it": ("chat", lambda value: value["pretrained"].update(end_id=10**6), "token ids above"),
    "a negative id": ("chat", lambda value: value["pretrained"].update(padding_id=-1), "padding_id"),
    "adapters": ("chat", lambda value: value["model"].update(lora={"rank": 4}), "adapters are merged"),
    "nothing brought": ("chat", lambda value: value.update(pretrained=None), "`pretrained` is there"),
    "a template that fails": (
        "chat",
        lambda value: value["pretrained"].update(chat_template="{% for %}"),
        "proof_rows",
    ),
    "a template that breaks out": (
        "chat",
        lambda value: value["pretrained"].update(chat_template="{{ ''.__class__.__mro__ }}"),
        "proof_rows.parquet: .* refuses it",
    ),
    "more classes": ("encoder", lambda value: value.update(labels=["a", "b", "c"]), "classifier"),
    "another kind of rows": ("encoder", lambda value: value.update(kind="pairs"), "does not read rows of pairs"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_description_of_what_was_brought_is_refused_in_words(
    brought: Brought, tmp_path: Path, case: str
) -> None:
    name, change, says = HOSTILE[case]
    files = read_package(brought.packages[name])
    value = json.loads(files["model.json"])
    change(value)
    changed = {**files, "model.json": json.dumps(value).encode()}
    archive.pack(tmp_path / "p.tar.gz", "made", {name: data for name, data in changed.items() if name != SUMS})
    with pytest.raises(GateError, match=says):
        verify(tmp_path / "p.tar.gz")


def test_code_that_a_package_asks_for_is_not_fetched(brought: Brought, tmp_path: Path) -> None:
    """Neither code beside weights nor an attention kernel from the hub."""
    files = read_package(brought.packages["chat"])
    value = json.loads(files["model.json"])
    value["pretrained"]["architecture"] |= {
        "auto_map": {"AutoModelForCausalLM": "some-one/some-model--own.Own"},
        "attn_implementation": "some-one/some-kernel:attend",
        "_attn_implementation": "some-one/some-kernel:attend",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }
    changed = {**files, "model.json": json.dumps(value).encode()}
    archive.pack(tmp_path / "p.tar.gz", "made", {name: data for name, data in changed.items() if name != SUMS})
    assert verify(tmp_path / "p.tar.gz").passed
