#!/usr/bin/env bash
# Starts a training stage on every device of this machine: launch.sh STAGE WORKDIR [arguments]. Called by train_stage*.sh.
# Over several machines it is called by launch_nodes.sh, which sets GPT4ROI_NODES and GPT4ROI_MASTER.
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
nodes=${GPT4ROI_NODES:-1}
if [[ -e "$workdir" && ! -d "$workdir" ]] || ! mkdir -p "$workdir" 2>/dev/null || [[ ! -w "$workdir" ]]; then
    echo "$workdir: not a folder that can be written to; choose another work directory" >&2
    exit 2
fi
processes=$("$python" -m gpt4roi.train.launch "$stage" "$workdir" "$nodes" "$@")
log="$workdir/log.txt"
command=("$python")
if [[ $nodes -gt 1 ]]; then
    # Every machine names the same meeting place; which one is first is settled there.
    command=("$python" -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$((processes > 0 ? processes : 1))"
        --rdzv_backend c10d --rdzv_endpoint "$GPT4ROI_MASTER" --rdzv_id "$(basename "$workdir")")
    log="$workdir/log-$(hostname)-$$.txt"
elif [[ $processes -gt 1 ]]; then
    command=("$python" -m torch.distributed.run --standalone --nproc_per_node "$processes")
elif [[ $processes -eq 1 ]]; then
    # A process that sees several GPUs would spread its batches over all of them.
    visible=${CUDA_VISIBLE_DEVICES:-0}
    export CUDA_VISIBLE_DEVICES=${visible%%,*}
fi
if [[ $processes -eq 0 ]]; then
    # glibc gives large blocks back and fetches them anew each step, which costs more than the arithmetic.
    export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1
    [[ $nodes -gt 1 ]] && set -- "$@" --ddp_backend gloo
fi
# The training takes this script's place: its exit code is the script's, and a signal to the script ends it. Control-C,
# which reaches tee too, shall not keep its last words from the log.
exec > >(exec tee -i -a "$log") 2>&1
exec "${command[@]}" -m gpt4roi.train --stage "$stage" --output_dir "$workdir" "$@"
