"""Reading the user's files: every kind of dirt becomes a bad row with a reason, and reading goes on."""

import csv
import gzip
import io
import json
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_core.config.data import CsvFormat, FilesSource, JsonFormat, TextFormat
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.sources import csv_files, open_source, pieces, streams
from nexa_data.sources.csv_files import read_csv
from nexa_data.sources.raw import BadRow, RawRow

GOOD = b'{"a": 1}\n'


def read(folder: Path, path: str = "data", **settings) -> tuple[list[RawRow], list[BadRow]]:
    source = open_source(FilesSource(name="files", path=path, **settings), Layout(folder))
    rows = list(source.rows())
    return [row for row in rows if isinstance(row, RawRow)], [row for row in rows if isinstance(row, BadRow)]


def write(folder: Path, name: str, content: bytes) -> None:
    path = folder / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\0"}', "NUL byte"),
        (b"", "empty row"),
        (b"   ", "empty row"),
        (b"{}", "empty row"),
    ],
)
def test_a_dirty_json_line_is_one_bad_row_with_its_line_and_reason(tmp_path, line, reason):
    write(tmp_path, "x.jsonl", GOOD + line + b"\n" + GOOD)
    good, bad = read(tmp_path)
    assert [row.line for row in good] == [1, 3]
    assert [(row.file, row.line, row.reason) for row in bad] == [("data/x.jsonl", 2, reason)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1", "too few fields"),
        (b"1,2,3", "too many fields"),
        (b"", "empty row"),
        (b",", "empty row"),
        (b'"1"x,2', "text after a closing quote"),
        (b'1,"open', "unclosed quote"),
        (b"1,\xe9", "not UTF-8"),
        (b"1,\0", "NUL byte"),
        (b"1,a\rb", "carriage return inside a line"),
    ],
)
def test_a_dirty_csv_row_is_one_bad_row_with_its_line_and_reason(tmp_path, row, reason):
    write(tmp_path, "x.csv", b"a,b\n1,2\n" + row + b'\n3,"4"\n5,6\n')
    good, bad = read(tmp_path)
    assert [row.values for row in good] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "5", "b": "6"}]
    assert [(row.line, row.reason) for row in bad] == [(3, reason)]


def test_an_unclosed_quote_costs_one_line_however_long_the_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "MAX_RECORD_CHARS", 1000)
    write(tmp_path, "x.csv", b'a,b\n1,"open\n' + b"2,3\n" * 2000 + b'4,"open again\n' + b"5,6\n")
    good, bad = read(tmp_path)
    assert len(good) == 2001
    assert [(row.line, row.reason) for row in bad] == [(2, "unclosed quote"), (2003, "unclosed quote")]


def test_an_unclosed_quote_holds_no_more_of_the_file_in_memory_than_a_record_may_have(tmp_path, monkeypatch):
    numbers = []

    def counted(path):
        for line in streams.lines(path):
            numbers.append(line.number)
            yield line

    monkeypatch.setattr(csv_files, "MAX_RECORD_CHARS", 400)
    monkeypatch.setattr(csv_files, "lines", counted)
    write(tmp_path, "x.csv", b'1,"open\n' + b"2,3\n" * 2000)
    rows = read_csv(tmp_path / "data" / "x.csv", "x", CsvFormat(header=False, columns=("a", "b")))
    assert isinstance(next(rows), BadRow)
    assert len(numbers) == 100


def test_a_quoted_field_may_run_over_lines_and_hold_quotes_and_blank_lines(tmp_path):
    write(tmp_path, "x.csv", b'a,b\n1,"two ""lines""\n\nof text"\n2,x\n')
    good, bad = read(tmp_path)
    assert [(row.line, row.values["b"]) for row in good] == [(2, 'two "lines"\n\nof text'), (5, "x")]
    assert bad == []


def test_an_open_quote_that_a_later_one_closes_costs_its_own_line(tmp_path):
    good_rows = b"".join(b"row %d,b\n" % number for number in range(50))
    write(tmp_path, "x.csv", b'a,b\n"open quote,a\n' + good_rows + b'x",b,c\nlast,d\n')
    good, bad = read(tmp_path)
    assert [row.values["a"] for row in good] == [*(f"row {number}" for number in range(50)), "last"]
    assert [(row.line, row.reason) for row in bad] == [(2, "unclosed quote"), (53, "too many fields")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=2, max_size=2)
    )
)
def test_whatever_pythons_csv_writer_wrote_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    path.write_bytes(text.getvalue().encode())
    found = [row for row in read_csv(path, "x", CsvFormat(header=False, columns=("a", "b"))) if isinstance(row, RawRow)]
    assert [[row.values["a"], row.values["b"]] for row in found] == [row for row in rows if any(row)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([b'"', b",", b"a", b"\n", b"\r", b"\xff", b"\0", b"x,y\n", b'"q",z\n']), max_size=40))
