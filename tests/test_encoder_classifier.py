"""Text classifiers on transformers: their tokenizer's own marks around a text, padding that changes nothing."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from nexa_core.errors import UserError
from nexa_data.tokenizer import train_tokenizer
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model, load_pretrained
from nexa_models.vocabulary import encode_texts, special_ids_of
from tests import folders

NAME = "encoder_classifier"


def test_the_body_is_the_folders_and_the_classes_begin_at_random(tmp_path: Path) -> None:
    theirs = folders.bert(tmp_path, auto_class=AutoModelForMaskedLM)
    spec = folders.spec_of(tmp_path, kind="text", name=NAME)
    one, other = build_model(spec, seed=0), build_model(spec, seed=1)
    for model in (one, other):
        load_pretrained(model, spec)
    (ids,), _ = encode_texts(["the cat sees a dog"], spec)
    inputs = {"input_ids": torch.from_numpy(ids)[None]}
    with torch.no_grad():
        expected = theirs.bert(**inputs).last_hidden_state
        body = one.eval().get_submodule("transformer.bert")
        assert torch.equal(body(**inputs).last_hidden_state, expected)
    heads = [model.get_submodule("transformer.classifier").state_dict()["weight"] for model in (one, other)]
    assert heads[0].shape == (2, 32)
    assert not torch.equal(*heads)


def test_texts_are_encoded_as_their_tokenizer_does_it_and_keep_their_marks_when_cut(tmp_path: Path) -> None:
    folders.bert(tmp_path)
    spec = folders.spec_of(tmp_path, kind="text", name=NAME, parameters={"max_tokens": 8})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["the cat", "one two three red old new house tree river", ""]
    sequences, num_cut = encode_texts(texts, spec)
    expected = theirs(texts, truncation=True, max_length=8)["input_ids"]
    assert [ids.tolist() for ids in sequences] == expected
    assert num_cut == 1
    marks = theirs.convert_tokens_to_ids(["[CLS]", "[SEP]", "[PAD]"])
    assert [sequences[1][0], sequences[1][-1], special_ids_of(spec).padding] == marks


def test_padding_changes_no_answer(tmp_path: Path) -> None:
    folders.bert(tmp_path)
    spec = folders.spec_of(tmp_path, kind="text", name=NAME)
    model = build_model(spec, seed=0).eval()
    load_pretrained(model, spec)
    sequences, _ = encode_texts(["the cat sees a dog", "a bird"], spec)
    lengths = torch.tensor([len(ids) for ids in sequences])
    padded = torch.zeros(2, int(lengths.max()) + 3, dtype=torch.int64)
    for row, ids in enumerate(sequences):
        padded[row, : len(ids)] = torch.from_numpy(ids)
    with torch.no_grad():
        together = model(ids=padded, lengths=lengths)
        alone = [model(ids=torch.from_numpy(ids)[None], lengths=torch.tensor([len(ids)])) for ids in sequences]
        changed = model(ids=padded.where(torch.arange(padded.shape[1]) < lengths[:, None], 9), lengths=lengths)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert torch.allclose(together, changed, atol=1e-6)


def test_an_encoder_from_sizes_reads_the_datasets_tokenizer(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": folders.TEXTS}), tmp_path / "train.parquet")
    tokenizer = train_tokenizer([tmp_path / "train.parquet"], 300).to_str()
    sizes = {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": None,
        "max_tokens": 8,
        "dropout": 0.3,
    }
    spec = ModelSpec({"name": NAME, "parameters": sizes}, "text", ("a", "b", "c"), None, tokenizer)
    model = build_model(spec, seed=0)
    sequences, num_cut = encode_texts(["the cat", " ".join(folders.TEXTS)], spec)
    assert [(ids[0], ids[-1]) for ids in sequences] == [(1, 2), (1, 2)]
    assert (len(sequences[1]), num_cut) == (8, 1)
    inputs = {"ids": torch.from_numpy(sequences[1])[None], "lengths": torch.tensor([8])}
    assert model(**inputs).shape == (1, 3)
    assert not torch.equal(model(**inputs), model(**inputs)), "dropout"
    with pytest.raises(UserError, match="cannot be cut into 3 heads"):
        build_model(
            ModelSpec({"name": NAME, "parameters": {**sizes, "num_heads": 3}}, "text", ("a", "b"), None, tokenizer)
        )


def test_a_body_without_any_head_is_enough(tmp_path: Path) -> None:
    theirs = folders.bert(tmp_path)
    AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    spec = folders.spec_of(tmp_path, kind="text", name=NAME)
    model = build_model(spec)
    load_pretrained(model, spec)
    ours = model.get_submodule("transformer.bert").state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.bert.state_dict().items())
