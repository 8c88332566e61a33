"""Asking again for prompts of which no answer was kept: the teacher is told why, a bounded number of times."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import xxhash

from nexa_core import digests, durable
from nexa_core.config.distill import DistillConfig
from nexa_core.config.distill_filter import RegenerateConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_data import manifests
from nexa_data.seen import Seen
from nexa_distill import outputs
from nexa_distill.checks import Pair
from nexa_distill.checks.judge import read_template
from nexa_distill.collect_teacher import FREE_KEYS, Collected, deciding, describe
from nexa_distill.failures import Failures
from nexa_distill.filter_pairs import Filtered, contents_of_judges, filter_pairs, named_by
from nexa_distill.inputs import Prompt
from nexa_distill.outputs import OutputTable, Tally
from nexa_distill.places import Place, place_of, require_file
from nexa_distill.sifting import DUPLICATES, STATUS, Sieve, Sifted
from nexa_distill.standing import Origin, still_stands
from nexa_llm.ask import Asked, Teachers, ask, contents_of, price_of, sampling_of
from nexa_llm.chat import Answer, ChatRequest, Message

logger = logging.getLogger(__name__)

BUILT_IN, BUILT_IN_ONE = "regenerate@1.txt", "regenerate_in_one@1.txt"
PROMPTS_AT_ONCE = 1024
BATCH_ROWS = 512
MAKE = "python -m nexa_distill.filter_pairs"


@dataclass(frozen=True)
class Pending:
    """A prompt of which no answer is kept, with its newest answer and why that was rejected."""

    pair: Pair
    reason: str
    conversation: tuple[Message, ...]
    """The prompt, and what was said about it since."""


@dataclass(frozen=True)
class Try:
    """The answers that a prompt's last try brought; more than one where samples have to agree."""

    number: int
    pairs: tuple[Pair, ...]
    answers: tuple[Answer, ...]


def regenerate(
    config: DistillConfig,
    layout: Layout,
    *,
    source: str | None = None,
    destination: str | None = None,
    replace: bool = False,
) -> Collected:
    """Ask again for each prompt of which no answer was kept, at most `max_tries` times, and write what its last try brought.

    Answers go through the filter's own steps; one that passes ends the tries of its prompt. What was bought is stored, so that
    a killed command goes on where it was.

    Args:
        source: the filtered dataset's key, in place of the settings'.
        destination: a dataset's key or a Parquet file, in place of the settings' name and version.
        replace: whether a dataset of that name and version may be replaced.

    Raises:
        UserError: nothing was filtered, nothing is to be asked again, or the teacher's answers are recorded ones.
        GateError: the budget is used up, or too many answers failed.
    """
    collect = config.collect
    if collect.provider == "recorded":
        raise UserError(
            f"{collect.teacher} can't be asked again: its answers are recorded. Name another with --teacher."
        )
    filtered = _filtered_of(config, layout, source)
    place = place_of(layout, destination or config.regenerate.key, outputs.FOLDER)
    if place.key in [Path(each).stem for each in filtered.outputs]:
        raise UserError(f"{place.key} holds the answers that were rejected; give the new ones another name or version.")
    template = _template_of(config.regenerate, layout)
    origin = _origin(config, layout, filtered, template)
    standing = manifests.read_manifest(place.manifest_path)
    if standing is not None and still_stands(standing, origin, layout, replace=replace):
        return Collected(place, standing, is_new=False, asked=Asked())
    asked = Asked()
    tally = _write(config, layout, filtered, place, template, asked)
    rejected, sha256 = layout.relative(filtered.rejected), origin.made_of["rejected"]
    manifest = describe(
        layout,
        place,
        tally,
        asked,
        config={**collect.resolved(), "regenerate": config.regenerate.resolved()},
        price=price_of(collect, has_budget=collect.max_cost_usd is not None),
        sources=[{"file": rejected, "sha256": sha256}],
        parents=[{"dataset": filtered.key, "path": rejected, "sha256": sha256}],
        origin=origin,
    )
    durable.write_json(place.manifest_path, manifest)
    return Collected(place, manifest, is_new=True, asked=asked)


def _template_of(settings: RegenerateConfig, layout: Layout) -> str:
    built_in, fields = (BUILT_IN_ONE, ("{prompt}", "{reason}")) if settings.one_message else (BUILT_IN, ("{reason}",))
    return read_template(settings.template, built_in, layout, fields=fields)


def filter_again(
    config: DistillConfig, layout: Layout, new: Place, *, source: str | None = None, replace: bool = False
) -> Filtered:
    """Filter the answers that were rejected in part, and the new ones, to the next version of the pairs.

    Raises:
        UserError, GateError: as `filter_pairs` does.
    """
    old = _filtered_of(config, layout, source)
    version = config.regenerate.filtered_version or _next_version(config.filter.version)
    settings = config.filter.model_copy(
        update={"outputs": (*old.outputs, layout.relative(new.path)), "version": version}
    )
    return filter_pairs(config.model_copy(update={"filter": settings}), layout, replace=replace)


