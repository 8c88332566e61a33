"""The overview: its numbers are the dataset's, its page is the same every time, and no row steers it."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from nexa_core.paths import Layout
from nexa_data import tokenise
from nexa_data.datasets import Dataset, find_dataset
from nexa_data.overview.images import picture
from nexa_data.overview.page import make_page
from nexa_data.overview.plots import round_numbers
from nexa_data.overview.sampling import MAX_GROUPS, MAX_ROWS_OF_GROUP, read_groups
from nexa_data.overview.scores import read_scores
from nexa_data.overview.statistics import count_words, measure
from nexa_data.overview.tally import Tally, log_edges
from nexa_data.overview.token_counts import count_tokens
from nexa_data.places import overview_path
from nexa_data.sequences import TokenSequences
from nexa_data.validation import validate
from scripts.data_commands import app
from tests.test_croissant import DATASETS, make
from tests.test_data_commands import make as make_news

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}\x00\x1b[31m\u202e</pre></style>'
ELEMENTS = {
    "article", "b", "bdi", "body", "code", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "footer", "g", "h1",
    "h2", "h3", "h4", "head", "header", "html", "i", "img", "li", "main", "meta", "p", "path", "pre", "rect", "section",
    "small", "span", "style", "summary", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr", "ul",
}  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(dataset: Dataset, *, is_sample: bool = False) -> Page:
    page = Page(make_page(dataset, is_sample=is_sample))
    assert page.open == []
    return page


@pytest.mark.parametrize("name", DATASETS)
def test_every_kind_of_dataset_has_a_page_of_its_own_after_prepare(tmp_path: Path, name: str) -> None:
    dataset = make(tmp_path, name)
    path = overview_path(dataset.layout, dataset.manifest)
    assert path.read_text() == make_page(dataset, is_sample=True)
    page = page_of(dataset)
    assert f"{name} v1" in page.text
    assert dataset.fingerprint in page.text
    for record in dataset.manifest["splits"].values():
        assert record["sha256"] in page.text
    for source in dataset.manifest["sources"]:
        assert source["sha256"] in page.text


@pytest.mark.parametrize("name", DATASETS)
def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path, name: str) -> None:
    page = page_of(make(tmp_path, name))
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in page.elements
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "style", "srcdoc")]
        assert (attributes.get("src") or "data:").startswith("data:")


def test_hostile_rows_are_shown_and_do_nothing(tmp_path: Path) -> None:
    rows = [{"q": f"{HOSTILE} {index}", "a": HOSTILE} for index in range(40)]
    quality = [{"name": "length", "min_chars": len(HOSTILE) + 3}]
    about = {"description": HOSTILE, "license": HOSTILE, "creator": HOSTILE}
    make_news(tmp_path, "v1", [*rows, *rows], quality=quality, about=about)
    dataset = find_dataset(Layout(tmp_path), "news_v1")
    page = page_of(dataset)
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "style", "srcdoc")]
    shown = HOSTILE.replace("\x00", "␀").replace("\x1b", "␛").replace("\u202e", "\ufffd")
    assert f"{shown} 3" in page.text  # a row, as it is but for what would steer
    assert "{{7*7}}" in page.text
    assert not re.search("[\x00-\x08\x0e-\x1f\x80-\x9f\u202a-\u202e\u2066-\u2069]", make_page(dataset, is_sample=False))


def test_the_same_dataset_gives_the_same_page_anywhere(tmp_path: Path) -> None:
    first, second = (make(tmp_path / place, "text") for place in ("here", "there"))
    assert make_page(first, is_sample=False) == make_page(second, is_sample=False)


def test_the_page_is_no_part_of_the_dataset_and_comes_back(tmp_path: Path) -> None:
    dataset = make(tmp_path, "text")
    path = overview_path(dataset.layout, dataset.manifest)
    whole = path.read_bytes()
    path.unlink()
    assert validate(dataset).holds
    make(tmp_path, "text")
    assert path.read_bytes() == whole
    make(tmp_path, "text", about={"license": "CC0-1.0"})
    assert "CC0-1.0" in path.read_text()
    make(tmp_path, "pretrain")
    make(tmp_path, "pretrain", "v2", replace=True)
    assert not list(tmp_path.rglob("pretrain_v1.overview.html"))


def test_what_was_left_out_is_told_with_reasons_and_rows(tmp_path: Path) -> None:
    rows = [{"q": f"text number {index}", "a": "yes"} for index in range(60)]
    make_news(tmp_path, "v1", [*rows, *rows[20:22] * 3], quality=[{"name": "length", "min_chars": 14}])
    dataset = find_dataset(Layout(tmp_path), "news_v1")
    text = page_of(dataset).text
    assert "length 56 -10 15.2% 10 num_chars below 14" in text
    assert "deduplicate 50 -6 10.7% 6 duplicate" in text
    assert "num_chars below 14: 13 data/raw/v1.jsonl:1" in text
    repeated = text.partition("repeated most often")[2]
    row_id = dataset.read_split("train")["row_id"].to_pylist() + dataset.read_split("test")["row_id"].to_pylist()
    assert re.match(r" copies row beginning 3 (\w{16}) .*? 3 (\w{16}) ", repeated)
    assert re.findall(r" 3 (\w{16}) ", repeated)[0] in row_id + dataset.read_split("val")["row_id"].to_pylist()


def test_near_duplicates_are_told_by_the_row_that_is_kept(tmp_path: Path) -> None:
    words = [f"word{index}" for index in range(60)]
    rows = [{"q": " ".join([*words, f"end{index}"]), "a": "yes"} for index in range(4)]
    rows += [{"q": f"another text {index}", "a": "no"} for index in range(20)]
    make_news(tmp_path, "v1", rows, near_duplicates={"threshold": 0.8})
    text = page_of(find_dataset(Layout(tmp_path), "news_v1")).text
    assert re.search(r"near_duplicates 21 -3 12.5% 3 near duplicate", text)
    assert re.search(r"repeated most often copies row beginning 3 [0-9a-f]{16} \{", text)


def test_the_evaluation_sets_that_rows_were_held_against_are_named(tmp_path: Path) -> None:
    make_news(tmp_path, "v1", [{"q": f"text {index}", "a": "yes"} for index in range(40)])
    against = find_dataset(Layout(tmp_path), "news_v1")
    make_news(
        tmp_path,
        "v2",
        [{"q": f"other {index}", "a": "yes"} for index in range(40)],
        decontaminate={"against": [against.key]},
    )
    text = page_of(find_dataset(Layout(tmp_path), "news_v2")).text
    assert f"news_v1, test {against.split_digest('test')}" in text


def test_scores_are_counted_on_the_side_of_the_limit_that_they_are_on(tmp_path: Path) -> None:
    rows = [{"q": "word " * (index % 30 + 1) + str(index), "a": "yes"} for index in range(300)]
    make_news(tmp_path, "v1", rows, quality=[{"name": "length", "min_words": 5, "max_words": 20}])
    scores = read_scores(find_dataset(Layout(tmp_path), "news_v1"), is_sample=False)
    assert scores is not None
    (score,) = scores.shown
    middles = (score.edges[:-1] + score.edges[1:]) / 2
    words = np.array([len(row["q"].split()) for row in rows])
    assert score.counts.sum() == scores.num_rows == 300
    assert score.counts[middles < 5].sum() == (words < 5).sum() > 0
    assert score.counts[middles > 20].sum() == (words > 20).sum() > 0


def test_classes_are_counted_in_every_split(tmp_path: Path) -> None:
    dataset = make(tmp_path, "features")
    labels = measure(dataset, is_sample=True).labels
    assert list(labels) == ["0", "1", "2"]
    for split in ("train", "val", "test"):
        found = dataset.read_split(split)["label"].to_pylist()
        assert {label: counts[split] for label, counts in labels.items()} == {each: found.count(each) for each in "012"}


def test_lengths_are_those_of_the_rows(tmp_path: Path) -> None:
    dataset = make(tmp_path, "chat")
    found = measure(dataset, is_sample=False)
    assert [each.column for each in found.lengths] == ["user", "assistant"]
    said = [row["messages"][0]["content"] for row in dataset.read_split("train").to_pylist()]
    chars = found.lengths[0].chars["train"]
    assert (chars.count, chars.mean) == (len(said), pytest.approx(np.mean([len(each) for each in said])))
    assert found.turns["val"].quantile(0.5) == 2
    assert found.num_measured == dataset.num_rows


def test_token_sequences_are_counted(tmp_path: Path) -> None:
    dataset = make(tmp_path, "sequences")
    tokens = [token for shard in dataset.sequence_shards() for token in TokenSequences([shard], width=16).blocks()]
    ends = np.flatnonzero(np.concatenate(tokens) == dataset.sequence_marks[1])
    counts = count_tokens(dataset, is_sample=False)
    assert counts is not None
    sizes = [sum(map(len, TokenSequences([shard], width=16).blocks())) for shard in dataset.sequence_shards()]
    rows = [-(-size // 16) for size in sizes]
    assert (counts.num_tokens, counts.num_sequences, counts.num_documents) == (sum(sizes), sum(rows), len(ends))
    assert counts.num_short == sum(size % 16 > 0 for size in sizes) > 0
    assert counts.padding == pytest.approx(sum(-size % 16 for size in sizes) / sum(rows) / 16)
    expected = np.diff(ends, prepend=-1)
    assert (counts.lengths.count, counts.lengths.mean) == (len(expected), pytest.approx(expected.mean()))
    assert [counts.lengths.quantile(share) for share in (0, 1)] == [expected.min(), expected.max()]
    page = page_of(dataset)
    assert f"tokens {sum(sizes):,} sequences {sum(rows):,} of 16 documents {len(ends)}" in page.text
    assert f"padding {counts.padding:.1%}" in page.text
    for record in (dataset.manifest["tokenizer"], *dataset.sequence_records.values()):
        assert record["sha256"] in page.text
    sample = count_tokens(dataset, is_sample=True)
    assert sample is not None
    assert sample.num_documents > sample.lengths.count > 0
    assert f"{sample.lengths.count} of {len(ends)} rows measured" in page_of(dataset, is_sample=True).text


def test_documents_that_reach_over_row_groups_are_counted_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = count_tokens(make(tmp_path / "whole", "sequences"), is_sample=False)
    monkeypatch.setattr(tokenise, "GROUP_ROWS", 1)
    dataset = make(tmp_path / "cut", "sequences")
    assert max(len(shard.offsets) for shard in dataset.sequence_shards()) > 1
    cut = count_tokens(dataset, is_sample=False)
    assert whole is not None
    assert cut is not None
    assert [cut.lengths.quantile(n / 50) for n in range(51)] == [whole.lengths.quantile(n / 50) for n in range(51)]


def test_a_sample_says_that_it_is_one(tmp_path: Path) -> None:
    make_news(tmp_path, "v1", [{"q": f"text {index}", "a": "yes"} for index in range(4000)])
    dataset = find_dataset(Layout(tmp_path), "news_v1")
    assert measure(dataset, is_sample=True).num_measured["train"] == MAX_ROWS_OF_GROUP
    assert "rows measured</span>" in overview_path(dataset.layout, dataset.manifest).read_text()
    assert "rows measured" in page_of(dataset, is_sample=True).text
    assert "rows measured" not in page_of(dataset).text


def test_a_sample_comes_from_everywhere(tmp_path: Path) -> None:
    paths = []
    for shard in range(20):
        paths.append(tmp_path / f"{shard:03d}.parquet")
        parquet.write_table(pyarrow.table({"at": [shard * 10 + row for row in range(10)]}), paths[-1])
    found = [table["at"].to_pylist() for table in read_groups(paths, ["at"], is_sample=True)]
    assert len(found) == MAX_GROUPS
    assert (found[0][0], found[-1][-1]) == (0, 199)
    assert sum(len(table) for table in read_groups(paths, ["at"], is_sample=False)) == 200


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), min_size=1, max_size=5))
def test_a_tally_knows_what_all_values_together_would_tell(batches: list[list[int]]) -> None:
    tally = Tally()
    for batch in batches:
        tally.add(np.array(batch))
    values = np.concatenate(batches)
    assert tally.count == len(values)
    assert tally.mean == pytest.approx(values.mean())
    for share in (0, 0.05, 0.5, 0.95, 1):
        assert tally.quantile(share) == np.quantile(values, share, method="inverted_cdf")
    edges = log_edges([tally])
    assert tally.histogram(edges).tolist() == np.histogram(values, edges)[0].tolist()
    assert tally.histogram(edges).sum() == len(values)
    widths = np.diff(edges[edges > 0])
    assert (widths >= 1).all()
    assert (np.diff(widths) >= 0).all()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(" \t\n"), max_size=30)))
def test_words_are_what_white_space_parts(texts: list[str]) -> None:
    assert count_words(pyarrow.array(texts, pyarrow.string())).tolist() == [len(text.split()) for text in texts]


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (3, 2, 2)])
def test_a_picture_shows_the_features(shape: tuple[int, ...]) -> None:
    values = np.linspace(-1, 1, int(np.prod(shape)))
    address = picture(values, shape)
    assert address is not None
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
    expected = ((values + 1) / 2 * 255).round().reshape(shape)
    assert image.tolist() == (expected.transpose(1, 2, 0) if shape[0] == 3 else expected.reshape(2, 3)).tolist()


@pytest.mark.parametrize("shape", [(), (4,), (2, 2, 2), (5, 1, 1, 1)])
def test_what_is_no_picture_is_not_drawn(shape: tuple[int, ...]) -> None:
    assert picture(np.arange(8.0), shape) is None


def test_features_that_are_no_picture_are_shown_as_numbers(tmp_path: Path) -> None:
    rows: dict[str, Any] = {"name": "features", "features": "pixels", "label": "label"}
    page = page_of(make(tmp_path, "features", rows=rows))
    assert "img" not in {tag for tag, _ in page.elements}
    assert re.search(r"\d+\.0 0\.5", page.text)


def test_the_command_writes_the_page_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXA_ROOT", str(tmp_path))
    dataset = make(tmp_path, "text")
    told = CliRunner().invoke(app, ["overview", "text_v1", "--output", str(tmp_path / "page.html")])
    assert (told.exit_code, told.output.strip()) == (0, str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text() == make_page(dataset, is_sample=False)
    beside = overview_path(dataset.layout, dataset.manifest)
    beside.unlink()
    assert CliRunner().invoke(app, ["overview", "text_v1"]).output.strip() == str(beside)
    assert beside.exists()
    assert json.loads(CliRunner().invoke(app, ["validate", "--json"]).output)[0]["holds"]


@pytest.mark.parametrize(
    ("least", "most", "marks"),
    [
        (2, 4, [2, 3, 4]),
        (110, 230, [120, 140, 160, 180, 200, 220]),
        (506, 1641, [600, 800, 1000, 1200, 1400, 1600]),
        (7, 300, [10, 20, 50, 100, 200]),
        (1, 250_000, [1, 10, 100, 1000, 10_000, 100_000]),
        (5, 5, [5]),
    ],
)
def test_marks_stand_atround_numbers(least: int, most: int, marks: list[int]) -> None:
    assert round_numbers(least, most) == marks
