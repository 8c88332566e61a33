#!/usr/bin/env bash
# The main job, from raw data to verified packages, offline and on a CPU. Each command is one that a user would type.
set -euo pipefail
cd "$(dirname "$0")/.."

run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
newest_package() { ls -t artifacts/package/*.tar.gz | head -n 1; }

run nexa prepare --config configs/data.yaml

for config in configs/default.yaml configs/baseline.yaml; do
  run nexa train --config "$config"
  run nexa evaluate --config "$config" --checkpoint artifacts/checkpoints/best.pt
  run nexa judge --checkpoint artifacts/checkpoints/best.pt
  run nexa package --config "$config" --output artifacts/package
  run nexa verify "$(newest_package)"
done

run nexa leaderboard
