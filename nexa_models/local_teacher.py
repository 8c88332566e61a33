"""A teacher that runs in this process: a checkpoint, or a folder as transformers writes it."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import torch

from nexa_core import digests
from nexa_core.config.ask import AskConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.encoder import encoding_digest, load_tokenizer
from nexa_llm.chat import ChatRequest, Message, Sampling
from nexa_llm.served import Served
from nexa_models.chat import prompt_ids, stop_ids
from nexa_models.generation import Draw, Written, write
from nexa_models.numerics import choose_device, make_deterministic
from nexa_models.pretrained import CONFIG, TOKENIZER, WEIGHTS
from nexa_models.spec import ModelSpec
from nexa_models.teacher import Teacher, load_teacher, move
from nexa_models.vocabulary import special_ids_of

BATCH_SIZE = 256
MOST_SMALL_PARAMETERS = 20_000_000
MOST_TOKENS = 4096
"""What a folder that names no limit is taken to read."""


def open_local(config: AskConfig, layout: Layout) -> "LocalTeacher | Served":
    """The model that `local:<path>` names, a path below the laboratory's root, below these packages, or absolute.

    Raises:
        UserError: there is none, it writes no text, or it is asked for more than it can do.
    """
    path = layout.find(config.model)
    if not path.exists():
        raise UserError(
            f"teacher {config.teacher}: there is no such file or folder. Give a checkpoint (.pt), or a folder with "
            f"{CONFIG}, {WEIGHTS} and {TOKENIZER}; the shipped one is local:nexa_distill/teacher."
        )
    if config.engine == "vllm":
        if not (path / CONFIG).is_file():
            raise UserError(
                f"engine: vllm serves a folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}, and {config.teacher} is none; make "
                f"one of a checkpoint: nexa export --checkpoint {config.model} --output <folder>"
            )
        return Served(config, path, log=layout.logs / "vllm.log")
    if path.is_dir():
        teacher = load_teacher(path, max_tokens=_longest(path), kind="chat")
        assert teacher.spec.pretrained is not None
        kind = "chat" if teacher.spec.pretrained.chat_template else "pairs"
        spec = replace(teacher.spec, kind=kind)
    else:
        teacher = load_teacher(path, max_tokens=1)
        spec = teacher.spec
    return LocalTeacher(move(replace(teacher, spec=spec), choose_device("auto")), name=config.teacher)


class LocalTeacher:
    """Answers batches of requests; equal requests get equal answers, but for the rounding of a batch's sums.

    A model of pairs takes a single message and reads it as a training row's prompt; a model of chats, and a folder with a
    chat template, take conversations.
    """

    batch_size = BATCH_SIZE

    def __init__(self, teacher: Teacher, *, name: str):
        self.name = name
        self.digest = teacher.digest
        self._model, self._spec = teacher.model, teacher.spec
        assert teacher.spec.tokenizer is not None
        self.tokenizer_sha256 = encoding_digest(teacher.spec.tokenizer)
        self._tokenizer = load_tokenizer(teacher.spec.tokenizer)
        self._stop_ids = stop_ids(teacher.spec)
        self._is_small = sum(each.numel() for each in teacher.model.parameters()) < MOST_SMALL_PARAMETERS

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[bytes]:
        """A body of OpenAI's protocol for each request; `logprobs.by_id` in its choice holds the rest of `Logprobs`.

        Raises:
            UserError: a request is of a kind that the model does not know.
        """
        prompts = prompt_ids([_prompt(request, self._spec) for request in requests], self._spec)
        bodies: dict[int, bytes] = {}
        for (sampling, room), rows in _alike(requests, prompts, self._spec.max_tokens).items():
            written = self._write([requests[row] for row in rows], [prompts[row] for row in rows], sampling, room)
            for row, each in zip(rows, written, strict=True):
                bodies[row] = self._body(each, sampling, num_prompt_tokens=len(prompts[row]))
        return [bodies[row] for row in range(len(requests))]

    @torch.inference_mode()
    def _write(
        self, requests: list[ChatRequest], prompts: list[list[int]], sampling: Sampling, room: int
    ) -> list[Written]:
        if room <= 0:
            return [Written() for _ in requests]
        make_deterministic()
        with self._threads():
            return write(
                self._model,
                prompts,
                Draw(room, sampling.temperature, sampling.top_p, sampling.logprobs or 0),
                seeds=[_seed(request) for request in requests],
                stop_ids=self._stop_ids,
                padding_id=special_ids_of(self._spec).padding,
                is_over=self._finder(sampling.stop),
            )

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """One thread for a small model, to which more bring little, and on a busy machine take ten times as long."""
        before = torch.get_num_threads()
        if self._is_small:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _finder(self, stops: tuple[str, ...]) -> Callable[[list[int]], bool] | None:
        """Says whether ids spell one of the texts that end an answer."""
        if not stops:
            return None
        return lambda ids: any(stop in self._tokenizer.decode(ids) for stop in stops)

    def _body(self, written: Written, sampling: Sampling, *, num_prompt_tokens: int) -> bytes:
        text = self._tokenizer.decode(written.ids)
        if places := [place for stop in sampling.stop if (place := text.find(stop)) >= 0]:
            text = text[: min(places)]
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop" if written.has_ended else "length",
        }
        if sampling.logprobs is not None:
            choice["logprobs"] = {
                "by_id": {
                    "token_ids": written.ids,
                    "top_ids": written.top_ids,
                    "top_logprobs": written.top_logprobs,
                    "tail_mass": written.tail_mass,
                }
            }
        usage = {"prompt_tokens": num_prompt_tokens, "completion_tokens": len(written.ids)}
        return orjson.dumps(
            {"object": "chat.completion", "model": self.name, "choices": [choice], "usage": usage},
            option=orjson.OPT_SORT_KEYS,
        )


def _longest(folder: Path) -> int:
    try:
        values = orjson.loads((folder / CONFIG).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error}") from None
    values = values.get("text_config", values)
    return int(values.get("max_position_embeddings") or values.get("n_positions") or MOST_TOKENS)


def _prompt(request: ChatRequest, spec: ModelSpec) -> str | list[Message]:
    """What the model is shown of a request: a text where it knows pairs, a conversation where it knows chats."""
    if request.tools:
        raise UserError("A local teacher calls no tools; ask a server, or leave `tools` out.")
    messages: list[Message] = list(request.messages)
    if spec.kind == "chat":
        return messages
    if len(messages) != 1 or messages[0]["role"] != "user":
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"This teacher learned prompts with answers and reads one message of a user; it was given {roles}. Leave "
            "collect.system_prompt out, or ask a model with a chat template."
        )
    return str(messages[0]["content"])


def _alike(
    requests: Sequence[ChatRequest], prompts: Sequence[Sequence[int]], max_tokens: int
) -> Mapping[tuple[Sampling, int], list[int]]:
    """The requests that may be answered together, by how they are drawn and how many tokens they may get."""
    alike: dict[tuple[Sampling, int], list[int]] = {}
    for row, (request, ids) in enumerate(zip(requests, prompts, strict=True)):
        room = min(request.sampling.max_tokens, max_tokens - len(ids))
        sampling = replace(request.sampling, seed=None)
        alike.setdefault((sampling, room), []).append(row)
    return alike


def _seed(request: ChatRequest) -> int:
    """A number of the request's own, so that no answer depends on what is asked beside it."""
    about = [request.seed, request.sample_index, list(request.messages)]
    return int.from_bytes(hashlib.sha256(digests.canonical_json(about)).digest()[:8], "big")
