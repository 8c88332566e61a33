"""A language model as a folder that transformers, vLLM and `model.path` read; the opposite of `pretrained`."""

import json
from typing import Any, Literal

import safetensors.torch
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor

from nexa_models.causal_lm import CausalLm
from nexa_models.chat import BUILT_IN
from nexa_models.pretrained import CONFIG, TOKENIZER, WEIGHTS
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import special_ids_of

Dtype = Literal["float32", "bfloat16"]
GENERATION_CONFIG, TOKENIZER_CONFIG, CHAT_TEMPLATE = (
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)

PAIR_TEMPLATE = """\
{%- for message in messages -%}
    {%- if loop.index > 2 or message['role'] != ['user', 'assistant'][loop.index0] -%}
        {{- raise_exception('This model answers one message of a user; it learned no conversations.') -}}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- (bos_token or '') + message['content'] -}}
    {%- endif -%}
{%- endfor -%}
"""
"""Writes a question as the prompt of a training row, so that a server asks the model what it learned to answer."""


def folder_files(model: CausalLm, spec: ModelSpec, *, dtype: Dtype = "float32") -> dict[str, bytes]:
    """Name and bytes of each file; `config.json`, without which nothing reads the folder, is the last.

    The model has no adapters.
    """
    tokenizer = _tokenizer(spec)
    files = {
        WEIGHTS: safetensors.torch.save(_weights(model, getattr(torch, dtype)), metadata={"format": "pt"}),
        TOKENIZER: tokenizer.to_str(pretty=True).encode(),
        TOKENIZER_CONFIG: _json(_tokenizer_config(spec, tokenizer)),
        GENERATION_CONFIG: _json({**_marks(spec), "do_sample": False}),
    }
    if template := _chat_template(spec):
        files[CHAT_TEMPLATE] = template.encode()
    return {**files, CONFIG: _json(_config(model, spec, dtype))}


def _weights(model: CausalLm, dtype: torch.dtype) -> dict[str, Tensor]:
    """The transformer's tensors, of those that share one only the first."""
    state: dict[str, Tensor] = model.transformer.state_dict()
    tied = set(getattr(model.transformer, "all_tied_weights_keys", {}) or {})
    return {
        name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous().clone()
        for name, tensor in sorted(state.items())
        if name not in tied
    }


def _config(model: CausalLm, spec: ModelSpec, dtype: Dtype) -> dict[str, Any]:
    values = json.loads(model.transformer.config.to_json_string(use_diff=False))
    architectures = [type(model.transformer).__name__]
    hidden = {key for key in values if key.startswith("_")} | {"transformers_version"}
    return {
        **{key: value for key, value in values.items() if key not in hidden},
        **_marks(spec),
        "architectures": architectures,
        "dtype": dtype,
    }


def _marks(spec: ModelSpec) -> dict[str, int | None]:
    special = special_ids_of(spec)
    return {"bos_token_id": special.begin, "eos_token_id": special.end, "pad_token_id": special.padding}


def _tokenizer(spec: ModelSpec) -> Tokenizer:
    """The spec's tokenizer; one that was made here puts the beginning in front of a text, as others' do."""
    assert spec.tokenizer is not None
    tokenizer = Tokenizer.from_str(spec.tokenizer)
    special = special_ids_of(spec)
    if spec.pretrained is None and special.begin is not None:
        begin = tokenizer.id_to_token(special.begin)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, special.begin)]
        )
    return tokenizer


def _tokenizer_config(spec: ModelSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    special = special_ids_of(spec)
    ids = {"bos_token": special.begin, "eos_token": special.end, "pad_token": special.padding}
    names = {name: tokenizer.id_to_token(index) for name, index in ids.items() if index is not None}
    if spec.pretrained is not None:
        names = {**names, **spec.pretrained.special_tokens}
    return {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.max_tokens,
        "clean_up_tokenization_spaces": False,
    }


def _chat_template(spec: ModelSpec) -> str | None:
    if spec.pretrained is not None:
        return spec.pretrained.chat_template
    return BUILT_IN if spec.kind == "chat" else PAIR_TEMPLATE


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
