"""A teacher to learn from: a language model whose weights stay as they are, with the student's tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from nexa_core import digests
from nexa_core.config.model import PretrainedLmModel, PretrainedLmParameters
from nexa_core.errors import UserError
from nexa_models.causal_lm import CausalLm
from nexa_models.checkpoint import load_checkpoint
from nexa_models.lora import load_state
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model, load_pretrained
from nexa_models.vocabulary import special_ids_of, vocabulary_size


@dataclass(frozen=True)
class Teacher:
    model: CausalLm
    """In evaluation mode; no weight of it wants a gradient."""
    spec: ModelSpec
    digest: str
    """Of its weights, or of the files that they were read from."""


def load_teacher(path: Path, *, max_tokens: int, kind: str = "pairs") -> Teacher:
    """The language model of a checkpoint or of a folder, on the CPU.

    Args:
        max_tokens: the longest sequence that it is to read.
        kind: the rows that it is to read, pairs or chat.

    Raises:
        UserError: there is none, it is no language model, or it reads no sequences as long as that.
    """
    if path.suffix == ".pt":
        checkpoint = load_checkpoint(path)
        spec, digest = checkpoint.spec, digests.of_file(path)
        if not spec.is_language_model:
            raise UserError(f"{path} holds a {spec.model['name']}; a teacher has to be a causal_lm.")
        model = build_model(spec)
        load_state(model, spec, checkpoint.model)
        _check_length(spec, max_tokens, path)
    elif path.is_dir():
        from nexa_models.pretrained import read_pretrained  # imports transformers

        settings = PretrainedLmModel(
            name="causal_lm", path=str(path), parameters=PretrainedLmParameters(max_tokens=max_tokens)
        )
        pretrained, tokenizer = read_pretrained(settings)
        spec = ModelSpec(settings.resolved(), kind, (), None, tokenizer, pretrained)
        digest = digests.of_value(pretrained.files)
        model = build_model(spec)
        load_pretrained(model, spec)
    else:
        raise UserError(
            f"No teacher at {path}: it has to be a checkpoint (.pt), or a folder with config.json and *.safetensors."
        )
    assert isinstance(model, CausalLm)
    return Teacher(model.eval().requires_grad_(False), spec, digest)


def check_same_tokens(teacher: ModelSpec, student: ModelSpec) -> None:
    """Raises UserError where an id means different things to the two, so that their distributions can't be compared.

    The teacher may have more ids than the student, beyond those of the tokenizer; these are left out of the comparison.
    """
    theirs, ours = _vocabulary(teacher), _vocabulary(student)
    if theirs != ours:
        differing = sorted(
            token_id for token_id in theirs.keys() | ours.keys() if theirs.get(token_id) != ours.get(token_id)
        )
        first = differing[0]
        raise UserError(
            f"The teacher's tokenizer is not the student's: {len(theirs):,} and {len(ours):,} tokens, of which "
            f"{len(differing):,} ids differ, the first {first}: {theirs.get(first)!r} and {ours.get(first)!r}. A divergence "
            "compares the same tokens: prepare the student's data with the teacher's tokenizer (filter.tokenizer.path), or use "
            "`loss: {name: sequence}`."
        )
    if _merges(teacher) != _merges(student):
        raise UserError(
            "The teacher's and the student's tokenizers have the same tokens and cut texts differently (merges, normaliser or "
            "pre-tokenizer). Prepare the student's data with the teacher's tokenizer (filter.tokenizer.path)."
        )
    widths = vocabulary_size(teacher), vocabulary_size(student)
    if widths[0] < widths[1]:
        raise UserError(
            f"The teacher's output layer has {widths[0]:,} ids and the student's {widths[1]:,}: it says nothing of the last "
            f"{widths[1] - widths[0]:,}, which no text has. Cut the student's embedding to {widths[0]:,}, or use "
            "`loss: {name: sequence}`."
        )
    marks = special_ids_of(teacher), special_ids_of(student)
    if (marks[0].begin, marks[0].end) != (marks[1].begin, marks[1].end):
        raise UserError(
            f"Teacher and student mark the ends of a text differently: begin {marks[0].begin} and {marks[1].begin}, "
            f"end {marks[0].end} and {marks[1].end}. Set filter.tokenizer.begin and end as the teacher has them."
        )


def _vocabulary(spec: ModelSpec) -> dict[int, str]:
    assert spec.tokenizer is not None
    tokenizer = Tokenizer.from_str(spec.tokenizer)
    return {token_id: token for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}


def _merges(spec: ModelSpec) -> str:
    """What decides how a text is cut."""
    assert spec.tokenizer is not None
    whole = json.loads(spec.tokenizer)
    return digests.of_value([whole.get("model", {}).get("merges"), whole.get("normalizer"), whole.get("pre_tokenizer")])


def _check_length(spec: ModelSpec, max_tokens: int, path: Path) -> None:
    if spec.max_tokens < max_tokens:
        raise UserError(
            f"{path} reads at most {spec.max_tokens} tokens and the student {max_tokens}. "
            f"Set model.parameters.max_tokens: {spec.max_tokens}."
        )


def move(teacher: Teacher, device: torch.device) -> Teacher:
    return Teacher(teacher.model.to(device), teacher.spec, teacher.digest)
