"""The bar: the shortest PyTorch loop that learns the same, as fast as it was got on a CPU.

Best-fit-decreasing packs of fixed length, positions that restart with each row, logits only where there is a target,
fused AdamW; no checkpoints, no metrics, no resuming.

    python bare.py --variant compiled-float32 --data rows.jsonl --tokenizer folder --out result.json
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import contest
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nexa_models.attention import DOCUMENTS, DOCUMENTS_COMPILED, register
from nexa_models.attention_kernel import is_kernel_available

PACK_TOKENS = 512
"""The shortest pack that cuts no row: SDPA computes what a block-diagonal mask hides, so its cost grows with the pack."""
PACKS_PER_STEP = 10
PACKS_PER_MICROBATCH = 5

register()


@dataclass(frozen=True)
class Variant:
    compiled: bool = False
    bf16: bool = False
    documents: bool = False
    """Our attention document by document, as ours has it, instead of a block-diagonal mask over the pack."""


VARIANTS = {
    "float32": Variant(),
    "bf16": Variant(bf16=True),
    "compiled-float32": Variant(compiled=True),
    "compiled-bf16": Variant(compiled=True, bf16=True),
    "documents-float32": Variant(documents=True),
    "compiled-documents-float32": Variant(compiled=True, documents=True),
    "compiled-documents-bf16": Variant(compiled=True, documents=True, bf16=True),
}


@dataclass(frozen=True)
class Packs:
    """A microbatch of packs; each field is (packs, tokens) unless it says otherwise."""

    ids: Tensor
    positions: Tensor
    """Counted from each row's beginning."""
    documents: Tensor
    """Which row of its pack a token belongs to, from 1; 0 at the empty end."""
    at: Tensor
    """(targets,) flattened places whose next token is learned."""
    targets: Tensor
    """(targets,) those next tokens."""
    num_useful: int


def pack(rows: Sequence[contest.Row]) -> list[list[contest.Row]]:
    """Rows in packs of `PACK_TOKENS`, best fit decreasing: each goes where it leaves the least room."""
    packs: list[list[contest.Row]] = []
    with_room: list[list[int]] = [[] for _ in range(PACK_TOKENS + 1)]
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        size = len(row.ids)
        room = next((room for room in range(size, PACK_TOKENS + 1) if with_room[room]), None)
        if room is None:
            packs.append([])
            room, index = PACK_TOKENS, len(packs) - 1
        else:
            index = with_room[room].pop()
        packs[index].append(row)
        with_room[room - size].append(index)
    return packs


def lay_out(packs: Sequence[Sequence[contest.Row]]) -> Packs:
    shape = (len(packs), PACK_TOKENS)
    ids, positions, documents = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, contest.IGNORED)
    for index, rows in enumerate(packs):
        begin = 0
        for document, row in enumerate(rows, start=1):
            end = begin + len(row.ids)
            ids[index, begin:end] = row.ids
            positions[index, begin:end] = np.arange(len(row.ids))
            documents[index, begin:end] = document
            labels[index, begin : end - 1] = row.labels[1:]
            begin = end
        positions[index, begin:] = np.arange(PACK_TOKENS - begin)
    at = np.flatnonzero(labels != contest.IGNORED)
    arrays = (ids, positions, documents, at, labels.ravel()[at])
    return Packs(*map(torch.from_numpy, arrays), num_useful=sum(len(row.ids) for rows in packs for row in rows))


def endless(packs: list[list[contest.Row]]) -> Iterator[Sequence[list[contest.Row]]]:
    """The packs of each step: all in random order, then all again."""
    generator = np.random.default_rng(contest.SEED)
    while True:
        order = generator.permutation(len(packs))
        for start in range(0, len(packs) - PACKS_PER_STEP + 1, PACKS_PER_STEP):
            yield [packs[index] for index in order[start : start + PACKS_PER_STEP]]


def make_body(model: Any, variant: Variant) -> Callable[[Packs], Tensor]:
    """The transformer up to its last hidden states (tokens, hidden); compiled it sees one shape only."""

    def masked(ids: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        mask = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]
        out = model.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.last_hidden_state.flatten(0, 1)

    def by_document(ids: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        given = {"input_ids": ids, "attention_mask": None, "position_ids": positions, "documents": documents}
        return model.model(**given, use_cache=False).last_hidden_state.flatten(0, 1)

    if variant.documents:
        by_kernel = variant.compiled and is_kernel_available()
        model.config._attn_implementation = DOCUMENTS_COMPILED if by_kernel else DOCUMENTS
    body = by_document if variant.documents else masked
    if variant.compiled:
        body = torch.compile(body, dynamic=False)
    return lambda packs: body(packs.ids, packs.positions, packs.documents)


def main() -> None:
    arguments = contest.read_arguments(__doc__, list(VARIANTS))
    variant = VARIANTS[arguments.variant]
    train, validation = contest.load_rows(arguments.data, arguments.tokenizer)
    model = contest.build_model()
    body = make_body(model, variant)
    optimizer = torch.optim.AdamW(contest.decay_groups(model), lr=contest.LR, fused=True)
    packed = pack(train)
    watch = contest.Stopwatch()
    watch.start()
    for _, step_packs in zip(range(arguments.steps), endless(packed), strict=False):
        microbatches = [
            lay_out(step_packs[start : start + PACKS_PER_MICROBATCH])
            for start in range(0, PACKS_PER_STEP, PACKS_PER_MICROBATCH)
        ]
        num_targets = sum(len(packs.targets) for packs in microbatches)
        total_loss = torch.zeros(())
        for packs in microbatches:
            with torch.autocast("cpu", torch.bfloat16, enabled=variant.bf16):
                logits = model.lm_head(body(packs)[packs.at])
            loss = cross_entropy(logits.float(), packs.targets, reduction="sum") / num_targets
            loss.backward()
            total_loss += loss.detach()
            watch.count(useful=packs.num_useful, computed=packs.ids.numel())
        torch.nn.utils.clip_grad_norm_(model.parameters(), contest.MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.end_step(float(total_loss))
    model.config._attn_implementation = "sdpa"
    contest.finish(arguments, watch, name=f"bare loop {arguments.variant}", model=model, validation=validation)


if __name__ == "__main__":
    main()
