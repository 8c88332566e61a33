"""The processes of a run, as their launcher describes them to each."""

from collections.abc import Mapping
from dataclasses import dataclass

from nexa_core.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


@dataclass(frozen=True)
class World:
    """This process's place among all of them; alone by default."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its own node, and so the GPU it uses."""
    local_size: int = 1
    node: int = 0
    num_nodes: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes: exactly one does."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def name(self) -> str:
        """How messages call this process."""
        return f"rank {self.rank} of {self.size} (node {self.node})"


def read_world(environment: Mapping[str, str]) -> World:
    """The world that torchrun, torch elastic or another launcher put into the environment; alone without one.

    Raises:
        UserError: a variable is no number, or a number that cannot be.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return World()
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
        node = int(environment.get("GROUP_RANK", 0))
    except ValueError as error:
        raise UserError(f"{', '.join(VARIABLES)} have to be numbers as torchrun sets them: {error}") from None
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UserError(
            f"A launcher described this process as rank {rank} of {size}, local rank {local_rank} of {local_size}; "
            "use torchrun or scripts/launch_ddp.sh, or unset RANK and WORLD_SIZE to train alone."
        )
    return World(rank, size, local_rank, local_size, node, num_nodes=max(1, size // local_size))
