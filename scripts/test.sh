#!/usr/bin/env bash
# Makes or reuses the environment, then runs ruff and the test suite. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh train,eval,demo,dev
bash scripts/browser.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# The island has its own tests; not installed, it tests its plain version.
(cd mmcv-1.4.7 && ../.venv/bin/python -m pytest -q)
exec .venv/bin/python -m pytest -m "not slow and not gpu" "$@"
