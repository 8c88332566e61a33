"""The rules that every contestant keeps: the rows, the model, what counts as a step, and what is reported.

Imported in the contestants' own environments, so it needs only torch, transformers and tokenizers.
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

T = TypeVar("T")

PAD, BEGIN, END = "<|pad|>", "<|bos|>", "<|eos|>"
PAD_ID, BEGIN_ID, END_ID = 0, 1, 2
IGNORED = -100
"""The label of a token that is no target, as cross_entropy and all trainers read it."""

VOCABULARY_SIZE = 4096
HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, INTERMEDIATE_SIZE = 256, 8, 4, 768
MAX_TOKENS = 1024
"""Longest sequence. No row of GSM8K is longer than 512, so nothing is cut."""

ROWS_PER_STEP = 32
"""Rows of one optimizer step; contestants that pack take the packs whose tokens come closest to these rows'."""
LR, WEIGHT_DECAY, MAX_GRADIENT_NORM = 1e-3, 0.01, 1.0
NUM_VALIDATION_ROWS = 128
SEED = 0


@dataclass(frozen=True)
class Row:
    """A prompt and its completion as the model reads them: begin, prompt, completion, end."""

    ids: tuple[int, ...]
    num_prompt: int
    """Tokens before the first one that is learned, the beginning among them."""

    @property
    def labels(self) -> tuple[int, ...]:
        return (IGNORED,) * self.num_prompt + self.ids[self.num_prompt :]


@dataclass
class Result:
    """What a contestant did in `seconds`, all of it after the warm-up steps."""

    name: str
    useful_tokens: int
    """Tokens of the rows that were learned from, prompts among them, padding not."""
    seconds: float
    tokens_per_second: float
    cpu_seconds: float
    """Processor time of all threads meanwhile; less than threads x seconds tells that others were at work here too."""
    first_step_seconds: float
    """From the start of training to the end of the first step: set-up and compilation."""
    padding_share: float
    """Share of the positions the model computed that held no token."""
    tokens_learned: int
    """Useful tokens of all steps: what `validation_loss` was reached with."""
    validation_loss: float
    """Nats per target after the last step, by the same code for everyone."""
    peak_memory_bytes: int
    losses: list[float] = field(repr=False)
    """Nats per target of each step."""


@dataclass(frozen=True)
class Arguments:
    """What `compare.py` tells each contestant."""

    data: Path
    tokenizer: Path
    steps: int
    warmup: int
    threads: int
    out: Path
    variant: str


class Stopwatch:
    """Notes when each step ended and what it held."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.cpu_ends: list[float] = []
        self.useful = [0]
        self.computed = [0]
        self.losses: list[float] = []

    def start(self) -> None:
        self._note_time()

    def count(self, *, useful: int, computed: int) -> None:
        """Add a microbatch's tokens, and the positions computed for them, to the step under way."""
        self.useful[-1] += useful
        self.computed[-1] += computed

    def end_step(self, loss: float | None = None) -> None:
        if loss is not None:
            self.losses.append(loss)
        self._note_time()
        self.useful.append(0)
        self.computed.append(0)

    def _note_time(self) -> None:
        self.ends.append(time.perf_counter())
        self.cpu_ends.append(time.process_time())


def read_arguments(description: str | None, variants: Sequence[str]) -> Arguments:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--variant", choices=variants, required=True)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with `question` and `answer`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder; made from the data when it is not there")
    parser.add_argument("--steps", type=int, default=14, help="optimizer steps, the warm-up among them")
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True, help="the result as JSON")
    given = parser.parse_args()
    if not 0 < given.warmup < given.steps:
        parser.error(f"--warmup {given.warmup} of --steps {given.steps} leaves nothing to time")
    torch.set_num_threads(given.threads)
    return Arguments(**vars(given))


def finish(
    arguments: Arguments, watch: Stopwatch, *, name: str, model: LlamaForCausalLM, validation: Sequence[Row]
) -> None:
    """Validate what was trained and write the result."""
    peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # before validation adds its own
    seconds = watch.ends[-1] - watch.ends[arguments.warmup]
    useful = sum(watch.useful[arguments.warmup :])
    result = Result(
        name=name,
        useful_tokens=useful,
        seconds=seconds,
        tokens_per_second=useful / seconds,
        cpu_seconds=watch.cpu_ends[-1] - watch.cpu_ends[arguments.warmup],
        first_step_seconds=watch.ends[1] - watch.ends[0],
        padding_share=1 - sum(watch.useful) / sum(watch.computed),
        tokens_learned=sum(watch.useful),
        validation_loss=validate(model, validation),
        peak_memory_bytes=peak_memory_bytes,
        losses=watch.losses,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    print(
        f"{name}: {result.tokens_per_second:,.0f} useful tokens/s, padding {result.padding_share:.1%}, "
        f"first step {result.first_step_seconds:.1f} s, validation loss {result.validation_loss:.4f}"
    )


def read_pairs(data: Path) -> list[tuple[str, str]]:
    with data.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["question"], row["answer"]) for row in rows]


def make_tokenizer(data: Path, folder: Path) -> None:
    """Train the byte-level BPE tokenizer that all contestants share, in the Hugging Face layout."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for pair in read_pairs(data) for text in pair), trainer)
    # Who reads texts and not ids learns from it what stands in front of them.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=None, special_tokens=[(BEGIN, BEGIN_ID)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END)
    fast.save_pretrained(folder)
    model_config().save_pretrained(folder)


def load_rows(data: Path, folder: Path) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows to validate on, the same for every contestant."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pairs = read_pairs(data)
    prompts = tokenizer.encode_batch_fast([prompt for prompt, _ in pairs], add_special_tokens=False)
    completions = tokenizer.encode_batch_fast([completion for _, completion in pairs], add_special_tokens=False)
    rows = [
        Row((BEGIN_ID, *prompt.ids, *completion.ids, END_ID), 1 + len(prompt.ids))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return split(rows)


def split(rows: Sequence[T]) -> tuple[list[T], list[T]]:
    """Rows to train on, in the order of one shuffle, and `NUM_VALIDATION_ROWS` that are kept back."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    shuffled = [rows[index] for index in order]
    return shuffled[NUM_VALIDATION_ROWS:], shuffled[:NUM_VALIDATION_ROWS]


def model_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
    )


def build_model() -> LlamaForCausalLM:
    """The 8M-parameter Llama with its random float32 weights, equal for every contestant."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(model_config())


def decay_groups(model: nn.Module) -> list[dict[str, object]]:
    """AdamW's two groups as the trainers make them: matrices are decayed, norms are not."""
    weights = list(model.parameters())
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]


def pad(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and attention mask (rows, longest row), padded on the right."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), PAD_ID)
    labels = torch.full((len(rows), longest), IGNORED)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, : len(row.ids)] = torch.tensor(row.labels)
        mask[index, : len(row.ids)] = 1
    return ids, labels, mask


@torch.no_grad()
def validate(model: LlamaForCausalLM, rows: Sequence[Row], *, batch_size: int = 16) -> float:
    """Mean loss in nats per target of the completions, in float32."""
    model.eval()
    total, num_targets = 0.0, 0
    for start in range(0, len(rows), batch_size):
        ids, labels, mask = pad(rows[start : start + batch_size])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        targets = labels[:, 1:]
        total += float(cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum"))
        num_targets += int((targets != IGNORED).sum())
    return total / num_targets
