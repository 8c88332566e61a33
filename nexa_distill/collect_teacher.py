"""Collecting a teacher's answers: bought once, written in the order of the prompts, the manifest last."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from nexa_core import digests, durable
from nexa_core.config.ask import Price
from nexa_core.config.distill import CollectConfig, DistillConfig
from nexa_core.errors import GateError
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_data import manifests
from nexa_distill.failures import FEWEST_JUDGED, Failures
from nexa_distill.inputs import Inputs, Prompt, open_inputs
from nexa_distill.outputs import FOLDER, SCHEMA, OutputTable, Tally
from nexa_distill.places import Place, place_of
from nexa_distill.standing import Made, Origin, still_stands
from nexa_llm import batches
from nexa_llm.ask import Asked, ask, contents_of, opened, price_of, sampling_of
from nexa_llm.budget import most_prompt_tokens
from nexa_llm.chat import ChatRequest, Message
from nexa_llm.estimate import Estimate, Size, estimate
from nexa_llm.openai import OpenAi
from nexa_llm.prices import as_usd
from nexa_llm.recorded import Recorded
from nexa_llm.store import store_path

logger = logging.getLogger(__name__)

LOOKED_UP = 20_000
"""Requests, about, that are looked up in the store for an estimate: all of them, or a sample."""
ROWS_BETWEEN_UPDATES = 100
FREE_KEYS = ("pace", "max_cost_usd", "max_truncated_share", "max_failed_share", "name", "version")
"""Settings that decide no answer."""


@dataclass(frozen=True)
class Collected(Made):
    """A teacher's answers."""

    asked: Asked

    def _asked_text(self) -> str:
        if not self.is_new:
            return "nothing was asked"
        if self.manifest["config"]["teacher"].startswith("recorded:"):
            return "all from the recording"
        return f"bought now {self.asked.num_bought:,}, in the store before {self.asked.num_reused:,}"

    def as_text(self, layout: Layout) -> str:
        counts = self.manifest["statuses"]
        shown = ", ".join(f"{number:,} {status}" for status, number in counts.items() if number)
        paid = self.manifest["ledger"]
        unknown = f" (${as_usd(paid['unknown_picousd']):.6f} of it for calls that may have been billed)" * bool(
            paid["unknown_picousd"]
        )
        lines = [
            f"{self.place.key}: {sum(counts.values()):,} answers ({shown}){'' if self.is_new else ', unchanged'}",
            self._asked_text(),
            f"paid for this dataset: ${as_usd(paid['picousd']):.6f}{unknown}"
            if self.manifest["price"]
            else "the price is not known",
            f"rows {layout.relative(self.place.path)}; manifest {layout.relative(self.place.manifest_path)}",
        ]
        return "\n".join(lines)


def collect(
    config: DistillConfig, layout: Layout, *, destination: str | None = None, replace: bool = False
) -> Collected:
    """Ask the teacher for an answer to each prompt, and write them in the prompts' order.

    Whatever ends it, every answer that was paid for is kept in the store; the same command goes on from there.

    Args:
        destination: a dataset's key or a Parquet file, in place of the settings' name and version.
        replace: whether a dataset of the same name and version, made of something else, may be replaced.

    Raises:
        UserError: the inputs are not there, the settings don't fit, or a dataset of that name was made of something else.
        GateError: the budget is used up, or too many answers were cut off or failed.
        NexaError: the teacher does not answer.
    """
    settings = config.collect
    inputs = open_inputs(config, layout)
    place = place_of(layout, destination or settings.key, FOLDER)
    origin, standing = _origin(settings, inputs, layout), manifests.read_manifest(place.manifest_path)
    if standing is not None and still_stands(standing, origin, layout, replace=replace):
        return Collected(place, standing, is_new=False, asked=Asked())
    price = price_of(settings, has_budget=settings.max_cost_usd is not None)
    asked, began = Asked(), time.monotonic()
    tally = _write(settings, inputs, layout, place, asked)
    manifest = describe(
        layout,
        place,
        tally,
        asked,
        config=settings.resolved(),
        price=price,
        sources=[{"file": layout.relative(inputs.path), "sha256": inputs.sha256, "rows": inputs.num_rows}],
        parents=[_parent(layout, inputs)],
        origin=origin,
    )
    durable.write_json(place.manifest_path, manifest)
    logger.info("%s: %s answers, %.1f s", place.key, f"{tally.num_rows:,}", time.monotonic() - began)
    return Collected(place, manifest, is_new=True, asked=asked)


