#!/usr/bin/env bash
# Starts a training stage on every device of this machine: launch.sh STAGE WORKDIR [arguments]. Called by train_stage*.sh.
set -euo pipefail
stage=$1
if [[ $# -lt 2 || "$2" == --* ]]; then
    echo "usage: bash train_stage$stage.sh WORKDIR$([[ $stage == 2 ]] && echo ' STAGE1') [arguments]" >&2
    exit 2
fi
workdir=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
python=python
[[ -x "$here/.venv/bin/python" ]] && python="$here/.venv/bin/python"
mkdir -p "$workdir"
devices=$("$python" -c 'import torch; print(torch.cuda.device_count())')
command=("$python")
if [[ $devices -gt 1 ]]; then
    command=("$python" -m torch.distributed.run --standalone --nproc_per_node "$devices")
elif [[ $devices -eq 0 ]]; then
    # glibc gives large blocks back and fetches them anew each step, which costs more than the arithmetic.
    export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1
fi
# The exit code is the training's, not tee's.
set +e
"${command[@]}" -m gpt4roi.train --stage "$stage" --output_dir "$workdir" "$@" 2>&1 | tee -a "$workdir/log.txt"
exit "${PIPESTATUS[0]}"
