#!/usr/bin/env bash
# Trains over several machines that share a file system; run the same line on every one of them:
#   bash scripts/launch_nodes.sh NODES HOST:PORT train_stage2.sh WORKDIR STAGE1 [arguments]
# NODES machines meet at HOST:PORT, one of them, by torchrun's rendezvous. A machine that comes late is waited for.
set -euo pipefail
if [[ $# -lt 4 || ! "$1" =~ ^[1-9][0-9]*$ || "$2" != *:* || ! -f "$(dirname "$0")/../$3" ]]; then
    echo "usage: bash scripts/launch_nodes.sh NODES HOST:PORT train_stage1.sh|train_stage2.sh WORKDIR [arguments]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
GPT4ROI_NODES=$1 GPT4ROI_MASTER=$2
export GPT4ROI_NODES GPT4ROI_MASTER
script=$3
shift 3
exec bash "$here/$script" "$@"
