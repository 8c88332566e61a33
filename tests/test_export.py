"""Exporting: a folder that transformers reads as the model that was trained, and that can be brought along again."""

import json
from pathlib import Path

import pytest
import torch

from nexa_core.config.model import PretrainedLmModel, PretrainedLmParameters
from nexa_core.errors import GateError, UserError
from nexa_models.checkpoint import load_checkpoint, model_of
from nexa_models.pretrained import read_pretrained
from nexa_ops.export import export
from nexa_train.train import run
from tests.conftest import FinishedLab
from tests.labs import make_config

IDS = torch.tensor([[1, 40, 50, 60, 70, 80, 90]])


def logits_of(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    with torch.inference_mode():
        logits: torch.Tensor = model(IDS).logits[0]
    return logits


def logits_in(checkpoint_path: Path) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model_of(load_checkpoint(checkpoint_path))(IDS, torch.arange(IDS.shape[1]))
    return logits


@pytest.mark.parametrize("architecture", ["causal_lm", "gpt2"])
def test_the_exported_model_is_the_trained_one(finished_lab: FinishedLab, tmp_path: Path, architecture: str) -> None:
    path = finished_lab.checkpoint("causal_lm")
    if architecture == "gpt2":
        path = run(make_config("gpt2", training={"max_steps": 3}), layout=finished_lab.layout).checkpoint
    exported = export(path, tmp_path / "folder", layout=finished_lab.layout)
    assert torch.equal(logits_of(exported.path), logits_in(path))


def test_the_folder_says_which_run_made_it(finished_lab: FinishedLab, tmp_path: Path) -> None:
    exported = export(finished_lab.checkpoint("causal_lm"), tmp_path / "folder", layout=finished_lab.layout)
    records = tmp_path / "folder" / "run"
    assert json.loads((records / "manifest.json").read_text()) == finished_lab.manifest("causal_lm")
    assert (records / "lineage.json").read_bytes().strip()
    card = (tmp_path / "folder" / "README.md").read_text()
    assert exported.weights_sha256 in card
    assert exported.run_id in card


def test_the_folder_is_read_by_model_path_with_its_marks(finished_lab: FinishedLab, tmp_path: Path) -> None:
    path = finished_lab.checkpoint("causal_lm")
    export(path, tmp_path / "folder", layout=finished_lab.layout)
    settings = PretrainedLmModel(
        name="causal_lm", path=str(tmp_path / "folder"), parameters=PretrainedLmParameters(max_tokens=32)
    )
    pretrained, _ = read_pretrained(settings)
    assert (pretrained.padding_id, pretrained.begin_id, pretrained.end_id) == (0, 1, 2)
    assert pretrained.chat_template


def test_a_model_that_was_brought_along_and_adapted_is_exported_whole(
    finished_lab: FinishedLab, tmp_path: Path
) -> None:
    layout = finished_lab.layout
    base = export(finished_lab.checkpoint("causal_lm"), tmp_path / "base", layout=layout).path
    model = {"name": "causal_lm", "path": str(base), "parameters": {"max_tokens": 32}, "lora": {"rank": 2}}
    config = make_config("causal_lm", model=model, training={"max_steps": 4})
    config = config.model_copy(update={"name": "adapted"})
    adapted = run(config, layout=layout).checkpoint
    exported = export(adapted, tmp_path / "adapted", layout=layout)
    ours, theirs = logits_of(exported.path), logits_in(adapted)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, logits_of(base), atol=1e-4)


def test_half_the_bytes_on_request(finished_lab: FinishedLab, tmp_path: Path) -> None:
    path = finished_lab.checkpoint("causal_lm")
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        export(path, tmp_path / dtype, layout=finished_lab.layout, dtype=dtype)  # type: ignore[arg-type]
        sizes[dtype] = (tmp_path / dtype / "model.safetensors").stat().st_size
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]
    assert torch.allclose(logits_of(tmp_path / "bfloat16").float(), logits_in(path), atol=0.1)


def test_another_model_is_not_written_over(finished_lab: FinishedLab, tmp_path: Path) -> None:
    path = finished_lab.checkpoint("causal_lm")
    folder = tmp_path / "folder"
    export(path, folder, layout=finished_lab.layout)
    export(path, folder, layout=finished_lab.layout)  # the same files are no others
    with pytest.raises(UserError, match=r"holds other files already.*model.safetensors.*--replace"):
        export(path, folder, layout=finished_lab.layout, dtype="bfloat16")
    export(path, folder, layout=finished_lab.layout, dtype="bfloat16", replace_files=True)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_is_no_language_model_or_of_no_run_is_refused(finished_lab: FinishedLab, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nexa package"):
        export(finished_lab.checkpoint("mlp"), tmp_path / "a", layout=finished_lab.layout)
    foreign = tmp_path / "foreign.pt"
    foreign.write_bytes(finished_lab.checkpoint("causal_lm").read_bytes())
    elsewhere = type(finished_lab.layout)(tmp_path / "empty")
    with pytest.raises(GateError, match="finished run"):
        export(foreign, tmp_path / "b", layout=elsewhere)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