def test_no_bytes_make_the_csv_reader_fail_or_lose_a_line_without_a_word(tmp_path_factory, pieces):
    data = b"".join(pieces)
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(data)
    rows = list(read_csv(path, "x", CsvFormat(header=False, columns=("a", "b"))))
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))
    first = next((number for number, line in enumerate(data.split(b"\n"), 1) if line.strip(b"\r\n")), None)
    assert first is None or first in lines


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    write(tmp_path, "x.csv", b"\xef\xbb\xbfa,b\n1,2\n")
    write(tmp_path, "y.jsonl", b"\xef\xbb\xbf" + GOOD)
    good, bad = read(tmp_path)
    assert [list(row.values) for row in good] == [["a", "b"], ["a"]]
    assert bad == []


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    write(tmp_path, "x.csv", b"a,b\n1,2\n\n\n")
    write(tmp_path, "y.jsonl", GOOD + b"\n \n")
    good, bad = read(tmp_path)
    assert len(good) == 2
    assert bad == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.csv", b"a,b\n", "header without rows"),
        ("x.csv", b"", "no rows in the file"),
        ("x.jsonl", b"", "no rows in the file"),
        ("x.json", b"", "no rows in the file"),
        ("x.json", b"[]", "no rows in the file"),
        ("x.txt", b"\n\n", "no rows in the file"),
        ("x.json", b'{"a": ', "unreadable file"),
        ("x.csv", b'a,"b\n', "unreadable file"),
        ("x.csv", "a,b\n1,2\n".encode("utf-16"), "unreadable file"),
        ("x.parquet", b"PAR1 but no more", "unreadable file"),
        ("x.jsonl.gz", b"not gzip at all", "unreadable file"),
        ("x.jsonl.zst", b"not zstd at all", "unreadable file"),
    ],
)
def test_a_file_without_a_usable_row_is_one_bad_row_naming_the_file(tmp_path, name, content, reason):
    write(tmp_path, name, content)
    write(tmp_path, "z.jsonl", GOOD)
    good, bad = read(tmp_path)
    assert [row.file for row in good] == ["data/z.jsonl"]
    assert [(row.file, row.line, row.reason) for row in bad] == [(f"data/{name}", None, reason)]


