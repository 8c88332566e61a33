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
from nexa_models.spec import ModelSpec
from nexa_models.table import MODELS, build_model
from nexa_models.vocabulary import load_tokenizer, special_ids
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

KIND_OF_MODEL = {"text_classifier": "text", "causal_lm": "pairs"}  # all others read features


class PackedModel(Settings):
    """`model.json`: a model's spec without its tokenizer, and the rows that its dataset was made of."""

    model: ModelConfig
    kind: Literal["features", "text", "pairs"]
    labels: tuple[str, ...]
    feature_shape: tuple[Annotated[int, Field(gt=0)], ...] | None
    rows: Rows
    """The columns that the source had, so that `predict` takes rows like those of its maker."""

    def mistakes(self, *, has_tokenizer: bool) -> list[str]:
        """What in it contradicts itself."""
        name, parameters = self.model.name, self.model.resolved()["parameters"]
        is_language_model = name == "causal_lm"
        reads_tokens = is_language_model or parameters.get("vocabulary") == {"name": "bpe"}
        num_axes = len(self.feature_shape or ())
        holds = {
            f"a {name} does not read rows of {self.kind}": KIND_OF_MODEL.get(name, "features") == self.kind,
            f"rows are of {self.rows.name} and of {self.kind}": self.rows.name == self.kind,
            "a classifier needs two labels or more, each once": is_language_model
            or len(set(self.labels)) == len(self.labels) > 1,
            "rows of features have a shape, and no others": (num_axes > 0) == (self.kind == "features"),
            "a cnn reads rows of three axes": name != "cnn" or num_axes == 3,
            f"{TOKENIZER} is there when the model reads tokens": reads_tokens == has_tokenizer,
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
    tokenizer = _read_tokenizer(folder / TOKENIZER) if TOKENIZER in names else None
    model = packed.model.resolved()
    return ModelSpec(model, packed.kind, packed.labels, packed.feature_shape, tokenizer), packed.rows


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
    if spec.model["parameters"].get("num_layers", 0) > len(weights):
        raise GateError(f"{MODEL} asks for more layers than there are weights.")
    try:
        with device("meta"), _Unfilled():
            model = build_model(spec)
    except (UserError, RuntimeError) as error:  # RuntimeError: sizes beyond what a tensor can have
        raise GateError(f"{MODEL}: {str(error).splitlines()[0]}") from None
    check_fit(model, weights)


class _Unfilled(TorchFunctionMode):
    """Leaves new tensors as they are: drawing on the meta device would import torch's compiler, which takes 3 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def _read_tokenizer(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        tokenizer = load_tokenizer(text)
        special_ids(tokenizer)
    except Exception as error:  # noqa: BLE001 -- tokenizers raises plain Exception for a malformed file
        raise GateError(f"{path.name}: {error}") from None
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= len(vocabulary):
        raise GateError(f"{path.name}: its token ids have gaps")
    return text
