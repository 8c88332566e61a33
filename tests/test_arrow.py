"""Arrow does not load what it has no use for, and loads it when it has."""

import subprocess
import sys

CODE = """
import sys
import nexa_data.tables
import pyarrow
table = pyarrow.table({"a": [1, 2], "b": ["x", None]})
assert "pandas" not in sys.modules
frame = table.to_pandas()
assert list(frame["a"]) == [1, 2]
import pandas
assert pyarrow.array(pandas.Series([1, 2])).to_pylist() == [1, 2]
assert pyarrow.array(pandas.Index(["x"])).to_pylist() == ["x"]
assert pyarrow.Table.from_pandas(frame).column_names == ["a", "b"]
"""


def test_arrays_are_made_without_pandas_and_frames_with_it() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