@pytest.mark.parametrize(("suffix", "codec"), [(".gz", "gzip"), (".zst", "zstd")])
def test_a_truncated_compressed_file_gives_its_beginning_and_one_bad_row(tmp_path, suffix, codec):
    lines = b"".join(json.dumps({"a": number**5}).encode() + b"\n" for number in range(20_000))
    whole = gzip.compress(lines) if codec == "gzip" else pyarrow.compress(lines, codec=codec, asbytes=True)
    write(tmp_path, f"whole.jsonl{suffix}", whole)
    good, bad = read(tmp_path)
    assert len(good) == 20_000
    assert bad == []
    write(tmp_path, f"whole.jsonl{suffix}", whole[: len(whole) // 2])
    good, bad = read(tmp_path)
    assert 0 < len(good) < 20_000
    assert all(row.values == {"a": number**5} for number, row in enumerate(good))
    assert [(row.line, row.reason) for row in bad] == [(None, "unreadable file")]


@pytest.mark.parametrize("piece_bytes", [1, 30_000, 2**20])
def test_a_damaged_row_group_costs_its_own_rows_alone(tmp_path, monkeypatch, piece_bytes):
    path = tmp_path / "data" / "x.parquet"
    path.parent.mkdir()
    table = pyarrow.table({"a": [str(n**7) for n in range(4000)]})
    parquet.write_table(table, path, row_group_size=1000, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    path.write_bytes(bytes(data))
    good, bad = read(tmp_path)
    numbers = {row.line for row in good}
    assert numbers >= {*range(1, 1001), *range(3001, 4001)}
    assert all(row.values == {"a": str((row.line - 1) ** 7)} for row in good)
    assert {row.reason for row in bad} == {"damaged row group"}
    assert sorted([*numbers, *(row.line for row in bad)]) == list(range(1, 4001))
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece_bytes)
    found, before = [], 0
    source = open_source(FilesSource(name="files", path="data"), Layout(tmp_path))
    cut = source.pieces()
    for piece in cut:
        found += [row._replace(line=row.line + before) for row in piece.rows()]
        before += piece.num_lines
    assert len(cut) == {1: 4, 30_000: 2, 2**20: 1}[piece_bytes]
    assert found == list(source.rows())
    assert len({piece.digest() for piece in cut}) == len(cut)


def test_a_parquet_text_that_is_not_utf8_costs_its_row_alone(tmp_path):
    (tmp_path / "data").mkdir()
    texts = pyarrow.array([b"one", b"tw\xff", b"three"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"a": texts}), tmp_path / "data" / "x.parquet")
    good, bad = read(tmp_path)
    assert [(row.line, row.values["a"]) for row in good] == [(1, "one"), (3, "three")]
    assert [(row.line, row.reason, row.detail) for row in bad] == [
        (2, "not UTF-8", "byte 0xff at byte 3 of column 'a'")
    ]


def test_a_line_of_enormous_length_is_a_bad_row_and_not_a_full_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 100)
    write(tmp_path, "x.jsonl", GOOD + b'{"a": "' + b"x" * 350 + b'"}\n' + GOOD)
    good, bad = read(tmp_path)
    assert [row.line for row in good] == [1, 3]
    assert [(row.line, row.reason) for row in bad] == [(2, "line too long")]


DIRT = [
    b'{"a": 1}',
    b'{"a": "\xff"}',
    b"",
    b"   ",
    b"{}",
    b"[1]",
    b'{"a": "\0"}',
    b'{"a": "' + b"x" * 150 + b'"}',
    b'{"a": 1}\r',
]


@given(st.lists(st.sampled_from(DIRT), min_size=1, max_size=12), st.booleans(), st.booleans(), st.booleans())
@settings(deadline=None)
def test_every_row_lies_at_its_offset_whatever_lies_before_it(
    tmp_path_factory, pieces, has_mark, is_packed, ends_with_a_line_end
):
    folder = tmp_path_factory.mktemp("dirt")
    content = b"\xef\xbb\xbf" * has_mark + b"\n".join(pieces) + b"\n" * ends_with_a_line_end
    write(folder, "x.jsonl.gz" if is_packed else "x.jsonl", gzip.compress(content) if is_packed else content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "MAX_LINE_BYTES", 100)
        good, bad = read(folder)
    for row in [*good, *(row for row in bad if row.line is not None)]:
        assert content[row.offset :].split(b"\n")[0] == pieces[row.line - 1]
    assert {row.line for row in good} == {
        number for number, piece in enumerate(pieces, 1) if piece in (DIRT[0], DIRT[-1])
    }


def test_the_excerpt_of_a_bad_row_is_short_valid_unicode(tmp_path):
    write(tmp_path, "x.jsonl", b'{"a": "\xff' + b"x" * 5000 + b"\n")
    _, bad = read(tmp_path)
    assert bad[0].raw.startswith('{"a": "\\xff')
    assert len(bad[0].raw.encode("utf-8")) < 1000


def test_json_documents_are_a_list_a_row_or_a_list_under_a_key(tmp_path):
    write(tmp_path, "a.json", b'[{"a": 1}, 7, {"a": 2}]')
    write(tmp_path, "b.json", b'{"a": 3}')
    good, bad = read(tmp_path)
    assert [row.values["a"] for row in good] == [1, 2, 3]
    assert [(row.line, row.reason) for row in bad] == [(2, "not a JSON object")]
    write(tmp_path, "c/c.json", b'{"items": [{"a": 4}]}')
    good, _ = read(tmp_path, "data/c", json=JsonFormat(records="items"))
    assert [row.values["a"] for row in good] == [4]
    _, bad = read(tmp_path, "data/c", json=JsonFormat(records="rows"))
    assert "'rows'" in bad[0].detail


