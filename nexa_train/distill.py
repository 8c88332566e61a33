"""Training a student of a teacher: `train` for a config that says what it learns from."""

from nexa_core.config import RunConfig
from nexa_core.errors import UserError


def require_teacher(config: RunConfig) -> None:
    """Raise a `UserError` where a config says nothing of a teacher: then it is `train` that is meant."""
    if config.distillation is None:
        raise UserError(
            "This config has no `distillation:` section, which says what the student learns from; e.g. `distillation: "
            "{loss: {name: sequence}}` for a teacher's answers alone. Without a teacher: nexa train."
        )


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("distill")
