#!/usr/bin/env bash
# Makes .venv, or reuses it, with the package and the named extras: environment.sh train,dev
# PYTHON names another interpreter than python3; with NEWEST=1, packages may be newer than scripts/constraints.txt says.
# Called by the other scripts.
set -euo pipefail
extras=$1
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
base=${PYTHON:-python3}
if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "$base is not Python 3.10 or newer; install one (Debian, Ubuntu: apt install python3 python3-venv) or set PYTHON" >&2
    exit 2
fi
if [[ ! -x .venv/bin/pip ]]; then
    echo "== making .venv with $("$base" --version)"
    "$base" -m venv .venv || { echo "python3-venv is missing: apt install python3-venv" >&2; exit 2; }
fi
limits=scripts/constraints.txt
[[ ${NEWEST:-} != 1 ]] || limits=/dev/null
wanted="$extras $(cat pyproject.toml "$limits" | cksum)"
if [[ ! -f .venv/installed.txt ]] || ! grep -qxF "$wanted" .venv/installed.txt; then
    echo "== installing gpt4roi[$extras] (PyTorch is large; the first time takes minutes)"
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --progress-bar on --constraint "$limits" -e ".[$extras]"
    echo "$wanted" >> .venv/installed.txt
fi
