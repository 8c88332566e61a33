"""The language model: a transformers architecture built from sizes, with the unigram model it has to beat."""

from typing import Any

import torch
from torch import Tensor, nn

from nexa_core.config.model import CausalLmParameters
from nexa_core.errors import UserError
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import vocabulary_size


class CausalLm(nn.Module):
    """A decoder-only transformer.

    `unigram_log_probs_V` are the log frequencies of the training targets. They lie in the weights so that every
    score of the model, wherever its checkpoint or package goes, can be printed beside this baseline's.
    """

    unigram_log_probs_V: Tensor
    transformer: Any

    def __init__(self, transformer: nn.Module, *, num_tokens: int):
        super().__init__()
        self.transformer = transformer
        self.register_buffer("unigram_log_probs_V", torch.zeros(num_tokens))

    def forward(
        self, ids: Tensor, at: Tensor, positions: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Logits (n, vocabulary) at `n` of the places of `ids`, the only ones that the output layer is applied to.

        Args:
            ids: (rows, tokens), padded on the right: causal attention never looks there.
            at: (n,) places in `ids`, flattened.
            positions: (rows, tokens), counted from each document's beginning; from the row's without it.
            documents: (rows, tokens), which document of its row a token belongs to; tokens attend to their own
                document only. Without it a row is one document.
        """
        mask = None if documents is None else block_diagonal_mask(documents)
        body, head = self.transformer.base_model, self.transformer.get_output_embeddings()
        hidden = body(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
        return head(hidden.flatten(0, 1)[at])

    @torch.no_grad()
    def generate(
        self, ids: Tensor, attention_mask: Tensor, *, max_new_tokens: int, end_id: int, padding_id: int
    ) -> Tensor:
        """Greedy continuations (rows, new tokens) of left-padded prompts (rows, tokens)."""
        out = self.transformer.generate(
            input_ids=ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end_id,
            pad_token_id=padding_id,
        )
        return out[:, ids.shape[1] :]


def block_diagonal_mask(documents: Tensor) -> Tensor:
    """(rows, 1, tokens, tokens), true where a token may look: at itself and earlier tokens of its own document."""
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril()[:, None]


def build(spec: ModelSpec) -> CausalLm:
    parameters = CausalLmParameters.model_validate_json(spec.parameters_json)
    if parameters.hidden_size % parameters.num_heads:
        raise UserError(
            f"model.parameters: hidden_size {parameters.hidden_size} cannot be cut into {parameters.num_heads} heads"
        )
    num_tokens = vocabulary_size(spec)
    make = {"llama": _llama, "gpt2": _gpt2}[parameters.architecture]
    return CausalLm(make(parameters, num_tokens), num_tokens=num_tokens)


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
