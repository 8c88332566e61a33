"""Tiny models with random weights in folders as transformers writes them, with tokenizers of a few real kinds."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from nexa_core.config.model import PretrainedEncoderModel, PretrainedLmModel
from nexa_models.pretrained import read_pretrained
from nexa_models.spec import ModelSpec
from tests.labs import WORDS, make_config

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXTS = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))] + [
    "write 3 words system user assistant"
]


CONTROL = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]")


def byte_level(folder: Path, *, template: str | None = None, bos: str | None = None, **special: str) -> Any:
    """A tokenizer like GPT-2's or Llama 3's in `folder`; one with a `bos` puts it in front of texts."""
    tokens = [*([bos] if bos else []), *special.values(), *CONTROL]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=list(dict.fromkeys(tokens)),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    # As Llama 3's does, it cuts the spaces off its offsets.
    processing: list[Any] = [processors.ByteLevel(trim_offsets=True)]
    if bos is not None:
        ids = [(bos, tokenizer.token_to_id(bos))]
        processing.append(processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=ids))
    tokenizer.post_processor = processors.Sequence(processing)
    own = {f"{name}_token": token for name, token in special.items()}
    return _save_tokenizer(folder, tokenizer, template, **own, **({"bos_token": bos} if bos else {}))


def word_pieces(folder: Path) -> Any:
    """A tokenizer like BERT's: `[CLS] text [SEP]`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _save_tokenizer(folder, tokenizer, None, **names)


def llama(folder: Path, *, template: str | None = None, **changes: Any) -> PreTrainedModel:
    """A tiny Llama, tied to its embedding, with a tokenizer like Llama 3's."""
    tokenizer = byte_level(folder, template=template, bos="<|begin|>", eos="<|end|>")
    sizes = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True, **changes}
    return save(folder, LlamaConfig(vocab_size=len(tokenizer), **sizes), AutoModelForCausalLM)


def gpt2(folder: Path) -> PreTrainedModel:
    tokenizer = byte_level(folder, eos="<|endoftext|>")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0)
    return save(folder, config, AutoModelForCausalLM)


def bert(folder: Path, *, auto_class: Any = AutoModelForSequenceClassification) -> PreTrainedModel:
    tokenizer = word_pieces(folder)
    return save(folder, BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES), auto_class)


def save(folder: Path, config: PreTrainedConfig, auto_class: Any) -> PreTrainedModel:
    """Weights large enough for logits to differ in more than noise."""
    torch.manual_seed(1)
    model = auto_class.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5)
    model.save_pretrained(folder)
    return model.eval()


def spec_of(path: Path, *, kind: str = "pairs", name: str = "causal_lm", **model: Any) -> ModelSpec:
    """The spec of a run on the model at `path`, without a laboratory around it."""
    settings = {"name": name, "path": str(path), **model}
    config = make_config("causal_lm", model={"parameters": {"max_tokens": 64}, **settings}).model
    assert isinstance(config, PretrainedLmModel | PretrainedEncoderModel)
    pretrained, tokenizer = read_pretrained(config)
    return ModelSpec(
        config.resolved(), kind, () if name == "causal_lm" else ("animals", "things"), None, tokenizer, pretrained
    )


def rewrite(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one away."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: each for key, each in value.items() if each is not None}))


def _save_tokenizer(folder: Path, tokenizer: Tokenizer, template: str | None, **special: str) -> Any:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast
