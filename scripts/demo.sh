#!/usr/bin/env bash
# Make .venv if needed. Then detect, evaluate and fine-tune on scenes of handwritten digits, without any download.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
use_venv demo

model=mrcnn_dpt_nano_digits
out=runs/demo
data=$out/digits
rm -rf "$out/fine-tuned"

echo "== Scenes of handwritten digits"
dpt-zoo make-digits "$data" --num-train 60 --num-test 20

echo "== Detecting with the shipped $model"
python scripts/contact_sheet.py "$out/detections.png" "$model" "$data"/val2017/0000{01..12}.png

echo "== Evaluating it on the test scenes (COCO metrics, in percent)"
dpt-zoo evaluate "$model" --data-root "$data"

echo "== Fine-tuning it on the training scenes, stopped after half a minute ..."
fine_tune=(dpt-zoo train "$model" --data-root "$data" --work-dir "$out/fine-tuned" --epochs 2 --seed 0)
timeout 30 "${fine_tune[@]}" || [ $? -eq 124 ] # a signal, as Ctrl-C sends; 124: it was needed
echo "== ... and resumed"
"${fine_tune[@]}" --resume

echo "The picture: $PWD/$out/detections.png"
