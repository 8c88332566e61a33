"""A session of reviewing, from its URL to its summary."""

import contextlib
import os
import sys
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import closing

from nexa_core.paths import Layout
from nexa_distill.review.review import Progress, Review
from nexa_distill.review.server import serve


def run(
    layout: Layout, given: str, *, filtered: str | None, port: int, open_page: bool, say: Callable[[str], None]
) -> None:
    """Serve the review of a dataset until Ctrl-C, and say then what was decided and what comes next.

    Raises:
        UserError: there is no such dataset, another process reviews it, or the port is taken.
    """
    with closing(Review(layout, given, filtered=filtered)) as review:
        command = next_command(given, is_filtered=review.is_filtered)

        def tell(url: str) -> None:
            say(f"{review.key}: {describe(review.progress)}")
            say(f"review at {url} (Ctrl-C ends it)")
            if open_page and has_browser(os.environ):
                with contextlib.suppress(webbrowser.Error):
                    webbrowser.open(url)

        serve(review, port=port, next_command=command, tell=tell)
        say(f"\n{review.key}: {describe(review.progress)}")
        say(f"decisions {layout.relative(review.path)}; next: {command}")


def describe(progress: Progress) -> str:
    """How far a review is, in one line."""
    return (
        f"{progress.total:,} pairs: {progress.accepted:,} accepted, {progress.rejected:,} rejected, "
        f"{progress.edited:,} edited, {progress.left:,} left"
    )


def next_command(given: str, *, is_filtered: bool) -> str:
    """The command that obeys the decisions; pairs that were filtered before are filtered anew."""
    return f"nexa filter-pairs --src {given}{' --replace' if is_filtered else ''}"


def has_browser(environment: Mapping[str, str]) -> bool:
    """Whether there is a screen; without one a browser would be one of text, and take the terminal."""
    return sys.platform == "darwin" or any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
