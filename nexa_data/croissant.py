"""The Croissant file of a dataset: what its files hold, in the words that other tools read.

It says nothing that the manifest does not, so the manifest does not record it, and it is written again wherever it is
missing or differs.

Source: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import pyarrow

from nexa_core import durable
from nexa_core.config.data import About
from nexa_core.paths import Layout
from nexa_data.manifests import Manifest, is_pretrain, training_splits
from nexa_data.places import croissant_path
from nexa_data.rows import SCHEMAS
from nexa_data.sequences import SCHEMA as SEQUENCE_SCHEMA
from nexa_data.split import HELD_OUT

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
PARQUET = ["application/vnd.apache.parquet", "application/x-parquet"]  # what is registered, what mlcroissant knows
SPLITS = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
SHARDS, TOKEN_SHARDS = "shards", "token_shards"
SHARDS_OF_THE_FOLDER = "pretrain/*.parquet"
SEQUENCES = "sequences"

DATA_TYPES = {
    pyarrow.string(): "sc:Text",
    pyarrow.float32(): "sc:Float",
    pyarrow.int32(): "sc:Integer",
    pyarrow.int64(): "sc:Integer",
}
COLUMNS = {
    "row_id": "The row's id: the beginning of the sha256 of its content.",
    "text": "The text to classify.",
    "label": "The class.",
    "features": "The numbers to classify.",
    "prompt": "What a model is given; null for plain documents.",
    "completion": "What it is to answer, or the document; null where a teacher is to answer.",
    "messages": "The conversation, in order.",
    "messages/role": "system, user, assistant or tool.",
    "messages/content": "What was said.",
    "messages/extra_json": "The message's other keys as a JSON object.",
    "extra_json": "The source's other columns as a JSON object.",
    "tokens": "The ids of the tokens of documents one after the other, each between its marks.",
    "row_ids": "Which documents these are: their row_id.",
    "starts": "Where in the tokens each of them begins or goes on.",
    "offsets": "How many tokens of each of them lie in sequences before.",
    "num_targets": "Tokens that are followed by one of the same document.",
    "num_begun": "Documents that begin here.",
}

_OURS = {
    "annotation", "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "excludes", "extract", "field",
    "fileObject", "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5",
    "parentField", "path", "readLines", "recordSet", "references", "regex", "repeated", "replace", "samplingRate",
    "sdVersion", "separator", "source", "subField", "transform", "unArchive",
}  # fmt: skip
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{name: f"cr:{name}" for name in sorted(_OURS)},
}
"""The specification's, but for `value`: mlcroissant looks for a constant's value in schema.org's vocabulary alone."""


def write_croissant(layout: Layout, manifest: Manifest) -> None:
    """Have the Croissant file of a dataset say what its manifest says; one that does already is left alone."""
    path, document = croissant_path(layout, manifest), describe(manifest)
    try:
        is_current = json.loads(path.read_bytes()) == document
    except (FileNotFoundError, ValueError):
        is_current = False
    if not is_current:
        durable.write_json(path, document)


def describe(manifest: Manifest) -> dict[str, Any]:
    """A dataset in Croissant's words, from its manifest alone."""
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": manifest["name"],
        "version": _version(manifest["version"]),
        **_about(manifest),
        "identifier": f"sha256:{manifest['fingerprint']}",
        "prov:wasDerivedFrom": [
            {"@type": "prov:Entity", "name": source["file"], "sha256": source["sha256"]}
            for source in manifest["sources"]
        ],
        "distribution": list(_distribution(manifest)),
        "recordSet": list(_record_sets(manifest)),
    }


def _about(manifest: Manifest) -> dict[str, Any]:
    """What the settings say about the dataset; nothing that is unknown is made up."""
    about = About.model_validate(manifest.get("about") or {})
    kind = "sc:Person" if about.creator_type == "person" else "sc:Organization"
    said = {
        "description": about.description or _summary(manifest),
        "license": about.license,
        "url": about.url,
        "creator": about.creator and {"@type": kind, "name": about.creator},
        "datePublished": about.published,
        "citeAs": about.citation,
    }
    return {name: value for name, value in said.items() if value}


def _summary(manifest: Manifest) -> str:
    rows = {
        split: sum(manifest["splits"][file]["rows"] for file in files) for split, files in _splits(manifest).items()
    }
    shown = ", ".join(f"{split} {count:,}" for split, count in rows.items())
    return f"{sum(rows.values()):,} rows of {manifest['kind']} ({shown}), prepared by NexaCompute."


def _splits(manifest: Manifest) -> dict[str, list[str]]:
    """Each split with what its files are called in the manifest: of a pretraining dataset `train` is all shards."""
    if not is_pretrain(manifest):
        return {split: [split] for split in manifest["splits"]}
    held_out = [split for split in manifest["splits"] if split in HELD_OUT]
    return {"train": list(training_splits(manifest)), **{split: [split] for split in held_out}}


def _distribution(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """A FileObject with its digest for each file, and shards once more as the set that their rows are read from."""
    for record in manifest["splits"].values():
        yield _file(record, PARQUET)
    for record in _token_shards(manifest):
        yield _file(record, PARQUET)
    if manifest["tokenizer"] is not None:
        tokenizer = manifest["tokenizer"]
        told = f"The tokenizer, of {tokenizer['vocab_size']:,} tokens, as the library tokenizers reads it."
        yield {**_file(tokenizer, "application/json"), "description": told}
    if is_pretrain(manifest):
        yield _file_set(SHARDS, _shards_of_rows(manifest))
    if _token_shards(manifest):
        yield _file_set(TOKEN_SHARDS, SHARDS_OF_THE_FOLDER)


def _file(record: Mapping[str, Any], encoding: str | list[str]) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": _place(record),
        "name": _place(record),
        "contentUrl": _place(record),
        "contentSize": f"{record['bytes']} B",
        "encodingFormat": encoding,
        "sha256": record["sha256"],
    }


