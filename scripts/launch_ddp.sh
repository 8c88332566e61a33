#!/usr/bin/env bash
# Training in several processes: not in this version. One process: nexa train --config configs/default.yaml
set -eu
echo "error: Training with several processes is not part of this version. Use: python scripts/cli.py train --config configs/default.yaml" >&2
exit 2
