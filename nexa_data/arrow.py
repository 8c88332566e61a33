"""Arrow at once: what its library would load and not use is left out."""

import sys
from importlib.abc import MetaPathFinder

import pyarrow


class _NoPandas(MetaPathFinder):
    """Finds nothing, and no pandas either."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ImportError(fullname)


def leave_pandas_out() -> None:
    """Make arrays of lists without pandas, which Arrow else imports for the first of them, in 0.2 s, to see whether it is one.

    `to_pandas` and whatever else is asked of pandas by name import it all the same.
    """
    if "pandas" not in sys.modules:
        finder = _NoPandas()
        sys.meta_path.insert(0, finder)
        try:
            pyarrow.array([])  # Arrow looks for it here, and once
        finally:
            sys.meta_path.remove(finder)
