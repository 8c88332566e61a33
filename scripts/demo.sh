#!/usr/bin/env bash
# The main job, from raw data to a verified package, offline and on a CPU. Each command is one that a user would type.
set -euo pipefail
cd "$(dirname "$0")/.."

run() { printf '\n$ %s\n' "$*"; "$@"; }
newest_package() { ls -t artifacts/package/*.tar.gz | head -n 1; }

run nexa prepare --config configs/data.yaml
run nexa train --config configs/default.yaml
run nexa evaluate --config configs/default.yaml --checkpoint artifacts/checkpoints/best.pt
run nexa judge --checkpoint artifacts/checkpoints/best.pt
run nexa package --config configs/default.yaml --output artifacts/package
run nexa verify "$(newest_package)"

# A second model on the same data, and a glimpse of the language model: its whole run takes about a minute.
run nexa train --config configs/default.yaml --override 'model={"name": "cnn"}' --override name=digits_cnn --override training.epochs=5
run nexa train --config configs/baseline.yaml --override training.max_steps=60

# A teacher asked, its good answers kept, a student trained, and held against one that had no teacher: about three minutes.
bash scripts/distill_demo.sh

run nexa leaderboard
printf '\nruns are in artifacts/runs, packages in artifacts/package, manifests in runs/manifests\n'
