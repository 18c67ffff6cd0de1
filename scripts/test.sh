#!/usr/bin/env bash
# Makes or reuses the environment, then runs the linters and the test suite.
#   bash scripts/test.sh [PYTEST ARGUMENTS]          everything, in two processes; `-n 8` after it takes eight
#   bash scripts/test.sh --fast [PYTEST ARGUMENTS]   for every change, in about a minute: ruff, and what is not marked heavy
set -euo pipefail
cd "$(dirname "$0")/.."
fast=0
[[ ${1:-} != --fast ]] || { fast=1; shift; }
bash scripts/environment.sh train,eval,demo,serve,dev,docs
.venv/bin/ruff check .
.venv/bin/ruff format --check .
pytest=(.venv/bin/python -m pytest -n 2 --dist loadfile)
unset PYTHONDONTWRITEBYTECODE # some container images set it; each process would compile all tests anew
if [[ $fast == 1 ]]; then
    mapfile -t heavy < <(grep -rlE '^pytestmark = .*(heavy|browser)' tests) # whole files, which are not even imported
    exec "${pytest[@]}" -m "not heavy and not slow and not browser and not gpu" "${heavy[@]/#/--ignore=}" "$@"
fi
.venv/bin/mypy
bash scripts/browser.sh
# The island has its own tests; not installed, it tests its plain version.
(cd mmcv-1.4.7 && ../.venv/bin/python -m pytest -q)
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
exec "${pytest[@]}" -m "not slow and not gpu" "$@"