@dataclass(frozen=True)
class _FilteredBefore:
    key: str
    rejected: Path
    kept: Path | None
    """None where no pair was."""
    outputs: tuple[str, ...]
    """The answers that it was made of."""


def _filtered_of(config: DistillConfig, layout: Layout, source: str | None) -> _FilteredBefore:
    rejected = place_of(layout, source or config.filter.key, "rejected")
    require_file(layout, rejected, "rejected", make=MAKE)
    manifest = manifests.read_manifest(rejected.manifest_path)
    if manifest is None:  # which is written last: no pair was kept
        return _FilteredBefore(rejected.key, rejected.path, None, config.filter.outputs or (config.collect.key,))
    kept = layout.absolute(manifest["filtered"]["path"])
    return _FilteredBefore(rejected.key, rejected.path, kept, tuple(each["file"] for each in manifest["sources"]))


def _origin(config: DistillConfig, layout: Layout, filtered: _FilteredBefore, template: str) -> Origin:
    """Everything that decides which requests are sent."""
    made_of = {
        "rejected": digests.of_file(filtered.rejected),
        "kept": None if filtered.kept is None else digests.of_file(filtered.kept),
        "config": deciding(config.collect),
        "max_tries": config.regenerate.max_tries,
        "template": template,
        "one_message": config.regenerate.one_message,
        "filter": [config.filter.keep_truncated, [step.resolved() for step in config.filter.steps]],
        **named_by(config.filter, layout),
    }
    return Origin(
        made_of,
        section="regenerate",
        kind=outputs.FOLDER,
        others="rejected answers, tries, template or steps",
        contents=contents_of(config.collect, layout) | contents_of_judges(config.filter, layout),
        free=(*FREE_KEYS, "regenerate"),
    )


def _write(
    config: DistillConfig, layout: Layout, filtered: _FilteredBefore, place: Place, template: str, asked: Asked
) -> Tally:
    """What answers there are, once their file has its name."""
    tally, collect = Tally(), config.collect
    failures = Failures(collect.max_failed_share)
    with ExitStack() as stack, Progress("asking again", total=None, unit="answers") as progress:
        teachers, table = Teachers(layout, stack), OutputTable(stack, place.path)
        for some in _rejected_prompts(filtered):
            for tried in _try_again(some, config, layout, template, place.purpose, asked, teachers):
                parameters = {**collect.sampling.resolved(), "try": tried.number}
                for pair, answer in zip(tried.pairs, tried.answers, strict=True):
                    row = pair.row
                    table.add(
                        Prompt(row["row_id"], row["prompt"], row["extra_json"]),
                        row["sample_index"],
                        answer,
                        teacher=collect.teacher,
                        parameters_json=digests.canonical_json(parameters).decode(),
                        prompt_sha256=row["prompt_sha256"],
                    )
                    tally.saw(answer)
                    failures.saw(row["row_id"], answer, tally)
            progress.update(tally.num_rows, f"{asked.num_bought:,} bought")
        if not tally.num_rows:
            raise UserError(f"{filtered.key} has kept an answer to each prompt; there is nothing to ask again.")
        failures.judge(tally)
        table.close()
        durable.remove(place.manifest_path)
    return tally


def _rejected_prompts(filtered: _FilteredBefore) -> Iterator[list[Pending]]:
    """The first rejected answer of each prompt that has no kept one, some hundreds at a time."""
    done = Seen()
    if filtered.kept is not None:
        with parquet.ParquetFile(filtered.kept, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["row_id"]):
                done.count(_ids(batch["row_id"].to_pylist()))
    columns = [name for name in outputs.SCHEMA.names if name not in outputs.LOGPROBS]
    waiting: list[Pending] = []
    with parquet.ParquetFile(filtered.rejected, pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=[*columns, "step", "reason", "detail"]):
            rows = batch.to_pylist()
            before = done.count(_ids([row["row_id"] for row in rows])).tolist()
            for row, times in zip(rows, before, strict=True):
                if times or row["step"] == DUPLICATES:  # an equal pair of another row is kept
                    continue
                pair = Pair({name: row[name] for name in columns})
                waiting.append(Pending(pair, _told(row["step"], row["reason"], row["detail"]), ()))
                if len(waiting) == PROMPTS_AT_ONCE:
                    yield waiting
                    waiting = []
    if waiting:
        yield waiting


def _ids(row_ids: Sequence[str]) -> np.ndarray:
    return np.array([xxhash.xxh3_64_intdigest(each.encode()) for each in row_ids], dtype=np.uint64)


