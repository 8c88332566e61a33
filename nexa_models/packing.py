"""Best fit decreasing: which sequences share a row. A function of the lengths alone."""

import numpy as np

from nexa_core.errors import UserError


def pack(lengths: np.ndarray, width: int) -> list[np.ndarray]:
    """Packs of indices into `lengths`, each at most `width` long in all; every index comes once.

    The longest sequence goes first, each to the fullest pack that still takes it; equal ones keep their order. It
    needs at most 11/9 of the fewest packs possible, plus one. Source: Johnson et al. 1974, "Worst-case performance
    bounds for simple one-dimensional packing algorithms".

    Raises:
        UserError: a sequence is longer than `width`.
    """
    longest = int(lengths.max(initial=0))
    if longest > width:
        raise UserError(
            f"A row of {longest} tokens does not fit into packs of {width}; set training.packing.max_tokens to "
            f"{longest} or more, or a smaller max_tokens for the model."
        )
    packs: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]  # the packs that have exactly so much room left
    rooms = 0  # bit r is set where `with_room[r]` has one
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = width, len(packs)
            packs.append([])
        packs[chosen].append(index)
        with_room[room - length].append(chosen)
        rooms |= 1 << (room - length)
    return [np.array(each, dtype=np.int64) for each in packs]
