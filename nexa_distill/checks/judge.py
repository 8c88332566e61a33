"""What a model thinks of a pair."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources

from nexa_core.config.distill_filter import JudgeCheck
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_distill.checks import Check, Pair, Rejection, Verdict
from nexa_llm.ask import Teachers, ask, sampling_of
from nexa_llm.chat import Answer, ChatRequest
from nexa_llm.prices import as_usd
from nexa_llm.spent import Spent

SCORE = re.compile(r"score\s*[:=]?\s*\**\s*(-?\d+(?:\.\d+)?)", re.IGNORECASE)
BUILT_IN = "judge@1.txt"
COST = "cost_usd"
"""The score that says what the judge itself cost."""


def check_judge(
    settings: JudgeCheck,
    layout: Layout,
    *,
    purpose: str,
    spent: Spent | None = None,
    teachers: Teachers | None = None,
) -> Check:
    """The check that asks; while it runs it raises OutOfBudget, or GateError where much fails, and what was bought is kept."""
    template = judge_template(settings, layout)
    sampling = sampling_of(settings.ask)

    def request(pair: Pair) -> ChatRequest:
        # No str.format: braces in a completion, or in the template's own JSON, are no fields.
        parts = re.split(r"(\{prompt\}|\{completion\})", template)
        filled = {"{prompt}": pair.prompt, "{completion}": pair.completion}
        text = "".join(filled.get(part, part) for part in parts)
        system = (
            [] if settings.ask.system_prompt is None else [{"role": "system", "content": settings.ask.system_prompt}]
        )
        return ChatRequest((*system, {"role": "user", "content": text}), sampling)

    failed, num_judged = Counter[str](), 0

    def check(pairs: Sequence[Pair]) -> list[Verdict]:
        nonlocal num_judged
        limit = settings.max_cost_usd
        judge = teachers.of(settings.ask) if teachers else None
        answers = ask(map(request, pairs), settings.ask, layout, purpose=purpose, max_cost_usd=limit, teacher=judge)
        verdicts, paid = [], []
        for answer in answers:
            num_judged += 1
            failed.update([answer.error or ""] if answer.status == "failed" else [])
            verdicts.append(_verdict(answer, settings.min_score))
            paid.append((answer.request_sha256, answer.cost_picousd))
        if spent is not None:
            spent.saw(paid)
        if failed.total() > settings.max_failed_share * num_judged:
            raise GateError(
                f"{failed.total():,} of {num_judged:,} requests to the judge failed, more than max_failed_share: "
                f"{settings.max_failed_share:g}; e.g. {failed.most_common(1)[0][0]}. Its answers are kept; the same command "
                "asks only for those that failed."
            )
        return verdicts

    return check


def judge_template(settings: JudgeCheck, layout: Layout) -> str:
    """What the judge is asked with. Raises UserError as `read_template` does."""
    return read_template(settings.template, BUILT_IN, layout, fields=("{prompt}", "{completion}"))


def _verdict(answer: Answer, least: float) -> Verdict:
    score = read_score(answer.text or "")
    scores = {} if answer.cost_picousd is None else {COST: as_usd(answer.cost_picousd)}
    if score is None:
        return Verdict(Rejection("no score from the judge", answer.error or (answer.text or "")[-120:]), scores)
    rejection = Rejection(f"score below {least:g}", f"{score:g}") if score < least else None
    return Verdict(rejection, {"score": score, **scores})


def read_score(text: str) -> float | None:
    """The number behind the last `Score:`."""
    found = SCORE.findall(text)
    return float(found[-1]) if found else None


def read_template(given: str | None, built_in: str, layout: Layout, *, fields: tuple[str, ...]) -> str:
    """A prompt's text, a user's own or a built-in one.

    Raises:
        UserError: the file is not there, or lacks a field.
    """
    if given is None:
        return resources.files("nexa_distill").joinpath("prompts", built_in).read_text(encoding="utf-8")
    path = layout.absolute(given)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template {given} cannot be read: {error}") from None
    if missing := [field for field in fields if field not in text]:
        raise UserError(f"template {given} has no {' and no '.join(missing)} in it.")
    return text
