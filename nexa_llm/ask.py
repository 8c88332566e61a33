"""Asking a language model: answers to a stream of requests, in its order, each of them paid for once, ever."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexa_core import digests
from nexa_core.config.ask import AskConfig, Price
from nexa_core.lookup import look_up
from nexa_core.paths import Layout
from nexa_llm.asking import Asking
from nexa_llm.batches import answers_in_batches
from nexa_llm.chat import Answer, ChatRequest, Sampling
from nexa_llm.logprobs import TokenIds
from nexa_llm.openai import OpenAi, digest_of_server
from nexa_llm.prices import find_price, require_price
from nexa_llm.recorded import Recorded
from nexa_llm.served import DECIDING, TOKENIZER, Served
from nexa_llm.store import Store, Total, store_path

PROVIDERS = {
    "openai": "nexa_llm.ask:open_openai",
    "recorded": "nexa_llm.ask:open_recorded",
    "local": "nexa_models.local_teacher:open_local",
}
"""Of the first part of a teacher's name: what makes it of (config, layout)."""


@dataclass
class Asked:
    """What was bought for a purpose, filled in as answers come."""

    total: Total = field(default_factory=lambda: Total(0, 0, 0, 0, 0))
    """Of all calls for it, earlier runs' among them."""
    num_bought: int = 0
    num_reused: int = 0


def ask(
    requests: Iterable[ChatRequest],
    config: AskConfig,
    layout: Layout,
    *,
    purpose: str,
    max_cost_usd: float | None = None,
    asked: Asked | None = None,
    teacher: Any = None,
) -> Generator[Answer, None, None]:
    """The answer to each request, in order; who stops before the end closes it, and what is under way is waited for.

    Args:
        purpose: what the money is spent on; `max_cost_usd` is the limit of all that was ever spent on it.
        asked: is told what was bought.
        teacher: the one of `config`, for who asks it several times; else it is opened and closed here.

    Raises:
        UserError: there is no such teacher, it does not take these settings, or a budget is set and its price is not known.
        OutOfBudget: what is left may not suffice for the next request; what was bought is kept.
        NexaError: the server has not answered for a long time, or the disk is full.
    """
    counts = asked or Asked()
    with ExitStack() as held:
        teacher = held.enter_context(opened(config, layout)) if teacher is None else teacher
        store = held.enter_context(_store_of(teacher, layout))
        with closing(_answers(teacher, store, requests, config, layout, purpose, max_cost_usd)) as answers:
            for answer in answers:
                counts.num_bought += answer.is_new
                counts.num_reused += not answer.is_new
                yield answer
        if store is not None and asked is not None:  # a sum over all its calls
            asked.total = store.total(purpose)


def open_teacher(config: AskConfig, layout: Layout) -> Any:
    """What `config.teacher` names.

    Raises:
        UserError: there is no such provider, or it has no such model.
    """
    return look_up(PROVIDERS, config.provider, what="provider of a teacher")(config, layout)


@contextmanager
def opened(config: AskConfig, layout: Layout) -> Iterator[Any]:
    """What `config.teacher` names, until the block ends; a model is loaded, and a server begun, once for it.

    Raises:
        UserError: there is no such provider, or it has no such model.
    """
    teacher = open_teacher(config, layout)
    try:
        yield teacher
    finally:
        if isinstance(teacher, OpenAi | Recorded):
            teacher.close()


class Teachers:
    """Teachers for who asks them many times: each is opened when it is first wanted, and closed when `stack` is.

    Of models that run on this machine one at a time is held, because another may need the room.
    """

    def __init__(self, layout: Layout, stack: ExitStack):
        self._layout, self._stack = layout, stack
        self._held: list[tuple[AskConfig, Any]] = []
        self._local = stack.enter_context(ExitStack())

    def of(self, config: AskConfig) -> Any:
        """The teacher that the settings name. Raises UserError as `open_teacher` does."""
        for known, teacher in self._held:
            if known == config:
                return teacher
        stack = self._stack
        if config.provider == "local":
            self._local.close()
            self._held, stack = [each for each in self._held if each[0].provider != "local"], self._local
        teacher = stack.enter_context(opened(config, self._layout))
        self._held.append((config, teacher))
        return teacher


def open_openai(config: AskConfig, layout: Layout) -> OpenAi:
    return OpenAi(config)


def open_recorded(config: AskConfig, layout: Layout) -> Recorded:
    return Recorded(config, _recorded_path(config, layout))


def _recorded_path(config: AskConfig, layout: Layout) -> Path:
    path = Path(config.model)
    return path if path.is_absolute() or path.exists() else layout.absolute(config.model)


def digest_of(config: AskConfig, layout: Layout) -> str | None:
    """What tells whether a teacher that lies in files is still the same one; None of one that is asked over a network."""
    if config.provider not in ("recorded", "local"):
        return None
    path = _recorded_path(config, layout) if config.provider == "recorded" else layout.find(config.model)
    if path.is_dir():
        return digests.of_tree((each for each in path.iterdir() if each.suffix in DECIDING), path)
    return digests.of_file(path) if path.is_file() else None


def contents_of(config: AskConfig, layout: Layout) -> dict[str, str]:
    """Digests of what decides answers and what the settings only name, or leave to the environment."""
    found = {"teacher": digest_of(config, layout)}
    if config.provider == "openai":
        found["server"] = digest_of_server(config)
    if config.tokenizer is not None and (path := layout.absolute(config.tokenizer)).is_file():
        found["tokenizer"] = digests.of_file(path)
    return {name: digest for name, digest in found.items() if digest is not None}


def sampling_of(config: AskConfig) -> Sampling:
    given = config.sampling
    return Sampling(given.temperature, given.top_p, given.max_tokens, given.seed, given.stop, given.logprobs)


def price_of(config: AskConfig, *, has_budget: bool) -> Price | None:
    """What the teacher's tokens cost, nothing where they are made here or recorded; None where nobody knows.

    Raises:
        UserError: there is a budget and the price is not known.
    """
    if config.provider != "openai":
        return Price(prompt_usd_per_million=0.0, completion_usd_per_million=0.0)
    return require_price(config.model, config.prices) if has_budget else find_price(config.model, config.prices)


def _token_ids(teacher: OpenAi, config: AskConfig, layout: Layout) -> TokenIds | None:
    """What ids the tokens have whose log probabilities are asked for."""
    if isinstance(teacher, Served):
        return None if config.sampling.logprobs is None else TokenIds(teacher.folder / TOKENIZER)
    return None if config.tokenizer is None else TokenIds(layout.absolute(config.tokenizer))


def _store_of(teacher: Any, layout: Layout) -> AbstractContextManager[Store | None]:
    return nullcontext() if isinstance(teacher, Recorded) else Store(store_path(layout))


def _answers(
    teacher: Any,
    store: Store | None,
    requests: Iterable[ChatRequest],
    config: AskConfig,
    layout: Layout,
    purpose: str,
    max_cost_usd: float | None,
) -> Generator[Answer, None, None]:
    if isinstance(teacher, Recorded):
        return (teacher.answer(request) for request in requests)
    assert store is not None
    if not isinstance(teacher, OpenAi):
        return answers_in_batches(teacher, store, requests, purpose=purpose)
    asking = Asking(
        teacher,
        store,
        config,
        purpose=purpose,
        price=price_of(config, has_budget=max_cost_usd is not None),
        max_cost_usd=max_cost_usd,
        token_ids=_token_ids(teacher, config, layout),
    )
    return asking.answers(requests)