def describe(
    layout: Layout,
    place: Place,
    tally: Tally,
    asked: Asked,
    *,
    config: dict[str, Any],
    price: Price | None,
    sources: list[dict[str, Any]],
    parents: list[dict[str, Any]],
    origin: Origin,
) -> dict[str, Any]:
    """The manifest of a teacher's answers whose file has its name."""
    return {
        "format": manifests.FORMAT,
        "name": place.name,
        "version": place.version,
        "category": "distillation",
        "kind": FOLDER,
        "columns": [{"name": field.name, "type": str(field.type)} for field in SCHEMA],
        "labels": [],
        "feature_shape": None,
        "splits": {FOLDER: manifests.describe_file(layout, place.path, rows=tally.num_rows)},
        "sources": sources,
        "steps": [],
        "tokenizer": None,
        "parents": parents,
        "config": {**config, "output": {"name": FOLDER}},
        "statuses": tally.statuses,
        "tokens": {"prompt": tally.prompt_tokens, "completion": tally.completion_tokens},
        "price": None if price is None else price.resolved(),
        "cost_usd": None if price is None else as_usd(tally.cost_picousd),
        "ledger": {
            "purpose": place.purpose,
            "picousd": asked.total.picousd,
            "unknown_picousd": asked.total.unknown_picousd,
            "num_calls": asked.total.num_calls,
        },
        "code": digests.of_code(),
        "contents": origin.contents,
        "fingerprint": origin.fingerprint,
    }


