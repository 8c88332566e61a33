#!/usr/bin/env bash
# Distillation, offline and on a CPU: prompts, the shipped teacher's answers, the good ones, a student; and the same student
# without a teacher, to see on questions that none of them has seen what the teacher was worth.
set -euo pipefail
cd "$(dirname "$0")/.."

run() { printf '\n$ %s\n' "$*"; "$@"; }
newest() { ls -td "${NEXA_ROOT:-.}"/artifacts/runs/distillation/"$1"_[0-9]*/checkpoints/best.pt | head -n 1; }

run nexa prepare --config configs/distill_data.yaml
run python -m nexa_distill.collect_teacher
run python -m nexa_distill.filter_pairs
run python -m nexa_train.distill --config nexa_train/configs/baseline.yaml
run nexa train --config nexa_train/configs/control.yaml
run nexa compare --checkpoint "$(newest student)" --with "$(newest control)" \
  --data problems_test_v1 --override evaluation.split=test --metric final_answer --alpha 0.01
