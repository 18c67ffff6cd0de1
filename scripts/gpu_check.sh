#!/usr/bin/env bash
# Everything that only a GPU can show, in at most nine minutes on one card: writes gpu_check.json and gpu_check.md.
#   bash scripts/gpu_check.sh [FOLDER] [--dry] [--only NAME...]        default: exp/gpu_check; --dry: tiny, on the CPU
set -euo pipefail
cd "$(dirname "$0")/.."
python=python
[[ -x .venv/bin/python ]] && python=.venv/bin/python
PYTHONPATH="$PWD:$PWD/tests:$PWD/tests/train" exec "$python" -m scripts.gpu_check "$@"
