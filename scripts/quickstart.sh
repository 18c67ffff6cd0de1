#!/usr/bin/env bash
# From nothing to a region-level model that answers: environment, data, alignment, stage 1, stage 2, evaluation, report.
#   bash scripts/quickstart.sh [FOLDER]      default: exp/quickstart
# Interrupted and run again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-exp/quickstart}
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
cat > "$folder/stage1.json" <<JSON
[{"type": "unified", "ann_file": "$folder/data/train.jsonl", "image_pipeline": "detection",
  "pairs_per_epoch": {"caption": 4}}]
JSON
cat > "$folder/stage2.json" <<JSON
[{"type": "unified", "ann_file": "$folder/data/train.jsonl", "image_pipeline": "detection",
  "pairs_per_epoch": {"caption": 3, "larger": 3, "left": 2, "above": 2, "count": 1}}]
JSON
common=(--feature_cache "$folder/features" --attn_implementation eager --seed 0 --report_to none
    --save_total_limit 1 --align_weight 1.0)
# A GPU picks its own precision, and not every one has this.
.venv/bin/python -c 'import sys, torch; sys.exit(torch.cuda.is_available())' && common+=(--bf16)
phase "alignment and stage 1: the region encoder learns" bash train_stage1.sh "$folder/stage1" \
    --model_name_or_path "$folder/data/parts/language_model" --vision_tower "$folder/data/parts/vision_tower" \
    --region_encoder_type light --image_grid_size 4 --prompt_format chat --system_prompt "" \
    --align_regions 16 --align_learning_rate 3e-3 --region_mixup 0.5 --region_noise 0.5 --dataset_config "$folder/stage1.json" "${common[@]}" \
    --max_steps 12 --global_batch_size 16 --per_device_train_batch_size 16 \
    --learning_rate 3e-4 --learning_rates mm_projector=1e-3 --warmup_steps 0.1
phase "stage 2: everything but the vision tower learns" bash train_stage2.sh "$folder/stage2" "$folder/stage1" \
    --dataset_config "$folder/stage2.json" "${common[@]}" --region_mixup 0.3 --region_noise 0.3 \
    --max_steps 220 --global_batch_size 4 --per_device_train_batch_size 4 --activation_checkpointing false \
    --learning_rate 2e-4 --learning_rates language_model=4e-4 --warmup_steps 0.05 --save_steps 110
cp quickstart/model_card.md "$folder/stage2/README.md" # the page shows its limitations
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
