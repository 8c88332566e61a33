"""The text classifier on a bidirectional transformer, built from sizes or brought along."""

from typing import Any

import torch
from torch import Tensor, nn

from nexa_core.config.model import EncoderParameters
from nexa_core.errors import UserError
from nexa_models.pretrained import build_transformer
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import special_ids_of, vocabulary_size


class EncoderClassifier(nn.Module):
    """A transformers architecture for sequence classification. Source: Devlin et al. 2018, arXiv:1810.04805."""

    transformer: Any

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits (rows, classes) of padded ids (rows, tokens) whose first `lengths` (rows) are real."""
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return self.transformer(input_ids=ids, attention_mask=real.long()).logits


def build(spec: ModelSpec) -> EncoderClassifier:
    if spec.pretrained is not None:
        return EncoderClassifier(build_transformer(spec))
    from transformers import BertConfig, BertForSequenceClassification

    parameters = EncoderParameters.model_validate_json(spec.parameters_json)
    if parameters.hidden_size % parameters.num_heads:
        raise UserError(
            f"model.parameters: hidden_size {parameters.hidden_size} cannot be cut into {parameters.num_heads} heads"
        )
    special = special_ids_of(spec)
    config = BertConfig(
        vocab_size=vocabulary_size(spec),
        hidden_size=parameters.hidden_size,
        num_hidden_layers=parameters.num_layers,
        num_attention_heads=parameters.num_heads,
        intermediate_size=parameters.intermediate_size or 4 * parameters.hidden_size,
        max_position_embeddings=parameters.max_tokens,
        hidden_dropout_prob=parameters.dropout,
        attention_probs_dropout_prob=parameters.dropout,
        # torch never learns the embedding of a padding token.
        pad_token_id=None if special.padding == special.end else special.padding,
        num_labels=len(spec.labels),
    )
    return EncoderClassifier(BertForSequenceClassification(config))
