"""What a package holds: the names of its files, and its model read back from them, with nothing in it trusted."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, device, nn
from torch.overrides import TorchFunctionMode

from nexa_core.config import Settings
from nexa_core.config.data import Rows
from nexa_core.config.model import ModelConfig
from nexa_core.errors import GateError, UserError
from nexa_data.encoder import load_tokenizer
from nexa_models.marks import SpecialIds
from nexa_models.spec import KINDS_OF_MODEL, ModelSpec, Pretrained, needs_token_ids
from nexa_models.table import MODELS, build_model
from nexa_models.vocabulary import special_ids, vocabulary_size
from nexa_models.weights import check_fit, read_weights
from nexa_ops.archive import SUMS

WEIGHTS = "model.safetensors"
MODEL = "model.json"
TOKENIZER = "tokenizer.json"
CONFIG = "config.yaml"
METRICS = "metrics.json"
MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
CARD = "README.md"
PROOF = "proof.json"
PROOF_ROWS = "proof_rows.parquet"
PROOF_PREDICTIONS = "proof_predictions.parquet"

REQUIRED = {WEIGHTS, MODEL, CONFIG, METRICS, MANIFEST, LINEAGE, CARD, PROOF, PROOF_ROWS, PROOF_PREDICTIONS, SUMS}

MAX_EXPERTS = 10_000  # of a mixture; each may be a module of its own

Id = Annotated[int, Field(ge=0)]


class PackedPretrained(Settings):
    """What `model.json` says of a model whose weights were there already: see `nexa_models.spec.Pretrained`."""

    architecture: dict[str, Any]
    padding_id: Id
    begin_id: Id | None
    end_id: Id
    special_tokens: dict[str, str]
    chat_template: str | None
    files: dict[str, str]


class PackedMarks(Settings):
    """What `model.json` says of the marks of a tokenizer that was loaded: see `nexa_models.marks.SpecialIds`."""

    padding: Id
    begin: Id | None
    end: Id


class PackedModel(Settings):
    """`model.json`: a model's spec without its tokenizer, and the rows that its dataset was made of."""

    model: ModelConfig
    kind: Literal["features", "text", "pairs", "chat"]
    labels: tuple[str, ...]
    feature_shape: tuple[Annotated[int, Field(gt=0)], ...] | None
    rows: Rows
    """The columns that the source had, so that `predict` takes rows like those of its maker."""
    pretrained: PackedPretrained | None = None
    marks: PackedMarks | None = None

    def mistakes(self, *, has_tokenizer: bool) -> list[str]:
        """What in it contradicts itself."""
        name, model = self.model.name, self.model.resolved()
        is_language_model = name == "causal_lm"
        num_axes = len(self.feature_shape or ())
        holds = {
            f"a {name} does not read rows of {self.kind}": self.kind in KINDS_OF_MODEL.get(name, ("features",)),
            f"rows are of {self.rows.name} and of {self.kind}": self.rows.name == self.kind,
            "a classifier needs two labels or more, each once": is_language_model
            or len(set(self.labels)) == len(self.labels) > 1,
            "rows of features have a shape, and no others": (num_axes > 0) == (self.kind == "features"),
            "a cnn reads rows of three axes": name != "cnn" or num_axes == 3,
            f"{TOKENIZER} is there when the model reads tokens": needs_token_ids(model) == has_tokenizer,
            "`pretrained` is there when the model has a path": ("path" in model) == (self.pretrained is not None),
            "`marks` are there for a tokenizer of a model without a path": self.marks is None
            or (has_tokenizer and self.pretrained is None),
            "adapters are merged when they are packed": model.get("lora") is None,
        }
        return [mistake for mistake, is_fine in holds.items() if not is_fine]


def read_packed(folder: Path) -> tuple[ModelSpec, Rows]:
    """The model's spec, its tokenizer among it, and the rows it was made for.

    Raises:
        GateError: a file is missing, or is one that no package has, or `model.json` or the tokenizer is malformed.
    """
    names = {path.name for path in folder.iterdir()}
    if wrong := (names - {TOKENIZER}) ^ REQUIRED:
        missing, foreign = sorted(wrong & REQUIRED), sorted(wrong - REQUIRED)
        raise GateError(f"The package lacks {missing or 'nothing'} and has {foreign or 'nothing'} that no package has.")
    packed = read_settings(folder / MODEL, PackedModel)
    if mistakes := packed.mistakes(has_tokenizer=TOKENIZER in names):
        raise GateError(f"{MODEL}: {mistakes[0]}")
    pretrained = None if packed.pretrained is None else Pretrained(**packed.pretrained.resolved())
    marks = None if packed.marks is None else SpecialIds(**packed.marks.resolved())
    tokenizer = (
        _read_tokenizer(folder / TOKENIZER, is_own=pretrained is None, marks=marks) if TOKENIZER in names else None
    )
    model = packed.model.resolved()
    spec = ModelSpec(model, packed.kind, packed.labels, packed.feature_shape, tokenizer, pretrained, marks)
    if pretrained is not None:
        _check_ids(spec, pretrained)
    return spec, packed.rows


