"""What a search adds to a run that is one of its trials."""

from typing import Protocol

from nexa_core.errors import NexaError
from nexa_core.runs import RunFolder
from nexa_train.loop import State
from nexa_train.shelf import Shelf


class Pruned(NexaError):
    """The supervisor gave the run up: its state is saved, and it has no scores and no manifest."""

    leaves_run = "pruned"

    def __init__(self, message: str, *, step: int):
        super().__init__(message)
        self.step = step


class Supervisor(Protocol):
    @property
    def shelf(self) -> Shelf: ...

    def begin(self, folder: RunFolder) -> None:
        """Is told where the run is written to."""

    def gives_up(self, state: State) -> bool:
        """Whether to stop here: a function of the validations so far alone, so that resuming changes nothing."""


class Bystander:
    """Of a trial in several processes, in each of them: the search is elsewhere, and gives nothing up."""

    def __init__(self) -> None:
        self.shelf = Shelf()

    def begin(self, folder: RunFolder) -> None:
        """It is told by who started the processes."""

    def gives_up(self, state: State) -> bool:
        return False