def _try_again(
    pending: Sequence[Pending],
    config: DistillConfig,
    layout: Layout,
    template: str,
    purpose: str,
    asked: Asked,
    teachers: Teachers,
) -> Iterator[Try]:
    """For each prompt its last try, in order."""
    collect, left, last = config.collect, list(pending), dict[str, Try]()
    sampling, limit = sampling_of(collect), collect.max_cost_usd
    num_samples = collect.samples if any(step.name == "agreement" for step in config.filter.steps) else 1
    for number in range(1, config.regenerate.max_tries + 1):
        begin = _message if config.regenerate.one_message else _conversation
        conversations = [begin(each, template, collect.system_prompt) for each in left]
        requests = (ChatRequest(said, sampling, index) for said in conversations for index in range(num_samples))
        teacher = teachers.of(collect)
        answers = list(
            ask(requests, collect, layout, purpose=purpose, max_cost_usd=limit, asked=asked, teacher=teacher)
        )
        pairs = [
            _answered(each.pair, answer, said, index % num_samples)
            for index, (each, said, answer) in enumerate(_repeated(left, conversations, answers, num_samples))
        ]
        outcome = Sieve(config.filter, layout, purpose=f"judge of {purpose}", teachers=teachers).sift(pairs, {})
        again = []
        for index, (each, said) in enumerate(zip(left, conversations, strict=True)):
            own = slice(index * num_samples, (index + 1) * num_samples)
            last[each.pair.group] = Try(number, tuple(pairs[own]), tuple(answers[own]))
            if (why := _why_none(outcome[own])) is not None:
                again.append(Pending(pairs[own][0], why, said))
        left = again
        if not left:
            break
    for each in pending:
        yield last[each.pair.group]


def _repeated(
    left: Sequence[Pending], conversations: Sequence[tuple[Message, ...]], answers: Sequence[Answer], times: int
) -> Iterator[tuple[Pending, tuple[Message, ...], Answer]]:
    for index, answer in enumerate(answers):
        yield left[index // times], conversations[index // times], answer


def _why_none(samples: Sequence[Sifted]) -> str | None:
    """What the first of a prompt's samples was rejected for; None where one of them is kept, or equals one that is."""
    if any(each.step in (None, DUPLICATES) for each in samples):
        return None
    first = samples[0]
    assert first.step is not None
    assert first.rejection is not None
    return _told(first.step, first.rejection.reason, first.rejection.detail)


def _conversation(pending: Pending, template: str, system_prompt: str | None) -> tuple[Message, ...]:
    """What was said so far, the rejected answer, and why it was rejected; after a failed call only what was said so far."""
    said = pending.conversation or (*_system(system_prompt), {"role": "user", "content": pending.pair.prompt})
    if pending.pair.row["status"] == "failed":
        return said
    told = template.replace("{reason}", pending.reason)
    if not pending.pair.completion:  # a refusal without a word: there is nothing that the assistant said
        return (*said[:-1], {"role": "user", "content": f"{said[-1]['content']}\n\n{told}"})
    return (
        *said,
        {"role": "assistant", "content": pending.pair.completion},
        {"role": "user", "content": told},
    )


def _message(pending: Pending, template: str, system_prompt: str | None) -> tuple[Message, ...]:
    """The prompt, the newest answer and why it was rejected in one message; after a failed call the same message again."""
    said = pending.conversation or (*_system(system_prompt), {"role": "user", "content": pending.pair.prompt})
    if pending.pair.row["status"] == "failed":
        return said
    filled = {"{prompt}": pending.pair.prompt, "{completion}": pending.pair.completion, "{reason}": pending.reason}
    text = "".join(filled.get(part, part) for part in re.split(r"(\{prompt\}|\{completion\}|\{reason\})", template))
    return (*_system(system_prompt), {"role": "user", "content": text})


def _system(system_prompt: str | None) -> tuple[Message, ...]:
    return () if system_prompt is None else ({"role": "system", "content": system_prompt},)


def _answered(pair: Pair, answer: Answer, said: tuple[Message, ...], sample_index: int) -> Pair:
    return Pair({**pair.row, "completion": answer.text, "status": answer.status, "error": answer.error,
                 "finish_reason": answer.finish_reason, "request_sha256": answer.request_sha256,
                 "sample_index": sample_index, "prompt_sha256": digests.of_value(list(said))})  # fmt: skip


def _told(step: str, reason: str, detail: str) -> str:
    """A rejection in words for the teacher; the reference itself is not given away."""
    hides = step.split(" ")[0] in ("math", "reference", "agreement", STATUS)
    return f"{step}: {reason}" if hides or not detail else f"{step}: {reason} ({detail})"


def _next_version(version: str) -> str:
    """v2 after v1; with `-2` behind it where it ends with no number."""
    found = re.fullmatch(r"(.*?)(\d+)", version)
    return f"{version}-2" if found is None else f"{found[1]}{int(found[2]) + 1}"


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("regenerate")
