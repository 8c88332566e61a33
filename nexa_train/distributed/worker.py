"""One of the processes that `launch` starts: `python -m nexa_train.distributed.worker ORDER`."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from nexa_core import durable
from nexa_core.command import run_to_exit
from nexa_core.config import RunConfig
from nexa_core.errors import Stopped
from nexa_core.paths import Layout
from nexa_train.distributed.world import read_world


def work(order_path: Path) -> None:
    from nexa_train.supervision import Bystander
    from nexa_train.train import run

    order = json.loads(order_path.read_bytes())
    config_path, resume_from, apart = (
        None if order[key] is None else Path(order[key]) for key in ("config_path", "resume_from", "apart")
    )
    is_main = read_world(os.environ).is_main
    try:
        result = run(
            RunConfig.model_validate_json(json.dumps(order["config"])),
            layout=Layout(Path(order["root"]), apart=apart),
            config_path=config_path,
            resume=order["resume"],
            resume_from=resume_from,
            supervisor=Bystander() if order["is_trial"] else None,
        )
    except KeyboardInterrupt:  # the launcher has the words for it
        raise Stopped("") from None
    if is_main:
        durable.write_json(Path(order["done"]), {"run_dir": str(result.run.path)})


def leave(exit_code: int) -> NoReturn:
    """End at once: a group that an error left has native threads, on which the interpreter's own end aborts."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    try:
        run_to_exit(lambda: work(Path(sys.argv[1])))
    except SystemExit as ending:
        leave(int(ending.code or 0))
