#!/usr/bin/env bash
# Stage 1: the region encoder learns, everything else is frozen.
#   bash train_stage1.sh WORKDIR [any argument of `python -m gpt4roi.train`]
# The folder alone, given again, resumes its run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/scripts/launch.sh" 1 "$@"
