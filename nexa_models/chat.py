"""Conversations as token ids, written out by a chat template, with a mark on what the assistant says.

Only the assistant's turns are learned, each with the token that ends it: a model has to learn when to stop.
"""

import bisect
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nexa_core.errors import UserError
from nexa_data.encoder import load_tokenizer
from nexa_models.spec import ModelSpec
from nexa_models.vocabulary import encode_plain, special_ids_of

Message = Mapping[str, Any]

BUILT_IN = """\
{%- for message in messages %}
    {{- bos_token + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- bos_token + 'assistant\\n' }}{%- endif %}
"""
"""For tokenizers that were trained on a dataset: `<|bos|>role`, a line end, the content, `<|eos|>`, for each message."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

TODAY = datetime(2024, 7, 26)
"""What templates that write today's date get (Llama's default): the same rows give the same tokens on any day."""

BATCH_TEXTS = 1024

OPEN, CLOSE = "\U000f0000", "\U000f0001"
"""Around what a message spells like a control token: private characters, that no template writes."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as one text."""

    text: str
    """With `OPEN` and `CLOSE` around what is not to be read as a control token."""
    spans: tuple[tuple[int, int], ...]
    """Where in it the assistant speaks."""
    is_exact: bool
    """Whether the template itself marked the spans, and not the difference between two renderings."""