def read_model(folder: Path, spec: ModelSpec, *, trusted: str | None) -> nn.Module:
    """The packed model, in evaluation mode.

    Raises:
        UserError: the package names code of its maker's own, and the user has not said to trust it.
        GateError: the model cannot be built, or the weights are not its.
    """
    name = spec.model["name"]
    if name not in MODELS and name != trusted:
        raise UserError(f"This package's model is code of its maker's, '{name}'. To import and run it: --trust {name}")
    weights = read_weights(folder / WEIGHTS)
    if name in MODELS:
        _check_size(spec, weights)
    model = build_model(spec)
    check_fit(model, weights)
    model.load_state_dict(weights)
    return model.eval()


def read_settings(path: Path, settings: type[Any]) -> Any:
    """A JSON file of the package as `settings`. Raises GateError with the first mistake."""
    try:
        return settings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise GateError(f"{path.name}: {_first_mistake(error)}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of the package that holds any object. Raises GateError where it does not."""
    try:
        return TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise GateError(f"{path.name}: {_first_mistake(error)}") from None


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors()[0]
    key = ".".join(str(part) for part in mistake["loc"])
    return f"{key}: {mistake['msg']}" if key else mistake["msg"]


def _check_size(spec: ModelSpec, weights: dict[str, Any]) -> None:
    """Refuse a spec that asks for another model than the weights are of, before memory is taken for it."""
    sizes = spec.model["parameters"] if spec.pretrained is None else spec.pretrained.architecture
    if _most(sizes, "layer") > len(weights) or _most(sizes, "expert") > MAX_EXPERTS:
        raise GateError(f"{MODEL} asks for more layers than there are weights.")
    try:
        with device("meta"), _Unfilled():
            model = build_model(spec)
    except (UserError, RuntimeError) as error:  # RuntimeError: sizes beyond what a tensor can have
        raise GateError(f"{MODEL}: {_first_line(error)}") from None
    except Exception as error:  # whatever an architecture makes of the sizes in a file that nobody vouches for
        if spec.pretrained is None:
            raise
        raise GateError(f"{MODEL}: its architecture cannot be built: {_first_line(error)}") from None
    check_fit(model, weights)


def _most(sizes: Any, what: str) -> int:
    """The largest number that any `num_...` or `n_...` of `what` is set to, wherever it lies."""
    if isinstance(sizes, list):
        return max((_most(value, what) for value in sizes), default=0)
    if not isinstance(sizes, dict):
        return 0
    counts = [
        int(value)
        for key, value in sizes.items()
        if what in key and key.startswith(("n_", "num_")) and isinstance(value, int | float)
    ]
    return max([*counts, *(_most(value, what) for value in sizes.values())], default=0)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Unfilled(TorchFunctionMode):
    """Leaves new tensors as they are: drawing on the meta device would import torch's compiler, which takes 3 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def _check_ids(spec: ModelSpec, pretrained: Pretrained) -> None:
    """Hold the ids of tokens, known and special, against the embedding that they look up."""
    try:
        num_embedded = vocabulary_size(spec)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise GateError(f"{MODEL}: its architecture has no vocab_size") from None
    assert spec.tokenizer is not None
    known = max(load_tokenizer(spec.tokenizer).get_vocab().values(), default=0)
    if max(known, pretrained.padding_id, pretrained.begin_id or 0, pretrained.end_id) >= num_embedded:
        raise GateError(f"{MODEL}: there are token ids above those that its {num_embedded} embeddings are of")


def _read_tokenizer(path: Path, *, is_own: bool, marks: SpecialIds | None) -> str:
    """The tokenizer's JSON; one of a dataset's own also has its special tokens, or `marks`, and no gaps."""
    try:
        text = path.read_text(encoding="utf-8")
        tokenizer = load_tokenizer(text)
        if is_own and marks is None:
            special_ids(tokenizer)
    except Exception as error:  # noqa: BLE001 -- tokenizers raises plain Exception for a malformed file
        raise GateError(f"{path.name}: {error}") from None
    vocabulary = tokenizer.get_vocab()
    if is_own and max(vocabulary.values()) >= len(vocabulary):
        raise GateError(f"{path.name}: its token ids have gaps")
    if marks is not None and max(marks.padding, marks.begin or 0, marks.end) >= len(vocabulary):
        raise GateError(f"{MODEL}: its marks are none of the {len(vocabulary)} token ids")
    return text
