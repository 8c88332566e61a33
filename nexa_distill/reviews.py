"""What people decided about pairs in `nexa review`."""

import json
from dataclasses import dataclass
from pathlib import Path

from nexa_core import digests
from nexa_core.errors import UserError
from nexa_core.paths import Layout

DECISIONS = ("accept", "reject", "edit", "none")


@dataclass(frozen=True)
class Review:
    decision: str
    """accept, reject or edit."""
    completion: str | None = None
    """What an edit puts in place of the answer."""


def reviews_path(layout: Layout, key: str) -> Path:
    """Where decisions about a dataset of answers are."""
    return layout.processed / "distillation" / "reviews" / f"{key}.jsonl"


def read_reviews(path: Path) -> dict[tuple[str, int], Review]:
    """The last decision about each row, by its id and the number of the sample; a torn last line is none.

    Raises:
        UserError: a line is not one that `nexa review` writes.
    """
    if not path.exists():
        return {}
    found: dict[tuple[str, int], Review] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            told = json.loads(line)
            key = (str(told["row_id"]), int(told["sample_index"]))
            decision = told["decision"]
            if decision not in DECISIONS or (decision == "edit" and not isinstance(told["completion"], str)):
                raise ValueError(f"decision {decision!r}")
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{path}:{number} is no decision of `nexa review`: {error}. Mend the line, or remove it."
            ) from None
        if decision == "none":
            found.pop(key, None)
        else:
            found[key] = Review(decision, told.get("completion"))
    return found


def digest_of_reviews(path: Path) -> str | None:
    return digests.of_file(path) if path.exists() else None
