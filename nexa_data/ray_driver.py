"""The process that drives Ray: it reads a function and pieces, and prints what the function makes of each, in order.

It is a process of its own because Ray ends the one it runs in when a thread of Ray Data is late, and takes its signals.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle

from nexa_core.environment import num_cores
from nexa_core.errors import UserError
from nexa_data.sources.raw import Piece

DONE = "done"
Make = Callable[[Piece], tuple[Any, int]]


def main() -> None:
    make, pieces = cloudpickle.load(sys.stdin.buffer)
    results, sys.stdout = sys.stdout, sys.stderr  # whatever else prints is for people
    for row in _rows(make, pieces):
        print(json.dumps(row), file=results, flush=True)
    print(json.dumps(DONE), file=results, flush=True)
    import ray

    ray.shutdown()  # all that counts has been said, should it end this process


def _rows(make: Make, pieces: Sequence[Piece]) -> Iterator[dict[str, str | int]]:
    import ray
    import ray.data

    # Joins the cluster of RAY_ADDRESS, or starts one on this machine.
    alone = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False, "num_cpus": num_cores()}
    ray.init(log_to_driver=False, logging_level=logging.WARNING, **alone)  # type: ignore[arg-type]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    numbers = ray.data.range(len(pieces), override_num_blocks=len(pieces))
    yield from numbers.map(_row_maker(make, pieces)).iter_rows()


def _row_maker(make: Make, pieces: Sequence[Piece]) -> Callable[[dict[str, int]], dict[str, str | int]]:
    """`make` as Ray Data calls it: with a row that says which piece. Ray would wrap a user's mistake in its own."""

    def row_of(row: dict[str, int]) -> dict[str, str | int]:
        try:
            path, num_lines = make(pieces[row["id"]])
        except UserError as error:
            return {"path": "", "num_lines": 0, "mistake": str(error)}
        return {"path": str(path), "num_lines": num_lines, "mistake": ""}

    return row_of


if __name__ == "__main__":
    main()
