"""NexaCompute's own contestant: `prepare`, with its manifest, rejects and digests.

python ours.py rows.jsonl folder [memory_limit] [near_duplicates]
"""

import json
import sys
from pathlib import Path

from nexa_core.config import DataConfig
from nexa_core.paths import Layout
from nexa_data.prepare import prepare

DATASET = {
    "name": "rows",
    "source": {"name": "files"},
    "rows": {"name": "text", "text": "text", "label": "label"},
    "output": {"name": "training"},
}


def main() -> None:
    rows, folder, *options = sys.argv[1:]
    dataset = {**DATASET, "source": {"name": "files", "path": rows}}
    if "near_duplicates" in options:
        dataset["near_duplicates"] = {}
    means = {"memory_limit": "1GiB"} if "memory_limit" in options else {}
    (made,) = prepare(
        DataConfig.model_validate_json(json.dumps({"datasets": [dataset], **means})), Layout(Path(folder))
    )
    print(made.num_rows, made.num_rejected)


if __name__ == "__main__":
    main()
