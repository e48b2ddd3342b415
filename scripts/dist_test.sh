#!/usr/bin/env bash
# Evaluate in several processes, see dist_train.sh:
#   scripts/dist_test.sh configs/mask_rcnn_dpt_t_fpn_1x_coco.py mrcnn_dpt_t_1x.pth 8 --tasks bbox segm
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[[ $# -ge 3 && "$3" =~ ^[1-9][0-9]*$ ]] || usage "CONFIG WEIGHTS NUM_GPUS [options of dpt-zoo evaluate]"

run_processes "$3" evaluate "$1" --weights "$2" "${@:4}"
