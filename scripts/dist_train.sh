#!/usr/bin/env bash
# Train in several processes, one for each GPU; without GPUs, the processes share the CPU:
#   scripts/dist_train.sh configs/mask_rcnn_dpt_t_fpn_1x_coco.py 8 --data-root coco
# On several nodes, run it on each: NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 PORT=29500 scripts/dist_train.sh ...
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[[ $# -ge 2 && "$2" =~ ^[1-9][0-9]*$ ]] || usage "CONFIG NUM_GPUS [options of dpt-zoo train]"

run_processes "$2" train "$1" "${@:3}"
