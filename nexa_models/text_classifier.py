"""The text classifier: mean of token embeddings, then one linear layer."""

import torch
from torch import Tensor, nn

from nexa_core.config.model import TextClassifierParameters
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import vocabulary_size

PADDING_ID = 0
INITIAL_DEVIATION = 0.02


class TextClassifier(nn.Module):
    """Source: Joulin et al. 2016, arXiv:1607.01759, eq. 1, with dropout on the tokens and on their mean."""

    def __init__(self, parameters: TextClassifierParameters, *, num_tokens: int, num_classes: int):
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, parameters.embedding_size, padding_idx=PADDING_ID)
        # torch's default deviation of 1 drowns what the first steps learn of rare tokens.
        nn.init.normal_(self.embedding.weight, std=INITIAL_DEVIATION)
        with torch.no_grad():
            self.embedding.weight[PADDING_ID].zero_()
        self.token_dropout = parameters.token_dropout
        self.dropout = nn.Dropout(parameters.dropout)
        self.head = nn.Linear(parameters.embedding_size, num_classes)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits (rows, classes) of padded ids (rows, tokens) whose first `lengths` (rows) are real."""
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        if self.training and self.token_dropout:
            real = real & (torch.rand(ids.shape, device=ids.device) >= self.token_dropout)
        total = (self.embedding(ids) * real[:, :, None]).sum(dim=1)
        mean = total / real.sum(dim=1, keepdim=True).clamp(min=1)
        return self.head(self.dropout(mean))


def build(spec: ModelSpec) -> TextClassifier:
    parameters = TextClassifierParameters.model_validate_json(spec.parameters_json)
    return TextClassifier(parameters, num_tokens=vocabulary_size(spec), num_classes=len(spec.labels))
