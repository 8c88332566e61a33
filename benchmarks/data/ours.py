"""NexaCompute's own contestant: `prepare`, with its manifest, rejects and digests.

python ours.py rows.jsonl folder
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
    rows, folder = sys.argv[1:]
    dataset = {**DATASET, "source": {"name": "files", "path": rows}}
    (made,) = prepare(DataConfig.model_validate_json(json.dumps({"datasets": [dataset]})), Layout(Path(folder)))
    print(made.num_rows, made.num_rejected)


if __name__ == "__main__":
    main()