@pytest.mark.parametrize(
    ("unit", "texts"),
    [("line", ["one", "two", "three"]), ("paragraph", ["one\ntwo", "three"]), ("file", ["one\ntwo\n\n\nthree"])],
)
def test_text_is_cut_into_lines_paragraphs_or_files(tmp_path, unit, texts):
    write(tmp_path, "x.txt", b"one\r\ntwo\n\n\nthree\n")
    good, bad = read(tmp_path, text=TextFormat(unit=unit))
    assert [row.values["text"] for row in good] == texts
    assert bad == []


def test_files_of_a_folder_are_read_in_sorted_order_and_hidden_ones_are_not(tmp_path):
    for name in ("b.jsonl", "a/z.jsonl", "a.jsonl", ".hidden.jsonl", ".git/x.jsonl"):
        write(tmp_path, name, GOOD)
    good, _ = read(tmp_path)
    assert [row.file for row in good] == ["data/a.jsonl", "data/a/z.jsonl", "data/b.jsonl"]


def test_a_glob_takes_what_it_matches_and_a_path_may_be_absolute(tmp_path):
    write(tmp_path, "b.jsonl", GOOD)
    write(tmp_path, "b.txt", b"no JSON")
    assert len(read(tmp_path, "data/*.jsonl")[0]) == 1
    assert len(read(tmp_path / "elsewhere", str(tmp_path / "data" / "b.jsonl"))[0]) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "data/x.cvs"}, ["No file or folder", "x.cvs", "Did you mean 'x.csv'", "y.xyz"]),
        ({"path": "data/*.parquet"}, ["No files", "*.parquet", "x.csv"]),
        ({"path": "other/x.csv"}, ["No file or folder", "data"]),
        ({"path": "data/empty"}, ["No files", "nothing"]),
        ({"path": "data/y.xyz"}, ["y.xyz", ".jsonl", ".parquet", "format:"]),
        ({"path": "data"}, ["y.xyz"]),
        ({"path": "data/x.csv", "text": TextFormat()}, ["source.text has no effect", "csv"]),
        ({"path": "data/x.csv", "json": JsonFormat()}, ["source.json has no effect"]),
        ({"path": "data/y.xyz", "format": "text", "csv": CsvFormat()}, ["source.csv has no effect"]),
    ],
)
def test_settings_that_fit_no_file_are_refused_with_what_is_there(tmp_path, settings, words):
    write(tmp_path, "x.csv", b"a\n1\n")
    write(tmp_path, "y.xyz", b"a\n")
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(UserError) as error:
        read(tmp_path, **settings)
    assert [word for word in words if word not in str(error.value)] == []


def test_columns_of_a_csv_file_are_named_once_each_and_can_be_renamed(tmp_path):
    write(tmp_path, "x.csv", b"a;a\n1;2\n")
    with pytest.raises(UserError, match=r"data/x.csv: the header has 'a' more than once"):
        read(tmp_path, csv=CsvFormat(delimiter=";"))
    good, _ = read(tmp_path, csv=CsvFormat(delimiter=";", columns=("a", "b")))
    assert [row.values for row in good] == [{"a": "1", "b": "2"}]
    with pytest.raises(UserError, match=r"the header has 2 columns, csv.columns names 3"):
        read(tmp_path, csv=CsvFormat(delimiter=";", columns=("a", "b", "c")))


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    write(tmp_path, "x.jsonl", GOOD)
    source = open_source(FilesSource(name="files", path="data/x.jsonl"), Layout(tmp_path))
    write(tmp_path, "x.jsonl", GOOD + GOOD)
    with pytest.raises(UserError, match="changed while it was being read"):
        list(source.rows())
    with pytest.raises(UserError, match="changed while it was being read"):
        source.origins()


def test_a_parquet_value_that_python_has_no_word_for_is_text(tmp_path):
    late = pyarrow.array([0, 253402300800], pyarrow.timestamp("s"))  # the second is in the year 10000
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.table({"a": [1, 2], "when": late}), tmp_path / "data" / "late.parquet")
    rows, bad = read(tmp_path)
    assert bad == []
    assert [row.values["a"] for row in rows] == [1, 2]
    assert str(rows[1].values["when"]).startswith("10000-01-01")


def test_what_reads_a_file_elsewhere_does_not_grow_with_the_number_of_files(tmp_path):
    for number in range(300):
        write(tmp_path, f"{number}.csv", b"a\n1\n")
    pieces = open_source(FilesSource(name="files", path="data"), Layout(tmp_path)).pieces()
    assert len(pickle.dumps(pieces[0])) < 2000