def encode_conversations(
    conversations: Sequence[Sequence[Message]], spec: ModelSpec
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The token ids (int32) of each conversation, and for each token whether it is learned.

    Raises:
        UserError: there is no template, or it refuses a conversation or writes a turn differently once others follow.
    """
    rendered = [_render_marked(conversation, spec, number) for number, conversation in enumerate(conversations, 1)]
    tokens = _tokenize([each.text for each in rendered], spec)
    special = set(_control_tokens(spec).values())
    return [
        (np.array(ids, dtype=np.int32), _learned(ids, starts, each, special))
        for each, (ids, starts) in zip(rendered, tokens, strict=True)
    ]


def encode_prompts(conversations: Sequence[Sequence[Message]], spec: ModelSpec) -> list[list[int]]:
    """The token ids of each conversation with the beginning of an assistant's turn behind it, for that to be generated."""
    texts = [
        _render(_guarded(conversation, spec), spec, where=_where(number), add_generation_prompt=True)
        for number, conversation in enumerate(conversations, 1)
    ]
    return [ids for ids, _ in _tokenize(texts, spec)]


def prompt_ids(prompts: Sequence[Any], spec: ModelSpec) -> list[list[int]]:
    """The token ids that stand in front of a completion: of texts for models of pairs, of conversations for those of chat."""
    if spec.kind == "chat":
        return encode_prompts(prompts, spec)
    begin = special_ids_of(spec).begin
    return [[*([] if begin is None else [begin]), *ids] for ids in encode_plain(prompts, spec)]


def stop_ids(spec: ModelSpec) -> tuple[int, ...]:
    """The ids that end what a model generates: the end of a text and, for conversations, that of an assistant's turn."""
    end = special_ids_of(spec).end
    if spec.kind != "chat":
        return (end,)
    ((ids, learned),) = encode_conversations([PROBE], spec)
    last = int(ids[learned][-1]) if learned.any() else end
    return (end, last) if last != end and last in _control_tokens(spec).values() else (end,)


PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def _render_marked(conversation: Sequence[Message], spec: ModelSpec, number: int) -> Rendered:
    where, messages, template = _where(number), _guarded(conversation, spec), _template(spec)
    if GENERATION.search(template):
        text, spans = _render_tracked(messages, spec, where=where)
        return Rendered(text, tuple(spans), is_exact=True)
    whole = _render(messages, spec, where=where)
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    spans = []
    for turn in turns:
        before = _render(messages[:turn], spec, where=where, add_generation_prompt=True)
        through = _render(messages[: turn + 1], spec, where=where)
        if not (whole.startswith(through) and through.startswith(before)):
            raise UserError(
                f"{where}: the chat template writes message {turn + 1} differently when others follow, or not behind its "
                "own generation prompt, so what the assistant says cannot be told from the rest. Mark it in the template "
                "with {% generation %} and {% endgeneration %}, and give that as model.chat_template."
            )
        spans.append((len(before), len(through)))
    return Rendered(whole, tuple(spans), is_exact=False)


def _learned(ids: list[int], starts: list[int], rendered: Rendered, special: set[int]) -> np.ndarray:
    """Whether each token begins inside a span.

    Behind the last control token of a turn templates write line ends, which belong to no turn.
    """
    learned = np.zeros(len(ids), dtype=bool)
    for begin, end in rendered.spans:
        first, last = bisect.bisect_left(starts, begin), bisect.bisect_left(starts, end)
        if not rendered.is_exact:
            ends = [place for place in range(first, last) if ids[place] in special]
            if ends and ends[-1] + 1 < last and not rendered.text[starts[ends[-1] + 1] : end].strip():
                last = ends[-1] + 1
        learned[first:last] = True
    return learned


def _tokenize(texts: Sequence[str], spec: ModelSpec) -> list[tuple[list[int], list[int]]]:
    """The ids of each text and the places where their tokens begin in it, the template's control tokens as themselves."""
    assert spec.tokenizer is not None
    tokenizer = _reader(spec.tokenizer)
    out = {place: _tokenize_pieces(text, spec.tokenizer) for place, text in enumerate(texts) if OPEN in text}
    plain = [place for place in range(len(texts)) if place not in out]
    for start in range(0, len(plain), BATCH_TEXTS):  # what the tokenizer gives is many times as large as the ids
        chunk = plain[start : start + BATCH_TEXTS]
        encoded = tokenizer.encode_batch([texts[place] for place in chunk], add_special_tokens=False)
        for place, encoding in zip(chunk, encoded, strict=True):
            out[place] = encoding.ids, [begin for begin, _ in encoding.offsets]
    return [out[place] for place in range(len(texts))]


def _tokenize_pieces(text: str, tokenizer_json: str) -> tuple[list[int], list[int]]:
    """A text with marks in it, piece by piece: between `OPEN` and `CLOSE` a control token is read as mere letters."""
    ids: list[int] = []
    starts: list[int] = []
    for place, piece, is_guarded in _pieces(text):
        tokenizer = _reader(tokenizer_json, as_letters=is_guarded)
        # Behind a line end, because some tokenizers write a space in front of whatever a text begins with.
        lead = tokenizer.encode("\n", add_special_tokens=False).ids if place else []
        encoding = tokenizer.encode("\n" + piece if place else piece, add_special_tokens=False)
        if encoding.ids[: len(lead)] != lead:
            encoding, lead = tokenizer.encode(piece, add_special_tokens=False), []
        shift = place - 1 if lead else place
        ids += encoding.ids[len(lead) :]
        starts += [start + shift for start, _ in encoding.offsets[len(lead) :]]
    return ids, starts


def _pieces(text: str) -> Iterator[tuple[int, str, bool]]:
    """(place, piece, whether it stood between marks) of each piece of a text that is not empty, without the marks."""
    place = 0
    for part in re.split(f"({OPEN}[^{OPEN}{CLOSE}]*{CLOSE})", text):
        is_guarded = part.startswith(OPEN)
        bare = part.strip(OPEN + CLOSE)
        if bare:
            yield place + is_guarded, bare.replace(OPEN, "").replace(CLOSE, ""), is_guarded
        place += len(part)


def _guarded(conversation: Sequence[Message], spec: ModelSpec) -> list[dict[str, Any]]:
    """The messages with marks around what a user, or anyone, spelled like a control token."""
    pattern = _control_pattern(tuple(_control_tokens(spec)))

    def guard(value: Any) -> Any:
        if isinstance(value, str):
            bare = value.replace(OPEN, "").replace(CLOSE, "")
            return pattern.sub(lambda found: OPEN + found[0] + CLOSE, bare)
        if isinstance(value, Mapping):
            return {key: guard(inner) for key, inner in value.items()}
        return [guard(inner) for inner in value] if isinstance(value, list | tuple) else value

    return [guard(message) for message in conversation]


def _render(messages: list[dict[str, Any]], spec: ModelSpec, *, where: str, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return _compiled(_template(spec)).render(
            messages=messages, add_generation_prompt=add_generation_prompt, **_variables(spec)
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"{where}: the chat template refuses it: {error}") from None


def _render_tracked(
    messages: list[dict[str, Any]], spec: ModelSpec, *, where: str
) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the spans that the template's own `{% generation %}` tags mark."""
    from jinja2 import TemplateError

    template = _compiled(_template(spec))
    blocks: list[str] = []
    spans: list[tuple[int, int]] = []
    try:
        with template.environment.activate_tracker(blocks, spans):
            for block in template.generate(messages=messages, add_generation_prompt=False, **_variables(spec)):
                blocks.append(block)
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"{where}: the chat template refuses it: {error}") from None
    return "".join(blocks), spans


def _variables(spec: ModelSpec) -> dict[str, Any]:
    """What templates know besides the messages."""
    if spec.pretrained is None:
        assert spec.tokenizer is not None
        special, token_of = special_ids_of(spec), load_tokenizer(spec.tokenizer).id_to_token
        begin = "" if special.begin is None else token_of(special.begin) or ""
        tokens = {"bos_token": begin, "eos_token": token_of(special.end) or ""}
    else:
        tokens = spec.pretrained.special_tokens
    return {**tokens, "tools": None, "documents": None, "strftime_now": TODAY.strftime}


def _template(spec: ModelSpec) -> str:
    if spec.pretrained is None:
        return BUILT_IN
    if spec.pretrained.chat_template is None:
        raise UserError(
            f"model.path: {spec.model['path']} has no chat template, so conversations cannot be written out for it; give "
            "one as model.chat_template, or bring the model's chat variant."
        )
    return spec.pretrained.chat_template


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    """The template in transformers' sandbox, which lets it reach nothing but what it is given."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(template)
    except TemplateError as error:
        raise UserError(f"The chat template is not valid: {error}") from None


@functools.lru_cache(maxsize=4)
def _reader(tokenizer_json: str, *, as_letters: bool = False) -> Tokenizer:
    """A tokenizer that puts nothing around a text and cuts no offset short; `as_letters`: it knows no control token."""
    tokenizer = Tokenizer.from_str(json.dumps({**json.loads(tokenizer_json), "post_processor": None}))
    tokenizer.encode_special_tokens = as_letters
    return tokenizer


def _control_tokens(spec: ModelSpec) -> dict[str, int]:
    """Text and id of each token that only a template may write."""
    assert spec.tokenizer is not None
    added = _reader(spec.tokenizer).get_added_tokens_decoder()
    return {token.content: index for index, token in added.items() if token.special}


@functools.lru_cache(maxsize=4)
def _control_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _where(number: int) -> str:
    return f"Conversation {number}"
