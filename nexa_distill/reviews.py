"""What people decided about pairs in `nexa review`."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nexa_core import digests
from nexa_core.errors import UserError
from nexa_core.paths import Layout

DECISIONS = ("none", "accept", "reject", "edit")
Answered = tuple[str, int, str]
"""The answer that a decision is about: `row_id`, `sample_index`, `request_sha256`. What another request brings is another one."""


@dataclass(frozen=True)
class Review:
    decision: str
    """One of DECISIONS."""
    completion: str | None = None
    """What an edit puts in place of the answer."""


def reviews_path(layout: Layout, key: str) -> Path:
    """Where decisions about a dataset of answers are."""
    return layout.processed / "distillation" / "reviews" / f"{key}.jsonl"


def read_reviews(path: Path) -> dict[Answered, Review]:
    """The last decision about each answer; a torn last line is none.

    Raises:
        UserError: a line is not one that `nexa review` writes.
    """
    if not path.exists():
        return {}
    found: dict[Answered, Review] = {}
    lines = path.read_bytes().split(b"\n")
    for answered, review in parse_reviews(path, lines[:-1]):
        if review.decision == "none":
            found.pop(answered, None)
        else:
            found[answered] = review
    return found


def parse_reviews(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[Answered, Review]]:
    """Each line of the file at `path`.

    Raises:
        UserError: a line is not one that `nexa review` writes.
    """
    for number, line in enumerate(lines, start=1):
        try:
            told = json.loads(line)
            answered = (str(told["row_id"]), int(told["sample_index"]), str(told["request_sha256"]))
            decision = told["decision"]
            if decision not in DECISIONS or (decision == "edit" and not isinstance(told["completion"], str)):
                raise ValueError(f"decision {decision!r}")
            str(told.get("completion")).encode()  # half of a surrogate pair is no text
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{path}:{number} is no decision of `nexa review`: {error}. Mend the line, or remove it."
            ) from None
        yield answered, Review(decision, told.get("completion"))


def digest_of_reviews(path: Path) -> str | None:
    return digests.of_file(path) if path.exists() else None
