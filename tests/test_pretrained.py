"""Models that people bring: read without running their code, equal to what transformers makes of them, traced by digest."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)

from nexa_core import digests
from nexa_core.config import RunConfig
from nexa_core.config.documents import Document
from nexa_core.config.load import parse_config
from nexa_core.errors import UserError
from nexa_models.causal_lm import CausalLm, check_packing
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model, load_pretrained
from nexa_models.vocabulary import encode_plain, special_ids_of, token_bytes
from tests import folders
from tests.labs import make_config


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids=ids, at=torch.arange(ids.numel()))


@pytest.mark.parametrize("make", [folders.llama, folders.gpt2])
def test_a_folders_model_gives_the_logits_that_transformers_gives(tmp_path: Path, make: Any) -> None:
    theirs = make(tmp_path)
    spec = folders.spec_of(tmp_path)
    model = build_model(spec, seed=5)
    ids = torch.randint(300, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits.flatten(0, 1)
    assert not torch.allclose(logits_of(model, ids), expected, atol=0.1)
    load_pretrained(model, spec)
    assert torch.equal(logits_of(model, ids), expected)


def test_a_spec_rebuilds_its_model_when_the_folder_is_gone(tmp_path: Path) -> None:
    folders.llama(tmp_path / "model", template="{{ messages }}")
    spec = folders.spec_of(tmp_path / "model")
    model = build_model(spec)
    load_pretrained(model, spec)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    again = ModelSpec.from_json(json.loads(json.dumps(spec.as_json(), allow_nan=False)))
    assert again == spec
    rebuilt = build_model(again, seed=9)
    rebuilt.load_state_dict(model.state_dict())
    ids = torch.arange(12)[None]
    assert torch.equal(logits_of(rebuilt, ids), logits_of(model, ids))
    assert encode_plain(["the cat"], again) == encode_plain(["the cat"], spec)


def test_half_precision_and_sharded_weights_are_read_as_float32(tmp_path: Path) -> None:
    theirs = folders.llama(tmp_path)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").unlink()
    spec = folders.spec_of(tmp_path)
    model = build_model(spec)
    load_pretrained(model, spec)
    assert sum(name.startswith("model-") for name in spec.pretrained.files) > 1  # type: ignore[union-attr]
    weights = model.get_submodule("transformer").state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], weight.float()) for name, weight in theirs.state_dict().items())


def test_special_ids_are_what_the_tokenizer_itself_does(tmp_path: Path) -> None:
    folders.llama(tmp_path / "llama")
    folders.gpt2(tmp_path / "gpt2")
    with_begin = special_ids_of(folders.spec_of(tmp_path / "llama"))
    assert (with_begin.begin, with_begin.end, with_begin.padding) == (0, 1, 1)  # no padding token: the end's
    without = special_ids_of(folders.spec_of(tmp_path / "gpt2"))
    assert (without.begin, without.end, without.padding) == (None, 0, 0)


def test_the_end_is_learned_also_where_it_pads(tmp_path: Path) -> None:
    folders.llama(tmp_path, tie_word_embeddings=False, pad_token_id=1)
    spec = folders.spec_of(tmp_path)
    assert special_ids_of(spec).padding == special_ids_of(spec).end == 1
    model = build_model(spec)
    model(ids=torch.tensor([[5, 1, 6]]), at=torch.tensor([1, 2])).sum().backward()
    gradient = model.get_submodule("transformer").get_input_embeddings().weight.grad  # type: ignore[operator]
    assert gradient[1].abs().sum() > 0


@pytest.mark.parametrize("text", ["the cat sees 12 birds", "Grüße, 東京 😀\n\n  two"])
def test_tokens_know_how_many_bytes_of_text_they_stand_for(tmp_path: Path, text: str) -> None:
    folders.llama(tmp_path)
    spec = folders.spec_of(tmp_path)
    assert token_bytes(spec)[encode_plain([text], spec)[0]].sum() == len(text.encode())
    assert token_bytes(spec)[0] == 0


def test_every_file_that_is_read_is_digested_and_a_changed_one_is_named(tmp_path: Path) -> None:
    folders.llama(tmp_path, template="{{ messages }}")
    spec = folders.spec_of(tmp_path)
    assert spec.pretrained is not None
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert spec.pretrained.files == {name: digests.of_file(tmp_path / name) for name in names}
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"is not what it was: model\.safetensors changed"):
        load_pretrained(build_model(spec), spec)


def refusal(path: Path, **model: Any) -> str:
    with pytest.raises(UserError) as caught:
        folders.spec_of(path, **model)
    return str(caught.value)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "evil"),)

    folders.llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    assert "pickles can run code" in refusal(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_code_beside_the_weights_is_never_run(tmp_path: Path) -> None:
    folders.llama(tmp_path)
    (tmp_path / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    own = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    folders.rewrite(tmp_path / "config.json", auto_map=own)
    folders.rewrite(tmp_path / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_own.Own", None]})
    spec = folders.spec_of(tmp_path)  # Llama is known without it
    assert spec.pretrained is not None
    assert "auto_map" not in spec.pretrained.architecture
    load_pretrained(build_model(spec), spec)
    folders.rewrite(tmp_path / "config.json", model_type="own")
    assert "config.json cannot be used" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_used_is_refused_in_words(tmp_path: Path) -> None:
    folders.llama(tmp_path)
    assert "reads up to 256 tokens" in refusal(tmp_path, parameters={"max_tokens": 257})
    assert "cannot be read" in refusal(tmp_path, chat_template=str(tmp_path / "none.jinja"))
    folders.rewrite(tmp_path / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantized" in refusal(tmp_path)
    folders.rewrite(tmp_path / "config.json", quantization_config=None, vocab_size=100)
    assert "has ids up to 339 and its weights embed 100" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be used" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "has no config.json" in refusal(tmp_path)


def test_missing_weights_are_named_and_never_made_up(tmp_path: Path) -> None:
    import safetensors.torch

    folders.llama(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    spec = folders.spec_of(tmp_path)
    with pytest.raises(UserError, match=r"lacks weights .*layers\.1\.mlp\.up_proj\.weight"):
        load_pretrained(build_model(spec), spec)


def test_a_model_that_looks_ahead_is_no_language_model(tmp_path: Path) -> None:
    folders.bert(tmp_path, auto_class=AutoModelForCausalLM)
    spec = folders.spec_of(tmp_path)
    with pytest.raises(UserError, match="'bert' looks at later tokens"):
        load_pretrained(build_model(spec), spec)


def test_offline_a_name_that_is_not_in_the_cache_is_one_clear_error(tmp_path: Path) -> None:
    code = (
        "from nexa_core.errors import UserError\nfrom nexa_models.pretrained import find_folder\n"
        "try: find_folder('some-one/some-model')\nexcept UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    assert "there is no folder some-one/some-model, and no model of that name" in done.stdout
    assert "HF_HUB_OFFLINE is set and it is not in the cache" in done.stdout
    assert "Put a folder" in done.stdout


SIZES: dict[str, Any] = {**folders.SIZES, "vocab_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=4),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=8, sliding_window=4, final_logit_softcapping=2.0),
    "granite": lambda: GraniteConfig(**SIZES, logits_scaling=4.0),
    "cohere": lambda: CohereConfig(**SIZES, logit_scale=0.25),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=32),
}


def tiny(name: str) -> CausalLm:
    torch.manual_seed(0)
    transformer = AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.mul_(4)
    return CausalLm(transformer, num_tokens=64).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_at_wanted_places_are_those_of_the_models_own_forward(name: str) -> None:
    """Also where it caps or scales them behind its output layer; and in whatever order they are asked for."""
    model = tiny(name)
    ids = torch.randint(64, (3, 9), generator=torch.Generator().manual_seed(0))
    at = torch.tensor([20, 3, 0, 11, 26, 12])
    with torch.no_grad():
        expected = model.transformer(input_ids=ids, use_cache=False).logits.flatten(0, 1)[at]
        assert torch.allclose(model(ids=ids, at=at), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_a_pack_do_not_see_each_other_however_far_a_layer_looks(name: str) -> None:
    model = tiny(name)
    check_packing(model)
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(64, (length,), generator=draw) for length in (9, 6)]
    pack = {
        "ids": torch.cat(rows)[None],
        "positions": torch.cat([torch.arange(9), torch.arange(6)])[None],
        "documents": torch.tensor([[1] * 9 + [2] * 6]),
    }
    with torch.no_grad():
        packed = model(**pack, at=torch.arange(15))
        alone = torch.cat([model(ids=row[None], at=torch.arange(len(row))) for row in rows])
    assert torch.allclose(packed, alone, atol=1e-4 * float(alone.abs().max()))


def test_an_architecture_that_cannot_be_packed_says_so() -> None:
    transformer = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(UserError, match="'bloom' takes no packs"):
        check_packing(CausalLm(transformer, num_tokens=64))


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2"])
def test_flex_attention_sees_what_the_mask_lets_see(name: str) -> None:
    """What a GPU does, in eager mode on the CPU."""
    model = tiny(name)
    documents = torch.tensor([[1] * 7 + [2] * 5 + [0] * 4, [1] * 3 + [2] * 9 + [3] * 4])
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in ((7, 5, 4), (3, 9, 4))])
    ids = torch.randint(64, documents.shape, generator=torch.Generator().manual_seed(0))
    inputs = {"ids": ids, "at": torch.arange(12), "positions": positions, "documents": documents}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = model(**inputs)
        model.transformer.set_attn_implementation("flex_attention")
        model._usual_attention = "flex_attention"
        assert torch.allclose(model(**inputs), expected, atol=1e-4 * float(expected.abs().max()))


def test_dropout_is_set_wherever_the_architecture_has_one(tmp_path: Path) -> None:
    folders.gpt2(tmp_path / "gpt2")
    spec = folders.spec_of(tmp_path / "gpt2", parameters={"max_tokens": 64, "dropout": 0.4})
    model = build_model(spec)
    found = {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)}
    assert found == {0.4}
    folders.llama(tmp_path / "llama")
    spec = folders.spec_of(tmp_path / "llama", parameters={"max_tokens": 64, "dropout": 0.3})
    assert build_model(spec).transformer.config.attention_dropout == 0.3  # type: ignore[union-attr]


def refused_config(**model: Any) -> str:
    value = {**make_config("causal_lm").resolved(), "model": {"name": "causal_lm", **model}}
    with pytest.raises(UserError) as caught:
        parse_config(Document(json.loads(json.dumps(value)), {}, "test"), RunConfig)
    return str(caught.value)


def test_sizes_and_a_path_exclude_each_other_and_adapters_need_a_path() -> None:
    said = refused_config(path="x", parameters={"hidden_size": 8})
    assert "Unknown key 'model.parameters.hidden_size'" in said
    assert "'model.path' is missing" in refused_config(lora={})
    assert make_config("causal_lm").model.resolved().keys() == {"name", "parameters"}
    config = make_config("causal_lm", model={"path": "x", "parameters": {"max_tokens": 9}})
    assert config.model.resolved()["parameters"] == {"max_tokens": 9, "dropout": None}


def test_a_base_model_without_a_head_cannot_stand_in_for_a_language_model(tmp_path: Path) -> None:
    folders.llama(tmp_path, tie_word_embeddings=False)
    AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    spec = folders.spec_of(tmp_path)
    with pytest.raises(UserError, match=r"lacks weights .*lm_head\.weight"):
        load_pretrained(build_model(spec), spec)
