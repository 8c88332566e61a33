"""Asking again for prompts of which no answer was kept: the teacher is told why, a bounded number of times."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet

from nexa_core import digests, durable
from nexa_core.config.distill import DistillConfig
from nexa_core.config.distill_filter import FilterConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_data import manifests
from nexa_distill import outputs
from nexa_distill.checks import Pair
from nexa_distill.checks.judge import read_template
from nexa_distill.collect_teacher import Collected, describe
from nexa_distill.inputs import Prompt
from nexa_distill.outputs import OutputTable, Tally
from nexa_distill.places import place_of, require_file
from nexa_distill.sifting import STATUS, Sieve
from nexa_llm.ask import Asked, ask, price_of, sampling_of
from nexa_llm.chat import Answer, ChatRequest, Message

logger = logging.getLogger(__name__)

BUILT_IN = "regenerate@1.txt"
PROMPTS_AT_ONCE = 1024
MAKE = "python -m nexa_distill.filter_pairs"


@dataclass(frozen=True)
class Pending:
    """A prompt of which no answer is kept, with its newest answer and why that was rejected."""

    pair: Pair
    reason: str
    conversation: tuple[Message, ...]
    """The prompt, and what was said about it since."""
    number: int
    """Tries so far."""


def regenerate(
    config: DistillConfig,
    layout: Layout,
    *,
    source: str | None = None,
    destination: str | None = None,
    replace: bool = False,
) -> Collected:
    """Ask again for each rejected prompt, at most `max_tries` times, and write its last answer as a teacher's outputs.

    Answers go through the filter's own steps; one that passes ends the tries of its prompt. What was bought is stored, so that
    a killed command goes on where it was.

    Args:
        source: the filtered dataset's key, in place of the settings'.
        destination: a dataset's key or a Parquet file, in place of the settings' name and version.
        replace: whether a dataset of that name and version may be replaced.

    Raises:
        UserError: nothing was filtered, or the teacher's answers are recorded ones.
        GateError: the budget is used up.
    """
    settings, collect = config.regenerate, config.collect
    if collect.provider == "recorded":
        raise UserError(
            f"{collect.teacher} can't be asked again: its answers are recorded. Name another with --teacher."
        )
    rejected = place_of(layout, source or config.filter.key, "rejected")
    require_file(layout, rejected, "rejected", make=MAKE)
    filtered = place_of(layout, rejected.key, "filtered")
    place = place_of(layout, destination or settings.key, outputs.FOLDER)
    template = read_template(settings.template, BUILT_IN, layout, fields=("{reason}",))
    made_of = {
        "rejected": digests.of_file(rejected.path),
        "config": [collect.sampling.resolved(), collect.teacher, collect.base_url, settings.max_tries, template],
        "filter": config.filter.resolved(),
    }
    standing = manifests.read_manifest(place.manifest_path)
    if standing is not None and not replace:
        if standing["fingerprint"] != digests.of_value(made_of):
            raise UserError(f"{place.key} was made of something else. Set a new regenerate.version, or pass --replace.")
        logger.info("%s: nothing to do, it stands as asked", place.key)
        return Collected(place, standing, is_new=False, asked=Asked())
    asked = Asked()
    with ExitStack() as stack, Progress("asking again", total=None, unit="prompts") as progress:
        table, tally = OutputTable(stack, place.path), Tally()
        for some in _rejected_prompts(rejected.path, kept=_kept(filtered.path)):
            for last, answer, number in _try_again(some, config, layout, template, place.key, asked):
                prompt = Prompt(last.row["row_id"], last.prompt, last.row["extra_json"])
                table.add(
                    prompt,
                    last.row["sample_index"],
                    answer,
                    teacher=collect.teacher,
                    parameters_json=digests.canonical_json({**collect.sampling.resolved(), "try": number}).decode(),
                    prompt_sha256=last.row["prompt_sha256"],
                )
                tally.saw(answer)
            progress.update(tally.num_rows, f"{asked.num_bought:,} bought")
        table.close()
        durable.remove(place.manifest_path)
    manifest = describe(
        layout,
        place,
        tally,
        asked,
        config={**collect.resolved(), "regenerate": settings.resolved()},
        price=price_of(collect, has_budget=collect.max_cost_usd is not None),
        sources=[{"file": layout.relative(rejected.path), "sha256": made_of["rejected"]}],
        parents=[{"dataset": rejected.key, "path": layout.relative(rejected.path), "sha256": made_of["rejected"]}],
        fingerprint=digests.of_value(made_of),
    )
    durable.write_json(place.manifest_path, manifest)
    return Collected(place, manifest, is_new=True, asked=asked)


def _kept(path: Path) -> set[str]:
    return set(parquet.read_table(path, columns=["row_id"])["row_id"].to_pylist())


def _rejected_prompts(path: Path, *, kept: set[str]) -> Iterator[list[Pending]]:
    """The first rejected answer of each prompt that has no kept one, some hundreds at a time."""
    seen: set[str] = set()
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        waiting: list[Pending] = []
        for batch in file.iter_batches(512):
            for row in batch.to_pylist():
                if row["row_id"] in kept or row["row_id"] in seen:
                    continue
                seen.add(row["row_id"])
                pair = Pair({name: row[name] for name in outputs.SCHEMA.names})
                waiting.append(Pending(pair, _told(row["step"], row["reason"], row["detail"]), (), 0))
                if len(waiting) == PROMPTS_AT_ONCE:
                    yield waiting
                    waiting = []
        if waiting:
            yield waiting


def _try_again(
    pending: Sequence[Pending], config: DistillConfig, layout: Layout, template: str, purpose: str, asked: Asked
) -> Iterator[tuple[Pair, Answer, int]]:
    """For each prompt its last answer, in order, and the number of the try that brought it."""
    collect, last = config.collect, dict[str, tuple[Pair, Answer, int]]()
    left = list(pending)
    for number in range(1, config.regenerate.max_tries + 1):
        conversations = [_conversation(each, template, collect.system_prompt) for each in left]
        sampling = sampling_of(collect)
        requests = [
            ChatRequest(messages, sampling, each.pair.row["sample_index"])
            for messages, each in zip(conversations, left, strict=True)
        ]
        answers = list(ask(requests, collect, layout, purpose=purpose, max_cost_usd=collect.max_cost_usd, asked=asked))
        pairs = [_answered(each.pair, answer) for each, answer in zip(left, answers, strict=True)]
        outcome = Sieve(_alone(config.filter), layout).sift(pairs, {})
        again = []
        for each, messages, pair, answer, sifted in zip(left, conversations, pairs, answers, outcome, strict=True):
            last[each.pair.group] = (pair, answer, number)
            if sifted.rejection is not None and sifted.step is not None:
                why = _told(sifted.step, sifted.rejection.reason, sifted.rejection.detail)
                again.append(Pending(pair, why, messages, number))
        left = again
        if not left:
            break
    for each in pending:
        yield last[each.pair.group]


def _alone(settings: FilterConfig) -> FilterConfig:
    """The steps that look at one answer by itself: a single one has no others to agree with."""
    steps = tuple(step for step in settings.steps if step.name != "agreement")
    return settings.model_copy(update={"steps": steps})


def _conversation(pending: Pending, template: str, system_prompt: str | None) -> tuple[Message, ...]:
    """What was said so far, the rejected answer, and why it was rejected; after a failed call only the prompt."""
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    said = pending.conversation or (*system, {"role": "user", "content": pending.pair.prompt})
    if not pending.pair.completion:
        return said
    return (
        *said,
        {"role": "assistant", "content": pending.pair.completion},
        {"role": "user", "content": template.replace("{reason}", pending.reason)},
    )


def _answered(pair: Pair, answer: Answer) -> Pair:
    return Pair({**pair.row, "completion": answer.text, "status": answer.status, "error": answer.error,
                 "finish_reason": answer.finish_reason, "request_sha256": answer.request_sha256})  # fmt: skip


def _told(step: str, reason: str, detail: str) -> str:
    """A rejection in words for the teacher; the reference itself is not given away."""
    hides = step in ("math", "reference")
    about = "" if step == STATUS or hides or not detail else f" ({detail})"
    return f"{step}: {reason}{about}"


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("regenerate")
