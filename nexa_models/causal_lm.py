"""The language model: a transformers architecture built from sizes or brought along, with the unigram model it has to beat."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nexa_core.config.model import CausalLmParameters
from nexa_core.errors import UserError
from nexa_models.attention import DOCUMENTS, DOCUMENTS_COMPILED, register
from nexa_models.attention_kernel import is_kernel_available
from nexa_models.lora import adapt, load_quantized
from nexa_models.numerics import uncompiled
from nexa_models.pretrained import build_transformer
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import vocabulary_size

FLEX = "flex_attention"
SAME = 1e-3  # largest difference, as a share of the largest logit, between two ways to compute the same logits


UNPACKED = "train without training.packing, on a dataset without output.sequence_tokens"


class CausalLm(nn.Module):
    """A decoder-only transformer.

    `unigram_log_probs_V` are the log frequencies of the training targets. They lie in the weights so that every
    score of the model, wherever its checkpoint or package goes, can be printed beside this baseline's.
    """

    unigram_log_probs_V: Tensor
    transformer: Any

    def __init__(self, transformer: nn.Module, *, num_tokens: int):
        super().__init__()
        register()
        self.transformer = transformer
        self._usual_attention = self.transformer.config._attn_implementation
        self._documents_attention = DOCUMENTS
        self._head_alone = _applies_head_alone(transformer)
        self.register_buffer("unigram_log_probs_V", torch.zeros(num_tokens))

    def forward(
        self,
        ids: Tensor,
        at: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        *,
        with_head: bool = True,
    ) -> Tensor:
        """Logits (n, vocabulary) at `n` of the places of `ids`, the only ones that the output layer is applied to.

        Args:
            ids: (rows, tokens), padded on the right: causal attention never looks there.
            at: (n,) places in `ids`, flattened.
            positions: (rows, tokens), counted from each document's beginning; from the row's without it.
            documents: (rows, tokens), which document of its row a token belongs to; tokens attend to their own
                document only. Without it a row is one document.
            with_head: False for the hidden states (n, width) that the output layer would be applied to; only where
                `applies_head_alone`.
        """
        self.choose_attention(packed=documents is not None, device=ids.device)
        masks = None if documents is None else self._masks(documents)
        inputs = {"input_ids": ids, "attention_mask": masks, "position_ids": positions, "use_cache": False}
        if documents is not None and self._attends_by_document:
            inputs["documents"] = documents
        if self._head_alone:
            hidden = self.transformer.base_model(**inputs).last_hidden_state
            states: Tensor = hidden.flatten(0, 1)[at]
            return self.head(states) if with_head else states
        assert with_head
        # Logits that are scaled or capped are left to the model's own forward, which gives them in the order of places.
        places, order = at.unique(return_inverse=True)
        keep = torch.zeros_like(ids, dtype=torch.bool)
        keep.view(-1)[places] = True
        return self.transformer(**inputs, logits_to_keep=keep).logits[order]

    @property
    def applies_head_alone(self) -> bool:
        """Whether the logits are what the output layer makes of the last hidden states, and nothing is done to them."""
        return self._head_alone

    @property
    def head(self) -> Any:
        """The output layer."""
        return self.transformer.get_output_embeddings()

    def choose_attention(self, *, packed: bool, device: torch.device) -> None:
        """Have packs go through an attention that skips what a mask would hide, and all else as usual."""
        config, wanted = self.transformer.config, self._usual_attention
        if packed and not _drops_attention(config):
            if device.type == "cuda" and self.transformer._supports_flex_attn:
                wanted = FLEX
            elif device.type == "cpu" and self._usual_attention == "sdpa" and _attends_plainly(config):
                wanted = self._documents_attention
        if config._attn_implementation != wanted:
            self.transformer.set_attn_implementation(wanted)

    def prepare_compilation(self, *, packed: bool, device: torch.device) -> None:
        """Choose the attention before the model is compiled, so that nothing changes inside: the compiled one where it is fast.

        Raises:
            UserError: there is no compiler.
        """
        if packed and device.type == "cpu" and _head_width(self.transformer.config) % 2 == 0 and is_kernel_available():
            self._documents_attention = DOCUMENTS_COMPILED
        self.choose_attention(packed=packed, device=device)

    @property
    def _attends_by_document(self) -> bool:
        return self.transformer.config._attn_implementation in (DOCUMENTS, DOCUMENTS_COMPILED)

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        attention_mask: Tensor,
        *,
        max_new_tokens: int,
        end_id: int | Sequence[int],
        padding_id: int,
        choose: Callable[[Tensor], Tensor] | None = None,
        has_ended: Callable[[], list[bool]] | None = None,
    ) -> Tensor:
        """Greedy continuations (rows, new tokens) of left-padded prompts (rows, tokens); each ends at an `end_id`.

        Args:
            choose: gives the next token of each row by the logits (rows, vocabulary), in place of the likeliest.
            has_ended: says after each token which rows are done, beside those at an `end_id`.
        """
        self.choose_attention(packed=False, device=ids.device)
        out = self.transformer.generate(
            input_ids=ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            logits_processor=[] if choose is None else [_only(choose)],
            stopping_criteria=[] if has_ended is None else [_ends(has_ended)],
            eos_token_id=end_id if isinstance(end_id, int) else list(end_id),
            pad_token_id=padding_id,
        )
        return out[:, ids.shape[1] :]

    def _masks(self, documents: Tensor) -> Any:
        """The mask of packs, or where layers differ in how far they look, one for each kind of layer; None for none."""
        if self._attends_by_document:
            return None
        config = self.transformer.config.get_text_config()
        window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        if kinds is None:
            return self._mask(documents, window)
        windows = {"full_attention": None, "sliding_attention": window}
        if unknown := sorted(set(kinds) - set(windows)):
            raise UserError(
                f"The architecture '{config.model_type}' has layers of {', '.join(unknown)}, in which rows of one pack "
                f"would see each other; {UNPACKED}."
            )
        return {kind: self._mask(documents, windows[kind]) for kind in sorted(set(kinds))}

    def _mask(self, documents: Tensor, window: int | None) -> Any:
        if self.transformer.config._attn_implementation == FLEX:
            return _flex_mask(documents, window)
        mask = block_diagonal_mask(documents, window)
        if self.transformer.config._attn_implementation == "eager":  # adds its mask to the scores
            lowest = torch.finfo(self.transformer.dtype).min
            return torch.zeros_like(mask, dtype=self.transformer.dtype).masked_fill(~mask, lowest)
        return mask


def _only(choose: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores by which transformers takes what `choose` has chosen."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).scatter_(1, choose(logits)[:, None], 0.0)

    return process


def _ends(has_ended: Callable[[], list[bool]]) -> Callable[..., Tensor]:
    return lambda ids, _: torch.tensor(has_ended(), device=ids.device)


def block_diagonal_mask(documents: Tensor, window: int | None = None) -> Tensor:
    """(rows, 1, tokens, tokens), true where a token may look: at itself and earlier tokens of its own document.

    With `window`, only at the last so many of them, itself among them.
    """
    mask = (documents[:, :, None] == documents[:, None, :]).tril()
    return (mask if window is None else mask.triu(1 - window))[:, None]


def build(spec: ModelSpec) -> CausalLm:
    """The spec's model with fresh weights. One whose base is quantized has its base's own: they are made of them."""
    num_tokens = vocabulary_size(spec)
    if spec.pretrained is not None:
        lora = spec.lora
        quantized = lora is not None and lora.quantization is not None
        model = CausalLm(load_quantized(spec) if quantized else build_transformer(spec), num_tokens=num_tokens)
        if lora is not None:
            adapt(model.transformer, lora)
        return model
    parameters = CausalLmParameters.model_validate_json(spec.parameters_json)
    if parameters.hidden_size % parameters.num_heads:
        raise UserError(
            f"model.parameters: hidden_size {parameters.hidden_size} cannot be cut into {parameters.num_heads} heads"
        )
    make = {"llama": _llama, "gpt2": _gpt2}[parameters.architecture]
    return CausalLm(make(parameters, num_tokens), num_tokens=num_tokens)


@torch.no_grad()
def check_causal(model: CausalLm) -> None:
    """Raises UserError when a token's logits depend on later tokens: such a model cannot learn to continue a text."""
    ids = torch.arange(1, 9, device=model.unigram_log_probs_V.device).remainder(len(model.unigram_log_probs_V))[None]
    changed = ids.clone()
    changed[0, -1] = 0
    at = torch.arange(ids.shape[1] - 1, device=ids.device)
    if not _agree(model, {"ids": ids, "at": at}, {"ids": changed, "at": at}):
        kind = model.transformer.config.model_type
        raise UserError(f"model.path: '{kind}' looks at later tokens as well, so it is no causal_lm.")


