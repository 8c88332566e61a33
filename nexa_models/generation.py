"""Texts that a language model writes: greedy or drawn, with the likeliest tokens at each place where they are asked for.

What a row gets depends on its own prompt and seed and not on its neighbours', but for the rounding of a batch's sums.

Axes: B rows of a batch, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nexa_models.causal_lm import CausalLm


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: the likeliest token at each place."""
    top_p: float = 1.0
    """Only the likeliest tokens whose probabilities add up to it. Source: Holtzman et al. 2019, arXiv:1904.09751."""
    num_likeliest: int = 0
    """How many tokens to note at each place."""


@dataclass
class Written:
    """What was written after one prompt."""

    ids: list[int] = field(default_factory=list)
    """The last is the one that ended it, where one did."""
    has_ended: bool = False
    """Whether it ended before its limit of tokens."""
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)
    """At temperature 1, whatever the text was drawn with."""
    tail_mass: list[float] = field(default_factory=list)


def write(
    model: CausalLm,
    prompts: Sequence[Sequence[int]],
    draw: Draw,
    *,
    seeds: Sequence[int],
    stop_ids: Sequence[int],
    padding_id: int,
    is_over: Callable[[list[int]], bool] | None = None,
) -> list[Written]:
    """A continuation of each prompt, a list of ids; as one batch.

    Args:
        seeds: a row's own; it decides what is drawn where the temperature is not 0.
        is_over: whether a row ends with the ids that it has.
    """
    written = [Written() for _ in prompts]
    generators = [np.random.default_rng(seed) for seed in seeds]

    def choose(logits_BV: Tensor) -> Tensor:
        logprobs_BV = torch.log_softmax(logits_BV.double(), dim=-1)
        chosen_B = _chosen(logprobs_BV, draw, generators, [not each.has_ended for each in written])
        if draw.num_likeliest:
            likeliest = logprobs_BV.topk(min(draw.num_likeliest, logprobs_BV.shape[-1]), dim=-1)
            top_ids, top_logprobs = likeliest.indices.tolist(), likeliest.values.tolist()
            tails = (1.0 - likeliest.values.exp().sum(dim=-1)).clamp(min=0.0).tolist()
        for row, (each, token_id) in enumerate(zip(written, chosen_B.tolist(), strict=True)):
            if each.has_ended:
                continue
            each.ids.append(token_id)
            if draw.num_likeliest:
                each.top_ids.append(top_ids[row])
                each.top_logprobs.append(top_logprobs[row])
                each.tail_mass.append(tails[row])
            each.has_ended = token_id in stop_ids or (is_over is not None and is_over(each.ids))
        return chosen_B

    device = model.unigram_log_probs_V.device
    ids, mask = left_padded(prompts, padding_id, device)
    model.generate(
        ids,
        mask,
        max_new_tokens=draw.max_new_tokens,
        end_id=list(stop_ids),
        padding_id=padding_id,
        choose=choose,
        has_ended=lambda: [each.has_ended for each in written],
    )
    return written


def left_padded(sequences: Sequence[Sequence[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (rows, longest) that all end in the last column, and the mask that is 1 at real tokens."""
    longest = max(len(sequence) for sequence in sequences)
    gaps = [longest - len(sequence) for sequence in sequences]
    ids = [[padding] * gap + list(sequence) for gap, sequence in zip(gaps, sequences, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _chosen(logprobs_BV: Tensor, draw: Draw, generators: list[np.random.Generator], is_open: list[bool]) -> Tensor:
    """The next token of each row."""
    if draw.temperature == 0:
        return logprobs_BV.argmax(dim=-1)
    probabilities_BV = torch.softmax(logprobs_BV / draw.temperature, dim=-1)
    # A stable order, so that equal probabilities are always gone through alike.
    ordered_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
    below_BV = ordered_BV.cumsum(dim=-1)
    ordered_BV = ordered_BV.masked_fill(below_BV - ordered_BV >= draw.top_p, 0.0)
    below_BV = ordered_BV.cumsum(dim=-1)
    points_B = torch.tensor(list(_points(generators, is_open)), dtype=torch.float64, device=logprobs_BV.device)
    places_B1 = torch.searchsorted(below_BV, (points_B * below_BV[:, -1])[:, None], right=True)
    last_B1 = (ordered_BV > 0).sum(dim=-1, keepdim=True) - 1
    return order_BV.gather(1, torch.minimum(places_B1, last_B1))[:, 0]


def _points(generators: list[np.random.Generator], is_open: list[bool]) -> Iterator[float]:
    """A number of [0, 1) for each row; a row that has ended draws none."""
    for generator, goes_on in zip(generators, is_open, strict=True):
        yield generator.random() if goes_on else 0.0
