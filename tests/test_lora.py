"""Adapters: only they are trained and saved, on the base that they began with, and merged they say the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nexa_core.errors import GateError, UserError
from nexa_models.lora import BOUND, compare_logits, load_state, merge, merged_spec, saved_state
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model, load_pretrained
from nexa_models.weights import weights_to_bytes
from tests import folders

INPUTS = {"ids": torch.arange(40).reshape(4, 10), "at": torch.arange(40)}


def adapted(folder: Path, make: Any = folders.llama, **lora: Any) -> tuple[nn.Module, ModelSpec]:
    """A model whose adapters have learned something."""
    make(folder)
    spec = folders.spec_of(folder, lora={"rank": 4, "alpha": 8, **lora})
    model = build_model(spec, seed=0)
    load_pretrained(model, spec)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(5):
        nn.functional.cross_entropy(model(**INPUTS), torch.full((40,), 7)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), spec


@pytest.mark.parametrize("make", [folders.llama, folders.gpt2])
def test_only_adapters_are_trained_and_at_first_they_change_nothing(tmp_path: Path, make: Any) -> None:
    theirs = make(tmp_path)
    spec = folders.spec_of(tmp_path, lora={"rank": 4})
    model = build_model(spec, seed=0)
    load_pretrained(model, spec)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name in saved_state(model, spec) if name != "unigram_log_probs_V"}
    assert (
        0
        < sum(saved_state(model, spec)[name].numel() for name in trained)
        < sum(w.numel() for w in theirs.parameters())
    )
    with torch.no_grad():
        assert torch.equal(model.eval()(**INPUTS), theirs(input_ids=INPUTS["ids"]).logits.flatten(0, 1))


def test_adapters_go_where_they_are_asked_to(tmp_path: Path) -> None:
    folders.llama(tmp_path, tie_word_embeddings=False)

    def places(**lora: Any) -> set[str]:
        spec = folders.spec_of(tmp_path, lora=lora)
        return {
            name.split(".lora_")[0].rpartition(".")[2]
            for name in saved_state(build_model(spec), spec)
            if "lora_" in name
        }

    attention, others = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert places() == attention | others
    assert places(target_modules=["q_proj", "v_proj"]) == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"no linear layer is called q_prj\. There: down_proj"):
        places(target_modules=["q_prj"])


def test_a_head_that_shares_its_weights_takes_no_adapter(tmp_path: Path) -> None:
    folders.llama(tmp_path)
    spec = folders.spec_of(tmp_path, lora={"target_modules": ["lm_head"]})
    with pytest.raises(UserError, match="shares its weights with the embedding"):
        build_model(spec)


def test_adapters_come_back_onto_the_base_they_began_with(tmp_path: Path) -> None:
    model, spec = adapted(tmp_path)
    state = {name: tensor.clone() for name, tensor in saved_state(model, spec).items()}
    again = build_model(spec, seed=3)
    load_state(again, spec, state)
    with torch.no_grad():
        assert torch.equal(again.eval()(**INPUTS), model(**INPUTS))
    lost = dict(list(state.items())[1:])
    with pytest.raises(UserError, match="The adapters are not this model's"):
        load_state(again, spec, lost)
    folders.rewrite(tmp_path / "config.json", rope_theta=5.0)
    with pytest.raises(UserError, match=r"is not what it was: config\.json changed"):
        load_state(again, spec, state)


@pytest.mark.parametrize("make", [folders.llama, folders.gpt2])
def test_a_merged_model_says_the_same_and_is_a_plain_one(tmp_path: Path, make: Any) -> None:
    model, spec = adapted(tmp_path / "model", make)
    merged = merge(model)
    difference, largest = compare_logits(model, merged, [INPUTS])
    assert 0 < difference <= BOUND / 10 * largest
    (tmp_path / "model").rename(tmp_path / "gone")
    plain = build_model(merged_spec(spec), seed=4)
    plain.load_state_dict(merged.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.eval()(**INPUTS), merged(**INPUTS))
        base = model(**INPUTS)
    assert weights_to_bytes(plain) == weights_to_bytes(merged)
    for name, layer in model.named_modules():
        if name.endswith("lora_B.default"):
            nn.init.zeros_(layer.weight)
    with torch.no_grad():
        assert not torch.allclose(model(**INPUTS), base, atol=0.1 * largest), "the adapters had something to say"


def test_the_distance_of_a_merged_model_is_seen_and_a_broken_one_refused(tmp_path: Path) -> None:
    model, _ = adapted(tmp_path)
    merged = merge(model)
    norm = next(part for name, part in merged.named_modules() if name.endswith("post_attention_layernorm"))
    with torch.no_grad():
        norm.weight[0] *= 1.01
    difference, largest = compare_logits(model, merged, [INPUTS])
    assert difference > BOUND * largest
    with torch.no_grad():
        norm.weight[0] = torch.nan
    assert compare_logits(model, merged, [INPUTS])[0] == torch.inf
    adapter = next(part for name, part in model.named_modules() if name.endswith("lora_B.default"))
    with torch.no_grad():
        adapter.weight[0, 0] = torch.inf
    with pytest.raises(GateError, match="becomes NaN or infinite"):
        merge(model)


def test_four_bits_need_a_gpu_and_say_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    folders.llama(tmp_path)
    spec = folders.spec_of(tmp_path, lora={"quantization": "nf4"})
    with pytest.raises(UserError, match="nf4 needs a GPU and bitsandbytes"):
        build_model(spec)