@torch.no_grad()
def check_packing(model: CausalLm) -> None:
    """Raises UserError when rows of one pack would influence each other in this architecture."""
    device, num_tokens = model.unigram_log_probs_V.device, len(model.unigram_log_probs_V)
    lengths, draw = (5, 7), torch.Generator().manual_seed(0)
    rows = [torch.randint(num_tokens, (length,), generator=draw).to(device) for length in lengths]
    pack = {
        "ids": torch.cat(rows)[None],
        "positions": torch.cat([torch.arange(length, device=device) for length in lengths])[None],
        "documents": torch.cat([torch.full_like(row, index + 1) for index, row in enumerate(rows)])[None],
    }
    places = torch.arange(sum(lengths), device=device).split(lengths)
    kind = model.transformer.config.model_type
    for row, at in zip(rows, places, strict=True):
        alone = {"ids": row[None], "at": torch.arange(len(row), device=device)}
        try:
            is_alone = _agree(model, {**pack, "at": at}, alone)
        except UserError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:  # bloom, for one, reads no mask but its own
            raise UserError(f"'{kind}' takes no packs ({error}); {UNPACKED}.") from None
        if not is_alone:
            raise UserError(f"Rows of one pack would see each other in '{kind}'; {UNPACKED}.")


def _agree(model: CausalLm, one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    was_training = model.training
    model.eval()
    with uncompiled(model.transformer.base_model):
        first, second = model(**one), model(**other)
    model.train(was_training)
    return bool((first - second).abs().max() <= SAME * first.abs().max())


@torch.no_grad()
def _applies_head_alone(transformer: Any) -> bool:
    """Whether the logits are what the output layer makes of the last hidden state, and nothing is done before or after.

    Seen from the tensors themselves, whatever is in them: gemma2 caps its logits, cohere and granite scale them. False,
    which is never wrong but slower, where there are no tensors yet (meta).
    """
    seen: dict[str, Tensor] = {}
    body, head = transformer.base_model, transformer.get_output_embeddings()
    if head is None or head.weight.is_meta:
        return False
    hooks = [
        body.register_forward_hook(lambda _, given, out: seen.update(hidden=out.last_hidden_state)),
        head.register_forward_hook(lambda _, given, out: seen.update(given=given[0], logits=out)),
    ]
    was_training = transformer.training
    ids = torch.zeros(1, 2, dtype=torch.int64, device=head.weight.device)
    logits = transformer.eval()(input_ids=ids, use_cache=False).logits
    transformer.train(was_training)
    for hook in hooks:
        hook.remove()
    if seen.keys() < {"hidden", "given", "logits"}:  # opt calls the decoder inside its body, and not the body
        return False
    return logits is seen["logits"] and _is_view_of_all(seen["given"], seen["hidden"])


def _is_view_of_all(tensor: Tensor, other: Tensor) -> bool:
    owner = other if other._base is None else other._base
    return (tensor is other or tensor._base is owner) and (tensor.shape, tensor.stride()) == (
        other.shape,
        other.stride(),
    )


def _flex_mask(documents: Tensor, window: int | None) -> Any:
    """`block_diagonal_mask` as FlexAttention takes it: which blocks of it are empty, and the rule inside the others."""
    from torch.nn.attention.flex_attention import create_block_mask

    def may_look(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (documents[row, query] == documents[row, key]) & (key <= query)
        return own if window is None else own & (key > query - window)

    num_rows, num_tokens = documents.shape
    device, compiled = documents.device, documents.is_cuda
    return create_block_mask(may_look, num_rows, None, num_tokens, num_tokens, device=device, _compile=compiled)


def _drops_attention(config: Any) -> bool:
    names = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
    return any(getattr(config.get_text_config(), name, None) for name in names)


def _attends_plainly(config: Any) -> bool:
    """Whether every token looks at all earlier ones, and scores are scaled and nothing else."""
    config = config.get_text_config()
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return False
    windows = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return windows is None and not getattr(config, "attn_logit_softcapping", None)


def _head_width(config: Any) -> int:
    config = config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _llama(parameters: CausalLmParameters, num_tokens: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=num_tokens,
        hidden_size=parameters.hidden_size,
        intermediate_size=parameters.intermediate_size or 4 * parameters.hidden_size,
        num_hidden_layers=parameters.num_layers,
        num_attention_heads=parameters.num_heads,
        num_key_value_heads=parameters.num_heads,
        max_position_embeddings=parameters.max_tokens,
        attention_dropout=parameters.dropout,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def _gpt2(parameters: CausalLmParameters, num_tokens: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=num_tokens,
        n_embd=parameters.hidden_size,
        n_inner=parameters.intermediate_size or 4 * parameters.hidden_size,
        n_layer=parameters.num_layers,
        n_head=parameters.num_heads,
        n_positions=parameters.max_tokens,
        attn_pdrop=parameters.dropout,
        embd_pdrop=parameters.dropout,
        resid_pdrop=parameters.dropout,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)
