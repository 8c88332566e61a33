"""Pins: runs that nothing may be cleaned of; kept beside the runs, for a finished one is never written to again."""

from datetime import datetime

from nexa_core import durable
from nexa_core.paths import Layout


def pin(layout: Layout, run_id: str, *, why: str, now: datetime) -> None:
    durable.write_json(
        layout.pins / f"{run_id}.json",
        {"run_id": run_id, "pinned_at": now.isoformat(timespec="seconds"), "why": why},
    )


def unpin(layout: Layout, run_id: str) -> bool:
    """Whether it was pinned."""
    path = layout.pins / f"{run_id}.json"
    was_pinned = path.exists()
    durable.remove(path)
    return was_pinned


def is_pinned(layout: Layout, run_id: str) -> bool:
    return (layout.pins / f"{run_id}.json").exists()


def pinned(layout: Layout) -> set[str]:
    """Ids of all pinned runs."""
    return {path.stem for path in layout.pins.glob("*.json")}
