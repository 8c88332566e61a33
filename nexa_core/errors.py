"""Errors a user can mend, each with the exit code that its command ends with."""


class NexaError(Exception):
    """A message for the user, printed without a traceback."""

    exit_code = 1
    leaves_run = "failed"
    """The state of a run that it ended."""


class UserError(NexaError, ValueError):
    """Wrong usage or configuration: says what was given, what is allowed and what to do."""

    exit_code = 2


class GateError(NexaError):
    """The command worked and the answer is no: a failed judgement, verification or limit."""

    exit_code = 3


class NodeError(NexaError):
    """A machine or process that cannot take part in a run, or was lost from it: says which one, and what to do."""

    exit_code = 4


class Preempted(NexaError):
    """The process was told to end (SIGTERM); it finished its step and saved, so the same command goes on from there."""

    exit_code = 143
    leaves_run = "interrupted"


class Interrupted(Preempted):
    """Likewise, by Ctrl-C (SIGINT)."""

    exit_code = 130


class Stopped(NexaError):
    """Ctrl-C: the command stopped where it was."""

    exit_code = 130
    leaves_run = "interrupted"

    def __init__(self, message: str = "interrupted; a training run continues from its newest checkpoint with --resume"):
        super().__init__(message)
