"""Models that people bring: folders as transformers writes them, or the hub's copies of them.

Only safetensors and JSON are read, never a pickle, and never code that lies beside the weights.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nexa_core import digests
from nexa_core.config.model import PretrainedEncoderModel, PretrainedLmModel
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_models.spec import ModelSpec, Pretrained

logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
TEXTS = (CONFIG, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What may be read besides the weights; the first two have to be there."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

LEFT_OUT = {
    *("auto_map", "attn_implementation", "experts_implementation", "quantization_config"),
    *("name_or_path", "transformers_version"),
}
"""Keys of a config.json that name code to fetch or weights that are no plain numbers, or say who wrote it."""
DROPOUTS = {
    *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "embedding_dropout"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "seq_classif_dropout"),
}
"""What the architectures of transformers call their dropout."""


def read_pretrained(model: PretrainedLmModel | PretrainedEncoderModel) -> tuple[Pretrained, str]:
    """What the folder of a model section says of the model, and its tokenizer's JSON.

    Raises:
        UserError: there is no such folder or hub model, or what is there cannot be used; says what to do.
    """
    folder = find_folder(model.path)
    architecture = _read_architecture(folder)
    _check_length(model.parameters.max_tokens, architecture, folder)
    tokenizer = _load_tokenizer(folder)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    num_embedded = int(architecture.get("text_config", architecture)["vocab_size"])
    if (highest := max(backend.get_vocab().values())) >= num_embedded:
        raise UserError(f"{folder}: its tokenizer has ids up to {highest} and its weights embed {num_embedded}.")
    end_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end_id is None:
        raise UserError(
            f"{folder}: its tokenizer has no token that ends a text; name one as eos_token in tokenizer_config.json."
        )
    own_template = model.chat_template if isinstance(model, PretrainedLmModel) else None
    pretrained = Pretrained(
        architecture=architecture,
        padding_id=end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        begin_id=_begin_id(tokenizer),
        end_id=end_id,
        special_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        chat_template=_read_template(tokenizer, folder) if own_template is None else _read_file(Path(own_template)),
        files=_digests(folder) | ({} if own_template is None else {own_template: digests.of_file(Path(own_template))}),
    )
    return pretrained, backend.to_str()


def find_folder(path: str) -> Path:
    """The folder at `path`, or the hub's copy of the model of that name, fetched unless HF_HUB_OFFLINE is set.

    Raises:
        UserError: there is neither.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    patterns = [*TEXTS, WEIGHTS, INDEX, "model-*-of-*.safetensors"]
    try:
        if not HUB_NAME.fullmatch(path):
            raise HFValidationError("not a name on the hub")
        return Path(snapshot_download(path, allow_patterns=patterns, local_files_only=offline))
    except (OSError, ValueError, RuntimeError) as error:
        why = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else str(error).strip().splitlines()[0]
        raise UserError(
            f"model.path: there is no folder {path}, and no model of that name from the Hugging Face hub ({why}). Put a "
            f"folder with {CONFIG}, {WEIGHTS} and {TOKENIZER} there{', or unset it to have it fetched' if offline else ''}."
        ) from None


def build_transformer(spec: ModelSpec) -> nn.Module:
    """The architecture of the spec's folder with fresh float32 weights; the folder is not needed."""
    return _auto_class(spec).from_config(transformers_config(spec), dtype=torch.float32)


def transformers_config(spec: ModelSpec) -> Any:
    """The transformers config of the spec's architecture, with the spec's dropout and labels.

    Raises:
        UserError: transformers does not know the architecture, or it has no dropout to set.
    """
    from transformers import CONFIG_MAPPING

    assert spec.pretrained is not None
    values = _architecture_of(spec.pretrained.architecture)
    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise UserError(f"transformers knows no architecture '{kind}'.{did_you_mean(kind, CONFIG_MAPPING)}")
    config = CONFIG_MAPPING[kind].from_dict(values)
    if type(config) not in _auto_class(spec)._model_mapping:
        raise UserError(f"The architecture '{kind}' is none that a {spec.model['name']} can be made of.")
    _set_dropout(config, spec.settings.parameters.dropout)
    if spec.is_language_model:
        # torch never learns the embedding of a padding token, and here that is often the token that ends a text.
        config.pad_token_id = None
    else:
        labels = dict(enumerate(spec.labels))
        ids = {label: index for index, label in labels.items()}
        config.update({"pad_token_id": spec.pretrained.padding_id, "id2label": labels, "label2id": ids})
    return config


def load_weights(transformer: nn.Module, spec: ModelSpec) -> None:
    """Put the folder's weights, as float32, in place of those of `build_transformer`; a classifier keeps its own head.

    Raises:
        UserError: the folder is gone, a file in it is not the one that the spec was made of, or weights are missing.
    """
    folder = check_files(spec)
    loaded = _load_whole(folder, spec)
    ours, theirs = (transformer, loaded) if spec.is_language_model else (_body(transformer), _body(loaded))
    weights = theirs.state_dict()
    with torch.no_grad():
        for name, tensor in ours.state_dict().items():
            if "lora_" not in name:
                tensor.copy_(weights[name.replace(".base_layer.", ".")])


