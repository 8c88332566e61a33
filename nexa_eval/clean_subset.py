"""The clean subset of an evaluation set: its rows without those that the model's training data repeats."""

from dataclasses import dataclass

import pyarrow
import pyarrow.compute
import pyarrow.parquet as parquet

from nexa_core.errors import UserError
from nexa_data.datasets import Dataset, open_dataset
from nexa_data.evaluation_sets import SPLIT
from nexa_models.checkpoint import Checkpoint
from nexa_models.predict import score
from nexa_models.results import CleanSubset

TRAINED_ON = "train"


@dataclass(frozen=True)
class Overlapping:
    """The evaluation rows that training rows repeat, as `nexa prepare` found them; None where nobody has looked."""

    row_ids: frozenset[str] | None
    training: str
    """The key of the dataset that the model learned from."""
    note: str = ""
    """Why nothing is known."""


def find_overlapping(checkpoint: Checkpoint, dataset: Dataset, split: str) -> Overlapping | None:
    """What is known of the rows of `dataset` that the model was trained on; None where it is the model's own dataset.

    Raises:
        UserError: the list of overlaps is missing or changed.
    """
    known = checkpoint.dataset
    training_key = f"{known['name']}_{known['version']}"
    if training_key == dataset.key:
        return None
    try:
        category = checkpoint.config["data"].get("category", "training")
        training = open_dataset(dataset.layout, known["name"], known["version"], category=category)
    except UserError:
        return Overlapping(None, training_key, f"{training_key}, which the model learned from, is not here")
    if training.fingerprint != known["fingerprint"]:
        return Overlapping(None, training_key, f"{training_key} was made anew since the model learned from it")
    if not _was_held_against(training, dataset, split):
        advice = f"prepare it with `decontaminate: {{against: [{dataset.key}]}}`"
        return Overlapping(None, training_key, f"{training_key} was not searched for rows of this split; {advice}")
    overlaps = parquet.read_table(training.check_file("overlaps"), columns=["split", "evaluation_ids"])
    trained = overlaps.filter(pyarrow.compute.equal(overlaps["split"], TRAINED_ON))
    ids = pyarrow.compute.list_flatten(trained["evaluation_ids"]).to_pylist()
    prefix = f"{dataset.key}/"
    return Overlapping(frozenset(each.removeprefix(prefix) for each in ids if each.startswith(prefix)), training_key)


def score_clean(predictions: pyarrow.Table, checkpoint: Checkpoint, overlapping: Overlapping) -> CleanSubset:
    """The scores of the predictions whose rows nothing in the training data repeats."""
    if overlapping.row_ids is None:
        return CleanSubset(overlapping.training, None, None, overlapping.note)
    is_clean = pyarrow.array([row_id not in overlapping.row_ids for row_id in predictions["row_id"].to_pylist()])
    clean = predictions.filter(is_clean)
    if len(clean) == 0:
        return CleanSubset(overlapping.training, len(predictions), None, "every row is repeated in the training data")
    return CleanSubset(overlapping.training, len(predictions) - len(clean), score(clean, checkpoint.spec), "")


def _was_held_against(training: Dataset, dataset: Dataset, split: str) -> bool:
    wanted = (dataset.key, split, dataset.split_digest(split) if split == SPLIT else "")
    recorded = training.manifest.get("evaluation_sets", [])
    return any((each["dataset"], each["split"], each["sha256"]) == wanted for each in recorded)
