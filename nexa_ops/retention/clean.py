"""Deleting what was planned: each deletion is in a journal before and after, and none leaves half of a thing."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nexa_core import durable
from nexa_core.errors import UserError
from nexa_core.holder import at_rest
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_ops.retention.plan import Item, Plan
from nexa_ops.runs.pins import is_pinned
from nexa_ops.runs.table import size_text


@dataclass(frozen=True)
class Cleaned:
    plan: Plan
    deleted: tuple[Item, ...]
    journal: str

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.deleted)

    def as_json(self) -> dict[str, Any]:
        return {**self.plan.as_json(), "num_deleted": len(self.deleted), "freed_bytes": self.size_bytes}

    def as_text(self) -> str:
        spared = len(self.plan.items) - len(self.deleted)
        rest = f"; {spared:,} spared, for their runs were pinned or began to be written to meanwhile" if spared else ""
        return f"deleted {len(self.deleted):,}, {size_text(self.size_bytes)} freed{rest}\njournal {self.journal}"


def clean(layout: Layout, plan: Plan, *, now: Callable[[], datetime]) -> Cleaned:
    """Delete what the plan says, but nothing of a run that is pinned or being written to by now.

    Killed at any moment, a folder is there whole or under a temporary name, which the next plan has.

    Raises:
        UserError: another process is cleaning.
    """
    path = layout.logs / "clean.jsonl"
    try:
        journal = durable.Journal(path)
    except BlockingIOError:
        raise UserError(f"Another process is cleaning this laboratory: it holds {path}.") from None
    deleted = []
    try:
        with Progress("deleting", total=len(plan.items), unit="items") as progress:
            for number, item in enumerate(plan.items):
                if _delete(item, layout, journal, now):
                    deleted.append(item)
                progress.update(number + 1)
    finally:
        journal.close()
    return Cleaned(plan, tuple(deleted), layout.relative(path))


def _delete(item: Item, layout: Layout, journal: durable.Journal, now: Callable[[], datetime]) -> bool:
    name = layout.relative(item.path.parent) + "/" + item.path.name
    entry = {"path": name, "size_bytes": item.size_bytes, "rule": item.rule, "why": item.why}
    with contextlib.ExitStack() as held:
        if (run := item.run) is not None and (is_pinned(layout, run.run_id) or not held.enter_context(at_rest(run))):
            return False
        journal.append([{"event": "deleting", "at": now().isoformat(timespec="seconds"), **entry}])
        is_folder = item.path.is_dir() and not item.path.is_symlink()
        going = durable.set_aside(item.path) if is_folder else item.path
    durable.remove(going)  # a folder with the lock in it could not be emptied on NFS while that is open
    journal.append([{"event": "deleted", "at": now().isoformat(timespec="seconds"), "path": name}])
    return True
