#!/usr/bin/env bash
# Make .venv if needed, detect objects in a photograph, and compare with what the authors' own code found in it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
use_venv demo

model=mrcnn_dpt_t_1x out=runs/demo
photo=tests/reference/img_coffee_320x240.png
mkdir -p "$out"
# The trained weights need a download; these are made by a rule, and the authors' code was run on the same.
[ -f "$out/rule.safetensors" ] || python scripts/rule_weights.py "$model" "$out/rule.safetensors"
dpt-zoo detect "$photo" --model "$model" --weights "$out/rule.safetensors" --out "$out" --score-threshold 0.05
python scripts/compare_detections.py "$out/img_coffee_320x240.detections.json" tests/reference/detections_mask_rcnn_dpt_t.json
echo "The picture: $out/img_coffee_320x240.detections.png"
