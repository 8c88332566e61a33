"""Whether an answer has exactly the form that is asked for."""

import json
import re
from collections.abc import Iterator, Sequence

from nexa_core.config.distill_filter import ExactCheck
from nexa_core.paths import Layout
from nexa_distill.checks import KEPT, Check, Pair, Verdict, rejected
from nexa_distill.checks.reference import shown


def check_exact(settings: ExactCheck, layout: Layout) -> Check:
    beginning, end, keys = settings.starts_with, settings.ends_with, settings.json_keys
    pattern = None if settings.matches is None else re.compile(settings.matches, re.DOTALL)

    def problems(text: str) -> Iterator[tuple[str, str]]:
        if not text.startswith(beginning):
            yield "another beginning", repr(text[: len(beginning) + 20])
        if not text.endswith(end):
            yield "another end", repr(shown(text))
        if pattern is not None and pattern.fullmatch(text) is None:
            yield "another form", repr(shown(text))
        if keys:
            yield from _json_problems(text, keys)

    def judge(pair: Pair) -> Verdict:
        found = next(problems(pair.completion.strip()), None)
        return KEPT if found is None else rejected(*found)

    def check(pairs: Sequence[Pair]) -> list[Verdict]:
        return [judge(pair) for pair in pairs]

    return check


def _json_problems(text: str, keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield "no JSON", str(error)
        return
    if not isinstance(value, dict):
        yield "no JSON object", type(value).__name__
    elif missing := [key for key in keys if key not in value]:
        yield "keys are missing", ", ".join(missing)