def check_files(spec: ModelSpec) -> Path:
    """The folder that the spec was made of, once every digest has shown that it still is what it was.

    Raises:
        UserError: naming the files that differ.
    """
    assert spec.pretrained is not None
    path, own_template = spec.model["path"], spec.model.get("chat_template")
    folder = find_folder(path)
    # A template of the user's own went into the spec as a whole.
    known = {name: digest for name, digest in spec.pretrained.files.items() if name != own_template}
    now = _digests(folder)
    if differing := sorted(name for name in {*known, *now} if known.get(name) != now.get(name)):
        raise UserError(
            f"{folder} is not what it was: {', '.join(differing)} changed, came or went. The run or checkpoint needs the "
            "files that it began with; put them back."
        )
    return folder


def _auto_class(spec: ModelSpec) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if spec.is_language_model else AutoModelForSequenceClassification


def _body(transformer: Any) -> nn.Module:
    return transformer.base_model


def _load_whole(folder: Path, spec: ModelSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]), _quiet():
        try:
            loaded, report = _auto_class(spec).from_pretrained(
                folder,
                config=transformers_config(spec),
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=not spec.is_language_model,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    body = {f"{loaded.base_model_prefix}.{name}" for name, _ in _body(loaded).named_parameters()}
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if not spec.is_language_model:
        fresh = sorted(name for name in missing if name not in body or "pooler" in name)
        logger.info("%s has no weights for %s: they begin at random", folder, ", ".join(fresh) or "nothing")
        missing -= set(fresh)
    if missing:
        raise UserError(f"{folder} lacks weights of its own architecture: {', '.join(sorted(missing)[:5])}")
    return loaded


def _read_architecture(folder: Path) -> dict[str, Any]:
    """The folder's config.json as transformers completes it, without what names code."""
    from transformers import AutoConfig

    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {CONFIG}; a model's folder has {CONFIG}, {WEIGHTS} and {TOKENIZER}.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / CONFIG} cannot be used: {str(error).strip().splitlines()[0]}") from None
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{folder}: its weights are quantized, which cannot be trained; bring the ones they are made of."
        )
    return _architecture_of(json.loads(config.to_json_string(use_diff=False)))


def _architecture_of(values: Any) -> Any:
    if isinstance(values, dict):
        return {
            key: _architecture_of(value)
            for key, value in values.items()
            if key not in LEFT_OUT and not key.startswith("_")
        }
    return [_architecture_of(value) for value in values] if isinstance(values, list) else values


def _check_length(asked: int, architecture: dict[str, Any], folder: Path) -> None:
    longest = architecture.get("text_config", architecture).get("max_position_embeddings")
    if longest is not None and asked > longest:
        raise UserError(
            f"model.parameters.max_tokens is {asked}; {folder} reads up to {longest} tokens (max_position_embeddings)."
        )


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is None:
        return
    found = [name for name in sorted(DROPOUTS) if getattr(config, name, None) is not None]
    if not found and dropout > 0:
        raise UserError(f"model.parameters.dropout: the architecture '{config.model_type}' has no dropout.")
    for name in found:
        setattr(config, name, dropout)


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / TOKENIZER).is_file():
        raise UserError(
            f"{folder} has no {TOKENIZER}. Where it has another form of it, write one with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 -- tokenizers raises plain Exception for a malformed file
        raise UserError(f"{folder / TOKENIZER} cannot be used: {str(error).strip().splitlines()[0]}") from None


def _begin_id(tokenizer: Any) -> int | None:
    """The beginning-of-text token, where the tokenizer itself puts it in front of a text."""
    begins_with = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id if begins_with == [tokenizer.bos_token_id] else None


def _read_template(tokenizer: Any, folder: Path) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict) and "default" not in template:
        raise UserError(f"{folder} has the chat templates {', '.join(template)} and none of them is the default.")
    return template["default"] if isinstance(template, dict) else template


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.chat_template {path} cannot be read: {error}") from None


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: digests.of_file(path) for path in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    """Every file that is read of a folder."""
    yield from (folder / name for name in TEXTS if (folder / name).is_file())
    if (folder / WEIGHTS).is_file():
        yield folder / WEIGHTS
    elif (folder / INDEX).is_file():
        yield folder / INDEX
        for name in sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())):
            if not (folder / name).is_file():
                raise UserError(f"{folder} lacks {name}, which {INDEX} names.")
            yield folder / name
    else:
        raise UserError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}. Weights in another form are not read, because pickles can run "
            "code; write safetensors with transformers: model.save_pretrained(folder)"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of what it loaded: ours names what matters."""
    from transformers.utils import logging as theirs

    level, shows_progress = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if shows_progress:
            theirs.enable_progress_bar()
