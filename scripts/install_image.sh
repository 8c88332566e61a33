#!/usr/bin/env bash
# The Dockerfile's one step, runnable anywhere: an environment at NEXA_PREFIX (default /opt/nexa) with everything pinned.
# Usage: install_image.sh [index of torch wheels]; without an index torch comes from pip's own.
set -euo pipefail
cd "$(dirname "$0")/.."
prefix="${NEXA_PREFIX:-/opt/nexa}"

if ! command -v python3 >/dev/null || ! python3 -c 'import ensurepip' 2>/dev/null; then
  apt-get update
  apt-get install --yes --no-install-recommends python3 python3-venv
  rm -rf /var/lib/apt/lists/*
fi

python3 -m venv "$prefix"
torch="$(grep '^torch==' requirements.txt)"
"$prefix/bin/pip" install --no-cache-dir "$torch" ${1:+--index-url "$1"}
"$prefix/bin/pip" install --no-cache-dir -r requirements.txt
"$prefix/bin/nexa" doctor
