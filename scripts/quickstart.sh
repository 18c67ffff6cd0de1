#!/usr/bin/env bash
# From nothing to a region-level model that answers: environment, data, alignment, stage 1, stage 2, evaluation, report.
#   bash scripts/quickstart.sh [FOLDER] [--recipe FILE] [--seed N]      default: exp/quickstart, quickstart/recipe.json, 0
# quickstart/recipe_one_token.json is that of version 0.1, without photographs. Interrupted and run again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=exp/quickstart recipe=quickstart/recipe.json seed=0
while [[ $# -gt 0 ]]; do
    case $1 in
        --recipe) recipe=${2:?--recipe needs a file} && shift 2 ;;
        --seed) seed=${2:?--seed needs a number} && shift 2 ;;
        -*) echo "usage: bash scripts/quickstart.sh [FOLDER] [--recipe FILE] [--seed N]" >&2 && exit 2 ;;
        *) folder=$1 && shift ;;
    esac
done
[[ -f $recipe ]] || { echo "$recipe: no such recipe; quickstart/recipe.json is one" >&2 && exit 2; }
mkdir -p "$folder"
phase() { # phase NAME COMMAND...: runs a phase and adds its minutes to the report's table
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@"
    .venv/bin/python -c 'import json, pathlib, sys
path, name, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
phases = json.loads(path.read_text()) if path.exists() else {}
phases[name] = round(phases.get(name, 0) + seconds / 60, 2)
path.write_text(json.dumps(phases, indent=1))' "$folder/phases.json" "$name" $((SECONDS - start))
}
bash scripts/environment.sh train,eval
gpt4roi=.venv/bin/gpt4roi
phase "data: fetch the parts, compose the scenes" .venv/bin/python -m quickstart --out "$folder/data"
# A GPU picks its own precision, and not every one has this.
precision=()
.venv/bin/python -c 'import sys, torch; sys.exit(torch.cuda.is_available())' && precision=(--bf16)
stage() { # stage N TRAINER-ARGUMENTS...: trains a stage as the recipe says
    local number=$1 flags
    shift
    flags=$(.venv/bin/python -m quickstart.recipe "stage$number" "$recipe" "$folder")
    mapfile -t flags <<< "$flags"
    bash "train_stage$number.sh" "$@" "${flags[@]}" "${precision[@]}" --seed "$seed"
}
phase "alignment and stage 1: the region encoder learns" stage 1 "$folder/stage1"
phase "stage 2: everything but the vision tower learns" stage 2 "$folder/stage2" "$folder/stage1"
.venv/bin/python -m quickstart.model_card "$folder/stage2"               # what the page says of the model,
.venv/bin/python -m quickstart.examples "$folder/data" "$folder/stage2" # and its example images
phase "evaluation on held-out scenes" "$gpt4roi" evaluate --model "$folder/stage2" --benchmark quickstart/benchmark/stamps.py \
    --data "$folder/data" --out "$folder" --phases "$folder/phases.json"

printf '\n== two regions of a held-out image\n'
read -r image box1 box2 < <(.venv/bin/python -c 'import json, sys
scene = json.loads(open(sys.argv[1] + "/data/test.jsonl").readline())
boxes = [",".join(map(str, box)) for box in scene["boxes"][:2]]
print(sys.argv[1] + "/data/" + scene["image"], *boxes)' "$folder")
printf '$ gpt4roi describe %s --box %s --box %s\n' "$image" "$box1" "$box2"
"$gpt4roi" describe "$image" --box "$box1" --box "$box2" --model "$folder/stage2" 2> /dev/null
printf '\nMinutes by phase:\n'
tr -d '{}"' < "$folder/phases.json" | sed '/^ *$/d'
printf '\nThe report, with images: %s/report.html\n' "$folder"