def _file_set(name: str, includes: str) -> dict[str, Any]:
    return {"@type": "cr:FileSet", "@id": name, "name": name, "includes": includes, "encodingFormat": PARQUET}


def _token_shards(manifest: Manifest) -> list[Mapping[str, Any]]:
    """The files of token sequences, where there are any."""
    sequences = manifest.get("sequences")
    return [] if sequences is None else list(sequences["shards"].values())


def _shards_of_rows(manifest: Manifest) -> str:
    """The pattern of the shards' files; where shards hold token sequences, of the documents that lie beside them."""
    if manifest.get("sequences") is None:
        return SHARDS_OF_THE_FOLDER
    return f"documents/{manifest['name']}_{manifest['version']}_[0-9]*.parquet"


def _record_sets(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The splits' meanings, the classes, the rows of each split, and the token sequences."""
    splits = _splits(manifest)
    meanings = [{"name": split, "url": SPLITS[split]} for split in splits if split in SPLITS]
    if meanings:
        yield _enumeration("splits", "cr:Split", meanings)
    if manifest["labels"]:
        yield _enumeration("labels", "sc:Enumeration", [{"name": label} for label in manifest["labels"]])
    for split, files in splits.items():
        is_one = len(files) == 1 and not (is_pretrain(manifest) and split == "train")
        place = _place(manifest["splits"][files[0]])
        source = {"fileObject": {"@id": place}} if is_one else {"fileSet": {"@id": SHARDS}}
        yield {
            "@type": "cr:RecordSet",
            "@id": split,
            "name": split,
            "key": {"@id": f"{split}/row_id"},
            "field": [*_split_field(split), *_fields(manifest, split, source)],
        }
    if _token_shards(manifest):
        yield _sequence_set(manifest["sequences"])


def _sequence_set(sequences: Mapping[str, Any]) -> dict[str, Any]:
    """What the shards of token sequences hold.

    Only words lead from `row_ids` to the rows: of a reference mlcroissant makes a join, and it can't join lists.
    """
    source = {"fileSet": {"@id": TOKEN_SHARDS}}
    fields = {
        column.name: _field(column, (SEQUENCES, column.name), {**source, "extract": {"column": column.name}})
        for column in SEQUENCE_SCHEMA
    }
    begin = "nothing" if sequences["begin"] is None else f"the id {sequences['begin']}"
    fields["tokens"]["description"] += (
        f" {sequences['width']:,} in each sequence; the last of a shard may have fewer. In front of a document stands "
        f"{begin}, behind it the id {sequences['end']}."
    )
    return {"@type": "cr:RecordSet", "@id": SEQUENCES, "name": SEQUENCES, "field": list(fields.values())}


def _enumeration(name: str, data_type: str, values: list[dict[str, str]]) -> dict[str, Any]:
    """A small record set whose records stand in the file itself."""
    types = {"name": "sc:Text", "url": ["sc:URL", data_type]}
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "dataType": data_type,
        "key": {"@id": f"{name}/name"},
        "field": [
            {"@type": "cr:Field", "@id": f"{name}/{column}", "name": column, "dataType": types[column]}
            for column in values[0]
        ],
        "data": [{f"{name}/{column}": value for column, value in each.items()} for each in values],
    }


def _split_field(split: str) -> Iterator[dict[str, Any]]:
    """The same for all rows of a record set: the split that they belong to."""
    if split in SPLITS:
        yield {
            "@type": "cr:Field",
            "@id": f"{split}/split",
            "name": "split",
            "description": "The split that the row belongs to.",
            "dataType": "sc:Text",
            "value": split,
            "references": {"field": {"@id": "splits/name"}},
        }


def _fields(manifest: Manifest, split: str, source: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for column in SCHEMAS[manifest["kind"]]:
        field = _field(column, (split, column.name), {**source, "extract": {"column": column.name}})
        if column.name == "features" and manifest["feature_shape"]:
            shape = manifest["feature_shape"]
            field["arrayShape"] = str(math.prod(shape))
            field["description"] += f" They fill a shape of {' x '.join(map(str, shape))}, the last dimension first."
        if column.name == "label":
            field["dataType"] = ["sc:Text", "cr:Label"]
            field["references"] = {"field": {"@id": "labels/name"}}
        yield field


def _field(column: pyarrow.Field, path: tuple[str, ...], source: Mapping[str, Any]) -> dict[str, Any]:
    """A column, or what is nested in one: a list is an array, and a struct has a field for each of its own."""
    is_list = pyarrow.types.is_list(column.type)
    value = column.type.value_type if is_list else column.type
    field: dict[str, Any] = {"@type": "cr:Field", "@id": "/".join(path), "name": column.name}
    field["description"] = COLUMNS["/".join(path[1:])]
    if is_list:
        field["isArray"] = True
    if pyarrow.types.is_struct(value):
        inner = [_field(each, (*path, each.name), {**source, "transform": {"jsonPath": each.name}}) for each in value]
        return {**field, "subField": inner}
    return {**field, "dataType": DATA_TYPES[value], "source": source}


def _place(record: Mapping[str, Any]) -> str:
    """Where a split's file lies, seen from the folder of its category."""
    return "/".join(PurePosixPath(record["path"]).parts[-2:])


def _version(version: str) -> str:
    """As semantic versioning has it, where it can be: v2 is 2.0.0, since each version is other data."""
    numbers = re.fullmatch(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    return ".".join(number or "0" for number in numbers.groups()) if numbers else version
