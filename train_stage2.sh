#!/usr/bin/env bash
# Stage 2: everything but the vision tower learns, starting from stage 1's folder.
#   bash train_stage2.sh WORKDIR STAGE1 [any argument of `python -m gpt4roi.train`]
# The folder alone, given again, resumes its run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [[ $# -ge 2 && "$2" != --* ]]; then
    workdir=$1 stage1=$2
    shift 2
    set -- "$workdir" --model_name_or_path "$stage1" "$@"
fi
exec "$here/scripts/launch.sh" 2 "$@"