def estimate_collection(config: DistillConfig, layout: Layout) -> Estimate:
    """What `collect` would take, without sending anything.

    Raises:
        UserError: as `collect` does.
    """
    settings = config.collect
    inputs = open_inputs(config, layout)
    num_requests, total = 0, Size()
    looked_up: dict[str, Size] = {}
    stride = max(1, inputs.num_rows * settings.samples // LOOKED_UP)
    with opened(settings, layout) as teacher:
        key_of = _key_of(teacher)
        for number, prompt in enumerate(inputs):
            for request in _requests([prompt], settings):
                key = key_of(request) if number % stride == 0 else None
                if key in looked_up:  # an equal one is paid for once
                    continue
                num_requests += 1
                total += (size := _size_of(request, teacher, settings))
                if key is not None:
                    looked_up[key] = size
    return estimate(
        settings,
        num_requests=num_requests,
        size=total,
        looked_up=looked_up,
        price=price_of(settings, has_budget=settings.max_cost_usd is not None),
        store=store_path(layout),
    )


def _key_of(teacher: Any) -> Callable[[ChatRequest], str | None]:
    """What the store knows the answer to a request by; None of answers that are not kept there."""
    if isinstance(teacher, OpenAi):
        return teacher.key
    return (lambda request: None) if isinstance(teacher, Recorded) else partial(batches.key_of, teacher)


def _size_of(request: ChatRequest, teacher: Any, settings: CollectConfig) -> Size:
    parts = [*(each["content"] for each in request.messages), *request.tools, *settings.extra_body.values()]
    text = sum(len(each.encode() if isinstance(each, str) else digests.canonical_json(each)) for each in parts)
    payload = teacher.payload(request) if isinstance(teacher, OpenAi) else b""  # the others cost nothing
    return Size(text, most_prompt_tokens(request, payload))


def _write(settings: CollectConfig, inputs: Inputs, layout: Layout, place: Place, asked: Asked) -> Tally:
    """What answers there are, once their file has its name."""
    tally, parameters, failures = Tally(), _parameters(settings), Failures(settings.max_failed_share)
    answers = ask(
        _requests(inputs, settings),
        settings,
        layout,
        purpose=place.purpose,
        max_cost_usd=settings.max_cost_usd,
        asked=asked,
    )
    total = inputs.num_rows * settings.samples
    with ExitStack() as stack, closing(answers), Progress("asking", total=total, unit="answers") as progress:
        table = OutputTable(stack, place.path)
        rows = ((prompt, index) for prompt in inputs for index in range(settings.samples))
        for (prompt, index), answer in zip(rows, answers, strict=True):
            table.add(
                prompt,
                index,
                answer,
                teacher=settings.teacher,
                parameters_json=parameters,
                prompt_sha256=digests.of_value(_messages(prompt.prompt, settings)),
            )
            tally.saw(answer)
            _check_truncated(tally, settings)
            failures.saw(prompt.row_id, answer, tally)
            if tally.num_rows % ROWS_BETWEEN_UPDATES == 0:
                progress.update(tally.num_rows, f"{asked.num_bought:,} bought, ${as_usd(tally.cost_picousd):.4f}")
        failures.judge(tally)
        table.close()
        durable.remove(place.manifest_path)  # of the dataset that is being replaced
    return tally


def _requests(inputs: "Inputs | list[Prompt]", settings: CollectConfig) -> Iterator[ChatRequest]:
    sampling = sampling_of(settings)
    for prompt in inputs:
        messages = tuple(_messages(prompt.prompt, settings))
        yield from (ChatRequest(messages, sampling, index) for index in range(settings.samples))


def _messages(prompt: str, settings: CollectConfig) -> list[Message]:
    system = [] if settings.system_prompt is None else [{"role": "system", "content": settings.system_prompt}]
    return [*system, {"role": "user", "content": prompt}]


def _parameters(settings: CollectConfig) -> str:
    system = settings.system_prompt
    about = {
        **settings.sampling.resolved(),
        "system_prompt_sha256": None if system is None else digests.of_bytes(system.encode()),
    }
    return digests.canonical_json(about).decode()


def _check_truncated(tally: Tally, settings: CollectConfig) -> None:
    truncated, total = tally.statuses["truncated"], tally.num_rows
    if truncated > settings.max_truncated_share * total and total >= FEWEST_JUDGED:
        raise GateError(
            f"{truncated:,} of the first {total:,} answers were cut off at max_tokens: {settings.sampling.max_tokens}, "
            f"more than max_truncated_share: {settings.max_truncated_share:g}. They are kept; raise collect.sampling.max_tokens, "
            "which asks anew, or the share."
        )


def _origin(settings: CollectConfig, inputs: Inputs, layout: Layout) -> Origin:
    return Origin(
        {"inputs": inputs.sha256, "num_rows": inputs.num_rows, "config": deciding(settings)},
        section="collect",
        kind=FOLDER,
        others="inputs",
        contents=contents_of(settings, layout),
        free=FREE_KEYS,
    )


def deciding(settings: CollectConfig) -> dict[str, Any]:
    """The settings that decide an answer."""
    found = {name: value for name, value in settings.resolved().items() if name not in FREE_KEYS}
    if settings.engine == "transformers":  # so that answers are what they were before there was another
        del found["engine"]
    return found


def _parent(layout: Layout, inputs: Inputs) -> dict[str, Any]:
    manifest = manifests.read_manifest(inputs.place.manifest_path) or {}
    return {
        "dataset": inputs.place.key,
        "fingerprint": manifest.get("fingerprint"),
        "path": layout.relative(inputs.path),
        "sha256": inputs.sha256,
    }


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("collect-teacher")
