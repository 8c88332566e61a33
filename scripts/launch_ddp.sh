#!/usr/bin/env bash
# Train in several processes, on this node or together with others: torchrun around train, with train's own exit codes.
#
#   scripts/launch_ddp.sh --config configs/default.yaml                                    one node, a process for each GPU
#   NPROC_PER_NODE=2 scripts/launch_ddp.sh --config configs/default.yaml --resume          one node, two processes
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node-a scripts/launch_ddp.sh --config ... --resume    the first of two nodes
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=node-a scripts/launch_ddp.sh --config ... --resume    the second
#
# Every argument is one of train's. Under Slurm (srun) and Kubeflow Trainer the variables are read from theirs.
# docs/distributed.md has them all.
set -euo pipefail

case "${1:-}" in
  -h | --help)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    exit 0
    ;;
esac

# In place of this shell, so that a SIGTERM reaches torchrun and through it every worker.
exec python -m nexa_ops.torchrun "$@"
